"""A detector and an inversion, trained for seconds on phantoms, with their evaluation."""

from pathlib import Path
from typing import NamedTuple

import pandas as pd

from components.detect import run as detect
from components.evaluate import run as evaluate
from components.invert import run as invert
from components.params import Params
from components.preprocess import run as preprocess
from components.preprocess.parts import path_hash
from components.simulate import run as simulate

PARAMS = Params.model_validate(
    {
        "runtime": {"workers": 1}, "simulate": {"patients": 24, "size": 80},
        "preprocess": {"size": 48, "parts": 1, "test_fraction": 0.4},
        "detect": {"arch": "resnet18", "channels": 64, "epochs": 1, "batch_size": 8, "lr": 0.001, "score_threshold": 0.01},
        "invert": {
            "arch": "resnet18", "size": 16, "latent_dim": 8, "mapping_layers": 2, "channel_base": 128, "channel_max": 8,
            "gan_epochs": 1, "gan_batch_size": 8, "epochs": 1, "batch_size": 8, "refine_steps": 4, "path_weight": 0.0,
        },
        "evaluate": {"resamples": 100},
    }
)  # fmt: skip


class Heads(NamedTuple):
    """Folders of the raw files and of the outputs of the stages."""

    raw: Path
    shards: Path
    detect: Path
    invert: Path
    evaluation: Path

    def model(self, task: str) -> Path:
        """Returns the output folder of the head `task`."""
        return Path(getattr(self, task))

    def files(self) -> dict[str, Path]:
        """Returns the DICOM files by image_id. Preprocess orders files by a hash of their path."""
        files = sorted(self.raw.rglob("*.dcm"), key=lambda path: path_hash(path.relative_to(self.raw).as_posix()))
        ids = pd.read_parquet(self.shards / "part-00000.parquet", columns=["image_id"])["image_id"]
        return dict(zip(ids, files, strict=True))

    def rows(self) -> pd.DataFrame:
        """Returns the rows of the shards, indexed by image_id."""
        return pd.read_parquet(self.shards / "part-00000.parquet").set_index("image_id")

    def predictions(self, task: str) -> pd.DataFrame:
        """Returns the predictions for the test split, indexed by image_id."""
        table = pd.read_parquet(self.model(task) / "predictions.parquet")
        return table[table["split"] == "test"].set_index("image_id")


def make(folder: Path) -> Heads:
    """Runs the stages."""
    found = Heads(*(folder / name for name in Heads._fields))
    simulate.run(out=str(found.raw), **PARAMS.arguments("simulate"))
    preprocess.run(raw=str(found.raw), out=str(found.shards), **PARAMS.arguments("preprocess"))
    detect.run(shards=[str(found.shards)], out=str(found.detect), **PARAMS.arguments("detect"))
    invert.run(shards=[str(found.shards)], out=str(found.invert), **PARAMS.arguments("invert"))
    evaluate.run(predictions=[str(found.detect), str(found.invert)], out=str(found.evaluation), **PARAMS.arguments("evaluate"))
    return found
