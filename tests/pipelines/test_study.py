"""The plan of a study, and a tiny study from raw files to its page."""

import json
from collections import Counter

import pytest
import yaml

from components.evaluate.study import CLAIMS
from components.params import Params, load
from pipelines.study_plan import plan
from tests import ROOT
from tests.pipelines.conftest import Workplace
from tests.pipelines.test_local import pipeline_status, run

STUDY = {"arms": ["scratch", "moco"], "reference": "moco", "fractions": [1.0], "positive_rates": [], "seeds": [0]}


@pytest.fixture(scope="module")
def params() -> Params:
    study = {"arms": ["moco", "ifa"], "fractions": [0.1, 1.0], "positive_rates": [0.05], "imbalanced": "Nodule", "seeds": [0, 1]}
    return Params.model_validate({"study": study})


def test_cell_folders_are_those_that_the_page_reads(params: Params) -> None:
    found = plan("shards", "root", params, "classify,detect,invert")
    places = [model["folder"].removeprefix(found.folder + "/").split("/") for model in found.cells()]
    assert all(len(place) == 4 and place[0] in CLAIMS for place in places)
    assert Counter(place[0] for place in places) == {"scarcity": 8, "imbalance": 4, "detection": 4, "inversion": 4}
    assert len({tuple(place) for place in places}) == len(places)


def test_cells_build_on_the_prerequisites(params: Params) -> None:
    found = plan("shards", "root", params, "classify,detect,invert")
    first = {model["folder"]: model for model in found.prerequisites()}
    assert Counter(model["stage"] for model in first.values()) == {"pretrain": 4, "invert": 2}
    for cell in found.cells():
        inputs, place = json.loads(cell["inputs"]), cell["folder"].split("/")
        assert inputs["shards"] == ["shards"]
        assert {inputs.get("backbone") or inputs["perceptual"]} <= set(first)
        backbone = first[inputs.get("backbone") or inputs["perceptual"]]
        arm, seed = place[-2], int(place[-1])
        assert json.loads(backbone["section"])["preset"] == arm
        assert json.loads(backbone["section"])["seed"] == json.loads(cell["section"])["seed"] == seed


def test_the_same_study_has_the_same_folder_and_another_has_another(params: Params) -> None:
    folders = {plan("shards", "root", params, "classify").folder, plan("shards", "root", params, "classify").folder}
    assert len(folders) == 1
    assert plan("others", "root", params, "classify").folder not in folders
    assert (
        plan("shards", "root", params.model_copy(update={"pretrain": params.pretrain.model_copy(update={"epochs": 7})}), "classify").folder
        not in folders
    )


def test_dvc_makes_the_same_cells() -> None:
    """study/dvc.yaml has the same number of models of each kind as the plan."""
    stages = yaml.safe_load((ROOT / "study/dvc.yaml").read_text())["stages"]
    study = load(ROOT / "params.yaml").study
    sizes = {"arm": len(study.arms), "seed": len(study.seeds), "fraction": len(study.fractions), "rate": len(study.positive_rates)}
    expected: Counter[str] = Counter()
    for name, stage in stages.items():
        count = 1
        for axis in stage.get("matrix", {}):
            count *= sizes[axis]
        expected[name] += count
    found = plan("shards", "root", load(ROOT / "params.yaml"), "classify,detect,invert")
    ours = Counter(model["folder"].removeprefix(found.folder + "/").split("/")[0] for model in [*found.prerequisites(), *found.cells()])
    names = {"backbones": "pretrain", "generators": "generator"}
    assert {names.get(name, name): count for name, count in ours.items()} == {n: c for n, c in expected.items() if n != "page"}


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
