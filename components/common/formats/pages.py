"""Names of the pages and pictures that stages write for people."""

REPORT = "report.html"
STUDY = "study.html"
STUDY_TEXT = "study.md"
DUPLICATES = "duplicates.html"
FIGURES = "figures"  # folder of PNG files; those of a head are embedded in the report of evaluate
