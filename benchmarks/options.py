"""The flags that the measurements share."""

from __future__ import annotations

import argparse
from pathlib import Path

from benchmarks.sides import CHECKOUT

REAL_DATA = CHECKOUT.parent / "shared" / "data" / "screw" / "screw"


def parser(description: str, data: str = "a category's folder", rounds: int = 5) -> argparse.ArgumentParser:
    """A parser with the flags of every measurement; `data` is what its own images are, `rounds` 0 where it runs once."""
    flags = argparse.ArgumentParser(description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    flags.add_argument("--quick", action="store_true", help="tiny sizes, one round: does it run? Nothing is kept")
    if rounds:
        flags.add_argument("--rounds", type=int, default=rounds, help="repetitions whose median counts")
    flags.add_argument("--threads", type=int, default=1, help="threads of both sides")
    flags.add_argument("--device", default="cpu", help="torch device of both sides")
    flags.add_argument("--runtime", default="auto", help="runtime of our scoring")
    flags.add_argument("--data", type=Path, default=None, help=f"{data} in MVTec AD layout; see README")
    return flags


def parse(flags: argparse.ArgumentParser) -> argparse.Namespace:
    """The flags given, with which `clock` the sides are compared and what its `seconds` are called; `--quick` takes one round.

    It is CPU time on a CPU, quieter where others work too, and the wall's on a GPU, whose work CPU time does not count.
    """
    options = flags.parse_args()
    options.clock, options.seconds = ("cpu", "CPU-s") if options.device == "cpu" else ("wall", "s")
    if options.quick and "rounds" in options:
        options.rounds = 1
    return options
