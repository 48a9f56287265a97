"""A packaged detector and inversion, from real runs on phantoms, reproduce the predictions of training."""

import io
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import mlflow.pyfunc
import numpy as np
import onnxruntime
import pandas as pd
import pytest
import torch
from mlflow.pyfunc.scoring_server import predictions_to_json
from safetensors.torch import load_file
from skimage.metrics import peak_signal_noise_ratio

from components.common.formats.shards import decode, square
from components.common.runs import tracking  # noqa: F401 - quiets MLflow
from components.detect.network import rebuild
from components.invert.pixels import shrink
from components.register.packing import pack
from tests.heads import Heads
from tests.register import folders

ERRORS = ["mse", "psnr", "ssim", "ms_ssim", "feature_distance", "mean_image_psnr"]
PLACE = ["x", "y", "width", "height", "score"]

# Runs without the repository or the current folder on sys.path. All models are loaded into one process.
SCRIPT = """
import sys, mlflow.pyfunc
folder, files = sys.argv[1], sys.argv[2:]
models = [mlflow.pyfunc.load_model(f"{folder}/{task}") for task in ("classify", "detect", "invert", "earlier")]
models[0].predict(files).to_csv(f"{folder}/classify.csv", index=False)
models[1].predict(files).to_csv(f"{folder}/detect.csv", index=False)
models[2].predict(files).drop(columns="latents").to_csv(f"{folder}/invert.csv", index=False)
models[3].predict(files).to_csv(f"{folder}/earlier.csv", index=False)
import components
print(components.__file__)
"""


@pytest.fixture(scope="module")
def packed(heads: Heads, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("packed")
    folders.write_model(folder / "model", seed=1, targets=folders.targets_of(1))
    for task, source in (("classify", folder / "model"), ("detect", heads.detect), ("invert", heads.invert)):
        pack(source / "model.safetensors", json.loads((source / "model.json").read_text()), "# A card\n", folder / task)
    unpack_code(shutil.copytree(folder / "classify", folder / "earlier"))
    return folder


def unpack_code(model: Path) -> None:
    """Turns a packed model into one as it was registered before its code became an archive: with the folder `code`."""
    archive, entry = model / "code" / "components.zip", model / "model.py"
    zipfile.ZipFile(archive).extractall(model / "code")
    archive.unlink()
    text = entry.read_text()
    for new, old in ((' / "components.zip"', ""), ("CODE.is_file()", "CODE.is_dir()")):
        assert new in text
        text = text.replace(new, old)
    entry.write_text(text)


@pytest.fixture(scope="module")
def answers(heads: Heads, packed: Path) -> dict[str, pd.DataFrame]:
    """Predictions of the packaged models for the DICOM files of the test split, by task."""
    files = [str(heads.files()[image]) for image in heads.predictions("detect").index]
    environment = {"PATH": os.environ["PATH"], "HOME": str(packed), "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", SCRIPT, str(packed), *files], cwd=packed, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert packed / "classify" / "code" in Path(done.stdout.strip()).parents
    return {task: pd.read_csv(packed / f"{task}.csv") for task in ("classify", "detect", "invert", "earlier")}


def assert_same_boxes(found: pd.DataFrame, expected: Any) -> None:
    """Compares boxes in any order, since rounding errors may swap boxes with the same score."""
    assert len(found) == len(expected)
    for label in {box["label"] for box in expected} | set(found["label"]):
        mine = found[found["label"] == label][PLACE].to_numpy(float)
        theirs = np.array([[box[name] for name in PLACE] for box in expected if box["label"] == label], float).reshape(-1, 5)
        apart = np.abs(mine[:, None] - theirs[None]).max(axis=2)
        assert len(mine) == len(theirs)
        assert max(apart.min(axis=0).max(), apart.min(axis=1).max()) < 1e-4


def test_the_packaged_detector_returns_boxes_in_source_pixels(heads: Heads, answers: dict[str, pd.DataFrame]) -> None:
    rows, expected = heads.rows(), heads.predictions("detect")
    assert sum(map(len, expected["boxes"])) > 100
    for number, image in enumerate(expected.index):
        row = rows.loc[image]
        mine = answers["detect"][answers["detect"]["image"] == number].copy()
        assert row["source_width"] != row["width"]  # otherwise the scale is not tested
        mine[["x", "width"]] *= row["width"] / row["source_width"]
        mine[["y", "height"]] *= row["height"] / row["source_height"]
        assert_same_boxes(mine, expected.loc[image, "boxes"])


def test_the_packaged_inversion_reproduces_the_errors_of_training(heads: Heads, answers: dict[str, pd.DataFrame]) -> None:
    expected = heads.predictions("invert")
    np.testing.assert_allclose(answers["invert"][ERRORS], expected[ERRORS], rtol=1e-4, atol=1e-4)
    assert expected["psnr"].std() > 1e-2  # the spread is far above the tolerance
    assert len(answers["classify"]) == len(expected)


def test_models_registered_with_a_folder_of_code_still_load(answers: dict[str, pd.DataFrame]) -> None:
    pd.testing.assert_frame_equal(answers["earlier"], answers["classify"])


def test_arrays_answer_in_their_own_pixels(heads: Heads, packed: Path) -> None:
    expected, rows = heads.predictions("detect").iloc[:3], heads.rows()
    found = mlflow.pyfunc.load_model(str(packed / "detect")).predict([decode(rows.loc[image].to_dict()) for image in expected.index])
    for number, boxes in enumerate(expected["boxes"]):
        assert_same_boxes(found[found["image"] == number], boxes)


def test_reconstructions_are_given_when_asked_for(heads: Heads, packed: Path) -> None:
    expected, rows = heads.predictions("invert").iloc[:3], heads.rows()
    stored = [decode(rows.loc[image].to_dict()) for image in expected.index]
    model = mlflow.pyfunc.load_model(str(packed / "invert"))
    found = model.predict(stored, params={"reconstructions": True})
    assert list(model.predict(stored).columns) == ["latents", *ERRORS]
    assert np.stack(found["latents"]).shape == (3, 6, 8)
    for image, made, psnr in zip(stored, found["reconstruction"], expected["psnr"], strict=True):
        original = shrink(torch.from_numpy(square(image, 48))[None, None] / 255, 16)[0, 0].numpy()
        assert peak_signal_noise_ratio(original, made, data_range=1) == pytest.approx(psnr, abs=1e-3)


def test_answers_can_be_serialised_as_json(heads: Heads, packed: Path) -> None:
    """Serialises predictions as `mlflow models serve` does."""
    stored = [decode(row) for row in heads.rows().iloc[:2].to_dict("records")]
    for task in ("detect", "invert"):
        found, text = mlflow.pyfunc.load_model(str(packed / task)).predict(stored), io.StringIO()
        predictions_to_json(found, text)
        answer = json.loads(text.getvalue())["predictions"]
        assert [sorted(row) for row in answer] == [sorted(found.columns)] * len(found)
        if task == "invert":
            np.testing.assert_allclose([row["latents"] for row in answer], np.stack(found["latents"]), rtol=1e-6)


def test_nothing_found_is_an_empty_table(packed: Path) -> None:
    found = mlflow.pyfunc.load_model(str(packed / "detect")).predict(np.zeros((0, 48, 48), np.uint8))
    assert list(found.columns) == ["image", "label", "score", "x", "y", "width", "height"] and not len(found)


def test_a_packed_model_has_what_its_task_needs(packed: Path) -> None:
    for task, other in (("detect", "invert"), ("invert", "detect")):
        code = set(zipfile.ZipFile(packed / task / "code" / "components.zip").namelist())
        assert f"components/{task}/serving.py" in code
        assert not any(name.startswith(f"components/{other}/") or "tracking" in name or name.endswith("gate.py") for name in code)
        names = [path.name for path in (packed / task / "artifacts").iterdir()]
        assert sorted(names) == ["images.txt", "model.json", *(["model.onnx"] if task == "invert" else []), "model.safetensors"]
        assert not [path for path in (packed / task).rglob("*") if path.suffix in (".pkl", ".pt", ".pth")]


def test_onnx_gives_the_encoders_latents(heads: Heads, packed: Path) -> None:
    rows = heads.rows()
    images = np.stack([square(decode(row), 48) for row in rows.iloc[:3].to_dict("records")])[:, None].astype(np.float32) / 255
    session = onnxruntime.InferenceSession(packed / "invert" / "artifacts" / "model.onnx")
    unrefined = packed / "unrefined"
    shutil.copytree(packed / "invert", unrefined)
    about = json.loads((unrefined / "artifacts" / "model.json").read_text())
    (unrefined / "artifacts" / "model.json").write_text(json.dumps(about | {"refine_steps": 0}))
    expected = mlflow.pyfunc.load_model(str(unrefined)).predict((images[:, 0] * 255).round().astype(np.uint8))["latents"]
    for count in (1, 3):
        (latents,) = session.run(None, {"image": images[:count]})
        np.testing.assert_allclose(latents, np.stack(expected)[:count], atol=1e-4)


def test_the_detector_can_be_rebuilt_with_torch_alone(heads: Heads) -> None:
    """Rebuilds the network as the code of the model card does, which test_registered_heads runs."""
    about = json.loads((heads.detect / "model.json").read_text())
    network = rebuild(about, load_file(heads.detect / "model.safetensors"))
    image = heads.predictions("detect").index[0]
    row = heads.rows().loc[image].to_dict()
    with torch.no_grad():
        (found,) = network(torch.from_numpy(square(decode(row), 48))[None, None] / 255)
    expected = heads.predictions("detect").loc[image, "boxes"]
    assert float(found["scores"].max()) == pytest.approx(max(box["score"] for box in expected), abs=1e-5)


def test_requirements_are_exact(packed: Path) -> None:
    for task in ("detect", "invert"):
        lines = (packed / task / "requirements.txt").read_text().split()
        assert all(re.fullmatch(r"[\w.-]+==[\w.]+", line) for line in lines), lines
