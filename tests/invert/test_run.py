import json
import math
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from components.common.errors import UserError
from components.common.formats.shards import Pixels, decode, square
from components.common.runs import signals
from components.common.runs.shards import open_shards
from components.common.runs.storage import digest_file
from components.common.training import backbones
from components.invert import encoder_training, gan_training, run
from components.invert.encoder import Encoder
from components.invert.generator import Generator, build_generator
from components.invert.inputs import InputFolders, open_inputs
from components.invert.inverter import rebuild
from components.params import Params
from tests.conftest import MakeShards, replace_part, write_shards

SMALL = {
    "arch": "resnet18",
    "size": 16,
    "latent_dim": 8,
    "mapping_layers": 2,
    "channel_base": 128,
    "channel_max": 8,
    "gan_epochs": 2,
    "gan_batch_size": 8,
    "path_weight": 1.0,
    "epochs": 2,
    "batch_size": 8,
    "perceptual": "none",
}
ERRORS = ["mse", "psnr", "ssim", "ms_ssim", "feature_distance"]


def params(**update: object) -> Params:
    return Params.model_validate({"invert": {**SMALL, **update}, "runtime": {"checkpoint_minutes": 60}})


def make_backbone(folder: Path, seed: int = 5, method: str = "ifa") -> str:
    folder.mkdir()
    torch.manual_seed(seed)
    description = {"arch": "resnet18", "method": method, "normalisation": {"mean": 0.25, "std": 0.5}}
    backbones.export(backbones.build("resnet18"), folder, description)
    (folder / "run.json").write_text(json.dumps({"mlflow_run_id": f"run-of-{folder.name}"}))
    return str(folder)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of shards, a backbone, and a run that uses the backbone for the encoder and the perceptual loss."""
    folder = tmp_path_factory.mktemp("finished")
    shards, backbone = write_shards(folder / "shards"), make_backbone(folder / "backbone")
    run.run(shards=[shards], backbone=backbone, out=str(folder / "out"), **params(perceptual="backbone").arguments("invert"))
    return {"shards": Path(shards), "backbone": Path(backbone), "out": folder / "out"}


def test_each_backbone_is_read_once(make_shards: MakeShards, tmp_path: Path, files_read: Counter[str]) -> None:
    backbone, judge = make_backbone(tmp_path / "backbone"), make_backbone(tmp_path / "judge", seed=6)
    asked = params(perceptual="backbone").invert
    inputs = open_inputs(asked, open_shards(make_shards()), InputFolders(backbone=backbone, judge=judge))
    paths = [f"{folder}/backbone.{name}" for folder in (backbone, judge) for name in ("json", "safetensors")]
    assert {path: files_read[path] for path in paths} == dict.fromkeys(paths, 1)
    digests = {name: digest_file(Path(folder, "backbone.json")) for name, folder in (("backbone", backbone), ("judge", judge))}
    assert inputs.inputs.items() >= {**digests, "perceptual": digests["backbone"]}.items()
    assert inputs.perceptual and inputs.perceptual.resnet is not inputs.resnet  # the encoder is trained


def test_every_val_and_test_image_gets_its_errors(finished: dict[str, Path]) -> None:
    rows = pa.concat_tables(pq.read_table(path) for path in sorted(finished["shards"].glob("part-*.parquet"))).to_pylist()
    table = pq.read_table(finished["out"] / "predictions.parquet")
    assert table.column_names == [
        *("image_id", "patient_id", "split", "task", "view", "sex", "age", "manufacturer"),
        *ERRORS,
        "mean_image_psnr",
    ]
    wanted = {row["image_id"]: row["split"] for row in rows if row["split"] != "train"}
    assert {row["image_id"]: row["split"] for row in table.to_pylist()} == wanted
    assert set(table["task"].to_pylist()) == {"invert"}


def test_errors_agree_with_the_saved_model(finished: dict[str, Path]) -> None:
    """Rebuilds encoder and generator from the files and compares images with scikit-image."""
    encoder, generator = rebuilt(finished["out"])
    rows = pa.concat_tables(pq.read_table(path) for path in sorted(finished["shards"].glob("part-*.parquet"))).to_pylist()
    mean_image = np.mean([downsampled(decode(row)) for row in rows if row["split"] == "train"], axis=0)
    row = next(row for row in rows if row["split"] == "test")
    original = downsampled(decode(row))
    with torch.no_grad():
        w = encoder((torch.from_numpy(original)[None, None] - 0.25) / 0.5)
        made = ((generator.synthesise(w)[0, 0] + 1) / 2).clamp(0, 1).numpy()
    found = next(each for each in pq.read_table(finished["out"] / "predictions.parquet").to_pylist() if each["image_id"] == row["image_id"])
    similarity = structural_similarity(original, made, data_range=1, gaussian_weights=True, sigma=1.5, use_sample_covariance=False)
    assert found["psnr"] == pytest.approx(peak_signal_noise_ratio(original, made, data_range=1), abs=1e-3)
    assert found["mse"] == pytest.approx(10 ** (-found["psnr"] / 10), rel=1e-4)
    assert found["ssim"] == pytest.approx(similarity, abs=1e-4)
    assert found["mean_image_psnr"] == pytest.approx(peak_signal_noise_ratio(original, mean_image, data_range=1), abs=1e-3)


def rebuilt(out: Path) -> tuple[Encoder, Generator]:
    weights = load_file(out / "model.safetensors")
    parts = {
        part: {name.removeprefix(part): value for name, value in weights.items() if name.startswith(part)}
        for part in ("encoder.", "generator.")
    }
    generator = build_generator(params().invert)
    encoder = Encoder(backbones.build("resnet18"), 16, generator.latents, torch.zeros(8))
    generator.load_state_dict(parts["generator."])
    encoder.load_state_dict(parts["encoder."])
    return encoder.eval(), generator


def downsampled(image: Pixels) -> np.ndarray:
    return cv2.resize(square(image, 32).astype(np.float32) / 255, (16, 16), interpolation=cv2.INTER_AREA)


def test_the_output_says_what_it_is(finished: dict[str, Path]) -> None:
    out = finished["out"]
    described = json.loads((out / "model.json").read_text())
    assert described["task"] == "invert"
    assert described["normalisation"] == {"mean": 0.25, "std": 0.5}  # that of the backbone, not of the shards
    assert "pretrained by ifa" in described["perceptual"]
    assert "random weights" in described["judge"]
    assert sorted(described["inputs"]) == ["backbone", "perceptual", "shards"]
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["kid_samples"] == described["kid_samples"]
    assert {"val_psnr", "val_mean_image_psnr", "kid_reconstructions", "loss_perceptual"} <= metrics.keys()
    assert json.loads((out / "run.json").read_text())["upstream_mlflow_run_ids"]["perceptual"] == "run-of-backbone"
    assert sorted(path.name for path in out.iterdir()) == [
        *("figures", "gan_history.csv", "history.csv", "images.txt", "metrics.json", "model.json", "model.safetensors"),
        *("predictions.parquet", "run.json"),
    ]
    assert len((out / "gan_history.csv").read_text().splitlines()) == len((out / "history.csv").read_text().splitlines()) == 3
    for name in ("reconstructions.png", "samples.png"):
        assert cv2.imread(str(out / "figures" / name), cv2.IMREAD_UNCHANGED).shape == (3 * 132, 8 * 132)


def test_a_generator_can_be_given_and_is_not_changed(finished: dict[str, Path], tmp_path: Path) -> None:
    """The arms of the study share a generator and differ only in the perceptual loss."""
    shards, earlier = str(finished["shards"]), finished["out"]
    other = make_backbone(tmp_path / "other", seed=6, method="moco")
    run.run(
        shards=[shards],
        generator=str(earlier),
        perceptual=other,
        out=str(tmp_path / "out"),
        **params(perceptual="backbone").arguments("invert"),
    )
    before, after = (load_file(folder / "model.safetensors") for folder in (earlier, tmp_path / "out"))
    kept = [name for name in after if name.startswith("generator.")]
    assert len(kept) > 20
    assert all(torch.equal(before[name], after[name]) for name in kept)
    assert not (tmp_path / "out" / "gan_history.csv").exists()
    described = json.loads((tmp_path / "out" / "model.json").read_text())
    assert "pretrained by moco" in described["perceptual"]
    assert sorted(described["inputs"]) == ["generator", "perceptual", "shards"]


def test_what_cannot_be_used_is_named(finished: dict[str, Path], tmp_path: Path) -> None:
    shards, earlier, network = str(finished["shards"]), str(finished["out"]), str(finished["backbone"])

    def refused(match: str, update: dict[str, object] | None = None, **folders: str) -> None:
        with pytest.raises(UserError, match=match):
            run.run(shards=[shards], out=str(tmp_path / "out"), **params(**(update or {})).arguments("invert"), **folders)  # type: ignore[arg-type]

    refused(r"invert\.size: 64, but the shards hold images of 32 pixels; lower it", {"size": 64})
    refused(r"invert\.gan_batch_size: 64, but the train split has 36 images", {"gan_batch_size": 64})
    refused(r"has latent_dim 8, the parameters ask for 4; set invert\.latent_dim to match", {"latent_dim": 4}, generator=earlier)
    refused("is the backbone of the perceptual loss", {"perceptual": "backbone"}, perceptual=network, judge=network)
    refused("the backbone is a resnet18, the parameters ask for resnet50", {"arch": "resnet50"}, judge=network)
    refused("model.json: not found", generator=network)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("update", "message"),
    [({"size": 48}, "size must be a power of two, such as 32, not 48"), ({"channel_base": 8}, "channel_base must be at least size")],
)
def test_parameters_that_cannot_be_are_refused(update: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        params(**update)


@pytest.mark.parametrize("stop_in", ["gan", "encoder"])
def test_a_stopped_run_continues_to_the_same_model(
    finished: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop_in: str
) -> None:
    arguments = params(perceptual="backbone").arguments("invert")
    given = {"shards": [str(finished["shards"])], "backbone": str(finished["backbone"]), **arguments}
    training = gan_training.GanTraining if stop_in == "gan" else encoder_training.EncoderTraining
    original, done = training.train_step, 0

    def stopping(self: object, *arguments: object) -> dict[str, float]:
        nonlocal done
        done += 1
        if done == 6:  # in the second epoch; an epoch has four steps
            signals._stop.set()
        return original(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(training, "train_step", stopping)
    with pytest.raises(signals.Interrupted):
        run.run(out=str(tmp_path / "stopped"), **given)
    signals._stop.clear()
    run.run(out=str(tmp_path / "stopped"), **given)

    assert done == 8, "no step was done twice, and none left out"
    for name in ("model.safetensors", "predictions.parquet", "figures/samples.png"):
        assert digest_file(tmp_path / "stopped" / name) == digest_file(finished["out"] / name), name


def test_test_images_do_not_influence_training_or_selection(make_shards: MakeShards, tmp_path: Path) -> None:
    clean, poisoned = make_shards("clean"), make_shards("poisoned")
    for path in Path(poisoned).glob("part-*.parquet"):
        table = pq.read_table(path)
        rows = table.to_pylist()
        donor = next(row for row in rows if row["split"] == "train")
        changed = [{**row, "pixels": donor["pixels"]} if row["split"] == "test" else row for row in rows]
        replace_part(path, pa.Table.from_pylist(changed, schema=table.schema))
    for name, shards in (("a", clean), ("b", poisoned)):
        run.run(shards=[shards], out=str(tmp_path / name), **params(gan_epochs=1, epochs=1).arguments("invert"))
    a, b = (pq.read_table(tmp_path / name / "predictions.parquet").to_pandas() for name in "ab")
    assert digest_file(tmp_path / "a" / "model.safetensors") == digest_file(tmp_path / "b" / "model.safetensors")
    assert a[a["split"] == "val"].equals(b[b["split"] == "val"])
    assert not a[a["split"] == "test"].equals(b[b["split"] == "test"])


def test_refining_brings_reconstructions_closer(finished: dict[str, Path], tmp_path: Path) -> None:
    shards, earlier = str(finished["shards"]), str(finished["out"])
    mean = []
    for steps in (0, 40):
        out = tmp_path / f"refined{steps}"
        run.run(
            shards=[shards], generator=earlier, out=str(out), **params(epochs=1, lambda_latent=0.0, refine_steps=steps).arguments("invert")
        )
        mean.append(pq.read_table(out / "predictions.parquet").to_pandas()["psnr"].mean())
    assert mean[1] > mean[0] + 0.5


def test_refined_latents_do_not_depend_on_the_batch(finished: dict[str, Path]) -> None:
    out = finished["out"]
    about = json.loads((out / "model.json").read_text()) | {"refine_steps": 40}
    trained = rebuild(about, load_file(out / "model.safetensors"), torch.device("cpu"))
    image = torch.rand(6, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    together = trained.reconstruct(image)
    assert (together - trained.inverter.image(trained.inverter.latents(image))).abs().max() > 0.01
    for part in (slice(0, 1), slice(1, 6)):
        torch.testing.assert_close(trained.reconstruct(image[part]), together[part], atol=1e-5, rtol=0)


def test_without_any_backbone_the_perceptual_one_is_random(make_shards: MakeShards, tmp_path: Path) -> None:
    small = params(perceptual="backbone", gan_epochs=1, epochs=1)
    run.run(shards=[make_shards()], out=str(tmp_path / "out"), **small.arguments("invert"))
    described = json.loads((tmp_path / "out" / "model.json").read_text())
    assert "random weights" in described["perceptual"]
    assert described["perceptual"] != described["judge"]
    assert all(math.isfinite(described[name]) for name in ("kid_samples", "kid_reconstructions"))
