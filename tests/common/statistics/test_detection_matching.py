"""Average precision against pycocotools and scikit-learn, FROC against a brute-force implementation."""

import numpy as np
import pytest
from pycocotools import mask
from sklearn.metrics import precision_recall_curve

from components.common.statistics.detection_matching import (
    IOUS,
    ImageBoxes,
    MatchedDetections,
    average_precision,
    froc_curve,
    iou,
    match,
    mean_average_precision,
    pool,
    sensitivity_at,
)
from tests.coco import coco_average_precision

RATES = np.array([0.25, 0.5, 1.0, 2.0])
CLASSES = 3


def scenes(seed: int, images: int = 30, skill: float = 0.7) -> list[ImageBoxes]:
    """Returns images with boxes of three classes: hits, duplicates, misses, false alarms. Scores have ties; boxes are whole pixels."""
    rng = np.random.default_rng(seed)
    return [_scene(rng, skill) for _ in range(images)]


def _scene(rng: np.random.Generator, skill: float) -> ImageBoxes:
    targets = _boxes(rng, int(rng.integers(0, 4)))
    labels = rng.integers(0, CLASSES, len(targets))
    again = np.flatnonzero(rng.random(len(targets)) < 0.3)
    found = np.concatenate([np.flatnonzero(rng.random(len(targets)) < skill), again])
    near = np.concatenate([targets[found] + rng.integers(-3, 4, (len(found), 4)), _boxes(rng, int(rng.integers(0, 5)))])
    near[:, 2:] = near[:, 2:].clip(1)
    guessed = np.concatenate([labels[found], rng.integers(0, CLASSES, len(near) - len(found))])
    return ImageBoxes(near, rng.integers(1, 20, len(near)) / 20, guessed, targets, labels)


def _boxes(rng: np.random.Generator, count: int) -> np.ndarray:
    return np.concatenate([rng.integers(0, 40, (count, 2)), rng.integers(8, 24, (count, 2))], axis=1).astype(float)


def unit_weights(images: int) -> np.ndarray:
    return np.ones((images, 1), np.int32)


def test_iou_agrees_with_coco() -> None:
    rng = np.random.default_rng(0)
    boxes, targets = _boxes(rng, 20), _boxes(rng, 15)
    np.testing.assert_allclose(iou(boxes, targets), mask.iou(boxes, targets, np.zeros(15)), rtol=1e-12)
    assert iou(np.zeros((0, 4)), targets).shape == (0, 15)


@pytest.mark.parametrize("seed", range(5))
def test_average_precision_agrees_with_pycocotools(seed: int) -> None:
    images = scenes(seed)
    mine = np.concatenate([average_precision(match(images, label), unit_weights(len(images))) for label in range(CLASSES)], axis=1)
    np.testing.assert_allclose(mine, coco_average_precision(images, CLASSES), rtol=0, atol=1e-12)


def test_weights_are_repeated_images() -> None:
    rng = np.random.default_rng(1)
    # Scores without ties: COCO breaks ties by the order of images, which repeating images changes.
    images = [image._replace(scores=rng.random(len(image.scores))) for image in scenes(7, 12)]
    weights = rng.integers(0, 4, (12, 6)).astype(np.int32)
    mine = np.stack([average_precision(match(images, label), weights) for label in range(CLASSES)], axis=1)
    pooled = pool([match(images, label) for label in range(CLASSES)])
    froc = sensitivity_at(pooled, weights, RATES)
    for column, counts in enumerate(weights.T):
        repeated = [image for image, count in zip(images, counts, strict=True) for _ in range(count)]
        np.testing.assert_allclose(mine[:, :, column], coco_average_precision(repeated, CLASSES), rtol=0, atol=1e-12)
        again = pool([match(repeated, label) for label in range(CLASSES)])
        np.testing.assert_allclose(froc[:, column], sensitivity_at(again, unit_weights(len(repeated)), RATES)[:, 0])


def test_resampling_in_parts_gives_the_same_result(monkeypatch: pytest.MonkeyPatch) -> None:
    images = scenes(3)
    marks = match(images, 0)
    weights = np.random.default_rng(1).integers(0, 3, (len(images), 9)).astype(np.int32)
    expected = average_precision(marks, weights), sensitivity_at(marks, weights, RATES)
    monkeypatch.setattr("components.common.statistics.detection_matching.ELEMENTS", 2 * len(marks.scores))
    np.testing.assert_array_equal(average_precision(marks, weights), expected[0])
    np.testing.assert_array_equal(sensitivity_at(marks, weights, RATES), expected[1])


def test_average_precision_reads_scikit_learns_curve_at_101_recalls() -> None:
    """Every box is found once, so detections correspond to samples and hits to labels."""
    rng = np.random.default_rng(2)
    hit = rng.random(400) < 0.3
    scores = rng.permutation(400) / 400
    order = np.argsort(-scores)
    marks = MatchedDetections(scores[order], np.zeros(400, int), np.repeat(hit[order][:, None], len(IOUS), axis=1), np.array([hit.sum()]))
    precision, recall, _ = precision_recall_curve(hit, scores)
    precision, recall = precision[:-1], recall[:-1]  # scikit-learn appends the last point by convention
    expected = np.mean([precision[recall >= level].max() for level in np.linspace(0, 1, 101)])
    assert average_precision(marks, unit_weights(1))[0, 0] == pytest.approx(expected, abs=1e-12)


def brute_force_froc(images: list[ImageBoxes], rate: float) -> float:
    """Computes the sensitivity at `rate` false positives per image by matching anew at every threshold."""
    best = 0.0
    for threshold in {score for image in images for score in image.scores}:
        false = true = 0
        for image in images:
            free = list(range(len(image.targets)))
            for index in sorted(np.flatnonzero(image.scores >= threshold), key=lambda i: -image.scores[i]):
                x, y, w, h = image.boxes[index]
                shares = {}
                for at in free:
                    a, b, c, d = image.targets[at]
                    common = max(0, min(x + w, a + c) - max(x, a)) * max(0, min(y + h, b + d) - max(y, b))
                    if image.target_labels[at] == image.labels[index]:
                        shares[at] = common / (w * h + c * d - common)
                chosen = max(shares, key=lambda at: shares[at], default=None)
                if chosen is not None and shares[chosen] >= 0.5:
                    free.remove(chosen)
                    true += 1
                else:
                    false += 1
        if false <= rate * len(images):
            best = max(best, true / sum(len(image.targets) for image in images))
    return best


@pytest.mark.parametrize("seed", range(3))
def test_froc_agrees_with_brute_force(seed: int) -> None:
    images = scenes(seed, 12)
    marks = pool([match(images, label) for label in range(CLASSES)])
    found = sensitivity_at(marks, unit_weights(len(images)), RATES)[:, 0]
    expected = [brute_force_froc(images, rate) for rate in RATES]
    assert found.tolist() == pytest.approx(expected)
    curve = froc_curve(marks)
    assert [curve.sensitivity[curve.false_positives <= rate].max() for rate in RATES] == pytest.approx(expected)
    assert curve.thresholds[0] == np.inf and (np.diff(curve.thresholds) < 0).all()


def test_a_second_detection_of_a_box_is_a_false_positive() -> None:
    box = np.array([[4.0, 4, 10, 10]])
    image = ImageBoxes(np.repeat(box, 2, axis=0), np.array([0.5, 0.9]), np.zeros(2, int), box, np.zeros(1, int))
    marks = match([image], 0)
    assert marks.hit[:, 0].tolist() == [True, False]
    assert marks.scores.tolist() == [0.9, 0.5]


def test_the_other_class_is_a_miss_and_a_false_positive() -> None:
    box = np.array([[4.0, 4, 10, 10]])
    image = ImageBoxes(box, np.array([0.9]), np.array([1]), box, np.array([0]))
    assert mean_average_precision([image], 2) == (0.0, 0.0)


def test_perfect_and_hopeless() -> None:
    images = scenes(5)
    perfect = [image._replace(boxes=image.targets, labels=image.target_labels, scores=np.ones(len(image.targets))) for image in images]
    nothing = [image._replace(boxes=np.zeros((0, 4)), labels=np.zeros(0, int), scores=np.zeros(0)) for image in images]
    beside = [image._replace(boxes=image.boxes + np.array([500, 0, 0, 0])) for image in images]
    assert mean_average_precision(perfect, CLASSES) == (1.0, 1.0)
    for hopeless in (nothing, beside):
        assert mean_average_precision(hopeless, CLASSES) == (0.0, 0.0)
        assert not sensitivity_at(match(hopeless, 0), unit_weights(len(images)), RATES).any()


def test_without_boxes_nothing_is_defined() -> None:
    images = [image._replace(targets=np.zeros((0, 4)), target_labels=np.zeros(0, int)) for image in scenes(5)]
    assert np.isnan(mean_average_precision(images, CLASSES)).all()
    assert np.isnan(sensitivity_at(match(images, 0), unit_weights(len(images)), RATES)).all()
    assert np.isnan(coco_average_precision(images, CLASSES)).all()
    assert np.isnan(mean_average_precision([], CLASSES)).all()
