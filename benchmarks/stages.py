"""Run stages as commands, and read and format what they wrote."""

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple


class Usage(NamedTuple):
    """Resources that a command used."""

    wall: float
    """Seconds."""
    cpu: float
    """Seconds, of all its processes."""
    peak: float
    """MiB, of its largest process."""


def parser(description: str) -> argparse.ArgumentParser:
    """Return a parser with the options that all stages take."""
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--out", required=True, type=Path, help="folder of all outputs")
    made.add_argument("--params", default="params.yaml", metavar="FILE")
    made.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE")
    return made


def overrides(settings: list[str]) -> list[str]:
    """Return `--set` options for settings that read section.key=value."""
    return [word for setting in settings for word in ("--set", setting)]


def run(command: list[str], mlflow: Path | None = None, log: Path | None = None) -> Usage:
    """Run a stage, or end the program with its exit code.

    Args:
        command: the stage and its options.
        mlflow: SQLite database to track the run in; default: the environment's server.
        log: file for stderr.
    """
    environment = {**os.environ, **({"MLFLOW_TRACKING_URI": f"sqlite:///{mlflow}"} if mlflow else {})}
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
    redirected = [(os.POSIX_SPAWN_OPEN, 2, str(log), flags, 0o600)] if log else []
    started = time.perf_counter()
    child = os.posix_spawn(sys.executable, [sys.executable, "-m", "components", *command], environment, file_actions=redirected)
    _, status, usage = os.wait4(child, 0)
    wall = time.perf_counter() - started
    if status:
        sys.exit(f"{command[0]} ended with exit code {os.waitstatus_to_exitcode(status)} {log.read_text()[-500:] if log else ''}")
    return Usage(wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024)


def run_once(command: list[str], out: Path) -> None:
    """Run a stage unless its output exists."""
    if not (out / "run.json").exists():
        run([*command, "--out", str(out)])


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object."""
    content: dict[str, Any] = json.loads(path.read_text())
    return content


def with_interval(metrics: dict[str, Any], name: str, form: str = "{:.3f}") -> str:
    """Format a metric with its confidence interval, or a dash if it is missing."""
    values = [metrics.get(f"{name}{limit}") for limit in ("", "_low", "_high")]
    return "-" if None in values else f"{form} ({form} to {form})".format(*values)
