"""A stage as a step of a pipeline: its output folder, its exit code, and what the UI shows."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from components.common.errors import TemporaryError, UserError
from components.common.runs import storage, tracking
from components.common.runs.params import Runtime
from components.common.runs.step import Step, exit_codes, step
from components.pretrain.params import Pretrain


def test_the_folder_depends_on_everything_that_the_output_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KFP_RUN_ID", raising=False)
    monkeypatch.setenv("GIT_COMMIT", "one")

    def folder(shards: str = "a", runtime: str = "{}", **changes: object) -> str:
        with step("pretrain", "root", Pretrain, json.dumps(changes), {"shards": shards}, runtime) as this:
            return this.out

    assert folder() == folder() == folder(epochs=200), "the default"
    assert folder(runtime='{"checkpoint_minutes": 3}') == folder(), "the section `runtime` does not change the output"
    others = {folder(), folder(epochs=3), folder("b")}
    monkeypatch.setenv("GIT_COMMIT", "two")
    assert len({*others, folder()}) == 4
    assert folder().startswith(storage.join("root", "pretrain", ""))


def test_the_ui_gets_small_files_and_numbers(tmp_path: Path) -> None:
    (tmp_path / "metrics.json").write_text('{"auroc_macro": 0.5, "auroc_nodule": 0.25, "undefined_macro": null}')
    this = Step(Pretrain(), Runtime(), str(tmp_path))
    metrics = SimpleNamespace(metadata={})
    this.show({"metrics.json": str(tmp_path / "shown.json")}, metrics, ("_macro",))
    assert metrics.metadata == {"auroc_macro": 0.5}
    this.show({}, metrics)
    assert metrics.metadata == {"auroc_macro": 0.5, "auroc_nodule": 0.25}
    assert (tmp_path / "shown.json").read_bytes() == (tmp_path / "metrics.json").read_bytes()


@pytest.mark.parametrize(
    ("error", "in_a_pod", "code"),
    [(UserError, "", 2), (UserError, "run", 2), (TemporaryError, "", 2), (TemporaryError, "run", 75)],
)
def test_an_error_is_one_line_and_its_exit_code(
    error: type[UserError], in_a_pod: str, code: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracking, "pipeline_run_id", lambda: None)
    monkeypatch.setenv("KFP_RUN_ID", in_a_pod)
    with pytest.raises(SystemExit) as stop, exit_codes("pretrain"):
        raise error("shards: not there")
    assert stop.value.code == code
    assert capsys.readouterr().err == "pretrain: shards: not there\n"
