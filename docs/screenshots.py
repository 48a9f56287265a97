"""Pictures of the MLflow UI for docs/compare.md, taken by a headless Chromium: `python docs/screenshots.py --address URL`.

The server must hold at least two finished runs of each stage named in PAGES; the two newest are compared.
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

FOLDER = Path(__file__).parent
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
OPTIONS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--hide-scrollbars", "--window-size=1400,900", "--virtual-time-budget=30000",
)  # fmt: skip
Page = Callable[[str, list[str]], str]


def _runs(experiment: str, runs: list[str]) -> str:
    return f"experiments/{experiment}/runs"


def _chart(experiment: str, runs: list[str]) -> str:
    return f"experiments/{experiment}/runs?compareRunsMode=CHART"


def _compared(experiment: str, runs: list[str]) -> str:
    return f'compare-runs?runs={quote(str(runs).replace(chr(39), chr(34)))}&experiments=["{experiment}"]'


PAGES: dict[str, tuple[str, Page]] = {
    "compare-runs": ("classify", _runs),
    "compare-curves": ("pretrain", _chart),
    "compare-parameters": ("pretrain", _compared),
}
"""Picture -> stage, and the page within MLflow's UI."""


def main() -> None:
    """Takes all pictures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--address", default="http://127.0.0.1:5000", help="of the MLflow server")
    parser.add_argument("--out", type=Path, default=FOLDER, help="folder of the pictures")
    arguments = parser.parse_args()
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        sys.exit(f"needs one of {', '.join(BROWSERS)}")
    client = MlflowClient(arguments.address)
    for name, (stage, page) in PAGES.items():
        experiment, runs = _newest(client, stage)
        _shoot(browser, f"{arguments.address}/#/{page(experiment, runs)}", arguments.out / f"{name}.png")


def _newest(client: MlflowClient, stage: str) -> tuple[str, list[str]]:
    """Ids of a stage's experiment and of its two newest runs."""
    found = client.get_experiment_by_name(stage)
    runs = client.search_runs([found.experiment_id], "attributes.status = 'FINISHED'", max_results=2) if found else []
    if len(runs) < 2:
        sys.exit(f"the server holds fewer than two finished runs of {stage}")
    return found.experiment_id, [run.info.run_id for run in runs]


def _shoot(browser: str, address: str, path: Path) -> None:
    with tempfile.TemporaryDirectory() as profile:
        subprocess.run([browser, *OPTIONS, f"--user-data-dir={profile}", f"--screenshot={path}", address], check=True, capture_output=True)


if __name__ == "__main__":
    main()
