import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from sklearn.metrics import roc_auc_score

from components.classify import registration as classify
from components.common.head import Candidate, Champion, NotComparable
from components.common.runs.params import Register
from components.common.statistics.intervals import Interval
from components.detect import registration as detect
from components.invert import registration as invert
from components.register import gate

FINDINGS = ["A", "B"]


def table(scores: np.ndarray, targets: np.ndarray, prefix: str = "image") -> pa.Table:
    frame = pd.DataFrame({"image_id": [f"{prefix}{i:04d}" for i in range(len(scores))]})
    frame["patient_id"] = [f"patient{i // 2:04d}" for i in range(len(scores))]
    for index, name in enumerate(FINDINGS):
        frame[f"score_{name}"], frame[f"target_{name}"] = scores[:, index], targets[:, index]
    return pa.Table.from_pandas(frame)


def compare(new: pa.Table, champion: pa.Table, resamples: int = 200, min_positives: int = 5) -> Interval:
    candidate = Candidate("", "", "classify", {}, {}, {}, {}, min_positives, new, {}, {})
    return classify.compare(candidate, Champion(champion, {}), Register(resamples=resamples))


@pytest.fixture
def targets() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 2, (400, 2)).astype(np.float32)


def noisy(targets: np.ndarray, noise: float, seed: int) -> np.ndarray:
    return targets + np.random.default_rng(seed).normal(0, noise, targets.shape)


@pytest.mark.parametrize(("auroc", "alias"), [(0.71, "champion"), (0.7, "challenger"), (0.3, "challenger"), (None, "challenger")])
def test_first_classifier_needs_the_floor(auroc: float | None, alias: str) -> None:
    assert gate.first(classify.floor({"classify_test_auroc_macro": auroc}, Register(min_auroc=0.7))).alias == alias


@pytest.mark.parametrize(("low", "alias"), [(0.001, "champion"), (0.0, "challenger"), (None, "challenger")])
def test_first_detector_and_first_inversion_must_be_better_than_nothing(low: float | None, alias: str) -> None:
    assert gate.first(detect.floor({"detect_test_map_50": 0.2, "detect_test_map_50_low": low}, Register())).alias == alias
    gain = {"invert_test_psnr": 20.0, "invert_test_psnr_gain": 0.5, "invert_test_psnr_gain_low": low}
    assert gate.first(invert.floor(gain, Register())).alias == alias


@pytest.mark.parametrize(("low", "alias"), [(0.001, "champion"), (0.0, "challenger"), (-0.01, "challenger"), (float("nan"), "challenger")])
def test_interval_must_lie_above_zero(low: float, alias: str) -> None:
    decision = gate.against("3", "mAP@50", Interval(0.02, low, 0.04, 2000))
    assert decision.alias == alias
    assert "mAP@50 to champion version 3" in decision.reason


def test_compare_is_the_difference_of_macro_aurocs_whatever_the_order(targets: np.ndarray) -> None:
    mine, theirs = noisy(targets, 0.8, 1), noisy(targets, 1.5, 2)
    shuffled = table(theirs, targets).take(np.random.default_rng(3).permutation(400))

    difference = compare(table(mine, targets), shuffled, resamples=500)

    expected = np.mean([roc_auc_score(targets[:, i], mine[:, i]) - roc_auc_score(targets[:, i], theirs[:, i]) for i in range(2)])
    assert difference.estimate == pytest.approx(expected, abs=1e-9)
    assert 0 < difference.low < expected < difference.high


def test_equal_models_have_no_difference(targets: np.ndarray) -> None:
    scores = table(noisy(targets, 1, 1), targets)
    difference = compare(scores, scores)
    assert (difference.estimate, difference.low, difference.high) == (0, 0, 0)
    assert gate.against("1", "macro AUROC", difference).alias == "challenger"


def test_too_few_positives_to_compare(targets: np.ndarray) -> None:
    scores = table(noisy(targets, 1, 1), targets)
    with pytest.raises(NotComparable, match="enough positives"):
        compare(scores, scores, min_positives=1000)


def test_the_targets_of_the_candidate_are_used(targets: np.ndarray) -> None:
    """Labels may have been corrected since the champion was registered."""
    mine = table(noisy(targets, 0.5, 1), targets)
    difference = compare(mine, table(noisy(targets, 0.5, 1), 1 - targets))
    assert difference.estimate == 0


def test_other_images_are_not_comparable(targets: np.ndarray) -> None:
    mine, theirs = table(targets, targets), table(targets, targets, prefix="other")
    with pytest.raises(NotComparable, match="400 and 400 images, 0 in common"):
        compare(mine, theirs)
    with pytest.raises(NotComparable, match="400 and 399 images, 399 in common"):
        compare(mine, mine.slice(1))


def test_other_findings_are_not_comparable(targets: np.ndarray) -> None:
    mine = table(targets, targets)
    theirs = mine.rename_columns([name.replace("_B", "_Other") for name in mine.column_names])
    with pytest.raises(NotComparable, match="other findings"):
        compare(mine, theirs)
