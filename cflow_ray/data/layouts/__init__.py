"""How published data sets and one's own are laid out: one reader a layout, each gives the sample table."""
