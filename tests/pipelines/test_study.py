"""The plan of a study, and a tiny study from raw files to its page."""

import argparse
import json
import shlex
from collections import Counter
from typing import Any

import pytest
import yaml
from dvc.parsing import DataResolver
from dvc.repo import Repo

from components.evaluate.study import CLAIMS
from components.params import Params, load
from pipelines.study_plan import Model, StudyPlan, plan
from tests import ROOT
from tests.pipelines.conftest import Workplace
from tests.pipelines.test_local import pipeline_status, run

STUDY = {"arms": ["scratch", "base", "moco"], "base_epochs": 1, "reference": "moco", "fractions": [1.0], "positive_rates": [], "seeds": [0]}
HEADS = "classify,detect,invert"


@pytest.fixture(scope="module")
def params() -> Params:
    study = {"arms": ["moco", "ifa"], "fractions": [0.1, 1.0], "positive_rates": [0.05], "imbalanced": "Nodule", "seeds": [0, 1]}
    return Params.model_validate({"study": study})


def test_cell_folders_are_those_that_the_page_reads(params: Params) -> None:
    found = plan("shards", "root", params, HEADS)
    places = [model["folder"].removeprefix(found.folder + "/").split("/") for model in found.phases()[-1]]
    assert all(len(place) == 4 and place[0] in CLAIMS for place in places)
    assert Counter(place[0] for place in places) == {"probe": 4, "scarcity": 8, "imbalance": 4, "detection": 4, "inversion": 4}
    assert len({tuple(place) for place in places}) == len(places)


def test_a_phase_builds_on_those_before(params: Params) -> None:
    found = StudyPlan("judged", ("pool", "judged"), "cells", "shared", params, tuple(HEADS.split(",")))
    bases, backbones, cells = ({model["folder"]: Read(model) for model in phase} for phase in found.phases())
    assert Counter(model.stage for model in bases.values()) == {"pretrain": 2, "invert": 2}
    assert {model.section["preset"] for model in bases.values() if model.stage == "pretrain"} == {"moco"}
    assert {model.section["epochs"] for model in bases.values() if model.stage == "pretrain"} == {params.study.base_epochs}
    for folder, model in backbones.items():
        _, _, arm, seed = folder.split("/")
        assert model.inputs == {"shards": ["pool", "judged"], "start": f"shared/bases/{seed}"}
        assert model.inputs["start"] in bases
        assert (model.section["preset"], model.section["seed"], model.section["epochs"]) == (arm, int(seed), params.pretrain.epochs)
    for folder, model in cells.items():
        _, _, _, arm, seed = folder.split("/")
        backbone = model.inputs.get("backbone") or model.inputs["perceptual"]
        assert model.inputs["shards"] == ["judged"]
        assert backbone == f"shared/backbones/{arm}/{seed}"
        assert backbone in backbones
        assert model.section["seed"] == int(seed)
        assert model.inputs.get("generator", f"cells/generators/{seed}") in bases


class Read:
    """A model with its texts parsed."""

    def __init__(self, model: Model):
        self.stage, self.inputs, self.section = model["stage"], json.loads(model["inputs"]), json.loads(model["section"])


def test_the_same_study_has_the_same_folder_and_another_has_another(params: Params) -> None:
    folders = {plan("shards", "root", params, HEADS).folder, plan("shards", "root", params, HEADS).folder}
    assert len(folders) == 1
    assert plan("others", "root", params, HEADS).folder not in folders
    starts = [plan("shards", "root", params, HEADS, {"uri": "moco.pth", "sha256": digest}) for digest in ("1", "2")]
    assert len({found.folder for found in starts} - folders) == 2
    assert [Read(model).inputs.get("start") for model in starts[0].phases()[0]] == ["moco.pth", "moco.pth", None, None]
    assert (
        plan("shards", "root", params.model_copy(update={"pretrain": params.pretrain.model_copy(update={"epochs": 7})}), HEADS).folder
        not in folders
    )


def test_dvc_makes_the_same_models() -> None:
    """The commands of study/dvc.yaml have stages, inputs, parameters and folders of the plan, whatever their order."""
    stages = DataResolver(Repo(str(ROOT)), "study", yaml.safe_load((ROOT / "study/dvc.yaml").read_text())).resolve()["stages"]
    commands = [parsed(stage["cmd"]) for name, stage in stages.items() if name != "page"]
    shards, cells = "artifacts/shards", "artifacts/study"
    planned = StudyPlan(shards, (shards,), cells, cells, load(ROOT / "study/params.yaml"), tuple(HEADS.split(",")))
    models = [model for phase in planned.phases() for model in phase]
    assert {command["folder"]: command for command in commands} == {model["folder"]: model for model in models}
    assert len(commands) == len(models)
    assert [stage["outs"] for name, stage in stages.items() if name != "page"] == [[command["folder"]] for command in commands]
    assert f"--cells {cells} " in stages["page"]["cmd"]


def test_dvc_ignores_compiled_modules() -> None:
    """Stages write them into the folders that they depend on, unless the environment turns that off."""
    assert Repo(str(ROOT)).dvcignore.is_ignored_dir(str(ROOT / "components/common/dicom/__pycache__"))


def parsed(command: str) -> Model:
    """Returns the model that a command of DVC makes."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--shards", nargs="+")
    for name in ("start", "backbone", "generator", "perceptual"):
        parser.add_argument(f"--{name}", default=argparse.SUPPRESS)
    parser.add_argument("--set", action="append")
    python, _, module, stage, *words = shlex.split(command)
    assert (python, module) == ("python3", "components")
    parser.add_argument("--params")
    parser.add_argument("--out")
    found: dict[str, Any] = vars(parser.parse_args(words))
    section = load(ROOT / found.pop("params"), found.pop("set")).section(stage).values()
    return {"stage": stage, "folder": found.pop("out"), "section": json.dumps(section), "inputs": json.dumps(found)}


def test_dvc_depends_on_the_same_code_as_for_a_single_model() -> None:
    """A change of common/html reruns only the page."""
    study, single = (yaml.safe_load((ROOT / path).read_text())["stages"] for path in ("study/dvc.yaml", "dvc.yaml"))
    for name, stage in study.items():
        command = "evaluate" if name == "page" else stage["cmd"].split()[3]
        for path in (path for path in single[command]["deps"] if path.startswith("components")):
            assert any(f"{path}/".startswith(f"{dep}/") for dep in stage["deps"]), (name, path)
        assert name == "page" or "components/common" not in stage["deps"]


@pytest.mark.slow
def test_a_tiny_study_from_raw_files_to_its_page(workplace: Workplace) -> None:
    path = workplace.folder / "params.yaml"
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | {"study": STUDY}))
    assert run(workplace, workplace.settings(), name="study") == 0
    (page,) = workplace.out.glob("study/*/page/study.html")
    assert "Few labels" in page.read_text()
    metrics = json.loads((page.parent / "metrics.json").read_text())
    assert "scarcity_1.0_scratch_difference" in metrics
    assert pipeline_status() == ("FINISHED", {"FINISHED"})
