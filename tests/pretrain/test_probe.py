from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from components.common.errors import UserError
from components.common.runs.shards import open_shards
from components.common.training.devices import to_unit
from components.common.training.reader import Batch
from components.pretrain import probe
from tests.conftest import MakeShards, replace_part


def side_brightness(batch: Batch) -> torch.Tensor:
    """Returns features that reveal the findings: the brightness of each side."""
    image = to_unit(batch.images, torch.device("cpu"))
    return torch.stack([image[..., 12:24, 6:13].mean((1, 2, 3)), image[..., 12:24, 18:25].mean((1, 2, 3))], dim=1)


def test_features_that_show_the_findings_predict_them(make_shards: MakeShards) -> None:
    found = probe.Probe(open_shards(make_shards(images=120)), width=2, device=torch.device("cpu"))
    assert found(side_brightness, batch_size=7) > 0.8
    noise = torch.Generator().manual_seed(0)
    assert found(lambda batch: torch.randn(len(batch.rows), 2, generator=noise), batch_size=7) < 0.75


@pytest.mark.parametrize(("most", "groups"), [(5, [0, 9]), (15, [0, 2, 4, 6, 9]), (35, range(10)), (36, range(10)), (99, range(10))])
def test_large_splits_are_thinned_out_by_row_groups(
    most: int, groups: list[int], make_shards: MakeShards, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probe, "MOST_IMAGES", most)
    images = probe.Labelled(open_shards(make_shards()), "train")
    assert len(images.rows) == min(most, 36)
    assert np.unique(images.reader._group[images.rows]).tolist() == list(groups)
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
