"""Evaluation: from predictions to metrics with confidence intervals, curves and a report."""
