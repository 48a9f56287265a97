"""The tests mirror the tree; tests/README.md says which command runs which."""

from pathlib import Path

ROOT = Path(__file__).parents[1]
