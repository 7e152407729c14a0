"""Savepoints on storage: what is kept, when it is due, and what a damaged one does."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from cflow_ray.store.savepoints import StoredSavepoints
from cflow_ray.store.storage import Storage


@pytest.fixture
def folder(tmp_path: Path) -> Storage:
    return Storage(str(tmp_path / "fit"))


def savepoints(folder: Storage, seconds: float = 60, now: list[float] | None = None) -> StoredSavepoints:
    clock = now if now is not None else [0.0]
    return StoredSavepoints(folder, seconds, lambda: clock[0])


def test_a_state_comes_back_bit_for_bit(folder: Storage) -> None:
    shared = torch.randn(3)
    state = {
        "weights": torch.randn(3, 4).T,
        "one": shared,
        "same": shared,
        "taken": torch.tensor(7),
        "nll": torch.tensor(float("inf"), dtype=torch.float64),
        "generator": torch.Generator().manual_seed(3).get_state(),
    }
    savepoints(folder).save("level0", state)
    found = savepoints(folder).load("level0")
    assert found is not None
    assert found.keys() == state.keys()
    for name, tensor in state.items():
        assert torch.equal(found[name], tensor), name
        assert found[name].dtype == tensor.dtype


def test_a_part_is_due_after_its_seconds_each_by_itself(folder: Storage) -> None:
    now = [100.0]
    kept = savepoints(folder, 60, now)
    assert not kept.due("level0")
    now[0] = 160.0
    assert kept.due("level0")
    kept.save("level0", {"taken": torch.tensor(1)})
    assert not kept.due("level0")
    assert kept.due("level1")
    now[0] = 219.0
    assert not kept.due("level0")
    now[0] = 220.0
    assert kept.due("level0")


def test_no_seconds_keep_nothing(folder: Storage) -> None:
    now = [0.0]
    kept = savepoints(folder, 0, now)
    now[0] = 1e9
    assert not kept.due("level0")


def test_forgotten_parts_are_gone_and_others_stay(folder: Storage) -> None:
    kept = savepoints(folder)
    for part in ("model0-level0", "model0-level1", "model1-level0", "scores"):
        kept.save(part, {"taken": torch.tensor(1)})
    kept.forget("model0-")
    assert folder.files() == ["model1-level0.safetensors", "scores.safetensors"]
    assert kept.load("model0-level0") is None
    kept.forget()
    assert folder.files() == []


def test_a_damaged_state_is_done_without(folder: Storage) -> None:
    kept = savepoints(folder)
    kept.save("level0", {"taken": torch.tensor(1)})
    folder.write("level0.safetensors", folder.read("level0.safetensors")[:20])
    assert kept.load("level0") is None


def test_a_place_that_cannot_be_written_does_not_stop_the_fit(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    kept = savepoints(Storage(str(tmp_path / "file")))
    kept.save("level0", {"taken": torch.tensor(1)})
    assert kept.load("level0") is None
