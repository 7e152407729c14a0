"""`cflow-ray fit` as the entry point of a Ray job: `ray job submit -- python jobs/fit.py --config FILE.yaml`."""

from __future__ import annotations

import sys

from cflow_ray.cli import main


def run(arguments: list[str]) -> None:
    """The command with the job's own arguments; it exits with 0 (done), 1 (failed in part or whole) or 2 (misuse)."""
    main(["fit", *arguments], prog_name="cflow-ray")


if __name__ == "__main__":
    run(sys.argv[1:])
