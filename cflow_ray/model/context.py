"""What a fit is connected to besides its data: who watches it, what keeps its state, and who computes it together."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Protocol

from torch import Tensor

from cflow_ray.model.flow import Decoder
from cflow_ray.model.progress import FitProgress
from cflow_ray.model.team import SOLO, Team
from cflow_ray.model.turns import Turns

State = dict[str, Tensor]
"""All that a part of a fit goes on from, by name: weights, the optimiser's moments, random states, counters."""

Watch = Callable[[FitProgress, Decoder], None]
"""Sees how far a level is, and its decoder as it is then."""


class Savepoints(Protocol):
    """Keeps the latest state of each part of a fit, by the part's name; parts may call from several threads."""

    def load(self, part: str) -> State | None:
        """The state that a fit before this one kept; None where there is none."""

    def due(self, part: str) -> bool:
        """Whether the last state of a part is old enough for a new one."""

    def save(self, part: str, state: State) -> None:
        """Keep a state in place of the one before."""

    def forget(self, prefix: str) -> None:
        """The states of the parts whose names start like this are not needed any more."""


class NoSavepoints:
    """Keeps nothing: a fit that is cut off starts again."""

    def load(self, part: str) -> State | None:
        """None."""
        return None

    def due(self, part: str) -> bool:
        """Never."""
        return False

    def save(self, part: str, state: State) -> None:
        """Nothing."""

    def forget(self, prefix: str) -> None:
        """Nothing."""


class SharedSavepoints:
    """Savepoints of a team: all members go on from the state that the first one finds, which alone keeps any."""

    def __init__(self, savepoints: Savepoints, team: Team) -> None:
        """Of members but the first, `savepoints` are never due."""
        self._savepoints = savepoints
        self._team = team

    def load(self, part: str) -> State | None:
        """The first member's."""
        return self._team.gather(self._savepoints.load(part) if self._team.rank == 0 else None)[0]

    def due(self, part: str) -> bool:
        """As the member's own."""
        return self._savepoints.due(part)

    def save(self, part: str, state: State) -> None:
        """As the member's own."""
        self._savepoints.save(part, state)

    def forget(self, prefix: str) -> None:
        """As the member's own."""
        self._savepoints.forget(prefix)


@dataclass(frozen=True)
class FitContext:
    """Handed through a fit unchanged but for the names of its parts."""

    watch: Watch = lambda progress, decoder: None
    savepoints: Savepoints = field(default_factory=NoSavepoints)
    team: Team = SOLO
    device: str = "cpu"
    """Where decoders are while they are fitted; features stay where they are kept, and step by step go there."""

    def of_model(self, number: int, of: int) -> FitContext:
        """The context of one of the models of a cross-calibrated fit."""

        def watch(progress: FitProgress, decoder: Decoder) -> None:
            self.watch(replace(progress, model=number, models=of), decoder)

        return replace(self, watch=watch, savepoints=_Below(self.savepoints, f"model{number}-"))

    def in_turns(self, turns: Turns) -> FitContext:
        """The context of a part that lets others go on after each of its looks."""

        def watch(progress: FitProgress, decoder: Decoder) -> None:
            self.watch(progress, decoder)
            turns.pass_on()

        return replace(self, watch=watch)


class _Below:
    """Savepoints whose parts are named below a prefix."""

    def __init__(self, savepoints: Savepoints, prefix: str) -> None:
        self._savepoints = savepoints
        self._prefix = prefix

    def load(self, part: str) -> State | None:
        return self._savepoints.load(self._prefix + part)

    def due(self, part: str) -> bool:
        return self._savepoints.due(self._prefix + part)

    def save(self, part: str, state: State) -> None:
        self._savepoints.save(self._prefix + part, state)

    def forget(self, prefix: str) -> None:
        self._savepoints.forget(self._prefix + prefix)


ALONE = FitContext()
"""Nobody watches, nothing is kept, one process computes."""
