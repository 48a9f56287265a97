"""What the report says of boxes: headline, classes, FROC curves and counts, as HTML."""

import math
from html import escape

from components.common.html import page
from components.common.html.charts import UNIT, Axis, Line, chart
from components.common.html.forest import scale, strip
from components.common.html.numbers import cell, limits, number, percent, spoken, unit_axis
from components.common.runs.params import Evaluate
from components.common.statistics.detection_matching import IOUS, FrocCurve
from components.detect.metrics import FROC, RATES, ClassResult, DetectorResult, froc_points

SHOWN = 4.0
"""False positives an image where the curves end."""


def sections(found: DetectorResult, params: Evaluate) -> list[str]:
    """All sections, in order."""
    return [_hero(found, params), _classes(found, params), _froc(found, params), _data(found), _method(found, params)]


def _hero(found: DetectorResult, params: Evaluate) -> str:
    """The headline: the numbers over the classes, with what they mean in a sentence."""
    main, one = found.intervals["map_50"], found.intervals["froc_1"]
    axis = unit_axis([main], 0.0)
    share = "" if math.isnan(one.estimate) else f"With one false alarm an image, {round(100 * one.estimate)} of 100 boxes are found. "
    picture = strip(spoken("mAP@50", main, params.confidence), main, axis, 0.0) + scale("Axis of mAP@50", axis)
    first = (
        '<div class="card main"><div class="label">mAP@50, test split</div>'
        f'<div class="number">{number(main.estimate)}</div>'
        f'<div class="interval">{percent(params.confidence)} interval {limits(main)}</div>{picture}'
        f"<p>{share}A box counts as found when it and a detection of its class share at least half of their union.</p></div>"
    )
    auroc, strict = found.intervals["image_auroc"], found.intervals["map"]
    cards = [
        page.card("mAP@[.5:.95]", number(strict.estimate), limits(strict)),
        page.card("Sensitivity at 1 false positive an image", number(one.estimate), limits(one)),
        page.card("AUROC of images", number(auroc.estimate), f"{limits(auroc)}, with a box against without"),
        page.card("mAP@50, validation split", number(found.val_map_50), "the epoch was chosen there"),
    ]
    return f'<section class="hero" aria-label="Headline">{first}{"".join(cards)}</section>'


def _classes(found: DetectorResult, params: Evaluate) -> str:
    """A row a class, the means below."""
    axis = unit_axis([one.intervals["ap_50"] for one in found.each], 0.0)
    rows = [_class_row(one, axis, params) for one in found.each]
    mean, strict, auroc = (found.intervals[name] for name in ("map_50", "map", "image_auroc"))
    picture = strip(spoken("mAP@50", mean, params.confidence), mean, axis, 0.0)
    cells = [f"{found.test.boxes:,} in {_positives(found):,}", cell(mean), picture, cell(strict), cell(auroc)]
    rows.append(page.row("All classes", cells, "macro"))
    heads = ["Class", "Boxes in images", "AP@50", scale("Axis of AP@50", axis), "AP@[.5:.95]", "AUROC of images"]
    table = page.table(f"Test split, with {percent(params.confidence)} intervals.", heads, rows)
    return f'<section><h2>Classes</h2><div class="card scroll">{table}</div></section>'


def _class_row(one: ClassResult, axis: Axis, params: Evaluate) -> str:
    interval = one.intervals["ap_50"]
    few = one.boxes < params.min_positives
    picture = strip(spoken(f"AP@50 of {one.name}", interval, params.confidence), interval, axis, 0.0, "off" if few else "")
    cells = [f"{one.boxes:,} in {one.positives:,}", cell(interval), picture, cell(one.intervals["ap"]), cell(one.intervals["image_auroc"])]
    return page.row(one.name, cells, "out" if few else "")


def _positives(found: DetectorResult) -> int:
    return sum(len(image.targets) > 0 for image in found.test.images)


def _froc(found: DetectorResult, params: Evaluate) -> str:
    """Sensitivity at the agreed rates, and the curves."""
    if found.froc is None:
        return ""
    rows = [page.row(f"{rate:g}", [cell(found.intervals[key])]) for key, rate in zip(FROC, RATES, strict=True)]
    caption = f"All classes together, test split, with {percent(params.confidence)} intervals."
    table = page.table(caption, ["False positives an image", "Sensitivity"], rows)
    named = [("All classes", found.froc), *((one.name, one.froc) for one in found.each if len(found.each) > 1)]
    cards = "".join(_froc_card(name, curve, name == "All classes") for name, curve in named if curve)
    text = (
        "The share of boxes that are found against the false positives an image that come with them, as the threshold falls. All images "
        "count, those without boxes too. Rings: the rates of the table."
    )
    return (
        f'<section><h2>Free-response ROC curves</h2><p>{text}</p><div class="card scroll">{table}</div>'
        f'<div class="grid-3">{cards}</div></section>'
    )


def _froc_card(name: str, curve: FrocCurve, rings: bool) -> str:
    reached = [(float(rate), float(curve.sensitivity[curve.false_positives <= rate][-1])) for rate in RATES]
    picture = chart(
        f"FROC curve, {name.lower() if rings else name}: sensitivity {number(reached[2][1])} at 1 false positive an image",
        [Line(froc_points(curve, SHOWN), "first")],
        Axis(0, SHOWN, (0.0, 1.0, 2.0, 3.0, 4.0), "False positives an image"),
        Axis(0, 1, UNIT, "Sensitivity"),
        reached if rings else (),
        size=(310, 200),
    )
    return f'<figure class="card"><h3>{escape(name)}</h3>{picture}</figure>'


def _data(found: DetectorResult) -> str:
    parts = [
        f"{page.plural(len(split.images), 'image')} for {name} (boxes: {split.boxes:,})"
        for name, split in (("validation", found.val), ("test", found.test))
    ]
    text = (
        f"There are {' and '.join(parts)}; no patient is in both. Left out are {found.val.unknown:,} and {found.test.unknown:,}, of which "
    )
    text += "it is not known whether they show each class: a true detection in them would count as false."
    return f"<section><h2>Data</h2><p>{text}</p></section>"


def _method(found: DetectorResult, params: Evaluate) -> str:
    """What is particular about boxes."""
    lost = params.resamples - found.intervals["map_50"].used
    text = (
        "Detections are matched as COCO does it: in each image by falling score, each to the free box of its class with which it shares "
        "most, if intersection over union reaches the threshold; a second detection of a box is a false positive. FROC counts the same "
        f"matches at {IOUS[0]:g}. mAP@50 is pycocotools' average precision at {IOUS[0]:g}, mAP@[.5:.95] the mean over ten thresholds, both "
        "means over the classes that have a box. The AUROC of images takes the surest detection as an image's score."
    )
    text += f" The intervals of the means leave out the {page.plural(lost, 'resample')} in which a class has no box." if lost else ""
    text += " In the pictures, green boxes are those that are there, blue ones detections that hit, and red ones those that do not."
    return f"<section><h2>Notes on the detections</h2><p>{text}</p></section>"
