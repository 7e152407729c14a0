"""Altered copies: mirrored and turned images, against torch's own quarter turns and scikit-image's rotation."""

from __future__ import annotations

import pytest
import skimage.data
import skimage.transform
import torch
from torch import Tensor

from cflow_ray.config import AugmentationConfig
from cflow_ray.model.augmentation import altered_copies, rotated


def image(height: int, width: int, seed: int = 0) -> Tensor:
    return torch.randint(0, 256, (3, height, width), generator=torch.Generator().manual_seed(seed)).byte()


def difference(one: Tensor, other: Tensor) -> Tensor:
    return (one.int() - other.int()).abs()


@pytest.mark.parametrize("side", [1, 8, 33])
@pytest.mark.parametrize("quarters", [-3, -1, 0, 1, 2, 4])
def test_quarter_turns_of_a_square_are_torchs(side: int, quarters: int) -> None:
    """Counter-clockwise, as in `torch.rot90`, which swaps rows and columns and interpolates nothing."""
    given = image(side, side)
    turned = rotated(given, 90 * quarters)
    assert turned.dtype == torch.uint8
    assert difference(turned, torch.rot90(given, quarters, (1, 2))).max() <= 1


@pytest.mark.parametrize("size", [(24, 40), (41, 17)])
def test_half_a_turn_of_any_image_is_both_mirrors(size: tuple[int, int]) -> None:
    given = image(*size)
    assert difference(rotated(given, 180), given.flip(1, 2)).max() <= 1
    assert torch.equal(rotated(given, 0), given)


@pytest.mark.parametrize("degrees", [-30.0, 7.0, 90.0])
@pytest.mark.parametrize("size", [(64, 64), (48, 80)])
def test_a_turn_is_rigid_as_scikit_images(size: tuple[int, int], degrees: float) -> None:
    """Inside, where no border is mirrored in, of a photograph of any aspect."""
    photograph = skimage.transform.resize(skimage.data.astronaut(), size, anti_aliasing=True)
    given = torch.from_numpy((255 * photograph).round()).byte().permute(2, 0, 1)
    expected = skimage.transform.rotate(given.permute(1, 2, 0).numpy(), degrees, preserve_range=True)
    expected_3HW = torch.from_numpy(expected.round()).byte().permute(2, 0, 1)
    rows, columns = torch.meshgrid(*(torch.arange(side) - (side - 1) / 2 for side in size), indexing="ij")
    inside = rows.square() + columns.square() < (min(size) / 2 - 1) ** 2
    assert difference(rotated(given, degrees), expected_3HW)[:, inside].max() <= 1


def test_borders_are_mirrored_not_blackened() -> None:
    white = torch.full((3, 20, 30), 255, dtype=torch.uint8)
    assert torch.equal(rotated(white, 33), white)


def test_every_other_copy_is_mirrored() -> None:
    given = image(16, 24)
    (mirrored,) = altered_copies(given, AugmentationConfig(copies=1, horizontal_flip=True), 0)
    assert torch.equal(mirrored, given.flip(2))
    turned = altered_copies(given, AugmentationConfig(copies=3, rotation=9), 0)
    both = altered_copies(given, AugmentationConfig(copies=3, rotation=9, horizontal_flip=True), 0)
    assert torch.equal(both[1], turned[1])  # the same angles
    assert not torch.equal(both[0], turned[0])
    assert not torch.equal(both[2], turned[2])


def test_copies_are_turned_by_angles_of_their_own_within_the_limit_on_either_side() -> None:
    """The angle shows on an image whose grey is its row: the gradient at the middle turns with it."""
    rows = torch.arange(64).mul(4).byte()[None, :, None].expand(3, 64, 64).contiguous()
    config = AugmentationConfig(copies=16, rotation=20)
    copies = altered_copies(rows, config, 0)
    middle = torch.stack(copies)[:, 0, 16:48, 16:48].float()
    down, right = (middle.diff(dim=axis).mean((1, 2)) for axis in (1, 2))
    degrees = torch.rad2deg(torch.atan2(right, down))
    assert len(degrees.round(decimals=1).unique()) >= 14  # what 8 bits tell apart
    assert degrees.abs().max() <= 20.5
    assert degrees.min() < -8
    assert degrees.max() > 8


def test_copies_follow_the_generator_and_leave_the_image_alone() -> None:
    given = image(32, 32)
    before = given.clone()
    config = AugmentationConfig(copies=4, horizontal_flip=True, rotation=10)
    first, again, other = (altered_copies(given, config, s) for s in (0, 0, 1))
    assert torch.equal(torch.stack(first), torch.stack(again))
    assert not any(torch.equal(one, two) for one, two in zip(first, other, strict=True))
    assert torch.equal(given, before)
    assert all(copy.shape == given.shape and copy.dtype == torch.uint8 for copy in first)


def test_without_copies_there_is_none() -> None:
    assert altered_copies(image(8, 8), AugmentationConfig(), 0) == []
