"""Object storage: files at any URI, checkpoints, the registry, score tables."""
