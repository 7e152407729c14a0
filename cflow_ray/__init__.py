"""One CFLOW-AD anomaly detector per product category: fitted in parallel, run over archives, served online."""

__version__ = "0.1.0"
