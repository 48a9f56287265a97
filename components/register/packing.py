"""Packs a model as an MLflow model folder: its code, safetensors, ONNX, model card, signature and pinned requirements.

The same folder serves who does not use MLflow: README.md says how to load `artifacts/model.safetensors`, and `artifacts/model.onnx`
where there is one.
"""

import logging
import shutil
import tempfile
import warnings
from importlib import metadata
from pathlib import Path
from typing import Any

import mlflow.pyfunc
import numpy as np
import torch

from components.common.errors import UserError
from components.common.formats.model import DESCRIPTION
from components.common.formats.shards import Pixels
from components.common.runs.storage import write_json
from components.heads import HEADS
from components.register import imports

ENTRY = Path(__file__).with_name("model.py")
CARD = "README.md"
MODEL_URI = "models:/MODEL_ID"
"""Stands in a card for the model's address until it has one."""
ONNX = "model.onnx"


def pack(weights: Path, content: dict[str, Any], card: str, folder: Path) -> None:
    """Makes an MLflow model folder that loads without a pickle and without this repository, and tries it out.

    Args:
        weights: model.safetensors.
        content: of model.json.
        card: the model card, in Markdown.
        folder: where the packed model goes; must not exist.

    Raises:
        UserError: the weights do not fit the description, or give numbers that make no sense.
    """
    head = HEADS[content["task"]]
    with tempfile.TemporaryDirectory() as scratch:
        description, onnx = Path(scratch, DESCRIPTION), Path(scratch, ONNX)
        write_json(description, content)
        artifacts = {"weights": str(weights), "description": str(description)}
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
                code_paths=[str(_copy(code, Path(scratch, "code")))],
                signature=head.registration.signature(content),
                pip_requirements=requirements([ENTRY, *(imports.ROOT / path for path in code)]),
            )
    (folder / CARD).write_text(card, encoding="utf-8")
    _try_out(folder, content)


def export_onnx(network: torch.nn.Module, size: int, path: Path, outputs: tuple[str, ...]) -> None:
    """Writes a network as ONNX: `image` (B, 1, size, size) in [0, 1] -> the outputs, for any B."""
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
    """The exact versions in use of what files import; a local build such as +cpu is named by its public version."""
    return [f"{name}=={metadata.version(name).partition('+')[0]}" for name in imports.distributions(files)]


def example(size: int, bits: int) -> Pixels:
    """(1, S, S): a small ramp from black to white. No patient's image belongs in a registry."""
    side = min(size, 32)
    ramp: Pixels = np.linspace(0, 2**bits - 1, side * side).reshape(1, side, side).astype(f"uint{bits}")
    return ramp


def _copy(files: list[Path], folder: Path) -> Path:
    """The package `components`, with no more in it than the model needs."""
    for name in files:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(imports.ROOT / name, folder / name)
    return folder / imports.PACKAGE


def _try_out(folder: Path, content: dict[str, Any]) -> None:
    task = content["task"]
    answer = mlflow.pyfunc.load_model(str(folder)).predict(example(content["size"], content["bits"]))
    if not HEADS[task].registration.is_plausible(answer):
        raise UserError(f"model.safetensors: gives numbers that make no sense; run {task} again")
