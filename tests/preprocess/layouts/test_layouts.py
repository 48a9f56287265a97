from importlib import import_module
from inspect import getdoc, signature
from pathlib import Path

import pytest
from pydantic import ValidationError

from components.preprocess import layouts
from components.preprocess.params import LAYOUTS, Preprocess
from tests import ROOT


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_module_is_a_layout_that_the_documents_name(name: str) -> None:
    module = import_module(f"components.preprocess.layouts.{name}")
    assert list(signature(module.read).parameters) == ["raw", "params", "index"] and getdoc(module)
    assert f"`{name}`" in (ROOT / "docs" / "layouts.md").read_text()
    assert Preprocess(layout=name).layout == name


def test_another_name_is_refused_with_those_that_exist() -> None:
    with pytest.raises(ValidationError, match="must be one of chexpert, folders, nih, rsna, table, vindr, not 'mimic'"):
        Preprocess(layout="mimic")


def test_a_new_layout_is_one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "toy.py").write_text(
        "from components.preprocess.labels import Table\n\ndef read(raw, params, index):\n    return Table((raw,))\n"
    )
    monkeypatch.setattr(layouts, "__path__", [*layouts.__path__, str(tmp_path)])
    assert layouts.read("raw", Preprocess.model_construct(layout="toy")).findings == ("raw",)
