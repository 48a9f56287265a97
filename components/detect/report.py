"""The report's sections on boxes: headline, classes, FROC curves and counts."""

from markupsafe import Markup

from components.common.html.charts import UNIT, Axis, Chart, Line, unit_axis
from components.common.html.page import render_blocks
from components.common.runs.params import Evaluate
from components.common.statistics.detection_matching import IOUS, FrocCurve
from components.detect.metrics import FROC, RATES, DetectorResult, froc_points

MOST_FALSE_POSITIVES = 4.0  # per image, where the curves end


def sections(found: DetectorResult, params: Evaluate) -> list[Markup]:
    """Renders report.html: the headline, then the other sections."""
    pooled = [("All classes", _chart(found.froc, rings=True), _sensitivity(found.froc, 1.0))] if found.froc else []
    single = [(one.name, _chart(one.froc), _sensitivity(one.froc, 1.0)) for one in found.each if one.froc and len(found.each) > 1]
    return render_blocks(
        "detect/report.html",
        found=found,
        params=params,
        headline_axis=unit_axis([found.intervals["map_50"]], 0.0),
        axis=unit_axis((one.intervals["ap_50"] for one in found.each), 0.0),
        positives=sum(len(image.targets) > 0 for image in found.test.images),
        rates=[(rate, found.intervals[key]) for key, rate in zip(FROC, RATES, strict=True)],
        curves=pooled + single,
        iou=IOUS[0],
        lost=params.resamples - found.intervals["map_50"].used,
    )


def _chart(curve: FrocCurve, rings: bool = False) -> Chart:
    return Chart(
        [Line(froc_points(curve, MOST_FALSE_POSITIVES), "first")],
        Axis(0, MOST_FALSE_POSITIVES, (0.0, 1.0, 2.0, 3.0, 4.0), "False positives per image"),
        Axis(0, 1, UNIT, "Sensitivity"),
        [(float(rate), _sensitivity(curve, rate)) for rate in RATES] if rings else (),
        width=310,
    )


def _sensitivity(curve: FrocCurve, rate: float) -> float:
    return float(curve.sensitivity[curve.false_positives <= rate][-1])
