"""Names of the HTML pages that stages write for people."""

REPORT = "report.html"
STUDY = "study.html"
