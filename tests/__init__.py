"""Tests, in folders that mirror the code; tests/README.md lists the commands that run them."""

from pathlib import Path

ROOT = Path(__file__).parents[1]
