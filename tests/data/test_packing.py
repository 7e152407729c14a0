"""A pack: the bytes of the sequential writer, whole wherever it was killed, never mixed with another pack."""

from __future__ import annotations

import io
import tarfile
from contextlib import suppress

import pytest

from cflow_ray.config import PackConfig, ReadConfig
from cflow_ray.data.archives import INDEX_SUFFIX, find_shards, read_index, write_shards
from cflow_ray.data.pack_plan import plan_pack
from cflow_ray.data.packing import MANIFEST, PACK, Packed, begin, finish, write_shard
from cflow_ray.errors import ConfigError, DataError, StorageError
from cflow_ray.store.storage import Storage

IMAGES = {f"lid/{number:02}.png": bytes([number]) * (700 * number) for number in range(12)}
SHARD_BYTES = 12_000


class KilledError(Exception):
    """Raised where a process could be killed."""


class Killed(Storage):
    """A tree whose process dies at a write, before it is done."""

    def __init__(self, storage: Storage, at: int) -> None:
        super().__init__(storage.uri, storage.options)
        self._left = at

    def write(self, path: str, content: bytes) -> None:
        self._count()
        super().write(path, content)

    def write_new(self, path: str, content: bytes) -> bool:
        self._count()
        return super().write_new(path, content)

    def _count(self) -> None:
        if self._left == 0:
            raise KilledError
        self._left -= 1


@pytest.fixture
def images(storage: Storage) -> Storage:
    for key, content in IMAGES.items():
        storage.write(f"images/{key}", content)
    return storage.child("images")


@pytest.fixture
def output(storage: Storage) -> Storage:
    return storage.child("packed")


def config_of(images: Storage, output: Storage, **more: object) -> PackConfig:
    settings = {"inputs": (images.uri,), "output": output.uri, "name": "night", "shard_size": SHARD_BYTES}
    return PackConfig.model_validate(settings | more)


def pack(config: PackConfig, output: Storage) -> Packed:
    """One shard after the other, as the job does it without workers."""
    plan = plan_pack(config)
    rest = begin(plan, config, output)
    for shard in rest:
        write_shard(shard, [Storage(root) for root in plan.roots], output)
    return finish(plan, output, len(plan.shards) - len(rest))


def contents(storage: Storage) -> dict[str, bytes]:
    return {path: storage.read(path) for path in storage.files()}


def test_shards_are_those_of_the_sequential_writer(storage: Storage, images: Storage, output: Storage) -> None:
    packed = pack(config_of(images, output), output)
    oracle = storage.child("oracle")
    names = write_shards(IMAGES.items(), oracle, "night", SHARD_BYTES)
    assert len(names) > 3
    assert packed.shards == tuple(names)
    assert (packed.records, packed.kept) == (len(IMAGES), 0)
    written = contents(output)
    assert contents(oracle) == {path: written[path] for path in written if path not in (MANIFEST, PACK)}
    read = {}
    for name in names:
        with tarfile.open(fileobj=io.BytesIO(written[name])) as tar:
            read.update({info.name: file.read() for info in tar if (file := tar.extractfile(info))})
    assert read == IMAGES


def test_a_pack_that_is_killed_at_any_write_does_only_the_rest(images: Storage, output: Storage) -> None:
    config = config_of(images, output)
    pack(config, output)
    expected = contents(output)
    shards = [name for name in expected if name.endswith(".tar")]
    for at in range(len(expected)):
        for path in output.files():
            output.remove(path)
        with suppress(KilledError):
            pack(config, Killed(output, at))
        assert len(output.files()) == at
        whole = [name for name in shards if name + INDEX_SUFFIX in output.files()]
        assert pack(config, output).kept == len(whole)
        assert contents(output) == expected


def test_a_shard_of_another_length_or_without_index_is_written_anew(images: Storage, output: Storage) -> None:
    config = config_of(images, output)
    first, second, *rest = pack(config, output).shards
    expected = contents(output)
    output.write(first, b"cut off")
    output.remove(second + INDEX_SUFFIX)
    assert pack(config, output).kept == len(rest)
    assert contents(output) == expected


@pytest.mark.parametrize("more", [{"shard_size": 5000}, {"name": "day"}])
def test_other_settings_on_one_output_are_refused(images: Storage, output: Storage, more: dict[str, object]) -> None:
    pack(config_of(images, output), output)
    before = contents(output)
    with pytest.raises(ConfigError, match=next(iter(more))):
        pack(config_of(images, output, **more), output)
    assert contents(output) == before


def test_other_images_on_one_output_are_refused(images: Storage, output: Storage) -> None:
    pack(config_of(images, output), output)
    before = contents(output)
    images.write("lid/99.png", b"new")
    with pytest.raises(DataError, match="12 then, 13 now"):
        pack(config_of(images, output), output)
    assert contents(output) == before


def test_shards_of_another_writer_are_not_taken_for_its_own(images: Storage, output: Storage) -> None:
    write_shards([(key, content[::-1]) for key, content in IMAGES.items()], output, "night", SHARD_BYTES)
    before = contents(output)
    with pytest.raises(ConfigError, match=r"night-000000\.tar"):
        pack(config_of(images, output), output)
    assert contents(output) == before


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b'{"format_version": 1}', b'{"format_version": 99}'])
def test_a_damaged_note_of_the_pack_is_told(images: Storage, output: Storage, content: bytes) -> None:
    output.write(PACK, content)
    with pytest.raises(DataError, match=PACK):
        pack(config_of(images, output), output)


def test_credentials_are_not_kept(images: Storage, output: Storage) -> None:
    pack(config_of(images, output, storage_options={"skip_instance_cache": True, "note": "SECRET"}), output)
    assert b"SECRET" not in output.read(PACK)


def test_an_image_that_went_or_grew_after_the_listing_is_named(images: Storage, output: Storage) -> None:
    config = config_of(images, output)
    plan = plan_pack(config)
    last = plan.shards[-1]
    images.write(last.records[-1].key, b"shorter")
    with pytest.raises(StorageError, match=last.records[-1].key):
        write_shard(last, [images], output)
    images.remove(last.records[-1].key)
    with pytest.raises(StorageError, match=last.records[-1].key):
        write_shard(last, [images], output)
    assert output.files() == []


def test_the_manifest_names_every_shard_in_order_for_score(images: Storage, output: Storage) -> None:
    packed = pack(config_of(images, output), output)
    by_manifest = [shard for shard, _ in find_shards([packed.manifest], {}, ReadConfig())]
    assert [shard.uri for shard in by_manifest] == [output.join(name) for name in packed.shards]
    assert by_manifest == [shard for shard, _ in find_shards([output.uri], {}, ReadConfig())]
    lines = output.read(MANIFEST).decode().splitlines()
    assert lines[0] == "path,records,bytes"
    found = [line.split(",") for line in lines[1:]]
    assert [(name, int(size)) for name, _, size in found] == [(name, output.size(name)) for name in packed.shards]
    assert [int(records) for _, records, _ in found] == [len(read_index(s, {}, ReadConfig())) for s in by_manifest]
