"""Shards packed in parallel by Ray Data are those of one process, and one that cannot be packed is told."""

from __future__ import annotations

from pathlib import Path

import pytest

from cflow_ray.config import PackConfig
from cflow_ray.errors import StorageError
from cflow_ray.score.packing import pack

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("cluster")]


def config_of(data: Path, output: Path, workers: int | str) -> PackConfig:
    settings = {"inputs": (str(data),), "output": str(output), "shard_size": 40_000}
    return PackConfig.model_validate(settings | {"cluster": {"workers": workers}})


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    for number in range(30):
        path = folder / f"lid/{number:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bytes([number]) * 9000)
    return folder


@pytest.mark.parametrize("workers", [2, "auto"])
def test_workers_write_what_one_process_writes_and_only_what_is_missing(
    images: Path, tmp_path: Path, workers: int | str
) -> None:
    alone = pack(config_of(images, tmp_path / "alone", workers=1))
    seen: list[tuple[int, int]] = []
    together = pack(config_of(images, tmp_path / "together", workers), lambda *at: seen.append(at))
    assert len(together.shards) == 8
    assert together.shards == alone.shards
    assert (seen[0], seen[-1]) == ((0, 30), (30, 30))
    expected = contents(tmp_path / "alone")
    assert contents(tmp_path / "together") == expected

    for name in together.shards[1:4]:
        (tmp_path / "together" / name).unlink()
    assert pack(config_of(images, tmp_path / "together", workers)).kept == 5
    assert contents(tmp_path / "together") == expected


def test_an_image_that_cannot_be_read_ends_the_pack_by_name(images: Path, tmp_path: Path) -> None:
    (images / "lid/17.png").unlink()
    (images / "lid/17.png").symlink_to("/proc/self/mem")  # there, and an error for every reader
    with pytest.raises(StorageError, match=r"lid/17\.png") as raised:
        pack(config_of(images, tmp_path / "out", workers=2))
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "out" / "manifest.csv").exists()
