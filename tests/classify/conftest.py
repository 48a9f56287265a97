"""Shared fixtures: predictions in the format of classify."""

from tests.evaluate.conftest import make_predictions

__all__ = ["make_predictions"]
