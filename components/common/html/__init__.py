"""Pieces of the HTML reports: pages, tables, charts and number formatting."""
