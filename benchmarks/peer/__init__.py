"""The peers' sides of the measurements; those that import anomalib run in the environment it was installed into."""
