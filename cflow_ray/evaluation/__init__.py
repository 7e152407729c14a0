"""Metrics, their computation from a score table, and the report for a reader."""
