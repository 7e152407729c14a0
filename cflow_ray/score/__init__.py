"""Score image archives of any size into a Parquet table, resumable, on Ray Data."""

from cflow_ray.score.run import score

__all__ = ["score"]
