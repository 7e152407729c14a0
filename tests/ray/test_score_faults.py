"""A scoring job that is killed, doubled, disturbed and taken up again leaves one right row for each record."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import tarfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from cflow_ray.config import ScoreConfig
from cflow_ray.score.run import score
from cflow_ray.store.results import read_results
from cflow_ray.store.storage import Storage
from tests.miniature import archive_of
from tests.ray.fault_proxy import RESET, SHORT, FaultProxy
from tests.ray.processes import commands, in_a_process_of_its_own, is_alive, processes_below, wait_until
from tests.stores import Place

pytestmark = pytest.mark.ray

RECORDS = 240
IMAGES = 60  # of them that also lie in the store as single objects
ACTORS, READERS = "MapWorker", "ReadSpan"


@pytest.fixture(scope="module")
def archive(miniature: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return archive_of(RECORDS, miniature, tmp_path_factory.mktemp("archive"))


def config_of(registry: Path, archive: Path | str, output: Path | str, **settings: Any) -> ScoreConfig:
    return ScoreConfig(
        inputs=(str(archive),), registry=str(registry), output=str(output), **{"chunk_records": 4} | settings
    )


@pytest.fixture(scope="module")
def undisturbed(cluster: None, registry: Path, archive: Path, tmp_path_factory: pytest.TempPathFactory) -> pa.Table:
    """The table of a job that nothing happened to."""
    config = config_of(registry, archive, tmp_path_factory.mktemp("undisturbed"))
    score(config)
    return table_of(config.output)


def table_of(output: Path | str) -> pa.Table:
    return read_results(Storage(str(output))).sort_by("key")


def assert_same(output: Path | str, expected: pa.Table) -> None:
    """One row for each record, and in each what the undisturbed job has."""
    table = table_of(output)
    assert table["key"].to_pylist() == expected["key"].to_pylist()
    for column in ("image_id", "category", "checkpoint", "is_anomaly", "p_value", "error"):
        assert table[column].to_pylist() == expected[column].to_pylist(), column
    for found, right in zip(table["score"].to_pylist(), expected["score"].to_pylist(), strict=True):
        assert abs(found - right) <= 1e-5


def parts_in(output: Path) -> int:
    return sum(1 for _ in output.glob("shard=*/part-*.parquet"))


@pytest.fixture
def driver(elsewhere: dict[str, str], tmp_path: Path) -> Iterator[Callable[[ScoreConfig], subprocess.Popen[bytes]]]:
    """Starts `cflow-ray score` with a cluster of its own."""
    with commands(elsewhere, tmp_path) as start:
        yield partial(start, "score")


def test_a_driver_that_is_killed_again_and_again_leaves_every_row_once(
    driver: Callable[[ScoreConfig], subprocess.Popen[bytes]],
    registry: Path,
    archive: Path,
    undisturbed: pa.Table,
    tmp_path: Path,
) -> None:
    draws, output = random.Random(7), tmp_path / "out"

    def wait() -> None:
        goal = parts_in(output) + draws.randint(1, 12)
        wait_until(lambda: parts_in(output) >= goal)

    killed_again_and_again(driver, config_of(registry, archive, output), RECORDS, [wait] * 3)
    assert_same(output, undisturbed)


@pytest.mark.slow
@pytest.mark.timeout(3000)
@pytest.mark.usefixtures("cluster")
def test_a_driver_that_is_killed_at_thirty_moments_leaves_every_row_once(
    driver: Callable[[ScoreConfig], subprocess.Popen[bytes]], registry: Path, miniature: Path, tmp_path: Path
) -> None:
    """From its start on; half of the kills fall after the first part was written."""
    records, draws, output = 12_000, random.Random(11), tmp_path / "out"
    config = config_of(registry, archive_of(records, miniature, tmp_path), output, chunk_records=16)
    score(config.model_copy(update={"output": str(tmp_path / "undisturbed")}))

    def begin() -> None:
        time.sleep(draws.uniform(0, 10))

    def work() -> None:
        before = parts_in(output)
        wait_until(lambda: parts_in(output) > before)
        time.sleep(draws.uniform(0, 2))

    killed_again_and_again(driver, config, records, [begin, work] * 15)
    assert_same(output, table_of(tmp_path / "undisturbed"))


def killed_again_and_again(
    driver: Callable[[ScoreConfig], subprocess.Popen[bytes]],
    config: ScoreConfig,
    records: int,
    waits: Sequence[Callable[[], None]],
) -> None:
    """Kill a job after each of the waits, let it end at last, and look at what it says of itself and leaves running."""
    output, workers = Path(config.output), list[int]()
    for wait in waits:
        process = driver(config)
        wait()
        workers += processes_below(process.pid, ACTORS)
        process.kill()
        assert process.wait(60) == -signal.SIGKILL
    before = parts_in(output)
    assert 0 < before < records / config.chunk_records
    last = driver(config)
    printed, _ = last.communicate(timeout=500)
    assert last.returncode == 0
    summary = json.loads(printed)
    assert summary["rows"] == records
    assert summary["rows_of_this_run"] <= records - config.chunk_records * before
    wait_until(lambda: not any(is_alive(pid) for pid in workers))


def test_two_drivers_on_one_output_end_with_one_right_table(
    driver: Callable[[ScoreConfig], subprocess.Popen[bytes]],
    registry: Path,
    archive: Path,
    undisturbed: pa.Table,
    tmp_path: Path,
) -> None:
    config = config_of(registry, archive, tmp_path / "out", cluster={"workers": 1})
    first, second = driver(config), driver(config)
    for process in (first, second):
        printed, _ = process.communicate(timeout=400)
        assert process.returncode == 0
        assert json.loads(printed)["rows"] == RECORDS
    assert_same(tmp_path / "out", undisturbed)


@pytest.mark.usefixtures("cluster")
def test_a_killed_actor_costs_nothing_but_time(
    registry: Path, archive: Path, undisturbed: pa.Table, tmp_path: Path
) -> None:
    killed: list[int] = []

    def kill(done: int, total: int) -> None:
        if done >= 5 and len(killed) < 1:
            for pid in processes_below(os.getpid(), ACTORS)[:1]:
                os.kill(pid, signal.SIGKILL)
                killed.append(pid)

    summary = score(config_of(registry, archive, tmp_path), kill)
    assert killed
    assert summary.rows == RECORDS
    assert_same(tmp_path, undisturbed)


@pytest.mark.usefixtures("cluster")
def test_a_killed_reader_costs_nothing_but_time(
    registry: Path, archive: Path, undisturbed: pa.Table, tmp_path: Path
) -> None:
    """As soon as it is seen: readers are done before the first actor is."""
    over = threading.Event()

    def kill_the_first() -> bool:
        while not over.is_set():
            for pid in processes_below(os.getpid(), READERS)[:1]:
                os.kill(pid, signal.SIGKILL)
                return True
        return False

    with ThreadPoolExecutor(1) as watching:
        killing = watching.submit(kill_the_first)
        try:
            summary = score(config_of(registry, archive, tmp_path))
        finally:
            over.set()
        assert killing.result()
    assert summary.rows == RECORDS
    assert_same(tmp_path, undisturbed)


TWO_NODES = """
import json, sys
import ray
from ray.cluster_utils import Cluster
from cflow_ray.config import ScoreConfig
from cflow_ray.score.run import score

soon = {"health_check_initial_delay_ms": 0, "health_check_period_ms": 1000, "health_check_failure_threshold": 3}
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False, "_system_config": soon})
second = cluster.add_node(num_cpus=2)
ray.init(address=cluster.address, log_to_driver=False)
removed = []

def watch(done, total):
    if done >= 10 and not removed:
        cluster.remove_node(second, allow_graceful=False)
        removed.append(done)

with open(sys.argv[1]) as file:
    summary = score(ScoreConfig.model_validate_json(file.read()), watch)
ray.shutdown()
cluster.shutdown()
print(json.dumps({"removed": len(removed), "rows": summary.rows, "errors": summary.errors}))
"""


def test_a_removed_node_costs_nothing_but_time(
    elsewhere: dict[str, str], registry: Path, archive: Path, undisturbed: pa.Table, tmp_path: Path
) -> None:
    config = config_of(registry, archive, tmp_path / "out", cluster={"workers": 3})
    result = in_a_process_of_its_own(TWO_NODES, config, elsewhere, tmp_path)
    assert result == {"removed": 1, "rows": RECORDS, "errors": 0}
    assert_same(tmp_path / "out", undisturbed)


# the store


@pytest.fixture
def proxy(swift: Place) -> Iterator[FaultProxy]:
    with FaultProxy(int(swift.options["endpoint_url"].rpartition(":")[2])) as proxy:
        yield proxy


@pytest.fixture
def stored(swift: Place, proxy: FaultProxy, archive: Path) -> Place:
    """The object store behind the proxy, with the archive in it and its images as single objects."""
    storage = Storage(swift.root, swift.options)
    storage.write("in/night.tar", archive.read_bytes())
    with tarfile.open(archive) as tar:
        for info in list(tar)[:IMAGES]:
            file = tar.extractfile(info)
            assert file is not None
            storage.write(f"images/{info.name}", file.read())
    return Place(swift.root, swift.options | {"endpoint_url": proxy.endpoint})


@pytest.mark.s3
@pytest.mark.usefixtures("cluster")
@pytest.mark.parametrize(("given", "records"), [("in/night.tar", RECORDS), ("images", IMAGES)])
def test_a_third_of_requests_failing_costs_nothing_but_time(
    stored: Place, proxy: FaultProxy, registry: Path, undisturbed: pa.Table, given: str, records: int
) -> None:
    """From the listing of the input on."""
    proxy.disturb(429, 500, 503, RESET, SHORT, share=0.3, seed=3)
    output = f"{stored.root}/out-{records}"
    summary = score(config_of(registry, f"{stored.root}/{given}", output, storage_options=stored.options))
    proxy.heal()
    assert proxy.harmed.total() >= 20
    assert (summary.rows, summary.errors) == (records, 0)
    table = read_results(Storage(output, stored.options)).sort_by("key")
    assert table["key"].to_pylist() == undisturbed["key"].to_pylist()[:records]
    for found, right in zip(table["score"].to_pylist(), undisturbed["score"].to_pylist(), strict=False):
        assert abs(found - right) <= 1e-5


@pytest.mark.s3
@pytest.mark.usefixtures("cluster")
def test_a_rerun_reads_the_images_of_missing_parts_alone(
    stored: Place, proxy: FaultProxy, registry: Path, tmp_path: Path
) -> None:
    config = config_of(registry, f"{stored.root}/images", tmp_path, storage_options=stored.options)
    score(config)
    lost = sorted(tmp_path.glob("shard=*/part-*.parquet"))[3:5]
    keys = {
        f"images/{row['key']}" for row in pa.concat_tables([pa.parquet.read_table(part) for part in lost]).to_pylist()
    }
    for part in lost:
        part.unlink()
    proxy.requests.clear()
    assert score(config).rows_of_this_run == 8
    asked = [request for request in proxy.requests if request.startswith("GET") and ".png" in request]
    assert {request.partition("/")[2].partition("/")[2] for request in asked} == keys
    assert all(proxy.requests[request] == 1 for request in asked)


@pytest.mark.s3
@pytest.mark.usefixtures("cluster")
def test_access_that_ends_half_way_is_rows_with_errors_that_a_later_run_can_mend(
    stored: Place, proxy: FaultProxy, registry: Path, tmp_path: Path
) -> None:
    config = config_of(registry, f"{stored.root}/images", tmp_path, storage_options=stored.options)
    proxy.disturb(403, first="brick/000030.png")
    summary = score(config)
    proxy.heal()
    assert summary.rows == IMAGES
    assert 0 < summary.errors < IMAGES
    assert summary.errors_by_kind == {"unreadable": summary.errors}
    assert score(config).rows_of_this_run == 0
    mended = score(config.model_copy(update={"retry_errors": True}))
    assert (mended.rows, mended.errors) == (IMAGES, 0)
    assert summary.errors <= mended.rows_of_this_run < IMAGES
