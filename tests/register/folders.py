"""Output folders of classify and evaluate for tiny networks with random weights and their real predictions."""

import json
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest
import torch
from safetensors.torch import save_file
from sklearn.metrics import roc_auc_score
from torch import nn

from components.common.runs import storage, tracking
from components.common.training import backbones
from components.register import packing

NAME = "cxr-model"
FINDINGS = ["Effusion", "Nodule"]
SIZE, BITS, MEAN, STD = 48, 8, 0.45, 0.2
Scores = npt.NDArray[np.float32]


def images(count: int = 60) -> npt.NDArray[np.uint8]:
    """Returns images as in shards, (N, 48, 36), that differ in their coarse structure."""
    rng = np.random.default_rng(0)
    coarse = rng.uniform(0, 255, (count, 4, 3))
    return np.kron(coarse, np.ones((12, 12))).astype(np.uint8)


@cache
def network(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    resnet = backbones.build("resnet18")
    resnet.fc = nn.Linear(512, len(FINDINGS))
    return resnet.eval()


def scores(resnet: nn.Module, pixels: npt.NDArray[np.uint8]) -> Scores:
    """Scores images (N, H, W), padded with black to a square (an odd pixel at the right or bottom): (N, findings) probabilities."""
    (top, bottom), (left, right) = (((SIZE - side) // 2, (SIZE - side + 1) // 2) for side in pixels.shape[1:])
    fractions = torch.nn.functional.pad(torch.from_numpy(pixels).double() / 255, (left, right, top, bottom))
    with torch.no_grad():
        logits = resnet((((fractions - MEAN) / STD).float())[:, None])
    return np.asarray(torch.sigmoid(logits).numpy())


@cache
def _scores_of(seed: int) -> Scores:
    return scores(network(seed), images())


def targets_of(seed: int, flip: float = 0.0) -> Scores:
    """Returns targets that the network with this seed ranks perfectly, except for a fraction `flip` of flipped ones."""
    values = _scores_of(seed)
    truth = values > np.median(values, axis=0)
    return np.where(np.random.default_rng(1).random(truth.shape) < flip, ~truth, truth).astype(np.float32)


def write_model(folder: Path, seed: int, targets: Scores, first_image: int = 0) -> str:
    """Writes the output folder of classify for the network with this seed; the first ten images are the validation split."""
    folder.mkdir(parents=True)
    save_file(network(seed).state_dict(), folder / "model.safetensors")
    description = {"task": "classify", "arch": "resnet18", "findings": FINDINGS, "size": SIZE, "bits": BITS,
                   "normalisation": {"mean": MEAN, "std": STD}, "inputs": {"shards": "5ha"},
                   "sha256": storage.digest_file(folder / "model.safetensors")}  # fmt: skip
    (folder / "model.json").write_text(json.dumps(description))
    record = {"stage": "classify", "mlflow_run_id": "classify-run", "inputs": {"shards": "5ha"},
              "params": {"lr": 0.001, "positive_rate": {"Nodule (left)": 0.3}},
              "git": {"commit": "c0ffee", "dirty": False}, "packages": {"torch": "2.0"}}  # fmt: skip
    (folder / "run.json").write_text(json.dumps(record))
    table = pd.DataFrame({"image_id": [f"image{first_image + index:03d}" for index in range(len(targets))]})
    table["patient_id"] = [f"patient{index // 2:03d}" for index in range(len(targets))]
    table["split"] = ["val"] * 10 + ["test"] * (len(targets) - 10)
    table["task"] = "classify"
    values = _scores_of(seed)
    for index, finding in enumerate(FINDINGS):
        table[f"score_{finding}"], table[f"target_{finding}"] = values[:, index], targets[:, index]
    table.to_parquet(folder / "predictions.parquet", index=False)
    return str(folder)


def write_evaluation(folder: Path, model: str, **update: float | None) -> str:
    """Writes the output folder of evaluate for a model."""
    folder.mkdir(parents=True)
    test = pd.read_parquet(Path(model, "predictions.parquet")).query("split == 'test'")
    macro = np.mean([roc_auc_score(test[f"target_{finding}"], test[f"score_{finding}"]) for finding in FINDINGS])
    name = "classify_test_auroc_macro"
    metrics = {name: float(macro), f"{name}_low": float(macro) - 0.05, f"{name}_high": float(macro) + 0.05}
    metrics |= {f"{name}_sex_F": 0.7, f"{name}_sex_F_low": 0.6, f"{name}_sex_F_high": 0.8}
    (folder / "metrics.json").write_text(json.dumps(metrics | update))
    (folder / "report.html").write_text("<h1>Report</h1>")
    record = {"stage": "evaluate", "inputs": {"predictions": storage.digest_file(Path(model, "predictions.parquet"))},
              "params": {"min_positives": 5}, "mlflow_run_id": "evaluate-run"}  # fmt: skip
    (folder / "run.json").write_text(json.dumps(record))
    return str(folder)


def skip_onnx(patch: pytest.MonkeyPatch) -> None:
    """Skips the export to ONNX, which takes seconds and is tested in test_model and test_heads."""
    patch.setattr(packing, "export_onnx", lambda network, size, path, outputs: path.write_bytes(b""))


def versions() -> dict[str, list[str]]:
    """Returns the aliases of the registered model NAME by version."""
    client = tracking.client()
    aliases = client.get_registered_model(NAME).aliases
    found = client.search_model_versions(f"name = '{NAME}'")
    return {str(v.version): sorted(alias for alias, number in aliases.items() if str(number) == str(v.version)) for v in found}
