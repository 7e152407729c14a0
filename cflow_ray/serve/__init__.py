"""Serve the best checkpoints of a registry over HTTP on Ray Serve."""

from cflow_ray.serve.run import Server, build_app

__all__ = ["Server", "build_app"]
