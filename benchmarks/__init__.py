"""Benchmarks: each prints ratios to a lower bound or to another library, measured side by side in one run."""
