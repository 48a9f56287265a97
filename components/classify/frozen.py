"""Protocols on the features of a frozen backbone: a linear probe, and a vote of the nearest neighbours.

Features are computed once, from images without augmentation and with the batch statistics of the backbone. Nothing is random, and a
stopped run begins again. Fits take seconds.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from typing import NamedTuple, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from components.classify.losses import prior_logits
from components.classify.network import fold_standardisation
from components.classify.task import Array, Task, macro_auroc
from components.common.formats.history import HISTORY, write_history
from components.common.runs.params import Runtime
from components.common.runs.stage_run import StageRun
from components.common.statistics.arrays import Flags
from components.common.training import backbones, processes
from components.common.training.neighbours import nearest_neighbours
from components.common.training.reader import Reader

STRENGTHS = tuple(np.logspace(1, -5, 13))
"""Weights of the L2 penalty, from the strongest."""
NEIGHBOURS = (10, 20, 100, 200)
"""Numbers of neighbours, as in Caron et al., ICCV 2021, section 4.1."""
SMALLEST_STD = 1e-4  # lower bound on a feature's standard deviation, so that one that hardly varies is not amplified

T = TypeVar("T")


class Linear(NamedTuple):
    """One logistic regression per finding."""

    strength: float  # of the L2 penalty
    weight: Tensor  # (C, F), float64
    bias: Tensor  # (F,), float64


class Frozen(Task):
    """A task whose backbone stays as it is."""

    @cached_property
    def val_features(self) -> Tensor:
        """Pooled features (N, C) of the validation split."""
        return self.features(self.val)

    def features(self, reader: Reader) -> Tensor:
        """Computes pooled features (N, C) in the order of the reader's table; rows that the reader leaves out are 0."""
        head, self.network.fc = self.network.fc, nn.Identity()
        found = self.collect(reader, self.network.eval(), backbones.width(self.network))
        self.network.fc = head
        return found

    def labelled(self) -> tuple[Tensor, Tensor]:
        """Computes features (N, C) and targets (N, F) of the labelled training images."""
        return self.features(self.train)[self.rows], torch.from_numpy(self.targets[self.rows]).to(self.device)

    def choose(self, candidates: Sequence[T], scores: Callable[[T], Array], job: StageRun | None) -> tuple[T, float]:
        """Returns the candidate with the highest macro AUROC on the validation split, the first of ties, and that AUROC.

        If no finding has both classes there, it is the first.
        """
        if job:
            write_history(job.folder / HISTORY, [])  # there are no epochs
        aurocs = [macro_auroc(self.val.labels(), scores(each)) for each in candidates]
        best = processes.broadcast_object(int(np.argmax(np.nan_to_num(aurocs))))
        return candidates[best], aurocs[best]


class LinearProbe(Frozen):
    """A logistic regression per finding, with the strength of the L2 penalty chosen on the validation split for all findings together.

    Features are standardised by the training images, so that the penalty treats them alike; in the end the standardisation is
    folded into the head.
    """

    def fit(self, job: StageRun | None, runtime: Runtime) -> dict[str, float]:
        """Fits every strength and keeps the best."""
        features, targets = self.labelled()
        self._mean, self._std = features.double().mean(0), features.double().std(0, correction=0).clamp_min(SMALLEST_STD)
        path = list(regression_path(self._standard(features), targets, self.trained, STRENGTHS))
        val = self._standard(self.val_features)
        self._chosen, auroc = self.choose(path, lambda each: (val @ each.weight + each.bias).cpu().numpy(), job)
        return {"strength": self._chosen.strength, "val_auroc_macro": auroc}

    def _standard(self, features: Tensor) -> Tensor:
        return (features.double() - self._mean) / self._std

    def best_network(self) -> torchvision.models.ResNet:
        """Returns the backbone with the chosen regression as its head."""
        width, findings = self._chosen.weight.shape
        head = nn.Linear(width, findings, dtype=torch.float64)
        with torch.no_grad():
            head.weight.copy_(self._chosen.weight.T)
            head.bias.copy_(self._chosen.bias)
        self.network.fc = fold_standardisation(head, self._mean.cpu(), self._std.cpu()).to(self.device)
        processes.broadcast([self.network.fc.weight, self.network.fc.bias])
        return self.network

    @torch.no_grad()
    def predict(self, network: nn.Module, reader: Reader) -> Array:
        """Computes logits (N, findings); those of the validation split from its features, unless the mirror images are needed too."""
        if reader is not self.val or self.params.tta_flip:
            return super().predict(network, reader)
        logits: Tensor = self.network.fc(self.val_features)
        return logits.cpu().numpy()


class NearestNeighbours(Frozen):
    """A weighted vote of the nearest labelled training images (Wu et al. 2018); their number is chosen on the validation split."""

    def fit(self, job: StageRun | None, runtime: Runtime) -> dict[str, float]:
        """Computes the features of the labelled training images and chooses the number of neighbours, which is below theirs."""
        features, targets = self.labelled()
        self._bank, self._known = F.normalize(features, dim=1), targets.double().cpu().numpy()
        self._prior = torch.sigmoid(prior_logits(targets)).cpu().numpy()
        counts = sorted({min(count, len(features) - 1) for count in NEIGHBOURS})
        self._neighbours, auroc = self.choose(counts, lambda count: self._vote(self.val_features, count), job)
        return {"neighbours": self._neighbours, "val_auroc_macro": auroc}

    def scores(self, reader: Reader) -> Array:
        """Computes shares of votes (N, findings) in the order of the reader's table."""
        return self._vote(self.val_features if reader is self.val else self.features(reader), self._neighbours)

    def _vote(self, features: Tensor, neighbours: int) -> Array:
        votes = nearest_neighbours(F.normalize(features, dim=1), self._bank, self._known, neighbours)
        return np.where(self.trained, votes, self._prior).astype(np.float32)


def regression_path(features: Tensor, targets: Tensor, fitted: Flags, strengths: Sequence[float]) -> Iterator[Linear]:
    """Fits a logistic regression per finding, for each strength of the L2 penalty.

    Minimises the mean cross-entropy over the known labels of a finding plus strength / 2 times the squared norm of its weights; the
    bias is not penalised. That is LogisticRegression of scikit-learn with C = 1 / (strength * known labels), for all findings in
    one pass over the features, on any device.

    Args:
        features: (N, C), float64.
        targets: (N, F), 1, 0 or NaN.
        fitted: (F,), the findings with both classes; the others get their prior and no weights.
        strengths: positive and descending; each fit starts from the one before.
    """
    known = ~targets.isnan()
    labels = targets.nan_to_num(0.0).double()
    share = known / known.sum(0).clamp_min(1)
    free = torch.from_numpy(fitted).to(features.device)
    weight = torch.zeros(features.shape[1], len(fitted), dtype=torch.float64, device=features.device, requires_grad=True)
    bias = prior_logits(targets).double().requires_grad_()
    for strength in strengths:
        optimizer = torch.optim.LBFGS([weight, bias], max_iter=1000, tolerance_grad=1e-6, line_search_fn="strong_wolfe")

        def loss(strength: float = strength, optimizer: torch.optim.LBFGS = optimizer) -> Tensor:
            optimizer.zero_grad()
            terms = F.binary_cross_entropy_with_logits(features @ weight + bias, labels, reduction="none") * share
            total: Tensor = (terms.sum(0) + strength / 2 * weight.square().sum(0))[free].sum()
            total.backward()  # type: ignore[no-untyped-call]
            return total

        optimizer.step(loss)  # type: ignore[no-untyped-call]
        yield Linear(float(strength), weight.detach().clone(), bias.detach().clone())
