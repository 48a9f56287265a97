import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import mlflow.pyfunc
import numpy as np
import pandas as pd
import pytest
from mlflow.exceptions import MlflowException

from components.register.packing import REQUIREMENTS, example, pack, requirements
from tests.register import folders

# Runs where neither the repository nor its current folder is on the path.
STRANGER = """
import sys, mlflow.pyfunc, numpy
images = numpy.load(sys.argv[2])
mlflow.pyfunc.load_model(sys.argv[1]).predict(images).to_csv(sys.argv[3], index=False)
import components.common.backbone
print(components.common.backbone.__file__)
"""


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    model = Path(folders.write_model(folder / "model", seed=1, targets=folders.targets_of(1)))
    pack(model / "model.safetensors", model / "model.json", json.loads((model / "model.json").read_text()), folder / "packed")
    return folder / "packed"


def test_a_stranger_gets_the_scores_of_predictions_parquet(packed: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "images.npy", folders.images())
    environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false"}
    command = [sys.executable, "-c", STRANGER, str(packed), str(tmp_path / "images.npy"), str(tmp_path / "out.csv")]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)

    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()) == packed / "code" / "components" / "common" / "backbone.py"
    probabilities = pd.read_csv(tmp_path / "out.csv")
    expected = pd.read_parquet(packed.parent / "model" / "predictions.parquet")
    assert list(probabilities.columns) == folders.FINDINGS
    np.testing.assert_allclose(probabilities, expected[[f"score_{name}" for name in folders.FINDINGS]], atol=1e-4)
    assert expected["score_Effusion"].std() > 1e-2  # the tolerance means something


def test_nothing_is_pickled_and_no_more_code_than_needed(packed: Path) -> None:
    names = {path.relative_to(packed).as_posix() for path in packed.rglob("*") if path.is_file() and "__pycache__" not in path.parts}
    assert {name for name in names if name.endswith((".pkl", ".pt", ".pth"))} == set()
    assert {name for name in names if name.startswith("artifacts/")} == {"artifacts/model.json", "artifacts/model.safetensors"}
    assert {name.split("/")[2] for name in names if name.startswith("code/components/")} == {"__init__.py", "common"}


def test_requirements_are_exact(packed: Path) -> None:
    lines = (packed / "requirements.txt").read_text().split()
    assert lines == requirements()
    assert all(line.count("==") == 1 and "+" not in line for line in lines)


def test_requirements_name_what_the_code_imports(packed: Path) -> None:
    imported = set()
    for path in [packed / "model.py", *(packed / "code").rglob("*.py")]:
        for node in ast.parse(path.read_text()).body:  # at the top: what a function imports, such as boto3, is not used
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = [node.module or ""] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
                imported |= {name.partition(".")[0] for name in names}
    assert imported - sys.stdlib_module_names - {"components"} == set(REQUIREMENTS)


def test_signature_and_example(packed: Path) -> None:
    model = mlflow.pyfunc.load_model(str(packed))
    assert model.metadata.signature.outputs.input_names() == folders.FINDINGS
    np.testing.assert_array_equal(model.input_example, example(folders.SIZE, folders.BITS))
    probabilities = model.predict(model.input_example)
    assert probabilities.shape == (1, 2)
    assert probabilities.dtypes.tolist() == [np.float32, np.float32]


def test_batches_do_not_matter(packed: Path) -> None:
    model, images = mlflow.pyfunc.load_model(str(packed)), folders.images(35)  # more than a batch
    in_parts = pd.concat([model.predict(images[:1]), model.predict(images[1:])], ignore_index=True)
    pd.testing.assert_frame_equal(model.predict(images), in_parts, atol=1e-5)
    assert model.predict(images[:0]).shape == (0, 2)


@pytest.mark.parametrize(
    "images", [np.zeros((1, 49, 20), np.uint8), np.zeros((2, 8, 8), np.uint16), np.zeros((8, 8), np.uint8), np.zeros((1, 8, 8), np.float32)]
)
def test_other_input_is_refused(packed: Path, images: np.ndarray) -> None:
    with pytest.raises((MlflowException, ValueError), match=r"uint8|shape"):
        mlflow.pyfunc.load_model(str(packed)).predict(images)


def test_example_fits_small_models_and_16_bits() -> None:
    assert example(16, 16).shape == (1, 16, 16)
    assert (example(16, 16).min(), example(16, 16).max(), example(16, 16).dtype) == (0, 65535, np.uint16)
