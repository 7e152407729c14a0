"""A job that a server scores: the table of the archive job, what is done stays done, versions are never mixed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

from cflow_ray.cli import main
from cflow_ray.client import Client, ProblemError, UnreachableError
from cflow_ray.config import AskConfig, ScoreConfig
from cflow_ray.data.archives import write_shards
from cflow_ray.data.images import decode_map
from cflow_ray.errors import CheckpointError, ConfigError, ServingError
from cflow_ray.score import job
from cflow_ray.score.online import read_token, score_online
from cflow_ray.score.plan import plan_job
from cflow_ray.score.spans import pending
from cflow_ray.score.stages import ReadSpan, ScoreChunk
from cflow_ray.store.compaction import compact
from cflow_ray.store.registry import Registry
from cflow_ray.store.results import Ledger, finished_parts, read_maps, read_results
from cflow_ray.store.storage import Storage
from tests import serving
from tests.client.scripted import ANSWER, Reply, problem, scripted_server
from tests.stores import free_port
from tests.versions import copy_version

CATEGORIES = Reply(
    body=[
        {
            "category": "screw",
            "checkpoint": "v1-abcdef",
            "input_size": [64, 64],
            "target_fpr": 0.05,
            "metrics": {},
            "problem": None,
        }
    ]
)


@dataclass
class Site:
    """A server, the registry behind it, and the paths it was asked for."""

    registry: Registry
    url: str
    asked: list[str]
    follow: Callable[[], None]
    """Takes over moved pointers."""


@pytest.fixture
def site(registry: Path, tmp_path: Path) -> Iterator[Site]:
    root = shutil.copytree(registry, tmp_path / "registry")
    # As the archive job: with another runtime a pixel that lies on the threshold is in or out with its last bit.
    with serving.site(root, runtime=ScoreConfig.model_fields["runtime"].default) as running:
        yield Site(Registry(Storage(str(root))), running.url, running.asked, running.service.checkpoints.refresh)


@pytest.fixture
def inputs(miniature: Path, tmp_path: Path) -> Path:
    """Shards with the images of brick, one with a name that is no category, one that is no image, one with no folder."""
    images = {
        path.relative_to(miniature).as_posix(): path.read_bytes() for path in (miniature / "brick/test").rglob("*.png")
    }
    some = next(iter(images.values()))
    records = {**images, "brick/bad.png": b"no image", "zippr/a.png": some, "alone.png": some}
    write_shards(sorted(records.items()), Storage(str(tmp_path / "shards")), "test", 100_000)
    return tmp_path / "shards"


def asking(site: Site, inputs: Path, tmp_path: Path, **settings: Any) -> AskConfig:
    values = {"inputs": [str(inputs)], "url": site.url, "output": str(tmp_path / "online"), "chunk_records": 3}
    return AskConfig.model_validate(values | settings)


def score(config: AskConfig) -> Any:
    assert config.output is not None
    with Client(config.url, deadline=config.deadline) as client:
        return score_online(config, client, config.output)


def rows_of(output: Path | str) -> list[dict[str, Any]]:
    return read_results(Storage(str(output))).to_pylist()


def as_the_archive_job(config: ScoreConfig) -> None:
    """The same job in this process, stage by stage, as Ray Data runs it."""
    output = Storage(config.output)
    plan = plan_job(config, output)
    read, score_chunk = ReadSpan(config, plan.id), ScoreChunk(config, plan.id)
    for span in pending(plan, finished_parts(output), frozenset(), output).spans(1):
        for chunk in read({"span": span.to_json()}):
            score_chunk(chunk)


def test_the_table_is_that_of_the_archive_job(site: Site, inputs: Path, tmp_path: Path):
    settings = {"maps": "anomalous", "map_format": "png8", "target_fpr": 0.2}
    summary = score(asking(site, inputs, tmp_path, **settings))
    archive = ScoreConfig.model_validate(
        {"inputs": [str(inputs)], "registry": site.registry.storage.uri, "output": str(tmp_path / "archive")}
        | {"chunk_records": 3, **settings}
    )
    as_the_archive_job(archive)
    online, expected = rows_of(tmp_path / "online"), rows_of(archive.output)
    assert summary.rows == len(online) == len(expected) > 9
    assert summary.errors_by_kind == {"no_image": 1, "unknown_category": 1, "no_category": 1}
    assert 0 < summary.anomalies == sum(bool(row["is_anomaly"]) for row in expected) < summary.rows
    for ours, theirs in zip(online, expected, strict=True):
        measured = ("score", "regions", "error")
        assert {k: v for k, v in ours.items() if k not in measured} == {
            k: v for k, v in theirs.items() if k not in measured
        }
        assert (ours["error"] is None) == (theirs["error"] is None)
        if ours["score"] is not None:
            assert ours["score"] == pytest.approx(theirs["score"], abs=1e-5)
            assert [region["box"] for region in ours["regions"]] == [region["box"] for region in theirs["regions"]]
        if ours["map"] is not None:
            maps = [
                read_maps(Storage(str(output)), ours["map"])[ours["key"]]
                for output in (tmp_path / "online", archive.output)
            ]
            assert np.abs(decode_map(maps[0]) - decode_map(maps[1])).max() <= 1.5 / 255
    parts = [
        sorted(path for path, _ in Storage(str(output)).walk("shard="))
        for output in (tmp_path / "online", archive.output)
    ]
    assert parts[0] == parts[1]


def test_what_is_done_is_not_asked_again(site: Site, inputs: Path, tmp_path: Path):
    config = asking(site, inputs, tmp_path)
    first = score(config)
    rows = rows_of(tmp_path / "online")
    gone = sorted((tmp_path / "online").rglob("part-*.parquet"))[1]
    lost = 3
    gone.unlink()
    site.asked.clear()
    second = score(config)
    assert len([path for path in site.asked if path.startswith("/v1/score")]) <= lost
    assert (second.rows, second.rows_of_this_run, second.chunks_already_done) == (first.rows, lost, first.chunks - 1)
    assert [{**row, "score": None} for row in rows_of(tmp_path / "online")] == [{**row, "score": None} for row in rows]
    site.asked.clear()
    assert score(config).rows_of_this_run == 0
    assert site.asked == []
    with pytest.raises(ConfigError, match="another --output"):
        score(asking(site, inputs, tmp_path, target_fpr=0.2))


def test_a_version_that_was_promoted_meanwhile_is_not_mixed_in(site: Site, inputs: Path, tmp_path: Path):
    config = asking(site, inputs, tmp_path)
    score(config)
    first = site.registry.best("brick")
    copy_version(Path(site.registry.storage.uri), f"brick/{first}", "brick/v2-abcdef")
    site.registry.promote("brick", "v2-abcdef")
    site.follow()
    for part in (tmp_path / "online").rglob("part-*.parquet"):
        part.unlink()
    with pytest.raises(ServingError, match=f"v2-abcdef now; this job began with {first}"):
        score(config)
    assert {row["checkpoint"] for row in rows_of_if_any(tmp_path / "online")} <= {first, None}
    site.registry.rollback("brick")
    site.follow()
    assert score(config).errors == 3


def rows_of_if_any(output: Path) -> list[dict[str, Any]]:
    return rows_of(output) if any(output.rglob("part-*.parquet")) else []


@pytest.fixture
def screws(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    for name in ("a", "b", "c"):
        (folder / "screw").mkdir(parents=True, exist_ok=True)
        (folder / "screw" / f"{name}.png").write_bytes(b"bytes")
    return folder


BUSY = Reply(503, problem(503, "overloaded", "256 images wait"), {"Retry-After": "3600"})


@pytest.mark.parametrize(
    ("reply", "kind"),
    [
        (Reply(422, problem(422, "bad-image", "empty", reason="empty_file")), "empty_file"),
        (Reply(422, problem(422, "bad-image", "broken")), "damaged_image"),
        (Reply(413, problem(413, "too-large")), "too_large"),
        (Reply(415, problem(415, "unsupported-media")), "no_image"),
        (Reply(404, problem(404, "unknown-category")), "unknown_category"),
        (BUSY, "unreadable"),
        (Reply(504, problem(504, "deadline"), {"Retry-After": "3600"}), "unreadable"),
        (Reply(500, problem(500, "internal")), "unreadable"),
    ],
)
def test_what_the_server_refuses_is_a_row_with_its_reason(screws: Path, tmp_path: Path, reply: Reply, kind: str):
    answer = Reply(body=ANSWER)
    with scripted_server(CATEGORIES, answer, reply, answer) as server:
        values = {"inputs": [str(screws)], "url": server.url, "output": str(tmp_path / "out"), "in_flight": 1}
        summary = score(AskConfig.model_validate(values))
        rows = rows_of(tmp_path / "out")
        assert summary.errors_by_kind == {kind: 1}
        assert [row["error_kind"] for row in rows] == [None, kind, None]
        assert rows[1]["error"] == reply.body["detail"]
        assert rows[0]["regions"] == [{"box": [1, 2, 30, 40], "area": 12.5, "peak": 0.875}]
        assert [asked.path for asked in server.asked[1:]] == ["/v1/score/screw"] * 3
        server.replies += [answer] * 3
        again = score(AskConfig.model_validate(values | {"retry_errors": True}))
        assert again.errors == (0 if kind == "unreadable" else 1)
        assert len(server.replies) == (0 if kind == "unreadable" else 3)


@pytest.mark.parametrize("reply", [Reply(401, problem(401, "unauthorized")), Reply(403, problem(403, "forbidden"))])
def test_a_refusal_that_all_would_get_ends_the_job(screws: Path, tmp_path: Path, reply: Reply):
    with scripted_server(CATEGORIES, *[reply] * 3) as server:
        values = {"inputs": [str(screws)], "url": server.url, "output": str(tmp_path / "out"), "in_flight": 1}
        with pytest.raises(ProblemError, match=str(reply.status)):
            score(AskConfig.model_validate(values))
    assert rows_of_if_any(tmp_path / "out") == []


def test_a_server_that_is_not_there_ends_the_job(screws: Path, tmp_path: Path):
    values = {"inputs": [str(screws)], "url": f"http://127.0.0.1:{free_port()}", "output": str(tmp_path / "out")}
    with pytest.raises(UnreachableError):
        score(AskConfig.model_validate(values | {"deadline": 0.2}))


@pytest.mark.parametrize(("category", "served_ones"), [("nut", CATEGORIES), (None, Reply(body=[]))])
def test_a_category_that_is_not_served_is_told_at_once(
    screws: Path, tmp_path: Path, category: str | None, served_ones: Reply
):
    with scripted_server(served_ones) as server:
        values = {"inputs": [str(screws)], "url": server.url, "output": str(tmp_path / "out"), "category": category}
        with pytest.raises(CheckpointError, match="it has"):
            score(AskConfig.model_validate(values))


def test_maps_need_a_server_that_says_what_they_cover(screws: Path, tmp_path: Path):
    with scripted_server(CATEGORIES, *[Reply(body=ANSWER)] * 3) as server:
        values = {"inputs": [str(screws)], "url": server.url, "output": str(tmp_path / "out"), "maps": "all"}
        with pytest.raises(ServingError, match="--maps"):
            score(AskConfig.model_validate(values))


def test_the_token_comes_from_a_file_or_the_environment(tmp_path: Path):
    file = tmp_path / "token"
    file.write_text("from-a-file\n")
    config = AskConfig.model_validate({"inputs": ["in"], "url": "http://host", "token_file": str(file)})
    assert read_token(config, {"CFLOW_RAY_TOKEN": "other"}) == "from-a-file"
    without = config.model_copy(update={"token_file": None})
    assert read_token(without, {"CFLOW_RAY_TOKEN": "from-there"}) == "from-there"
    assert read_token(without, {}) is None
    file.write_text("two words")
    with pytest.raises(ConfigError, match="no access token"):
        read_token(config, {})


# The command


def run(*arguments: str | Path, **environment: str) -> Result:
    return CliRunner(env=environment).invoke(main, ["score", *map(str, arguments)])


def test_the_command_prints_a_line_an_image(site: Site, miniature: Path, tmp_path: Path):
    image = miniature / "brick/test/crack/000.png"
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"no image")
    arguments = (image, bad, "--url", site.url, "--category", "brick")
    with Client(site.url) as client:
        expected = client.score("brick", image.read_bytes())
    shown = run(*arguments)
    assert shown.exit_code == 0, shown.output
    (line,) = [line for line in shown.stdout.splitlines() if "000.png" in line]
    assert {"brick", "anomaly" if expected.is_anomaly else "normal", expected.checkpoint} <= set(line.split())
    assert f"{expected.score:.4f}" in line
    assert "error: no image of a known format" in shown.stdout
    told = json.loads(run(*arguments, "--json").stdout)
    assert [(row["key"], row["error_kind"]) for row in told["images"]] == [("000.png", None), ("bad.png", "no_image")]
    assert told["images"][0]["score"] == pytest.approx(expected.score, abs=1e-6)


def test_the_command_writes_a_table_and_judges_its_errors(site: Site, inputs: Path, tmp_path: Path):
    arguments = (inputs, "--url", site.url, "--output", tmp_path / "out", "--json")
    done = run(*arguments)
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["rows"] == len(rows_of(tmp_path / "out"))
    too_many = run(*arguments, "--max-error-fraction", "0.1")
    assert too_many.exit_code == 1
    assert json.loads(too_many.stdout)["rows"] == len(rows_of(tmp_path / "out"))  # one object, as ever
    assert "more than the share of 0.1" in too_many.stderr


def test_an_archive_without_images_is_no_error(tmp_path: Path):
    with tarfile.open(tmp_path / "empty.tar", "w"):
        pass
    with scripted_server(CATEGORIES) as server:
        done = run(tmp_path / "empty.tar", "--url", server.url, "--json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout) == {"images": []}


def test_an_image_file_whose_name_is_no_text_is_a_row(screws: Path, tmp_path: Path):
    try:
        Path(os.fsdecode(os.fsencode(screws) + b"/Pr\xfcfteil.png")).write_bytes(b"")
    except OSError:
        pytest.skip("this file system takes names in UTF-8 alone")
    with scripted_server(CATEGORIES, *[Reply(body=ANSWER)] * 3) as server:
        values = {"inputs": [str(screws)], "url": server.url, "output": str(tmp_path / "out")}
        summary = score(AskConfig.model_validate(values))
    assert summary.errors_by_kind == {"unsafe_name": 1}
    assert {row["key"]: row["error_kind"] for row in rows_of(tmp_path / "out")}["Pr\\xfcfteil.png"] == "unsafe_name"
    assert summary.rows == 4


def test_a_job_that_goes_on_while_its_table_is_compacted_looks_again(
    screws: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    with scripted_server(CATEGORIES, *[Reply(body=ANSWER)] * 3) as server:
        values = {"inputs": [str(screws)], "url": server.url, "output": str(tmp_path / "out"), "chunk_records": 1}
        config = AskConfig.model_validate(values)
        score(config)
        output = Storage(str(tmp_path / "out"))
        looks: list[Ledger] = []

        def then_compacted(results: Storage) -> Ledger:
            looks.append(finished_parts(results))
            if len(looks) == 1:
                compact(output, 10**9)
            return looks[-1]

        monkeypatch.setattr(job, "finished_parts", then_compacted)
        assert score(config).rows == 3
    assert len(looks) == 2


def test_the_command_sends_the_token(screws: Path):
    with scripted_server(CATEGORIES, *[Reply(body=ANSWER)] * 3) as server:
        assert run(screws, "--url", server.url, CFLOW_RAY_TOKEN="secret").exit_code == 0
    assert {asked.headers["Authorization"] for asked in server.asked} == {"Bearer secret"}


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--registry", "r"], "unknown key 'registry'"),
        (["--runtime", "torch"], "unknown key 'runtime'"),
        (["--workers", "3"], "in_flight"),
        (["--in-flight", "0"], "'in_flight'"),
        (["--category-pattern", "x"], "{category}"),
        (["--url", "host:1"], "no server's address"),
    ],
)
def test_what_does_not_go_with_a_server_is_misuse(flags: list[str], says: str):
    refused = run("in", "--url", "http://127.0.0.1:1", *flags)
    assert refused.exit_code == 2
    assert says in refused.stderr


def test_neither_ray_nor_torch_nor_a_registry_is_needed(screws: Path):
    with scripted_server(CATEGORIES, *[Reply(body=ANSWER)] * 3) as server:
        program = (
            "import atexit, sys; from cflow_ray.cli import main; "
            "atexit.register(lambda: print({'ray', 'torch'} & {*sys.modules}, file=sys.stderr)); "
            f"main(['score', {str(screws)!r}, '--url', {server.url!r}, '--json'], standalone_mode=False)"
        )
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert len(json.loads(done.stdout)["images"]) == 3
    assert done.stderr.splitlines()[-1] == "set()"
