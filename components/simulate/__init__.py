"""Simulates a cohort of phantom chest radiographs as DICOM files, for the demo and for smoke runs of a new cluster.

The bytes are the same on every machine: images are computed in float64 with +, -, *, / and square root only, which IEEE 754
rounds exactly (exp, sin or a matrix product may differ in the last bit between processors), and rounded once, to integers.
"""
