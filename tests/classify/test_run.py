import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file
from sklearn.metrics import roc_auc_score

from components.classify import run as classify
from components.common import backbone, interrupt
from components.common.errors import UserError
from components.common.params import Params
from components.common.reader import Reader
from components.common.shards import decode, open_shards, square
from tests.conftest import FINDINGS, MakeShards


def changed(params: Params, **update: object) -> Params:
    return params.model_copy(update={"classify": params.classify.model_copy(update=update)})


@pytest.fixture
def pretrained(tmp_path: Path) -> str:
    folder = tmp_path / "backbone"
    folder.mkdir()
    torch.manual_seed(5)
    backbone.export(backbone.build("resnet18"), folder, {"arch": "resnet18", "normalisation": {"mean": 0.25, "std": 0.5}})
    (folder / "run.json").write_text(json.dumps({"mlflow_run_id": "pretrain-run"}))
    return str(folder)


def test_learns_what_can_be_seen(make_shards: MakeShards, tiny: Params, tmp_path: Path) -> None:
    out = tmp_path / "out"
    classify.run(shards=[make_shards(images=200)], out=str(out), params=changed(tiny, epochs=5))

    table = pq.read_table(out / "predictions.parquet").to_pandas()
    assert table.columns.tolist()[:8] == ["image_id", "patient_id", "split", "task", "view", "sex", "age", "manufacturer"]
    assert set(table["split"]) == {"val", "test"}
    assert set(table["task"]) == {"classify"}
    test = table[table["split"] == "test"]
    for finding in FINDINGS:
        known = test[f"target_{finding}"].notna()
        assert roc_auc_score(test[f"target_{finding}"][known], test[f"score_{finding}"][known]) > 0.8


def test_scores_are_the_saved_models(make_shards: MakeShards, tiny: Params, tmp_path: Path, pretrained: str) -> None:
    shards = make_shards()
    classify.run(shards=[shards], out=str(tmp_path / "out"), params=tiny, backbone=pretrained)

    described = json.loads((tmp_path / "out" / "model.json").read_text())
    assert described["findings"] == FINDINGS
    assert described["normalisation"] == {"mean": 0.25, "std": 0.5}  # the backbone's, not the shards'
    network = backbone.build("resnet18")
    network.fc = torch.nn.Linear(512, 2)
    network.load_state_dict(load_file(tmp_path / "out" / "model.safetensors"))
    network.eval()
    table = pq.read_table(tmp_path / "out" / "predictions.parquet").to_pandas().set_index("image_id")
    rows = pq.read_table(f"{shards}/part-00000.parquet").to_pylist()
    row = next(row for row in rows if row["split"] == "test")
    image = torch.from_numpy(square(decode(row), 32).astype(np.float32) / 255)
    with torch.no_grad():
        scores = torch.sigmoid(network((image[None, None] - 0.25) / 0.5))[0]
    assert table.loc[row["image_id"], ["score_Left", "score_Right"]].tolist() == pytest.approx(scores.tolist(), abs=1e-5)
    assert table.loc[row["image_id"], "target_Right"] == row["labels"][1]


def test_lineage_names_the_inputs(make_shards: MakeShards, tiny: Params, tmp_path: Path, pretrained: str) -> None:
    classify.run(shards=[make_shards()], out=str(tmp_path / "out"), params=changed(tiny, epochs=1), backbone=pretrained)
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    assert sorted(record["inputs"]) == ["backbone", "shards"]
    assert record["upstream_mlflow_run_ids"] == {"shards": "upstream-run", "backbone": "pretrain-run"}


def test_a_stopped_run_continues_to_the_same_model(
    make_shards: MakeShards, tiny: Params, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shards = make_shards()
    classify.run(shards=[shards], out=str(tmp_path / "whole"), params=tiny)
    steps = 0
    train_step = classify.Classification.train_step

    def counted(self: classify.Classification, *arguments: object) -> dict[str, float]:
        nonlocal steps
        steps += 1
        if steps == 6:  # in the second epoch
            interrupt._stop.set()
        return train_step(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(classify.Classification, "train_step", counted)
    with pytest.raises(interrupt.Interrupted):
        classify.run(shards=[shards], out=str(tmp_path / "stopped"), params=tiny)
    interrupt._stop.clear()
    classify.run(shards=[shards], out=str(tmp_path / "stopped"), params=tiny)

    for name in ("model.safetensors", "predictions.parquet"):
        assert (tmp_path / "stopped" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_test_labels_change_nothing_but_the_targets(make_shards: MakeShards, tiny: Params, tmp_path: Path) -> None:
    """Poisoned test labels leave the model and every score as they are."""
    clean, poisoned = make_shards("clean"), make_shards("poisoned")
    for path in Path(poisoned).glob("part-*.parquet"):
        table = pq.read_table(path)
        labels = [[1 - v for v in row["labels"]] if row["split"] == "test" else row["labels"] for row in table.to_pylist()]
        index = table.schema.get_field_index("labels")
        poison = pa.array(labels, pa.list_(pa.float32()))
        pq.write_table(table.set_column(index, table.schema.field(index), poison), path, row_group_size=7)
    for name, shards in (("a", clean), ("b", poisoned)):
        classify.run(shards=[shards], out=str(tmp_path / name), params=tiny)
    a, b = (pq.read_table(tmp_path / name / "predictions.parquet").to_pandas() for name in "ab")
    assert (tmp_path / "a" / "model.safetensors").read_bytes() == (tmp_path / "b" / "model.safetensors").read_bytes()
    assert a["score_Left"].tolist() == b["score_Left"].tolist()
    assert a["target_Right"].tolist() != b["target_Right"].tolist()


def test_label_fractions_are_nested_and_by_patient(make_shards: MakeShards) -> None:
    reader = Reader(open_shards(make_shards(images=200)), "train")
    patients = np.array(reader.table["patient_id"].to_pylist())
    chosen = [set(classify.labelled_rows(reader, fraction)) for fraction in (0.1, 0.25, 1.0)]
    assert chosen[0] < chosen[1] < chosen[2]
    assert len(chosen[2]) == len(reader)
    for rows in chosen:
        inside = set(patients[sorted(rows)])
        outside = set(patients[sorted(set(range(len(reader))) - rows)])
        assert not inside & outside
    assert len(set(patients[sorted(chosen[1])])) == round(0.25 * len(set(patients)))


def test_shards_without_findings_are_refused(make_shards: MakeShards, tiny: Params, tmp_path: Path) -> None:
    shards = make_shards()
    manifest = Path(shards) / "manifest.json"
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "findings": []}))
    with pytest.raises(UserError, match="no findings; put a"):
        classify.run(shards=[shards], out=str(tmp_path / "out"), params=tiny)
