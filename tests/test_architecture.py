"""The rules that keep the layout what it is, and dvc.yaml's dependencies what the code imports."""

from typing import Any

import pytest
import yaml

from components.__main__ import STAGES
from components.common.runs.params import Params
from tests.imports import ROOT, has_code, imported, reachable, sources

DVC: dict[str, Any] = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]

# register packs preprocessing and a head into one model, and predict does with raw files what that model does.
MAY_IMPORT = {"register": set(STAGES), "predict": {"preprocess", "register"}}


def stage_of(module: str) -> str:
    return module.split(".")[1] if module.count(".") else ""


@pytest.mark.parametrize(("module", "path"), sources().items())
def test_who_may_import_whom(module: str, path: Any) -> None:
    names = imported(path)
    stage = stage_of(module)
    others = {stage_of(name) for name in names if name.startswith("components.")} - {"common", stage}
    assert not any(name.startswith("pipelines") for name in names)
    if stage in STAGES:
        assert not others & set(STAGES) - MAY_IMPORT.get(stage, set()), f"{module} imports another stage"
    if stage == "common":
        assert not others & set(STAGES), f"{module} imports a stage"
    if not module.endswith(".component"):
        assert not any(name.split(".")[0] == "kfp" for name in names), f"{module} imports kfp"
    if stage != "register" and module not in ("components.common.runs.tracking", "components.common.runs.delivery"):
        assert not any(name.split(".")[0] == "mlflow" for name in names), f"{module} imports mlflow"
    if not module.endswith(".run") and stage != "register":
        assert "components.common.runs.tracking" not in names, f"{module} talks to tracking"


@pytest.mark.parametrize("stage", ["preprocess", "evaluate", "simulate"])
def test_stages_of_the_small_image_need_no_torch(stage: str) -> None:
    for module in reachable(f"components.{stage}.run"):
        assert not any(name.split(".")[0] in ("torch", "torchvision") for name in imported(sources()[module])), module


@pytest.mark.parametrize("stage", DVC)
def test_dvc_depends_on_the_exact_modules(stage: str) -> None:
    paths = [sources()[module] for module in reachable(f"components.{stage}.run")]
    code = {str(path.relative_to(ROOT)) for path in paths if has_code(path)}
    listed = {path for path in DVC[stage]["deps"] if path.startswith("components/") and path.endswith(".py")}
    assert listed == code


@pytest.mark.parametrize("stage", DVC)
def test_dvc_depends_on_the_parameters_that_define_the_output(stage: str) -> None:
    defining = getattr(Params(), stage).defining()
    assert DVC[stage]["params"] == [{"${profile}": [f"{stage}.{name}" for name in defining]}]


@pytest.mark.parametrize("profile", ["params.yaml", "params.paper.yaml"])
def test_profiles_name_every_parameter(profile: str) -> None:
    written = yaml.safe_load((ROOT / profile).read_text())
    for section, values in written.items():
        field = "register_" if section == "register" else section
        assert list(values) == list(getattr(Params(), field).model_dump()), section


def test_paper_profile_is_the_defaults() -> None:
    written = yaml.safe_load((ROOT / "params.paper.yaml").read_text())
    assert Params.model_validate(written) == Params()
