import json
import math
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from components.common.errors import UserError
from components.evaluate.run import run
from components.params import Params

Table = dict[str, Any]
MakeInverted = Callable[..., str]
PARAMS = Params.model_validate({"evaluate": {"resamples": 500}})
ERRORS = ("psnr", "ssim", "ms_ssim", "mse", "feature_distance")


@pytest.fixture
def make_inverted(tmp_path: Path) -> MakeInverted:
    """Returns a function that writes an output folder of invert; `better` is added to every PSNR, `change` edits the columns."""

    def make(name: str = "invert", better: float = 0.0, change: Callable[[Table], object] | None = None, **described: object) -> str:
        folder = tmp_path / name
        folder.mkdir()
        columns = _columns(better)
        if change:
            change(columns)
        pq.write_table(pa.table(columns), folder / "predictions.parquet")
        model = {
            "task": "invert",
            "arch": "resnet18",
            "size": 32,
            "generator_size": 32,
            "judge": "random <net>",
            "perceptual": "none",
            "ms_ssim_scales": 2,
        }
        model |= {"kid_samples": 0.25, "kid_reconstructions": 0.125, "sha256": "f" * 64, **described}
        (folder / "model.json").write_text(json.dumps(model))
        (folder / "run.json").write_text(json.dumps({"stage": "invert", "inputs": {"shards": "a" * 64}, "params": {}}))
        (folder / "history.csv").write_text("epoch,loss,val_psnr\n1,0.7,16\n2,0.5,18\n")
        return str(folder)

    return make


def _columns(better: float) -> Table:
    """Returns one to three images per patient; every third patient is in val."""
    rng = np.random.default_rng(0)
    who = np.repeat(np.arange(60), rng.integers(1, 4, 60))
    count = len(who)
    psnr = 20 + rng.normal(size=60)[who] + 0.1 * rng.normal(size=count) + better
    return {
        "image_id": [f"i{index:03d}" for index in rng.permutation(count)],
        "patient_id": [f"p{patient:02d}" for patient in who],
        "split": np.where(who % 3, "test", "val"),
        "task": ["invert"] * count,
        "psnr": psnr,
        "mse": 10 ** (-psnr / 10),
        "ssim": 0.6 + 0.01 * psnr / 20,
        "ms_ssim": 0.7 + 0.01 * psnr / 20,
        "feature_distance": 2 - 0.01 * psnr,
        "mean_image_psnr": 15 + rng.normal(size=60)[who],
    }


def evaluate(*folders: str, out: Path, baseline: list[str] | None = None) -> dict[str, float]:
    run(predictions=list(folders), out=str(out), **PARAMS.arguments("evaluate"), baseline=baseline)
    metrics: dict[str, float] = json.loads((out / "metrics.json").read_text())
    return metrics


def test_means_and_intervals_are_those_of_a_bootstrap_over_patients(make_inverted: MakeInverted, tmp_path: Path) -> None:
    folder = make_inverted()
    found = evaluate(folder, out=tmp_path / "out")
    table = pq.read_table(f"{folder}/predictions.parquet").to_pandas()
    test = table[table["split"] == "test"]
    assert found["invert_test_images"] == len(test)
    assert found["invert_test_patients"] == test["patient_id"].nunique()
    for name in (*ERRORS, "mean_image_psnr"):
        assert found[f"invert_test_{name}"] == pytest.approx(test[name].mean())
    assert found["invert_test_psnr_gain"] == pytest.approx((test["psnr"] - test["mean_image_psnr"]).mean())
    assert found["invert_val_psnr"] == pytest.approx(table[table["split"] == "val"]["psnr"].mean())
    low, high = np.quantile(bootstrap_means(test), [0.025, 0.975])
    assert found["invert_test_psnr_low"] == pytest.approx(low, abs=0.05)
    assert found["invert_test_psnr_high"] == pytest.approx(high, abs=0.05)
    assert (found["invert_test_kid_samples"], found["invert_test_kid_reconstructions"]) == (0.25, 0.125)


def bootstrap_means(test: Any) -> list[float]:
    """Computes the mean PSNR of 2000 bootstrap resamples of patients, one resample at a time."""
    rng = np.random.default_rng(1)
    groups = [group["psnr"].to_numpy() for _, group in test.groupby("patient_id")]
    return [float(np.concatenate([groups[i] for i in rng.integers(0, len(groups), len(groups))]).mean()) for _ in range(2000)]


def test_a_baseline_is_compared_image_by_image(make_inverted: MakeInverted, tmp_path: Path) -> None:
    found = evaluate(make_inverted(better=0.2), out=tmp_path / "out", baseline=[make_inverted("plain")])
    # Every image gains 0.2 dB, so the paired difference has no variance, however wide the intervals of the two models.
    assert found["invert_test_psnr_high"] - found["invert_test_psnr_low"] > 0.3
    for suffix in ("", "_low", "_high"):
        assert found[f"invert_difference_psnr{suffix}"] == pytest.approx(0.2)
    assert found["invert_difference_psnr_p"] < 0.01


def test_feature_distances_compare_only_in_the_same_backbone(make_inverted: MakeInverted, tmp_path: Path) -> None:
    baseline = [make_inverted("plain", judge="another")]
    found = evaluate(make_inverted(), out=tmp_path / "out", baseline=baseline)
    compared = {name for name in found if "difference" in name}
    assert any("ms_ssim" in name for name in compared)
    assert not any("feature_distance" in name for name in compared)


def test_the_report_contains_all_metrics(make_inverted: MakeInverted, tmp_path: Path) -> None:
    evaluate(make_inverted(), out=tmp_path / "out")
    html = (tmp_path / "out" / "report.html").read_text()
    HTMLParser().feed(html)
    for text in ("GAN inversion", "PSNR of the mean image", "Kernel inception distance", "random &lt;net&gt;", "2 scales of the five"):
        assert text in html
    assert "not clearly closer" not in html


def test_reconstructions_no_better_than_the_mean_image_are_flagged(make_inverted: MakeInverted, tmp_path: Path) -> None:
    evaluate(make_inverted(better=-5.0), out=tmp_path / "out")
    assert "not clearly closer to the originals than the mean training image" in (tmp_path / "out" / "report.html").read_text()


def test_a_set_too_small_for_kid_has_none(make_inverted: MakeInverted, tmp_path: Path) -> None:
    found = evaluate(make_inverted(kid_samples=None, kid_reconstructions=None), out=tmp_path / "out")
    assert found["invert_test_kid_samples"] is None


def test_what_cannot_be_evaluated_is_named(make_inverted: MakeInverted, tmp_path: Path) -> None:
    def no_column(columns: Table) -> None:
        del columns["ssim"]

    def not_a_number(columns: Table) -> None:
        columns["mse"][3] = math.nan

    def other_images(columns: Table) -> None:
        columns["image_id"] = [f"other{name}" for name in columns["image_id"]]

    plain = make_inverted("plain")
    for name, change, match in (
        ("a", no_column, r"a/predictions\.parquet: lacks the column ssim; run invert again"),
        ("b", not_a_number, r"b/predictions\.parquet: an error is not a finite number; run invert again"),
    ):
        with pytest.raises(UserError, match=match):
            evaluate(make_inverted(name, change=change), out=tmp_path / "out")
    with pytest.raises(UserError, match="were tested on other images"):
        evaluate(plain, out=tmp_path / "out", baseline=[make_inverted("c", change=other_images)])
    with pytest.raises(UserError, match="have images of 32 and 64 pixels"):
        evaluate(plain, out=tmp_path / "out", baseline=[make_inverted("d", generator_size=64)])
