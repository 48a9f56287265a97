from pathlib import Path

import pytest

from components.common.runs import lineage, provenance
from components.common.runs.work import Work, open_work
from components.pretrain.params import Pretrain
from tests import ROOT


def test_surroundings_are_tagged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("GIT_COMMIT", "c0ffee"), ("IMAGE_DIGEST", "sha256:1"), ("KFP_RUN_ID", "kfp-1"), ("DVC_EXP_NAME", "bumpy-eyes")):
        monkeypatch.setenv(name, value)
    with open_work(Work, "pretrain", str(tmp_path / "out"), Pretrain(), {"shards": "5ha"}, upstream={"shards": "run-0"}) as work:
        tags = lineage.tags(work)
    expected = {
        "mlflow.source.git.commit": "c0ffee",
        "image.digest": "sha256:1",
        "kfp.run_id": "kfp-1",
        "dvc.experiment": "bumpy-eyes",
        "input.shards.sha256": "5ha",
        "upstream.shards.run_id": "run-0",
    }
    assert expected.items() <= tags.items()
    (line,) = [line for line in (ROOT / "data.dvc").read_text().splitlines() if "md5:" in line]
    assert tags["data.dvc.md5"] == line.split()[-1]
    assert lineage.run_name(work) == f"pretrain-bumpy-eyes-ifa-resnet50-{work.fingerprint[:6]}"


@pytest.mark.parametrize(
    ("image", "tag"),
    [("sha256:1", "sha256:1"), ("registry.klinik.example:5000/ki/cxr@sha256:1", "sha256:1"), ("klinik.example/cxr:2", "cxr:2")],
)
def test_the_registry_of_the_image_is_not_tagged(image: str, tag: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IMAGE_DIGEST", image)
    with open_work(Work, "pretrain", str(tmp_path / "out"), Pretrain(), {}) as work:
        assert lineage.tags(work)["image.digest"] == tag


def test_unknown_tags_are_omitted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (provenance.IMAGE_VARIABLE, provenance.KFP_VARIABLE, provenance.DVC_VARIABLE):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(provenance, "ROOT", tmp_path)
    with open_work(Work, "pretrain", str(tmp_path / "out"), Pretrain(), {}) as work:
        tags = lineage.tags(work)
    assert not {"image.digest", "kfp.run_id", "dvc.experiment", "data.dvc.md5"} & set(tags)
