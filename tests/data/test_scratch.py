"""Features beyond the budget lie in files that nobody has to remove, and a fit from there is the same fit."""

from __future__ import annotations

import gc
import os
import resource
from pathlib import Path
from typing import cast

import pytest
import torch
from torch import Tensor

from cflow_ray.config import DetectorConfig, EncoderConfig, FlowConfig
from cflow_ray.data.scratch import FeatureCache
from cflow_ray.errors import StorageError
from cflow_ray.model.encoder import Encoder
from cflow_ray.model.features import Features, Keep, encode
from cflow_ray.model.fitting import fit_detector
from cflow_ray.model.tiling import Layout

WHOLE = Layout((64, 64), (64, 64), ((0, 0),))
CONFIG = DetectorConfig(
    encoder=EncoderConfig(strides=(8, 16)),
    flow=FlowConfig(blocks=2, condition_channels=8),
    input_size=64,
    recipe="fast",
    calibration="split",
)


def pooled(images_B3HW: Tensor) -> list[Tensor]:
    """Features (B, 3, 8, 8) and (B, 3, 4, 4) that need no network."""
    return [torch.nn.functional.avg_pool2d(images_B3HW.float(), stride) for stride in (8, 16)]


def features(keep: Keep) -> Features:
    images = torch.randint(0, 256, (40, 3, 64, 64), generator=torch.Generator().manual_seed(0)).byte()
    return encode(cast(Encoder, pooled), [(image, WHOLE) for image in images], keep=keep)


SIZE = 40 * (64 + 16) * 3 * 2
"""Bytes of all those features."""


@pytest.mark.parametrize("budget", [0, SIZE // 2, SIZE])
def test_a_fit_from_mapped_features_is_bit_for_bit_the_one_from_memory(tmp_path: Path, budget: int) -> None:
    cache = FeatureCache(budget, str(tmp_path))
    mapped, in_memory = features(cache.keep), features(lambda rows: rows)
    assert SIZE - budget <= cache.mapped_bytes <= SIZE
    assert (cache.mapped_bytes == 0) == (budget == SIZE)
    for level, other in zip(mapped.levels, in_memory.levels, strict=True):
        assert all(torch.equal(rows, same) for rows, same in zip(level.tiles, other.tiles, strict=True))
    fitted, same = (fit_detector(given, CONFIG, seed=0) for given in (mapped, in_memory))
    assert fitted.calibration == same.calibration
    for decoder, other in zip(fitted.decoders, same.decoders, strict=True):
        state, states = decoder.state(), other.state()
        assert all(torch.equal(state[name], states[name]) for name in state)


def test_the_files_have_no_name_and_go_with_the_last_reference(tmp_path: Path) -> None:
    cache = FeatureCache(0, str(tmp_path))
    rows = torch.randn(1000, 8).half()
    kept = cache.keep(rows)
    assert torch.equal(kept, rows)
    assert kept.data_ptr() != rows.data_ptr()
    assert list(tmp_path.iterdir()) == []
    assert str(tmp_path) in Path("/proc/self/maps").read_text()
    del cache
    gc.collect()
    assert torch.equal(kept, rows)
    del kept
    gc.collect()
    assert str(tmp_path) not in Path("/proc/self/maps").read_text()


def test_a_thousand_passes_take_one_file(tmp_path: Path) -> None:
    """A mapping holds a file descriptor, of which a process may have no more than 1024."""
    cache = FeatureCache(0, str(tmp_path))
    before = len(os.listdir("/proc/self/fd"))
    given = [torch.full((number % 7 + 1, 3), float(number)).half() for number in range(1000)]
    kept = [cache.keep(rows) for rows in given]
    assert len(os.listdir("/proc/self/fd")) <= before + 1
    assert all(torch.equal(rows, same) for rows, same in zip(kept, given, strict=True))


def test_a_full_disk_is_an_error_that_says_what_to_do(tmp_path: Path) -> None:
    """Stood in for by the limit of a file's size; writing to a map past it would kill the process."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, limits[1]))
    try:
        with pytest.raises(StorageError, match=rf"no room for \d+ bytes.*{tmp_path}.*`scratch`.*`cache_mb`"):
            FeatureCache(0, str(tmp_path)).keep(torch.zeros(10))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_scratch_folder_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="absent"):
        FeatureCache(0, str(tmp_path / "absent")).keep(torch.zeros(10))


def test_within_the_budget_a_tensor_is_handed_back_as_it_is() -> None:
    cache = FeatureCache(1000)
    first, second, small = torch.zeros(200), torch.zeros(100), torch.zeros(50)
    assert cache.keep(first) is first
    assert cache.keep(second) is not second
    assert cache.keep(small) is small
    assert cache.mapped_bytes == second.nbytes
