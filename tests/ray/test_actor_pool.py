"""How many actors score: as many as there is work and room for, within what was asked."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch

from cflow_ray.config import ScoreConfig
from cflow_ray.score.run import score
from tests.miniature import archive_of
from tests.ray.processes import in_a_process_of_its_own, processes_below

pytestmark = pytest.mark.ray


RECORDS, MANY_RECORDS = 300, 10_000  # the many are minutes of work, in which an actor on another node can start


@pytest.fixture(scope="module")
def archive(miniature: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return archive_of(RECORDS, miniature, tmp_path_factory.mktemp("archive"))


@pytest.fixture(scope="module")
def long_archive(miniature: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return archive_of(MANY_RECORDS, miniature, tmp_path_factory.mktemp("long"))


def config_of(registry: Path, archive: Path, output: Path, **cluster: Any) -> ScoreConfig:
    return ScoreConfig(
        inputs=(str(archive),),
        registry=str(registry),
        output=str(output),
        chunk_records=1,
        cluster=cluster,
    )


@pytest.mark.usefixtures("cluster")
@pytest.mark.parametrize(("workers", "most"), [("1:2", 2), ("1", 1)])
def test_a_pool_grows_to_the_most_that_was_asked_for(
    registry: Path, archive: Path, tmp_path: Path, workers: str, most: int
) -> None:
    config = config_of(registry, archive, tmp_path, workers=workers, resources={"cpu": 0.5})
    sizes: list[int] = []

    def watch(done: int, total: int) -> None:
        if done % 20 == 1:
            sizes.append(len(processes_below(os.getpid(), "MapWorker")))

    assert score(config, watch).rows == RECORDS
    assert max(sizes) == most


GROWING = """
import json, sys
import ray
from ray.cluster_utils import Cluster
from ray.util.state import list_actors
from cflow_ray.config import ScoreConfig
from cflow_ray.score.run import score

class Seen(Exception):
    pass

cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": True, "dashboard_port": 0})
ray.init(address=cluster.address, log_to_driver=False)
joined = []

def watch(done, total):
    if done >= 3 and not joined:
        joined.append(cluster.add_node(num_cpus=2).node_id)
    if joined and done % 50 == 0:
        there = [actor for actor in list_actors() if actor.node_id == joined[0] and actor.state == "ALIVE"]
        if any("MapWorker" in actor.class_name for actor in there):
            raise Seen

seen = False
with open(sys.argv[1]) as file:
    try:
        score(ScoreConfig.model_validate_json(file.read()), watch)
    except Seen:
        seen = True
ray.shutdown()
cluster.shutdown()
print(json.dumps(seen))
"""


def test_a_pool_grows_onto_a_node_that_joins(
    elsewhere: dict[str, str], registry: Path, long_archive: Path, tmp_path: Path
) -> None:
    """Of one processor first, which has room to read beside its actor."""
    config = config_of(registry, long_archive, tmp_path / "out", workers="1:2")
    assert in_a_process_of_its_own(GROWING, config, elsewhere, tmp_path)


WITH_A_GPU = """
import json, sys
import ray
from cflow_ray.config import ScoreConfig
from cflow_ray.errors import ConfigError
from cflow_ray.score.run import score

ray.init(address="local", num_cpus=2, num_gpus=1, include_dashboard=False, log_to_driver=False)
with open(sys.argv[1]) as file:
    config = ScoreConfig.model_validate_json(file.read())
try:
    score(config)
except ConfigError as error:
    print(json.dumps(str(error)))
"""


def test_a_gpu_that_torch_cannot_use_is_said_once(
    elsewhere: dict[str, str], registry: Path, archive: Path, tmp_path: Path
) -> None:
    """Ray believes the number of GPUs that it is told, so the actors get their share of one."""
    if torch.cuda.is_available():
        pytest.skip("torch can use a GPU here")
    config = config_of(registry, archive, tmp_path / "out", workers=2, resources={"gpu": 0.5})
    message = in_a_process_of_its_own(WITH_A_GPU, config, elsewhere, tmp_path)
    assert "cannot use a GPU here" in message
