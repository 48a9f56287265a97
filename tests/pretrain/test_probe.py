from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import torch.nn.functional as F
from sklearn.neighbors import KNeighborsClassifier

from components.common.errors import UserError
from components.common.runs.shards import open_shards
from components.common.training.devices import to_unit
from components.common.training.reader import Batch
from components.pretrain import probe
from tests.conftest import MakeShards, replace_part


def test_neighbours_vote_as_in_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    features, bank = (F.normalize(torch.from_numpy(rng.normal(size=(n, 5))), dim=1) for n in (7, 40))
    labels = rng.integers(0, 2, (40, 2)).astype(float)
    labels[rng.random((40, 2)) < 0.2] = np.nan

    scores = probe.nearest_neighbours(features, bank, labels, neighbours=9)

    for finding in range(2):
        known = ~np.isnan(labels[:, finding])
        # On the unit sphere, cosine similarity is 1 - d^2 / 2.
        voters = KNeighborsClassifier(9, weights=lambda d: np.exp((1 - d**2 / 2) / probe.TEMPERATURE))
        voters.fit(bank[known].numpy(), labels[known, finding])
        np.testing.assert_allclose(scores[:, finding], voters.predict_proba(features.numpy())[:, 1], rtol=1e-6)


def test_a_finding_without_known_labels_has_no_scores() -> None:
    scores = probe.nearest_neighbours(torch.eye(2), torch.eye(2), np.array([[1.0, np.nan], [0.0, np.nan]]))
    assert scores[0, 0] > 0.9 > 0.1 > scores[1, 0]
    assert np.isnan(scores[:, 1]).all()


def side_brightness(batch: Batch) -> torch.Tensor:
    """Returns features that reveal the findings: the brightness of each side."""
    image = to_unit(batch.images, torch.device("cpu"))
    return torch.stack([image[..., 12:24, 6:13].mean((1, 2, 3)), image[..., 12:24, 18:25].mean((1, 2, 3))], dim=1)


def test_features_that_show_the_findings_predict_them(make_shards: MakeShards) -> None:
    found = probe.Probe(open_shards(make_shards(images=120)), width=2, device=torch.device("cpu"))
    assert found(side_brightness, batch_size=7) > 0.8
    noise = torch.Generator().manual_seed(0)
    assert found(lambda batch: torch.randn(len(batch.rows), 2, generator=noise), batch_size=7) < 0.75


def test_large_splits_are_thinned_out_evenly(make_shards: MakeShards, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "MOST_IMAGES", 5)
    images = probe.Labelled(open_shards(make_shards()), "train")
    assert images.rows.tolist() == [0, 8, 17, 26, 35]
    seen = [int(row) for batch in images.reader.in_order(3) for row in batch.rows]
    assert seen == images.rows.tolist()


def test_without_labels_there_is_no_probe(make_shards: MakeShards) -> None:
    folder = Path(make_shards())
    for part in folder.glob("*.parquet"):
        table = pq.read_table(part)
        unknown = pa.array([[float("nan")] * 2] * len(table), table.schema.field("labels").type)
        replace_part(part, table.set_column(table.schema.get_field_index("labels"), table.schema.field("labels"), unknown))
    with pytest.raises(UserError, match="no finding has both classes"):
        probe.Probe(open_shards(str(folder)), width=2, device=torch.device("cpu"))
