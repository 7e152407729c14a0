"""The command line: help, exit codes, one clear line for what a user can get wrong, nothing half-written."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import click
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result

from cflow_ray.cli import main
from cflow_ray.cli.command import settings_of
from cflow_ray.config import DemoConfig, FitConfig, load_config
from cflow_ray.score.plan import FORMAT_VERSION
from cflow_ray.store.results import PartName, write_part
from cflow_ray.store.storage import Storage
from tests.stores import free_port

FIT = ["fit", "--data", "d", "--registry", "r"]
CONFIGS = Path(__file__).parents[1] / "jobs" / "configs"


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def commands(group: click.Group = main, path: tuple[str, ...] = ()) -> list[tuple[tuple[str, ...], click.Command]]:
    found = []
    for name, command in group.commands.items():
        found += commands(command, (*path, name)) if isinstance(command, click.Group) else [((*path, name), command)]
    return found


@pytest.mark.parametrize(("path", "command"), commands())
def test_every_command_takes_the_common_options_and_shows_an_example_that_parses(
    path: tuple[str, ...], command: click.Command
):
    shown = run(*path, "--help").stdout
    for option in ("--config", "--json", "--storage-option"):
        assert option in shown
    assert command.epilog is not None
    prefix, *words = shlex.split(command.epilog.removeprefix("Example: "))
    assert prefix == "cflow-ray"
    assert tuple(words[: len(path)]) == path
    command.make_context(" ".join(path), words[len(path) :])


def test_all_commands_of_the_design_are_there():
    names = {" ".join(path) for path, _ in commands()}
    assert names >= {"demo", "data check", "fit", "pack", "score", "evaluate", "drift", "serve"}
    assert names >= {f"models {verb}" for verb in ("list", "show", "promote", "rollback", "import", "calibrate")}
    assert names >= {f"results {verb}" for verb in ("status", "compact", "diff")}


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["fit", "--data", "somewhere"], "'registry' is missing"),
        (["score", "--registry", "r", "--output", "o"], "inputs"),
        (["fit", "--data", "d", "--registry", "r", "--input-size", "3"], "'defaults.input_size' is '3'"),
        (["fit", "--data", "d", "--registry", "r", "--storage-option", "nothing"], "no key=value"),
        (["fit", "--config", "no-such.yaml"], "no-such.yaml"),
        ([*FIT, "--category", ","], "',' names nothing"),
        (["fit", "--data", "d", "--registry", ""], "an empty path"),
        (["pack", "--data", "d", "--output", ""], "an empty path"),
        (["score", "x.png", "--url", "http://127.0.0.1:9", "--deadline", "inf"], "'deadline' is inf"),
        (["token"], "'name' is missing"),
        (["token", "a b"], "'name' is 'a b'"),
        (["demo", "--data", ""], "an empty path"),
        (["pack", "--data", " ", "--output", "o"], "'data' is ' ': an empty path"),
        ([*FIT, "--resources", "cpu"], "'cpu' is not like cpu=1,gpu=0.25,memory=4GB"),
        ([*FIT, "--resources", "cpu=1,,2"], "'cpu=1,,2' is not like cpu=1,gpu=0.25,memory=4GB"),
        ([*FIT, "--resources", "cpu=many"], "'cluster.resources.cpu' is 'many'"),
        ([*FIT, "--resources", "cpu=0"], "'cluster.resources.cpu' is '0'"),
        ([*FIT, "--resources", "gpu=-1"], "'cluster.resources.gpu' is '-1'"),
        ([*FIT, "--resources", "memory=lots"], "'cluster.resources.memory' is 'lots'"),
        ([*FIT, "--resources", "gpus=1"], "'cluster.resources.gpus'; allowed here: cpu, gpu, memory"),
        ([*FIT, "--workers", "some"], "'cluster.workers"),
        ([*FIT, "--workers", "0"], "'cluster.workers"),
        ([*FIT, "--seeds", "0"], "'seeds' is 0"),
        (["score", "in", "--registry", "r", "--output", "o", "--category-pattern", "x/"], "{category}"),
        (["pack", "--data", "d", "--output", "o", "--shard-size", "many"], "'many'"),
        (["pack", "--output", "o"], "either a data set as --data or image files as INPUT"),
        (["pack", "in", "--data", "d", "--output", "o"], "either a data set as --data or image files as INPUT"),
        (["pack", "in", "--output", "in/shards"], "lies in the input"),
        (["pack", "in", "--output", "o", "--category", "screw"], "`only` goes with a data set"),
        (["pack", "in", "--output", "o", "--name", "../night"], "'name' is '../night'"),
        (["pack", "in", "--output", "o", "--workers", "0"], "'cluster.workers"),
        (["drift"], "'results' is missing"),
        (["drift", "r", "--day-pattern", "line3/"], "{day}"),
        (["drift", "r", "--day-pattern", "{day}/{day}/"], "{day}"),
        (["drift", "r", "--alpha", "0"], "'alpha' is 0"),
        (["drift", "r", "--min-distance", "1"], "'min_distance' is 1"),
        (["drift", "r", "--last-days", "0"], "'last_days' is 0"),
        (["data", "check", "--data", "d", "--write-table", "t.csv"], ".parquet"),
        (["data", "check", "--data", "d", "--root", "r"], "layout table"),
        (["results", "status"], "'output' is missing"),
        (["results", "compact", "o", "--part-size", "0"], "'part_size' is"),
        (["results", "diff", "a"], "'b' is missing"),
        (["results", "diff", "a", "b", "--limit", "-1"], "'limit' is -1"),
    ],
)
def test_misuse_exits_with_2_and_says_what_is_wrong(arguments: list[str], says: str):
    result = run(*arguments)
    assert result.exit_code == 2, result.output
    assert says in result.stderr
    assert result.stdout == ""
    assert "Traceback" not in result.output


def test_an_unknown_key_is_named_with_what_is_allowed(tmp_path: Path):
    config = tmp_path / "fit.yaml"
    config.write_text("data: d\nregistry: r\ndefaults: {recipie: fast}\n")
    result = run("fit", "--config", config)
    assert result.exit_code == 2
    assert "'defaults.recipie'" in result.stderr
    assert "recipe" in result.stderr.replace("recipie", "")


def test_json_goes_to_stdout_alone_for_errors_too(tmp_path: Path):
    result = run("models", "list", "--registry", tmp_path, "--json")
    assert result.exit_code == 1
    assert "is no registry" in json.loads(result.stdout)["error"]


@pytest.mark.parametrize(
    "arguments",
    [
        ["fit", "--data", "{tmp}/missing", "--registry", "{tmp}/out"],
        ["fit", "--data", "{tmp}/data", "--registry", "{tmp}/out", "--category", "zippr"],
        ["fit", "--data", "{tmp}/untrained", "--registry", "{tmp}/out"],
        ["fit", "--data", "{tmp}/orphan", "--registry", "{tmp}/out"],
        ["data", "check", "--data", "{tmp}/missing", "--write-table", "{tmp}/out/t.parquet"],
        ["pack", "--data", "{tmp}/missing", "--output", "{tmp}/out"],
        ["pack", "--data", "{tmp}/data", "--output", "{tmp}/out", "--split", "validation"],
        ["pack", "{tmp}/missing", "--output", "{tmp}/out"],
        ["pack", "{tmp}/future", "--output", "{tmp}/out"],
        ["score", "{tmp}/data", "--registry", "{tmp}/missing", "--output", "{tmp}/out"],
        ["score", "{tmp}/data", "--registry", "{tmp}/future", "--output", "{tmp}/out"],
        ["evaluate", "{tmp}/missing", "--data", "{tmp}/data"],
        ["drift", "{tmp}/missing"],
        ["results", "status", "{tmp}/missing"],
        ["results", "compact", "{tmp}/missing"],
        ["results", "diff", "{tmp}/missing", "{tmp}/missing", "--write", "{tmp}/out/changes.parquet"],
        ["serve", "--registry", "{tmp}/missing"],
        ["models", "show", "screw", "--registry", "{tmp}/future"],
    ],
)
def test_what_is_missing_is_told_in_one_line_and_leaves_nothing_behind(arguments: list[str], tmp_path: Path):
    for path in (
        *("data/screw/train/good/0.png", "data/screw/test/good/0.png"),
        "untrained/screw/test/good/0.png",
        *("orphan/screw/train/good/0.png", "orphan/screw/ground_truth/dent/7_mask.png"),
    ):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes(b"")
    (tmp_path / "future").mkdir()
    (tmp_path / "future" / "registry.json").write_text('{"format_version": 99}')

    result = run(*(argument.format(tmp=tmp_path) for argument in arguments))
    assert result.exit_code == 1, result.output
    errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, result.stderr
    assert "Traceback" not in result.output
    assert not (tmp_path / "out").exists()


def test_an_unknown_category_is_told_with_those_there_are(tmp_path: Path):
    for category in ("pill", "screw"):
        (tmp_path / category / "train" / "good").mkdir(parents=True)
        (tmp_path / category / "train" / "good" / "0.png").write_bytes(b"")
    for command in (["fit"], ["fit", "--dry-run"]):
        result = run(*command, "--data", tmp_path, "--registry", tmp_path / "out", "--category", "screw,zippr")
        assert result.exit_code == 1
        assert "no category 'zippr'" in result.stderr
        assert "it has pill, screw" in result.stderr


def test_an_endpoint_that_cannot_be_reached_is_told(tmp_path: Path):
    endpoint = f"http://127.0.0.1:{free_port()}"
    options = [
        "--storage-option",
        f"endpoint_url={endpoint}",
        "--storage-option",
        "key=k",
        "--storage-option",
        "secret=s",
    ]
    result = run("fit", "--data", "s3://line/data", "--registry", tmp_path / "out", *options)
    assert result.exit_code == 1
    assert endpoint in result.stderr
    assert "endpoint_url" in result.stderr
    assert not (tmp_path / "out").exists()


def test_a_folder_of_images_is_packed_goes_on_and_keeps_its_settings(tmp_path: Path):
    for number in range(6):
        (tmp_path / "night" / "screw").mkdir(parents=True, exist_ok=True)
        (tmp_path / "night" / "screw" / f"{number}.png").write_bytes(bytes(3000))
    pack = ["pack", tmp_path / "night", "--output", tmp_path / "out", "--name", "night", "--shard-size", "8KB"]
    result = run(*pack, "--workers", "1", "--json")
    assert result.exit_code == 0, result.output
    packed = json.loads(result.stdout)
    assert packed["shards"] == [f"night-{number:06}.tar" for number in range(3)]
    assert (packed["records"], packed["kept"]) == (6, 0)
    assert Path(packed["manifest"]).read_text().count("\n") == 4
    (tmp_path / "out" / "night-000001.tar").unlink()
    assert "3 shards, 2 of them from before" in run(*pack).stdout

    other = run(*pack, "--shard-size", "16KB")
    assert other.exit_code == 2
    assert "shard_size 8000, not 16000" in other.stderr


def write_scores(output: Path, decisions: list[bool]) -> Path:
    """A table in parts of one row."""
    for number, is_anomaly in enumerate(decisions):
        row = {"image_id": f"a-1/{number}.png", "key": f"{number}.png", "category": "screw", "is_anomaly": is_anomaly}
        write_part(Storage(str(output)), PartName("a-1", number), [row | {"score": 0.5 + is_anomaly / 4}], {})
    return output


def test_a_table_is_compacted_and_compared(tmp_path: Path):
    a, b = write_scores(tmp_path / "a", [True, False]), write_scores(tmp_path / "b", [True, True])
    result = run("results", "compact", a, "--json")
    assert result.exit_code == 0, result.output
    summary = json.loads(result.stdout)
    assert (summary["shards"], summary["parts_written"], summary["parts_removed"], summary["rows"]) == (1, 1, 2, 2)
    assert [path.name for path in a.rglob("*.parquet")] == ["part-000000000-000000002.parquet"]
    assert "0 parts written" in run("results", "compact", a).stdout

    written = tmp_path / "changes.parquet"
    found = json.loads(run("results", "diff", a, b, "--json", "--write", written).stdout)
    assert (found["same"], found["ok_to_anomaly"], found["anomaly_to_ok"]) == (1, 1, 0)
    assert [image["key"] for image in found["changed"]] == ["1.png"]
    assert pq.read_table(written).num_rows == 1
    assert "1.png" in run("results", "diff", a, b).stdout


@pytest.mark.parametrize(("other", "code"), [([True, False], 0), ([True, True], 1), ([True], 1)])
def test_a_difference_fails_where_that_is_asked_for(tmp_path: Path, other: list[bool], code: int):
    a, b = write_scores(tmp_path / "a", [True, False]), write_scores(tmp_path / "b", other)
    assert run("results", "diff", a, b).exit_code == 0
    assert run("results", "diff", a, b, "--fail-on-change").exit_code == code


def test_the_status_of_a_job_is_told(tmp_path: Path):
    output = write_scores(tmp_path / "scores", [True, False])
    assert "holds no scoring job" in run("results", "status", output).stderr
    shard = {"id": "a-1", "uri": "/a.tar", "kind": "tar", "records": 3}
    plan = {
        **{"inputs": ["/a.tar"], "registry": "/r", "category": None, "category_pattern": "{category}/", "maps": "none"},
        **{
            "target_fpr": None,
            "chunk_records": 1,
            "checkpoints": {},
            "shards": [shard],
            "format_version": FORMAT_VERSION,
        },
    }
    (output / "_plan.json").write_text(json.dumps(plan))
    found = json.loads(run("results", "status", output, "--rows", "--json").stdout)
    assert (found["chunks"], found["chunks_done"], found["chunks_pending"]) == (3, 2, 1)
    assert found["rows"] == {"rows": 2, "failed": 0, "errors": {}, "anomalies": {"screw": 1}}
    assert "2 of 3 chunks" in run("results", "status", output).stdout


def test_the_shipped_configurations_are_valid():
    demo = load_config(DemoConfig, str(CONFIGS / "demo.yaml"), {})
    assert demo.recipe == "fast"
    mvtec = load_config(FitConfig, str(CONFIGS / "mvtec_ad.yaml"), {"data": "d", "registry": "r"})
    sizes = {category: mvtec.detector(category).input_size for category in mvtec.categories}
    assert len(sizes) == 15
    assert {name for name, size in sizes.items() if size == 256} == {
        "cable",
        "capsule",
        "hazelnut",
        "metal_nut",
        "pill",
    }
    assert {name for name, size in sizes.items() if size == 128} == {"transistor"}
    assert sorted(sizes.values()).count(512) == 9


def test_a_server_and_a_token_can_be_named_in_a_file(tmp_path: Path):
    config = tmp_path / "settings.yaml"
    config.write_text("url: http://127.0.0.1:9\ncategory: screw\nin_flight: 99\n")
    refused = run("score", "x.png", "--config", config)
    assert refused.exit_code == 2
    assert "'in_flight' is 99" in refused.stderr
    config.write_text("name: line-3\nrole: admin\n")
    made = json.loads(run("token", "--config", config, "--rate", "5", "--json").stdout)
    assert {name: made["entry"][name] for name in ("name", "role", "rate")} == {
        "name": "line-3",
        "role": "admin",
        "rate": 5.0,
    }


@pytest.mark.parametrize(("text", "value"), [("false", False), ("True", True), ("0123", "0123"), ("1e5", "1e5")])
def test_an_option_of_the_store_is_text_or_a_switch(text: str, value: object):
    assert settings_of({"storage_option": (f"anon={text}",)}) == {"storage_options": {"anon": value}}
