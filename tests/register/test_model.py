import base64
import json
import os
import subprocess
import sys
import zipfile
from contextlib import closing
from pathlib import Path
from typing import Any

import mlflow.pyfunc
import numpy as np
import onnxruntime
import pandas as pd
import pytest

from components.common.formats.shards import decode
from components.common.runs import child_process, tracking  # noqa: F401 - quiets MLflow
from components.params import Params
from components.preprocess import run as preprocess
from components.register import inputs
from components.register.packing import example, pack
from components.simulate import run as simulate
from tests.common.dicom.phantoms import dataset, picture, to_bytes
from tests.register import folders

# Runs without the repository or the current folder on sys.path.
SCRIPT = """
import sys, mlflow.pyfunc, pathlib
files = sorted(map(str, pathlib.Path(sys.argv[2]).rglob("*.dcm")))
mlflow.pyfunc.load_model(sys.argv[1]).predict(files).to_csv(sys.argv[3], index=False)
import components.common.training.backbones
print(components.common.training.backbones.__file__)
"""
CARD = "# A card\n"
HANGING = """
import os, time
from components.common.dicom import dicom_file
dicom_file.prepare = lambda elements, header: time.sleep(3600) if header.body_part == "CHEST 1" else os.abort()
"""


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    model = Path(folders.write_model(folder / "model", seed=1, targets=folders.targets_of(1)))
    pack(model / "model.safetensors", json.loads((model / "model.json").read_text()), CARD, folder / "packed")
    return folder / "packed"


@pytest.fixture(scope="module")
def model(packed: Path) -> Any:
    return mlflow.pyfunc.load_model(str(packed))


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a few phantoms and their shards at the size of the model."""
    folder = tmp_path_factory.mktemp("cohort")
    params = Params.model_validate(
        {"runtime": {"workers": 1}, "simulate": {"patients": 5, "size": 80}, "preprocess": {"size": folders.SIZE, "parts": 1}}
    )
    simulate.run(out=str(folder / "raw"), **params.arguments("simulate"))
    preprocess.run(raw=str(folder / "raw"), out=str(folder / "shards"), **params.arguments("preprocess"))
    return folder


def rows(cohort: Path) -> dict[str, np.ndarray]:
    """Preprocessed pixels by file, in the order in which preprocess reads files: by a hash of the path."""
    from components.preprocess.parts import path_hash

    files = sorted((cohort / "raw").rglob("*.dcm"), key=lambda path: path_hash(path.relative_to(cohort / "raw").as_posix()))
    table = pd.read_parquet(cohort / "shards" / "part-00000.parquet")
    assert len(table) == len(files)
    return {str(path): decode(row) for path, row in zip(files, table.to_dict("records"), strict=True)}


def expected_scores(images: dict[str, np.ndarray], paths: list[str]) -> np.ndarray:
    """Computes scores directly: pad with black, normalise, apply the network and the sigmoid."""
    network = folders.network(1)
    return np.concatenate([folders.scores(network, images[path][None]) for path in paths])


def test_the_packaged_model_reproduces_the_scores_from_dicom_files(packed: Path, cohort: Path, tmp_path: Path) -> None:
    environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false"}
    command = [sys.executable, "-c", SCRIPT, str(packed), str(cohort / "raw"), str(tmp_path / "out.csv")]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)

    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()) == packed / "code" / "components.zip" / "components" / "common" / "training" / "backbones.py"
    probabilities, images = pd.read_csv(tmp_path / "out.csv"), rows(cohort)
    assert list(probabilities.columns) == folders.FINDINGS
    np.testing.assert_allclose(probabilities, expected_scores(images, sorted(images)), atol=1e-4)


def test_the_same_image_in_every_form(model: Any, cohort: Path) -> None:
    images = rows(cohort)
    path = min(images)
    content = Path(path).read_bytes()
    forms: list[Any] = [
        path, Path(path), [path], content, [content], images[path][None], [images[path]], images[path][None].astype(np.int64),
        pd.DataFrame({"dicom": [content]}), pd.DataFrame({"dicom": [base64.b64encode(content).decode()]}),
    ]  # fmt: skip
    for form in forms:
        np.testing.assert_allclose(model.predict(form), expected_scores(images, [path]), atol=1e-4)


def test_arrays_score_as_in_predictions_parquet(model: Any, packed: Path) -> None:
    expected = pd.read_parquet(packed.parent / "model" / "predictions.parquet")
    np.testing.assert_allclose(model.predict(folders.images()), expected[[f"score_{name}" for name in folders.FINDINGS]], atol=1e-4)
    assert expected["score_Effusion"].std() > 1e-2  # the spread is far above the tolerance


def test_flip_augmentation_temperature_and_views_of_training_are_applied(packed: Path, cohort: Path, tmp_path: Path) -> None:
    source = packed.parent / "model"
    content = json.loads((source / "model.json").read_text())
    content |= {"tta_flip": True, "temperature": 2.5, "preprocessing": {"views": ["LL"]}}  # the weights include the temperature
    pack(source / "model.safetensors", content, CARD, tmp_path / "packed")
    model, network, images = mlflow.pyfunc.load_model(str(tmp_path / "packed")), folders.network(1), folders.images(3)
    logits = [
        np.log(p / (1 - p)) for p in (folders.scores(network, each).astype(np.float64) for each in (images, images[..., ::-1].copy()))
    ]
    np.testing.assert_allclose(model.predict(images), 1 / (1 + np.exp(-(logits[0] + logits[1]) / 2)), atol=1e-5)
    with pytest.raises(Exception, match="wrong_view"):
        model.predict([min(rows(cohort))])


def test_onnx_gives_the_same(packed: Path, model: Any) -> None:
    session = onnxruntime.InferenceSession(packed / "artifacts" / "model.onnx")
    pad = (folders.SIZE - 36) // 2
    squares = np.pad(folders.images(5), ((0, 0), (0, 0), (pad, pad))).astype(np.float32)[:, None] / 255
    for count in (1, 5):
        (probabilities,) = session.run(None, {"image": squares[:count]})
        np.testing.assert_allclose(probabilities, model.predict(folders.images(5)[:count]), atol=1e-4)


def test_nothing_is_pickled_and_no_more_code_than_needed(packed: Path) -> None:
    names = {path.relative_to(packed).as_posix() for path in packed.rglob("*") if path.is_file() and "__pycache__" not in path.parts}
    assert {name for name in names if name.endswith((".pkl", ".pt", ".pth"))} == set()
    artifacts = {f"artifacts/model.{kind}" for kind in ("json", "onnx", "safetensors")}
    assert {name for name in names if name.startswith("artifacts/")} == artifacts
    assert {name for name in names if name.startswith("code/")} == {"code/components.zip"}
    code = {name.removeprefix("components/") for name in zipfile.ZipFile(packed / "code" / "components.zip").namelist()}
    assert {"register/inputs.py", "common/dicom/render.py"} <= code
    assert not {"register/gate.py", "common/tracking.py", "preprocess/run.py"} & code
    assert (packed / "README.md").read_text() == CARD


def test_requirements_are_exact_and_installed(packed: Path) -> None:
    lines = (packed / "requirements.txt").read_text().split()
    assert all(line.count("==") == 1 and "+" not in line for line in lines)
    names = {line.partition("==")[0] for line in lines}
    assert {"imagecodecs", "mlflow", "opencv-python-headless", "pydicom", "safetensors", "torch", "torchvision"} <= names
    assert not {"boto3", "onnx", "kfp"} & names


def test_scores_do_not_depend_on_the_batch(model: Any) -> None:
    images = folders.images(35)  # more than a batch
    in_parts = pd.concat([model.predict(images[:1]), model.predict(images[1:])], ignore_index=True)
    pd.testing.assert_frame_equal(model.predict(images), in_parts, atol=1e-5)
    assert model.predict(images[:0]).shape == (0, 2)
    assert model.predict(images[:1]).dtypes.tolist() == [np.float32, np.float32]


@pytest.mark.parametrize(
    ("given", "part"),
    [
        (np.zeros((1, 49, 20), np.uint8), "from 1 to 48, not 49 x 20"),
        (np.full((2, 8, 8), 256, np.uint16), "from 0 to 255"),
        (np.zeros((8, 8), np.uint8), "shape"),
        (np.zeros((1, 8, 8), np.float32), "whole numbers"),
        (np.array(["/etc/passwd"]), "whole numbers"),  # as parsed from `inputs` in JSON; a path is not opened
        (pd.DataFrame({"path": ["/etc/passwd"]}), "column `dicom`"),
        (pd.DataFrame({"dicom": ["/etc/passwd"]}), "neither bytes nor base64"),
        ([b"something else"], "input 0: not_dicom"),
    ],
)
def test_other_input_is_refused(model: Any, given: Any, part: str) -> None:
    with pytest.raises(Exception, match=part):
        model.predict(given)


def test_example_fits_small_models_and_16_bits() -> None:
    assert example(16, 16).shape == (1, 16, 16)
    assert (example(16, 16).min(), example(16, 16).max(), example(16, 16).dtype) == (0, 65535, np.uint16)


@pytest.mark.parametrize(
    ("body_part", "expected"),
    [pytest.param("CHEST 1", "takes the decoder too long", marks=pytest.mark.slow), ("CHEST 2", "crashes the decoder")],
)
def test_a_file_that_hangs_or_crashes_its_decoder_does_not_take_the_server_along(
    body_part: str, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sitecustomize.py").write_text(HANGING)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(child_process, "MAX_SECONDS", 10)
    with closing(child_process.Child()) as reader:
        monkeypatch.setattr(inputs, "_reader", reader)
        with pytest.raises(ValueError, match=rf"input 0: unreadable \({expected}\)"):
            inputs.images(to_bytes(dataset(picture(), BodyPartExamined=body_part)), 64, 8, {})
