"""The report in headless Chromium without network access."""

import html
import re
import shutil
import struct
import subprocess
from pathlib import Path

import cv2
import numpy as np
import pytest

from components.evaluate.run import run
from components.params import Params
from tests.evaluate.conftest import MakePredictions, Table

CHROMIUM = shutil.which("chromium")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Debian's chromium: apt-get install chromium")
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    "--virtual-time-budget=5000",
]
# Clicks column headers of one table, then reports the order of its rows and a few properties of the page.
PROBE = """
<script>
const table = document.querySelectorAll("table:has(thead)")[WHICH];
const names = () => [...table.tBodies[0].rows].map((row) => row.cells[0].textContent).join(";");
const told = ["before=" + names()];
for (const head of HEADS) { table.tHead.rows[0].cells[head].querySelector("button").click(); told.push("then=" + names()); }
told.push("sorted=" + [...table.tHead.rows[0].cells].map((head) => head.getAttribute("aria-sort") ?? "").join(","));
told.push("overflow=" + (document.documentElement.scrollWidth - document.documentElement.clientWidth));
told.push("requests=" + performance.getEntriesByType("resource").filter((each) => !each.name.startsWith("data:")).length);
told.push("unnamed=" + [...document.querySelectorAll("svg[role=img]")].filter((each) => !each.getAttribute("aria-label")).length);
const seen = document.createElement("pre"); seen.id = "told"; seen.textContent = told.join("|"); document.body.append(seen);
</script>
"""


def browse(page: Path, profile: Path, *flags: str) -> str:
    assert CHROMIUM is not None
    command = [CHROMIUM, *FLAGS, f"--user-data-dir={profile}", *flags, page.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout


def run_probe(page: Path, profile: Path, which: int, heads: list[int], width: int) -> dict[str, list[str]]:
    """Runs the probe in a copy of the page and returns its report."""
    copy = page.with_name("probed.html")
    probe = PROBE.replace("WHICH", str(which)).replace("HEADS", str(heads))
    copy.write_text(page.read_text(encoding="utf-8").replace("</body>", f"{probe}</body>"), encoding="utf-8")
    dom = browse(copy, profile, f"--window-size={width},900", "--dump-dom")
    found = re.search(r'<pre id="told">(.*?)</pre>', dom, re.DOTALL)
    assert found, "the page's scripts did not run to their end"
    pairs = [part.split("=", 1) for part in html.unescape(found[1]).split("|")]
    return {name: [value for key, value in pairs if key == name] for name, _ in pairs}


@pytest.fixture
def page(make_predictions: MakePredictions, tmp_path: Path) -> Path:
    def attributes(columns: Table) -> None:
        columns["sex"] = ["FM"[index % 2] for index in range(len(columns["split"]))]

    params = Params.model_validate({"evaluate": {"resamples": 100}})
    good, poor = make_predictions("good", attributes, skill=1.5), make_predictions("poor", attributes, skill=0.5, seed=1)
    run(predictions=[good], baseline=[poor], out=str(tmp_path / "out"), **params.arguments("evaluate"))
    return tmp_path / "out" / "report.html"


def test_tables_sort_by_a_click(page: Path, tmp_path: Path) -> None:
    """Sorted by AUROC, findings without a value come after the others and the macro average stays last."""
    found = run_probe(page, tmp_path / "profile", 1, [2, 2, 0], 1280)
    assert "Absent" in found["before"][0]
    first, second, by_name = (names.split(";") for names in found["then"])
    assert first[-2:] == second[-2:] == ["Absent", "Macro average of 2"]
    assert first[:3] == second[2::-1] and first[:3] != by_name[:3]
    assert by_name == [*sorted(by_name[:4]), "Macro average of 2"]
    assert found["sorted"] == ["ascending,,,,,"]


@pytest.mark.parametrize("width", [1280, 600])
def test_page_fits_its_window_and_makes_no_requests(width: int, page: Path, tmp_path: Path) -> None:
    found = run_probe(page, tmp_path / "profile", 0, [], width)
    assert found["overflow"] == ["0"] and found["requests"] == ["0"] and found["unnamed"] == ["0"]


def test_screenshot_shows_something(page: Path, tmp_path: Path) -> None:
    picture = tmp_path / "report.png"
    browse(page, tmp_path / "profile", "--window-size=1280,2400", f"--screenshot={picture}")
    content = picture.read_bytes()
    assert struct.unpack(">II", content[16:24]) == (1280, 2400)
    pixels = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_GRAYSCALE)
    # Text and curves on a light page, neither a blank page nor a black error page.
    assert pixels.mean() > 200 and (pixels < 100).mean() > 0.005
