"""Take the pictures of the MLflow UI in docs/compare.md with a headless Chromium: `python scripts/screenshots.py --address URL`.

The server must hold at least two finished runs of each stage in PAGES. The pages compare the two newest.
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote

from mlflow import MlflowClient
from PIL import Image

DOCS = Path(__file__).parents[1] / "docs"
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
WIDTH, ASSISTANT = 1300, 460
"""Width in pixels of a picture, and of the assistant pane that MLflow opens at the right, which is cropped."""
OPTIONS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--hide-scrollbars",
    f"--window-size={WIDTH + ASSISTANT},1500", "--virtual-time-budget=180000",
)  # fmt: skip
Page = Callable[[str, list[str]], str]


def _runs(experiment: str, runs: list[str]) -> str:
    return f"experiments/{experiment}/runs"


def _chart(experiment: str, runs: list[str]) -> str:
    return f"experiments/{experiment}/runs?compareRunsMode=CHART"


def _compared(experiment: str, runs: list[str]) -> str:
    return f'compare-runs?runs={quote(str(runs).replace(chr(39), chr(34)))}&experiments=["{experiment}"]'


PAGES: dict[str, tuple[str, Page, int]] = {
    "compare-runs": ("classify", _runs, 420),
    "compare-curves": ("pretrain", _chart, 1500),
    "compare-parameters": ("pretrain", _compared, 1500),
}
"""Picture -> stage, address of the page within the UI, and height of the picture in pixels."""


def main() -> None:
    """Take all pictures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--address", default="http://127.0.0.1:5000", help="address of the MLflow server")
    parser.add_argument("--out", type=Path, default=DOCS, help="folder of the pictures")
    arguments = parser.parse_args()
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        sys.exit(f"no browser found: install one of {', '.join(BROWSERS)}")
    client = MlflowClient(arguments.address)
    for name, (stage, page, height) in PAGES.items():
        experiment, runs = _newest(client, stage)
        _shoot(browser, f"{arguments.address}/#/{page(experiment, runs)}", arguments.out / f"{name}.png", height)


def _newest(client: MlflowClient, stage: str) -> tuple[str, list[str]]:
    """Return the id of a stage's experiment, and the ids of its two newest runs."""
    found = client.get_experiment_by_name(stage)
    runs = client.search_runs([found.experiment_id], "attributes.status = 'FINISHED'", max_results=2) if found else []
    if len(runs) < 2:
        sys.exit(f"the server must hold two finished runs of {stage}; run the stage again")
    return found.experiment_id, [run.info.run_id for run in runs]


def _shoot(browser: str, address: str, path: Path, height: int) -> None:
    with tempfile.TemporaryDirectory() as profile:
        subprocess.run([browser, *OPTIONS, f"--user-data-dir={profile}", f"--screenshot={path}", address], check=True, capture_output=True)
    with Image.open(path) as picture:
        picture.crop((0, 0, WIDTH, height)).quantize(128).save(path, optimize=True)


if __name__ == "__main__":
    main()
