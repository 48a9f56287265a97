"""Packing of a model as an MLflow model folder: its code, safetensors, ONNX, model card, signature and pinned requirements.

The folder can also be used without MLflow: README.md says how to load `artifacts/model.safetensors` and, if there is one,
`artifacts/model.onnx`.
"""

import logging
import shutil
import tempfile
import warnings
import zipfile
from importlib import metadata
from pathlib import Path
from typing import Any

import mlflow.pyfunc
import numpy as np
import torch

from components.common.errors import UserError
from components.common.formats.model import DESCRIPTION, IMAGES, WEIGHTS
from components.common.formats.shards import Pixels
from components.common.runs.storage import write_json
from components.heads import HEADS
from components.register import imports

ENTRY = Path(__file__).with_name("model.py")
CARD = "README.md"
MODEL_URI = "models:/MODEL_ID"  # placeholder in a card for the address of the model
ONNX = "model.onnx"
CODE = "components.zip"  # one file instead of fifty, each of which would be a request to MLflow when uploaded and when loaded


def pack(weights: Path, content: dict[str, Any], card: str, folder: Path) -> None:
    """Makes an MLflow model folder that loads without a pickle and without this repository, and tests it.

    Args:
        weights: model.safetensors; images.txt may lie beside it.
        content: content of model.json.
        card: the model card in Markdown.
        folder: target folder; must not exist. MLflow decodes escapes in its path.

    Raises:
        UserError: the weights do not fit the description, or give implausible numbers.
    """
    head = HEADS[content["task"]]
    with tempfile.TemporaryDirectory() as scratch:
        description, onnx = Path(scratch, DESCRIPTION), Path(scratch, ONNX)
        write_json(description, content)
        artifacts = {"weights": str(weights), "description": str(description)}
        if (images := weights.with_name(IMAGES)).is_file():
            artifacts["images"] = str(images)
        if head.serving.ONNX_OUTPUTS:
            network = head.serving.exportable(head.serving.load(content, weights))
            export_onnx(network.cpu(), content["size"], onnx, head.serving.ONNX_OUTPUTS)
            artifacts["onnx"] = str(onnx)
        code = imports.modules("components.register.inputs", f"components.{head.name}.serving")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # MLflow misses a type and an example of the input, of which there are several kinds
            mlflow.pyfunc.save_model(
                folder,
                python_model=ENTRY,
                artifacts=artifacts,
                code_paths=[str(_archive(code, Path(scratch, CODE)))],
                signature=head.registration.signature(content),
                pip_requirements=requirements([ENTRY, *(imports.ROOT / path for path in code)]),
            )
    (folder / CARD).write_text(card, encoding="utf-8")
    _try_out(folder, content)


def export_onnx(network: torch.nn.Module, size: int, path: Path, outputs: tuple[str, ...]) -> None:
    """Exports a network as ONNX: from `image` (B, 1, size, size) in [0, 1] to the outputs, for any B."""
    batch = {0: torch.export.Dim("batch")}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # from dependencies of the exporter
        for name in ("onnxscript", "onnx_ir"):  # they log every node that they fold
            logging.getLogger(name).setLevel(logging.WARNING)
        torch.onnx.export(
            network, (torch.zeros(2, 1, size, size),), path, dynamo=True, external_data=False, verbose=False,
            input_names=["image"], output_names=list(outputs), dynamic_shapes=(batch,),
        )  # fmt: skip


def requirements(files: list[Path]) -> list[str]:
    """Returns the installed versions of the packages that files import, without local suffixes such as +cpu."""
    return [f"{name}=={metadata.version(name).partition('+')[0]}" for name in imports.distributions(files)]


def example(size: int, bits: int) -> Pixels:
    """Returns a small ramp (1, S, S) from black to white; images of patients do not belong in a registry."""
    side = min(size, 32)
    ramp: Pixels = np.linspace(0, 2**bits - 1, side * side).reshape(1, side, side).astype(f"uint{bits}")
    return ramp


def _archive(files: list[Path], path: Path) -> Path:
    """Writes files of the package `components` into an archive that Python imports from; the same files give the same bytes."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in files:
            archive.writestr(zipfile.ZipInfo(name.as_posix()), (imports.ROOT / name).read_bytes(), zipfile.ZIP_DEFLATED)
    return path


def _try_out(folder: Path, content: dict[str, Any]) -> None:
    task = content["task"]
    answer = mlflow.pyfunc.load_model(str(folder)).predict(example(content["size"], content["bits"]))
    shutil.rmtree(folder / "__pycache__", ignore_errors=True)  # of model.py, with the path of this folder
    if not HEADS[task].registration.is_plausible(answer):
        raise UserError(f"{WEIGHTS}: gives implausible numbers; run {task} again")
