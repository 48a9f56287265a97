"""Metrics, intervals, tests, calibration and the matching of detections."""
