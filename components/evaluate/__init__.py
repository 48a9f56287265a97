"""Predictions to metrics with confidence intervals, curves and a report."""
