"""Measurements of cflow_ray against its peers; see README.md."""
