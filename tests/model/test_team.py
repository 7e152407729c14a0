"""Several members fit what one would: shares, pooled features, and steps; the members are threads here."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import pytest
import torch
from torch import Tensor

from cflow_ray.config import DetectorConfig, FlowConfig
from cflow_ray.model.context import FitContext, SharedSavepoints, State
from cflow_ray.model.features import Features
from cflow_ray.model.fitting import fit_detector
from cflow_ray.model.flow import Decoder
from cflow_ray.model.pooling import pooled
from cflow_ray.model.seeds import seeded
from cflow_ray.model.stepping import start_alike
from cflow_ray.model.team import Solo, Team, interleaved, share_of
from cflow_ray.model.threads import torch_threads
from tests.model.test_resume import Memory

Result = TypeVar("Result")


class Members:
    """What the threads of a team have in common: a meeting point and what each brings there."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.brought: list[Any] = [None] * size
        self.barrier = threading.Barrier(size, timeout=60)

    def meet(self, rank: int, own: Any) -> list[Any]:
        self.brought[rank] = own
        self.barrier.wait()
        everyone = list(self.brought)
        self.barrier.wait()
        return everyone


class Thread:
    """A member of a team of threads."""

    def __init__(self, rank: int, members: Members) -> None:
        self.rank, self.size, self._members = rank, members.size, members

    def add_up(self, tensors: Sequence[Tensor]) -> None:
        everyone = self._members.meet(self.rank, [tensor.clone() for tensor in tensors])
        for number, tensor in enumerate(tensors):
            tensor.copy_(sum(own[number] for own in everyone))

    def take_from(self, rank: int, tensor: Tensor) -> None:
        tensor.copy_(self._members.meet(self.rank, tensor.clone())[rank])

    def gather(self, own: Any) -> list[Any]:
        return self._members.meet(self.rank, own)


def together(size: int, work: Callable[[Team], Result]) -> list[Result]:
    """What every member's work gives."""
    members = Members(size)
    with ThreadPoolExecutor(size) as pool:
        return list(pool.map(lambda rank: work(Thread(rank, members)), range(size)))


def features_of(images: int, scale: float = 1.0) -> Features:
    generator = torch.Generator().manual_seed(3)
    pyramid = [
        scale * torch.randn(images, channels, side, side, generator=generator) for channels, side in ((6, 4), (8, 2))
    ]
    return Features.of_pyramid(pyramid, (32, 32))


def part_of(features: Features, images: Sequence[int]) -> Features:
    """The features of some images, numbered anew, as a member encodes them."""
    pyramid = [level.maps(features.tiles(images)) for level in features.levels] if images else []
    return Features.of_pyramid(pyramid, (32, 32)) if images else Features((), (), (), ())


def test_shares_interleave_to_the_whole() -> None:
    def shares(items: list[int]) -> list[Sequence[int]]:
        return together(3, lambda team: share_of(items, team))

    for count in range(8):
        assert interleaved(shares(list(range(count)))) == list(range(count))
    assert share_of([1, 2, 3], Solo()) == [1, 2, 3]


@pytest.mark.parametrize("member_of", [[0, 1, 2, 0, 1, 2, 0], [0, 2, 0, 2, 0], [1, 1], [2, 0, 0, 1, 2]])
def test_pooled_features_are_those_of_one_process(member_of: list[int]) -> None:
    whole = features_of(len(member_of))

    def pool(team: Team) -> Features:
        own = part_of(whole, [image for image, rank in enumerate(member_of) if rank == team.rank])
        return pooled(own, member_of, team, lambda rows: rows)

    for found in together(3, pool):
        assert len(found) == len(whole)
        assert found.layouts == whole.layouts
        for image in range(len(whole)):
            for level, expected in zip(found.levels, whole.levels, strict=True):
                assert level.size == expected.size
                torch.testing.assert_close(
                    level.maps(found.tiles([image])), expected.maps(whole.tiles([image])), rtol=1e-3, atol=1e-6
                )


def test_members_whose_values_are_of_other_magnitudes_pool_them_in_one_scale() -> None:
    def pool(team: Team) -> Features:
        return pooled(features_of(2, scale=(1.0, 1e4)[team.rank]), [0, 1, 0, 1], team, lambda rows: rows)

    for found in together(2, pool):
        for level, small, large in zip(found.levels, features_of(2).levels, features_of(2, 1e4).levels, strict=True):
            assert level.scale == large.scale
            torch.testing.assert_close(level.maps(found.tiles([1])), large.maps([0]), rtol=1e-3, atol=1e-3)
            torch.testing.assert_close(level.maps(found.tiles([2])), small.maps([1]), rtol=2e-2, atol=2e-2)


def test_no_image_anywhere_pools_to_none() -> None:
    empty = Features((), (), (), ())
    assert [len(found) for found in together(2, lambda team: pooled(empty, [], team, lambda rows: rows))] == [0, 0]


def test_members_start_from_the_weights_and_the_savepoints_of_the_first() -> None:
    """Whatever the others have: another processor's last bits, another node's folder."""

    def start(team: Team) -> tuple[Decoder, State | None]:
        decoder = Decoder(6, FlowConfig(blocks=2, condition_channels=8), seeded(team.rank, "start"))
        start_alike(decoder, team)
        own = Memory()
        own.save("level0", {"rank": torch.tensor(team.rank)})
        return decoder, SharedSavepoints(own, team).load("level0")

    first, *others = together(3, start)
    assert first[1] == {"rank": torch.tensor(0)}
    for decoder, state in others:
        assert state == first[1]
        assert all(
            torch.equal(a, b)
            for a, b in zip(decoder.state_dict().values(), first[0].state_dict().values(), strict=True)
        )


@pytest.mark.parametrize(("recipe", "calibration"), [("fast", "cross"), ("paper", "split")])
def test_a_team_fits_the_detector_of_one(recipe: str, calibration: str) -> None:
    features = features_of(24)
    config = DetectorConfig.model_validate(
        {
            "encoder": {"strides": [8, 16]},
            "input_size": 32,
            "recipe": recipe,
            "precision": "float32",
            "calibration": calibration,
            "folds": 2,
            "target_fpr": 0.3,
            "flow": {"blocks": 2, "condition_channels": 8},
        }
    )
    with torch_threads(1):
        expected = fit_detector(features, config, 0)
        fits = together(3, lambda team: fit_detector(features, config, 0, FitContext(team=team)))
    for found in fits:
        assert found.nll == pytest.approx(expected.nll, abs=1e-3)
        assert found.calibration.scores == pytest.approx(expected.calibration.scores, abs=1e-2)
        for decoder, same in zip(found.decoders, fits[0].decoders, strict=True):
            assert all(
                torch.equal(a, b)
                for a, b in zip(decoder.state_dict().values(), same.state_dict().values(), strict=True)
            )
