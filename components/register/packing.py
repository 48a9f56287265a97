"""Packs a classifier as an MLflow model folder: its code, safetensors, signature, input example and pinned requirements."""

import shutil
import tempfile
from importlib import metadata
from pathlib import Path
from typing import Any

import mlflow.pyfunc
import numpy as np
from mlflow.models import ModelSignature
from mlflow.types import ColSpec, DataType, Schema, TensorSpec

from components.common.errors import UserError
from components.common.shards import Pixels

ROOT = Path(__file__).parents[2]
ENTRY = Path(__file__).with_name("model.py")
CODE = (
    "components/__init__.py",
    "components/common/__init__.py",
    "components/common/backbone.py",
    "components/common/errors.py",
    "components/common/interrupt.py",
    "components/common/job.py",
    "components/common/shards.py",
    "components/common/storage.py",
)
"""What model.py imports from this repository, directly or not."""
REQUIREMENTS = ("imagecodecs", "mlflow", "numpy", "pandas", "pyarrow", "safetensors", "torch", "torchvision")
"""Packages that model.py and CODE import."""


def pack(weights: Path, description: Path, content: dict[str, Any], folder: Path) -> None:
    """Makes an MLflow model folder that loads without a pickle and without this repository, and tries it out.

    Args:
        weights: model.safetensors.
        description: model.json.
        content: of model.json.
        folder: where the packed model goes; must not exist.

    Raises:
        UserError: the weights do not fit the description, or give numbers that are not probabilities.
    """
    with tempfile.TemporaryDirectory() as scratch:
        mlflow.pyfunc.save_model(
            folder,
            python_model=ENTRY,
            artifacts={"weights": str(weights), "description": str(description)},
            code_paths=[str(_copy_code(Path(scratch)))],
            signature=signature(content["findings"], content["bits"]),
            input_example=example(content["size"], content["bits"]),
            pip_requirements=requirements(),  # named, or MLflow finds them by loading the model in a second process
        )
    _try_out(folder, content)


def signature(findings: list[str], bits: int) -> ModelSignature:
    """(N, H, W) pixels in, a float column a finding out."""
    images = Schema([TensorSpec(np.dtype(f"uint{bits}"), (-1, -1, -1))])
    return ModelSignature(images, Schema([ColSpec(DataType.float, finding) for finding in findings]))


def example(size: int, bits: int) -> Pixels:
    """(1, S, S): a small ramp from black to white. No patient's image belongs in a registry."""
    side = min(size, 32)
    ramp: Pixels = np.linspace(0, 2**bits - 1, side * side).reshape(1, side, side).astype(f"uint{bits}")
    return ramp


def requirements() -> list[str]:
    """The exact versions in use; a local build such as +cpu is named by its public version."""
    return [f"{name}=={metadata.version(name).partition('+')[0]}" for name in REQUIREMENTS]


def _copy_code(folder: Path) -> Path:
    """The package `components`, with no more in it than the model needs."""
    for name in CODE:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, folder / name)
    return folder / "components"


def _try_out(folder: Path, content: dict[str, Any]) -> None:
    probabilities = mlflow.pyfunc.load_model(str(folder)).predict(example(content["size"], content["bits"]))
    values = probabilities.to_numpy()
    if not ((values >= 0) & (values <= 1)).all():
        raise UserError("model.safetensors: gives numbers that are not probabilities; run classify again")
