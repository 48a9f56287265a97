"""Predictions as classify writes them."""

from tests.evaluate.conftest import make_predictions

__all__ = ["make_predictions"]
