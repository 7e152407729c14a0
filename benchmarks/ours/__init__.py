"""Our sides of the measurements: each module runs in a process of its own, in the project's environment."""
