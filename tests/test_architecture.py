"""The floors and rooms of the code base, who may import whom, and how large things may be."""

import ast
from pathlib import Path
from typing import Any

import pytest
import yaml

from components.__main__ import COMMANDS
from components.heads import HEADS
from components.params import Params
from components.register.imports import ROOT, imported, modules

FLOORS = (
    ("components.common.errors",),  # exceptions that every module may raise
    ("components.common.formats",),  # files that one stage leaves for another
    ("components.common.dicom", "components.common.statistics", "components.common.html", "components.common.runs"),
    ("components.common.training",),  # loop, reader, processes, checkpoints, backbones
    ("components.common.head",),  # the contract of a head
    (
        "components.simulate",
        "components.preprocess",
        "components.pretrain",
        *(f"components.{name}" for name in HEADS),
    ),
    ("components.heads",),  # the table of heads
    ("components.evaluate", "components.register", "components.predict"),  # the frame around the heads
    ("components.monitor", "components.validate"),  # what use predict: drift of scored images; scores evaluated in one command
    ("components.params", "components.torchrun", "components.retry"),
    ("components.__main__",),
    ("pipelines",),
)
"""Listed from the bottom up. A module may import from lower floors and from its own room only."""

MOST_LINES = {"file": 350, "room": 4500, "all": 29_500}
DVC: dict[str, Any] = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
SOURCES = {str(path.relative_to(ROOT)): path for top in ("components", "pipelines") for path in sorted((ROOT / top).rglob("*.py"))}
EMPTY = {name for name, path in SOURCES.items() if len(ast.parse(path.read_text()).body) == 1}
"""Modules with nothing but a docstring."""
MLFLOW = tuple(f"components.common.runs.{name}" for name in ("tracking", "delivery", "mlflow_errors", "registered_models"))
"""Modules that talk to MLflow, apart from the registry and the registration of each head."""


def room_of(module: str) -> tuple[int, str]:
    """Returns the number of the floor and the name of the room of a module."""
    found = [(floor, room) for floor, rooms in enumerate(FLOORS) for room in rooms if f"{module}.".startswith(f"{room}.")]
    assert found, f"{module} stands on no floor"
    return max(found, key=lambda each: len(each[1]))


def dotted(path: str) -> str:
    return path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def ours(path: Path) -> set[str]:
    """Returns the project's modules that a file imports, at its top or within functions."""
    names = imported(path, everywhere=True)
    return {name for name in map(dotted, SOURCES) if name in names and name not in ("components", "components.common", "pipelines")}


@pytest.mark.parametrize("path", SOURCES)
def test_imports_go_down_or_stay_in_the_room(path: str) -> None:
    if path in ("components/__init__.py", "components/common/__init__.py"):
        return
    floor, room = room_of(dotted(path))
    for name in ours(SOURCES[path]):
        below, other = room_of(name)
        assert below < floor or other == room, f"{path} imports {name}"


def test_no_import_circle() -> None:
    graph = {dotted(path): ours(source) - {dotted(path)} for path, source in SOURCES.items()}
    while leaves := {name for name, names in graph.items() if not names & graph.keys()}:
        graph = {name: names for name, names in graph.items() if name not in leaves}
    assert not graph


@pytest.mark.parametrize("path", SOURCES)
def test_third_party_imports_are_restricted(path: str) -> None:
    names = {name.split(".")[0] for name in imported(SOURCES[path], everywhere=True)}
    module = dotted(path)
    if module.endswith(".component"):
        top = {name.split(".")[0] for name in imported(SOURCES[path])}
        assert top <= {"kfp", "typing", "collections"}, "Kubeflow compiles components without the packages of the stages"
    elif module.startswith("components"):
        assert "kfp" not in names
    if module.startswith("components") and "mlflow" in {name.split(".")[0] for name in imported(SOURCES[path])}:
        assert module in MLFLOW or module.startswith("components.register") or module.endswith(".registration")


@pytest.mark.parametrize("stage", ["preprocess", "evaluate", "simulate", "monitor"])
def test_stages_of_the_small_image_need_no_torch(stage: str) -> None:
    evaluations = [f"components.{name}.evaluation" for name in HEADS] if stage == "evaluate" else []
    for path in modules(f"components.{stage}.run", *evaluations):
        assert not {name.split(".")[0] for name in imported(ROOT / path)} & {"torch", "torchvision"}, path


def test_sizes() -> None:
    lines = {path: source.read_text().count("\n") for path, source in SOURCES.items()}
    rooms = {str(Path(path).parent) for path in lines}
    assert [path for path, count in lines.items() if count > MOST_LINES["file"]] == []
    assert [room for room in rooms if sum(n for path, n in lines.items() if str(Path(path).parent) == room) > MOST_LINES["room"]] == []
    assert sum(lines.values()) <= MOST_LINES["all"]


def test_every_command_is_a_stage() -> None:
    assert {name.split(" ")[0] for name in COMMANDS} == {path.split("/")[1] for path in SOURCES if path.endswith("/run.py")}


@pytest.mark.parametrize("stage", DVC)
def test_dvc_depends_on_the_code_that_a_stage_runs(stage: str) -> None:
    evaluations = [f"components.{name}.evaluation" for name in HEADS] if stage == "evaluate" else []
    deps = [path for path in DVC[stage]["deps"] if path.startswith("components")]
    code = [str(path) for path in modules(f"components.{stage}.run", *evaluations) if str(path) not in EMPTY]
    missing = [path for path in code if path not in deps and not any(path.startswith(f"{dep}/") for dep in deps)]
    assert set(missing) <= {"components/common/errors.py", "components/common/head.py", "components/heads.py"}
    assert all((ROOT / dep).exists() for dep in deps)


@pytest.mark.parametrize("stage", DVC)
def test_dvc_depends_on_the_section_of_a_stage(stage: str) -> None:
    assert DVC[stage]["params"] == [{"${profile}": [stage]}]


@pytest.mark.parametrize("stage", [stage for stage in DVC if stage not in ("preprocess", "evaluate")])
def test_a_change_of_a_page_retrains_nothing(stage: str) -> None:
    assert not [dep for dep in DVC[stage]["deps"] if "html" in dep or dep == "components/common" or dep.endswith("report.py")]


@pytest.mark.parametrize("profile", ["params.yaml", "params.paper.yaml"])
def test_profiles_name_every_parameter(profile: str) -> None:
    written = yaml.safe_load((ROOT / profile).read_text())
    for section, values in written.items():
        assert list(values) == list(Params().section(section).values()), section


def test_paper_profile_is_the_defaults() -> None:
    written = yaml.safe_load((ROOT / "params.paper.yaml").read_text())
    assert Params.model_validate(written) == Params()
