"""Score image archives of any size into a Parquet table, resumable: `run` on Ray Data, `online` by a server."""
