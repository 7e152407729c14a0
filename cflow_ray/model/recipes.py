"""How long and how fast each level is fitted: the named recipes, the caps for small data sets, the paper's own."""

from __future__ import annotations

import math
from dataclasses import dataclass

from cflow_ray.config import Recipe


@dataclass(frozen=True)
class LevelSchedule:
    """The optimisation of one level's decoder: Adam on `fibres` rows a step, warm-up, then a cosine to zero."""

    steps: int
    fibres: int
    rate: float
    positions: int = 64
    """Positions that the fibres of a step share; fewer bring more images into the step, more cost less a fibre."""
    warm_up: float = 0.08
    """Share of the steps in which the rate rises linearly."""
    whitened: bool = False
    """Whether the decoder starts from whitened channels, or from standardised ones."""

    @property
    def check_every(self) -> int:
        """Steps between two looks at the held-out likelihood, each of which costs a step or two."""
        return max(20, self.steps // 25)

    def rate_at(self, step: int) -> float:
        """Adam's learning rate at a step counted from 0."""
        rising = max(1, round(self.warm_up * self.steps))
        if step < rising:
            return self.rate * (step + 1) / rising
        return self.rate * 0.5 * (1 + math.cos(math.pi * (step - rising) / max(1, self.steps - rising)))


@dataclass(frozen=True)
class PaperSchedule:
    """The official code's optimisation (gudovskiy/cflow-ad, `train.py` and `utils.py`)."""

    meta_epochs: int = 25
    sub_epochs: int = 8
    images: int = 32
    """Of one batch; the last, smaller batch of a pass is dropped."""
    fibres: int = 256
    """Rows of one step, drawn without replacement from the batch."""
    rate: float = 2e-4
    final_share: float = 1e-3
    """Of the rate, at the end of the cosine."""
    warm_up_epochs: int = 2
    """Meta epochs in which the rate rises from a tenth to where the cosine is by then."""

    def rate_at(self, meta_epoch: int, batch: int, batches: int) -> float:
        """Adam's rate at a batch of images of a meta epoch that has `batches` of them; both counted from 0."""
        if meta_epoch >= self.warm_up_epochs:
            return self._cosine(meta_epoch)
        start, end = self.rate / 10, self._cosine(self.warm_up_epochs)
        return start + (end - start) * (batch + meta_epoch * batches) / (self.warm_up_epochs * batches)

    def _cosine(self, meta_epoch: int) -> float:
        lowest = self.rate * self.final_share
        return lowest + (self.rate - lowest) * (1 + math.cos(math.pi * meta_epoch / self.meta_epochs)) / 2


# Steps, fibres and rates for strides up to 8, up to 16, and above. From the data-dependent start a rate 40 times the
# paper's is stable; a wide level wants a quarter of it. `fast` was tuned by the image AUROC of screw at 256 px (lite0),
# which moves by .01 with the seed. Means of two seeds with 284 training images, one level changed at a time: finest
# level 1000 steps .898, 1600 .899; coarsest 120 .873, 240 .881, 480 .898, and .902 at half the rate. With 142 images:
# middle level 480 steps .863, 640 .871, 960 .887, 1280 .887, 1600 .890; coarsest, whose passes are capped, .879, and
# .891 at half the rate. From standardised channels more steps of the coarsest level pay where the cap allows them: one
# seed with 480, half as many again, and twice as many, uncapped: screw .895, .899, .906, tile .889, .893, .896.
_STEPS: dict[Recipe, tuple[int, int, int]] = {
    "fast": (1200, 960, 960),
    "balanced": (3200, 1920, 960),
    "best": (4000, 2400, 960),
}
_FIBRES: dict[Recipe, tuple[int, int, int]] = {
    "fast": (512, 256, 256),
    "balanced": (512, 256, 256),
    "best": (1024, 512, 256),
}
# `best` has no more fibres on the coarsest level, for a fifth less time: on screw at 512 px image AUROC .965 for .964
# (seed 0). With 256 on the middle level as well it came to .947, for .960 (means of three seeds). Its steps, there too,
# means of three seeds: .9555, and .9559 with 1200 on the coarsest level; .9519 with 720 there; .9491 with 1200 and 1920
# on the middle one, .9546 with 2880; with 3200 on the finest .9548.
_RATES = (8e-3, 8e-3, 2e-3)
# Over a set of `_TUNED_TILES`; a larger one, which overfits later, may take more by the root of what its steps grow by:
# magnetic tile 12.4 on the coarsest level. There `fast` has .8934, and .8914 with 8 (means of three seeds). With 12 over
# every set screw had .9103 for .9053, and cookie .9375 for .9409 (two seeds), for a quarter more time.
_PASSES = (10, 10, 8)
_POSITIONS = (64, 32, 32)  # of 32 on a coarse level, 8 instead of 4 images: held-out NLL .64 instead of .68
# From whitened channels `best` finds most at 512 px (screw: .9555 for .9421 from standardised ones), where `fast` has
# .9143 and .9100, `balanced` .9432 and .9394. At 256 px whitened and standardised, means of three seeds: screw `fast`
# .8988 and .9086, `balanced` .9169 and .9138, `best` .9110 and .9167; tile `fast` .8862 and .8900, `balanced` .8907 and
# .8946; gravel `fast` .9827 and .9917, `balanced` .9809 and .9882, `best` .9844 and .9896.
_WHITENED: dict[Recipe, bool] = {"fast": False, "balanced": False, "best": True}
# Larger sets than the one that the steps were tuned on take more of them. Image AUROC of magnetic tile (682 training
# images, lite0, 256 px, three seeds) with 2.4 times the steps: `fast` .8862 for .8765, `balanced` .8907 for .8840.
_TUNED_TILES = 284
_MOST_TIMES = 4.0


def schedule_of(recipe: Recipe, stride: float, tiles: int, positions: int) -> LevelSchedule:
    """The steps of a level of so many tiles with so many positions each, and the fibres of a step; the paper's too.

    Ours are capped to some passes over the fibres: the smaller a set, the sooner it overfits.
    """
    if recipe == "paper":
        return _papers_schedule(tiles, positions)
    level = 0 if stride <= 8 else 1 if stride <= 16 else 2
    available = tiles * positions
    fibres = min(_FIBRES[recipe][level], available)
    times = _times_the_steps(tiles)
    cap = max(1, int(_PASSES[level] * math.sqrt(times) * available / fibres))
    return LevelSchedule(
        steps=min(round(_STEPS[recipe][level] * times), cap),
        fibres=fibres,
        rate=_RATES[level],
        positions=_POSITIONS[level],
        whitened=_WHITENED[recipe],
    )


def _times_the_steps(tiles: int) -> float:
    return min(max(tiles / _TUNED_TILES, 1.0), _MOST_TIMES)


def _papers_schedule(tiles: int, positions: int) -> LevelSchedule:
    paper = PaperSchedule()
    batches, rows = max(1, tiles // paper.images), min(tiles, paper.images) * positions
    steps = paper.meta_epochs * paper.sub_epochs * batches * max(1, rows // paper.fibres)
    return LevelSchedule(steps, min(paper.fibres, rows), paper.rate, positions=paper.fibres)
