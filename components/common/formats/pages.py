"""Names of the pages and pictures that stages write for people."""

REPORT = "report.html"
STUDY = "study.html"
FIGURES = "figures"
"""Folder of the PNG files of a head, which the report of evaluate embeds."""
