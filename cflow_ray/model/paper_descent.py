"""The official code's descent (gudovskiy/cflow-ad, `train_meta_epoch`): what `recipe: paper` does to a decoder."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from cflow_ray.errors import FitError
from cflow_ray.model.context import FitContext, State
from cflow_ray.model.fibres import Fibres
from cflow_ray.model.flow import Decoder
from cflow_ray.model.grouped import grouped_likelihood
from cflow_ray.model.progress import FitProgress
from cflow_ray.model.recipes import PaperSchedule
from cflow_ray.model.stepping import Level, Stepper, on_device, refuse_non_finite, start_alike
from cflow_ray.model.team import SOLO, Team

# Shapes: N fibres of a step, C channels, D condition channels.

_SHOWN_FIBRES = 1024  # held out, whose likelihood is shown after every pass


def fit_as_the_paper(level: Level, descent: PaperDescent, held_out: Fibres, context: FitContext) -> Decoder:
    """The last step's weights: nothing selects. The held-out likelihood is only shown, after every pass."""
    seen = descent.spread(held_out, _SHOWN_FIBRES)
    passes, part = descent.schedule.meta_epochs * descent.schedule.sub_epochs, f"level{level.number}"
    if (kept := context.savepoints.load(part)) is not None:
        descent.restore(kept)
    start_alike(descent.decoder, context.team)
    while descent.passes < passes:
        for step, loss in enumerate(descent.one_pass(), start=1):
            refuse_non_finite(loss, level, step, f" of pass {descent.passes + 1}")
        with torch.no_grad():
            nll = -float(grouped_likelihood(descent.decoder, *seen).mean())
        at = (level.number, level.of, descent.passes, passes)
        context.watch(FitProgress(*at, nll, loss=float(loss), rate=descent.rate), descent.decoder)
        if context.savepoints.due(part):
            context.savepoints.save(part, descent.state())
    if not all(torch.isfinite(parameter).all() for parameter in descent.decoder.parameters()):
        raise FitError(f"the weights stopped being finite at {level}, in the last step.")
    return descent.decoder


class PaperDescent:
    """The official code's steps (`train_meta_epoch`): passes over shuffled batches of images, in shuffled fibres."""

    def __init__(
        self,
        decoder: Decoder,
        fibres: Fibres,
        generator: torch.Generator,
        shuffles: torch.Generator,
        team: Team = SOLO,
    ) -> None:
        """`generator` shuffles the fibres of a batch of images, `shuffles` the images into batches."""
        self.schedule = PaperSchedule()
        self.decoder = decoder
        self.passes = 0
        """Ended."""
        self._fibres = fibres
        self._device = next(decoder.parameters()).device
        self._generators = {"generator": generator, "shuffles": shuffles}
        self._stepper = Stepper(decoder, team=team)

    def spread(self, fibres: Fibres, count: int) -> tuple[Tensor, Tensor]:
        """Some other fibres, drawn as those of the descent are."""
        return on_device(self._device, fibres.spread(count, self._generators["generator"]))

    def one_pass(self) -> Iterator[Tensor]:
        """The next pass over the images; the loss of each of its steps."""
        meta_epoch, sub_epoch = divmod(self.passes, self.schedule.sub_epochs)
        batches = list(self._fibres.batches(self.schedule.images, self._generators["shuffles"]))
        for batch, tiles in enumerate(batches):
            of_epoch = (batch + sub_epoch * len(batches), self.schedule.sub_epochs * len(batches))
            rate = self.schedule.rate_at(meta_epoch, *of_epoch)
            for fibres_NC, condition_ND in self._fibres.shuffled(
                tiles, self.schedule.fibres, self._generators["generator"]
            ):
                yield self._stepper.step(fibres_NC[None], condition_ND, rate)  # each at a position of its own
        self.passes += 1

    @property
    def rate(self) -> float:
        """Learning rate of the last step."""
        return self._stepper.rate

    def state(self) -> State:
        """All that `restore` goes on from, between two passes."""
        draws = {name: generator.get_state() for name, generator in self._generators.items()}
        return {"passes": torch.tensor(self.passes)} | draws | self._stepper.state()

    def restore(self, state: State) -> None:
        """Be where another descent was when it gave this state."""
        self.passes = int(state["passes"])
        for name, generator in self._generators.items():
            generator.set_state(state[name])
        self._stepper.restore(state)
