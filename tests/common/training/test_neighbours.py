import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.neighbors import KNeighborsClassifier

from components.common.training import neighbours
from components.common.training.neighbours import nearest_neighbours


def test_neighbours_vote_as_in_scikit_learn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neighbours, "CHUNK", 3)
    rng = np.random.default_rng(0)
    features, bank = (F.normalize(torch.from_numpy(rng.normal(size=(n, 5))), dim=1) for n in (7, 40))
    labels = rng.integers(0, 2, (40, 2)).astype(float)
    labels[rng.random((40, 2)) < 0.2] = np.nan

    scores = nearest_neighbours(features, bank, labels, neighbours=9)

    for finding in range(2):
        known = ~np.isnan(labels[:, finding])
        # On the unit sphere, cosine similarity is 1 - d^2 / 2.
        voters = KNeighborsClassifier(9, weights=lambda d: np.exp((1 - d**2 / 2) / neighbours.TEMPERATURE))
        voters.fit(bank[known].numpy(), labels[known, finding])
        np.testing.assert_allclose(scores[:, finding], voters.predict_proba(features.numpy())[:, 1], rtol=1e-6)


def test_a_finding_without_known_labels_has_no_scores() -> None:
    scores = nearest_neighbours(torch.eye(2), torch.eye(2), np.array([[1.0, np.nan], [0.0, np.nan]]))
    assert scores[0, 0] > 0.9 > 0.1 > scores[1, 0]
    assert np.isnan(scores[:, 1]).all()
