"""Configuration: one place of defaults, flags over YAML, and every mistake named with what is allowed."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from cflow_ray.config import (
    CategoryConfig,
    ClusterConfig,
    DemoConfig,
    DetectorConfig,
    EncoderConfig,
    EvaluateConfig,
    FitConfig,
    FlowConfig,
    ImportConfig,
    Model,
    PackConfig,
    Range,
    Resources,
    ScoreConfig,
    ServeConfig,
    load_config,
    parse_size,
)
from cflow_ray.errors import ConfigError

FIT: dict[str, Any] = {"data": "s3://bucket/data", "registry": "s3://bucket/registry"}
SCORE: dict[str, Any] = {"inputs": ["a.tar"], "registry": "r", "output": "o"}
NEEDED: dict[type[Model], dict[str, Any]] = {
    FitConfig: FIT,
    PackConfig: {"data": "d", "output": "o"},
    ScoreConfig: SCORE,
    EvaluateConfig: {"data": "d", "results": "r"},
    ServeConfig: {"registry": "r"},
    DemoConfig: {},
    DetectorConfig: {},
}

WriteYaml = Callable[[Any], str]


@pytest.fixture
def write_yaml(tmp_path: Path) -> WriteYaml:
    def write(content: Any) -> str:
        file = tmp_path / "config.yaml"
        file.write_text(content if isinstance(content, str) else yaml.safe_dump(content, sort_keys=False))
        return str(file)

    return write


def fit(write_yaml: WriteYaml, more: dict[str, Any], flags: dict[str, Any] | None = None) -> FitConfig:
    return load_config(FitConfig, write_yaml(FIT | more), flags or {})


def refused(write_yaml: WriteYaml, more: dict[str, Any], kind: type[Model] = FitConfig) -> str:
    """What the user is told."""
    with pytest.raises(ConfigError) as caught:
        load_config(kind, write_yaml(NEEDED[kind] | more), {})
    assert caught.value.exit_code == 2
    assert "\n" not in str(caught.value)
    return str(caught.value)


# -- YAML and flags


@pytest.mark.parametrize("kind", NEEDED)
def test_what_is_needed_is_enough_and_what_is_saved_is_read_back(kind: type[Model], write_yaml: WriteYaml) -> None:
    config = load_config(kind, write_yaml(NEEDED[kind]), {})
    assert load_config(kind, None, NEEDED[kind]) == config
    assert kind.model_validate_json(config.model_dump_json()) == config
    assert load_config(kind, write_yaml(config.model_dump(mode="json")), {}) == config


def test_flags_lie_over_the_file_and_leave_the_rest_of_it(write_yaml: WriteYaml) -> None:
    more = {
        "defaults": {"recipe": "best", "seed": 3, "flow": {"blocks": 4}},
        "storage_options": {"key": "k", "secret": "s"},
        "only": ["screw"],
    }
    flags = {
        "defaults.recipe": "fast",
        "defaults.flow.clamp": 2.5,
        "storage_options": {"secret": "other"},
        "force": True,
    }
    config = fit(write_yaml, more, flags)
    assert config.defaults == DetectorConfig(recipe="fast", seed=3, flow=FlowConfig(blocks=4, clamp=2.5))
    assert config.storage_options == {"key": "k", "secret": "other"}
    assert config.only == ("screw",)
    assert config.force is True


def test_flags_that_were_not_given_change_nothing(write_yaml: WriteYaml) -> None:
    more = {"defaults": {"recipe": "best"}, "only": ["screw"], "storage_options": {"key": "k"}}
    flags = {"defaults.recipe": None, "only": (), "storage_options": {}, "cluster.workers": None}
    assert fit(write_yaml, more, flags) == fit(write_yaml, more)


def test_flags_of_0_and_false_are_given(write_yaml: WriteYaml) -> None:
    more = {"force": True, "defaults": {"seed": 5, "top_fraction": 0.5}}
    config = fit(write_yaml, more, {"force": False, "defaults.seed": 0, "defaults.top_fraction": 0.0})
    assert (config.force, config.defaults.seed, config.defaults.top_fraction) == (False, 0, 0)


def test_flags_alone_are_a_configuration() -> None:
    config = load_config(ServeConfig, None, {"registry": "s3://b/r", "port": 9000})
    assert (config.registry, config.port) == ("s3://b/r", 9000)


def test_an_empty_file_is_a_file_without_keys(write_yaml: WriteYaml) -> None:
    assert load_config(DetectorConfig, write_yaml("# nothing\n"), {}) == DetectorConfig()


@pytest.mark.parametrize(
    ("text", "flags", "key"),
    [
        ("defaults: [1]", {"defaults.recipe": "fast"}, "defaults"),
        ("cluster: 3", {"cluster.workers": 2}, "cluster"),
        ("defaults: {encoder: resnet18}", {"defaults.encoder.weights": "timm"}, r"defaults\.encoder"),
    ],
)
def test_flags_do_not_hide_what_is_no_mapping(
    write_yaml: WriteYaml, text: str, flags: dict[str, Any], key: str
) -> None:
    with pytest.raises(ConfigError, match=f"config.yaml: '{key}' is .*a mapping is needed"):
        load_config(FitConfig, write_yaml(f"{text}\n"), flags)


def test_an_unknown_flag_is_a_config_error() -> None:
    with pytest.raises(ConfigError, match=r"the flags: unknown key 'defaults\.recipee'"):
        load_config(FitConfig, None, FIT | {"defaults.recipee": "fast"})


# -- mistakes


@pytest.mark.parametrize(
    ("more", "key", "allowed"),
    [
        ({"regsitry": "x"}, "regsitry", set(FitConfig.model_fields)),
        ({"cluster": {"wokers": 2}}, "cluster.wokers", set(ClusterConfig.model_fields)),
        ({"defaults": {"flow": {"bloks": 3}}}, "defaults.flow.bloks", set(FlowConfig.model_fields)),
        ({"categories": {"screw": {"input_sze": 512}}}, "input_sze", set(CategoryConfig.model_fields)),
        ({"categories": {"screw": {"encoder": {"nme": "x"}}}}, "encoder.nme", set(EncoderConfig.model_fields)),
    ],
)
def test_an_unknown_key_is_named_with_what_is_allowed_there(
    write_yaml: WriteYaml, more: dict[str, Any], key: str, allowed: set[str]
) -> None:
    message = refused(write_yaml, more)
    assert f"unknown key '{key}'" in message
    assert set(message.partition("allowed here: ")[2].split(", ")) == allowed
    assert ("categories.screw" in message) == ("categories" in more)


@pytest.mark.parametrize(
    ("more", "key", "value"),
    [
        ({"data": 5}, "data", 5),
        ({"defaults": {"input_size": "big"}}, "defaults.input_size", "big"),
        ({"defaults": {"input_size": 31}}, "defaults.input_size", 31),
        ({"defaults": {"input_size": 300.5}}, "defaults.input_size", 300.5),
        ({"defaults": {"target_fpr": 1.5}}, "defaults.target_fpr", 1.5),
        ({"defaults": {"target_fpr": 0}}, "defaults.target_fpr", 0),
        ({"defaults": {"recipe": "fastest"}}, "defaults.recipe", "fastest"),
        ({"defaults": {"encoder": {"strides": [32, 8]}}}, "defaults.encoder.strides", [32, 8]),
        ({"defaults": {"encoder": {"strides": [8, 8]}}}, "defaults.encoder.strides", [8, 8]),
        ({"defaults": {"encoder": {"strides": []}}}, "defaults.encoder.strides", []),
        ({"defaults": {"encoder": {"strides": [0]}}}, "defaults.encoder.strides.0", 0),
        ({"defaults": {"encoder": {"blocks": [-1]}}}, "defaults.encoder.blocks.0", -1),
        ({"defaults": {"level_weights": [1.0, 1.0, math.inf]}}, "defaults.level_weights.2", math.inf),
        ({"defaults": {"flow": {"clamp": math.inf}}}, "defaults.flow.clamp", math.inf),
        ({"registry": ""}, "registry", ""),
        ({"defaults": {"flow": {"condition_channels": 6}}}, "defaults.flow.condition_channels", 6),
        ({"defaults": 5}, "defaults", 5),
        ({"only": "screw"}, "only", "screw"),
        ({"layout": "visaa"}, "layout", "visaa"),
        ({"storage_options": ["a=b"]}, "storage_options", ["a=b"]),
        ({"force": "maybe"}, "force", "maybe"),
        ({"categories": ["screw"]}, "categories", ["screw"]),
        ({"categories": {"screw": 5}}, "categories.screw", 5),
        ({"categories": {"screw": False}}, "categories.screw", False),
        ({"cluster": {"resources": {"cpu": 0}}}, "cluster.resources.cpu", 0),
    ],
)
def test_a_wrong_value_is_named_with_its_key(write_yaml: WriteYaml, more: dict[str, Any], key: str, value: Any) -> None:
    assert f"'{key}' is {value!r}: " in refused(write_yaml, more)


def test_a_wrong_choice_lists_the_choice(write_yaml: WriteYaml) -> None:
    message = refused(write_yaml, {"defaults": {"recipe": "fastest"}})
    assert all(f"'{recipe}'" in message for recipe in ("fast", "balanced", "best"))


def test_several_mistakes_are_told_at_once(write_yaml: WriteYaml) -> None:
    message = refused(write_yaml, {"layout": "x", "froce": True, "cluster": {"wokers": 1}})
    assert all(name in message for name in ("'layout' is 'x'", "'froce'", "'cluster.wokers'"))


def test_mistakes_name_the_file(write_yaml: WriteYaml) -> None:
    assert "config.yaml" in refused(write_yaml, {"froce": True})


@pytest.mark.parametrize(("kind", "key"), [(FitConfig, "registry"), (ScoreConfig, "output"), (ServeConfig, "registry")])
def test_a_missing_key_says_how_to_give_it(write_yaml: WriteYaml, kind: type[Model], key: str) -> None:
    file = write_yaml({name: value for name, value in NEEDED[kind].items() if name != key})
    with pytest.raises(ConfigError, match=rf"'{key}' is missing; give it in the YAML file or on the command line"):
        load_config(kind, file, {})


@pytest.mark.parametrize("text", ["a: [\n", "\tkey: 1", "a: b: c", "a\0b", "key: !!python/object:os.system {}"])
def test_what_is_no_yaml_is_named_on_one_line(write_yaml: WriteYaml, text: str) -> None:
    file = write_yaml(text)
    with pytest.raises(ConfigError, match=r"config\.yaml is no YAML: ") as caught:
        load_config(FitConfig, file, {})
    assert "\n" not in str(caught.value)


def test_bytes_that_are_no_text_are_no_yaml(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_bytes(b"\xff\xfe\x80")
    with pytest.raises(ConfigError, match=r"x\.yaml is no YAML"):
        load_config(FitConfig, str(tmp_path / "x.yaml"), {})


@pytest.mark.parametrize(("text", "kind"), [("- a\n- b\n", "list"), ("just text", "str"), ("5", "int")])
def test_yaml_without_keys_is_refused_by_what_it_holds(write_yaml: WriteYaml, text: str, kind: str) -> None:
    with pytest.raises(ConfigError, match=rf"holds a {kind}; a mapping of keys to values is needed"):
        load_config(FitConfig, write_yaml(text), {})


def test_a_missing_file_and_a_folder_are_named(tmp_path: Path) -> None:
    for place, reason in ((tmp_path / "nowhere.yaml", "No such file"), (tmp_path, "Is a directory")):
        with pytest.raises(ConfigError, match=rf"{place}.*{reason}"):
            load_config(FitConfig, str(place), {})


# -- frozen


@pytest.mark.parametrize("kind", NEEDED)
def test_a_configuration_cannot_be_changed(kind: type[Model]) -> None:
    config = load_config(kind, None, NEEDED[kind])
    for name in kind.model_fields:
        with pytest.raises(ValidationError, match="frozen"):
            setattr(config, name, getattr(config, name))


def test_configurations_share_no_defaults() -> None:
    one, other = ServeConfig(registry="r"), ServeConfig(registry="r")
    one.storage_options["key"] = "k"
    assert other.storage_options == {}


# -- categories


def test_a_category_has_the_defaults_under_its_overrides(write_yaml: WriteYaml) -> None:
    more = {
        "defaults": {"recipe": "fast", "encoder": {"name": "resnet18", "strides": [8, 16]}},
        "categories": {"screw": {"input_size": 512, "encoder": {"strides": [8]}}, "cable": None},
    }
    config = fit(write_yaml, more)
    screw = config.detector("screw")
    assert (screw.input_size, screw.recipe) == (512, "fast")
    assert screw.encoder == EncoderConfig(name="resnet18", strides=(8,))
    assert config.detector("cable") == config.detector("not listed") == config.defaults
    assert list(config.categories) == ["screw", "cable"]


def test_a_name_alone_lists_a_category(write_yaml: WriteYaml) -> None:
    assert load_config(FitConfig, write_yaml(yaml.safe_dump(FIT) + "categories:\n  cable:\n"), {}).categories == {
        "cable": {}
    }


def test_a_wrong_override_is_found_when_the_file_is_read(write_yaml: WriteYaml) -> None:
    message = refused(write_yaml, {"categories": {"cable": None, "screw": {"input_size": 16}}})
    assert "categories.screw: 'input_size' is 16" in message
    assert "categories.screw: 'workers' is 0" in refused(write_yaml, {"categories": {"screw": {"workers": 0}}})


# -- places


def test_local_paths_become_absolute_and_uris_stay() -> None:
    config = FitConfig(data="data/mvtec/", registry=Path("registry"))  # type: ignore[arg-type]
    assert config.data == f"{os.getcwd()}/data/mvtec"
    assert config.registry == f"{os.getcwd()}/registry"
    assert FitConfig(data="~/mvtec", registry="/r").data == str(Path.home() / "mvtec")
    for uri in ("s3://bucket/a/../b", "memory://x", "file:///tmp/x"):
        assert FitConfig(data=uri, registry=uri).data == uri


@pytest.mark.parametrize("weights", ["wheel", "timm", "s3://bucket/weights.safetensors", "/w.pth"])
def test_sources_of_weights_that_are_no_relative_path_stay(weights: str) -> None:
    assert EncoderConfig(weights=weights).weights == weights


def test_a_relative_path_to_weights_becomes_absolute() -> None:
    assert EncoderConfig(weights="w.pth").weights == f"{os.getcwd()}/w.pth"


# -- values with a grammar


@pytest.mark.parametrize("pattern", ["", "category/", "{category}/{category}/", "{categry}/"])
def test_a_pattern_must_name_the_category_once(write_yaml: WriteYaml, pattern: str) -> None:
    assert "{category} exactly once" in refused(write_yaml, {"category_pattern": pattern}, ScoreConfig)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("256MB", 256_000_000),
        ("64MiB", 64 * 2**20),
        ("1GB", 10**9),
        ("1.5 kB", 1500),
        ("4096", 4096),
        ("2g", 2 * 10**9),
        ("8KiB", 8192),
        (5000, 5000),
    ],
)
def test_sizes_are_read_as_people_write_them(text: Any, size: int) -> None:
    assert int(str(parse_size(text))) == size
    if size >= 4096:
        assert PackConfig(data="d", output="o", shard_size=text).shard_size == size


@pytest.mark.parametrize("size", ["big", "12 apples", "-1MB", "1KB", 0, "MB", ""])
def test_what_is_no_size_of_a_shard_is_refused(write_yaml: WriteYaml, size: Any) -> None:
    assert "'shard_size' is " in refused(write_yaml, {"shard_size": size}, PackConfig)


def test_a_pack_of_inputs_is_saved_and_read_back() -> None:
    config = PackConfig(inputs=("s3://line/night",), output="s3://line/shards", name="night")
    assert PackConfig.model_validate_json(config.model_dump_json()) == config


@pytest.mark.parametrize(("given_split", "split"), [("all", None), (None, None), ("val", "val")])
def test_all_splits_are_no_split(given_split: str | None, split: str | None) -> None:
    assert PackConfig(data="d", output="o", split=given_split).split == split


# -- the cluster


@given(
    nodes=st.lists(st.tuples(st.integers(50, 6400), st.integers(0, 8)), min_size=1, max_size=4),
    cpu=st.integers(25, 3200),
    gpu=st.sampled_from([0, 10, 20, 25, 50, 100, 200]),
    tasks=st.integers(1, 100),
    wanted=st.one_of(
        st.just("auto"),
        st.integers(1, 100),
        st.tuples(st.integers(1, 100), st.integers(0, 100)).map(lambda pair: f"{pair[0]}:{sum(pair)}"),
    ),
)
def test_workers_fit_the_nodes_or_are_refused(
    nodes: list[tuple[int, int]], cpu: int, gpu: int, tasks: int, wanted: Any
) -> None:
    """A worker lies on one node whole: what is left over on two is no room. Processors and a worker's share in hundredths."""
    cluster = ClusterConfig(workers=wanted, resources=Resources(cpu=cpu / 100, gpu=gpu / 100))
    room = sum(min(c // cpu, 100 * g // gpu if gpu else 10**9) for c, g in nodes)
    given = [{"CPU": c / 100, "GPU": float(g)} for c, g in nodes]
    least, _, most = (1, "", tasks) if wanted == "auto" else str(wanted).partition(":")
    least, most = int(least), int(most or least)
    waiting = cluster.model_copy(update={"wait": True})
    if room < least:
        with pytest.raises(ConfigError, match="do not fit"):
            cluster.worker_count(given, tasks)
        with pytest.raises(ConfigError, match="do not fit"):
            cluster.pool(given, tasks)
    else:
        assert cluster.worker_count(given, tasks) == min(most, tasks)
        assert cluster.pool(given, tasks) == waiting.pool(given, tasks)
    assert waiting.worker_count(given, tasks) == min(most, tasks)
    assert waiting.room(given) == room
    first, largest = waiting.pool(given, tasks)
    assert largest == min(most, tasks)
    assert first == max(1, min(room, tasks, tasks if wanted == "auto" else least))


@pytest.mark.parametrize("wanted", ["0", 0, -1, "many", "3:2", "0:4", "1:x", ":3", "2:", "1:2:3", "", 2.5, "२"])
def test_what_is_no_number_of_workers_is_refused(wanted: Any) -> None:
    with pytest.raises(ConfigError, match=r"'cluster\.workers' is"):
        load_config(PackConfig, None, {"data": "d", "output": "o", "cluster": {"workers": wanted}})


@pytest.mark.parametrize(
    ("wanted", "parsed"),
    [("4", Range(min=4, max=4)), (4, Range(min=4, max=4)), ("2:8", Range(min=2, max=8)), ("auto", "auto")],
)
def test_workers_are_a_number_a_range_or_auto(wanted: Any, parsed: Any) -> None:
    assert ClusterConfig(workers=wanted).workers == parsed


def test_a_request_for_more_gpus_than_there_are_says_what_there_is() -> None:
    cluster = ClusterConfig(workers=2, resources=Resources(gpu=1, memory="4GB"))
    nodes = [{"CPU": 8.0, "memory": 16e9}, {"CPU": 8.0, "GPU": 1.0, "memory": 16e9}]
    with pytest.raises(ConfigError, match=r"2 workers of 1 CPU, 1 GPU, 4e\+09 memory .* 16 CPU, 1 GPU.* room for 1"):
        cluster.worker_count(nodes, 5)


def test_an_address_joins_and_its_absence_starts_a_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert ClusterConfig().init_arguments()["address"] == "local"
    assert ClusterConfig(address="host:1").init_arguments()["address"] == "host:1"
    assert "num_cpus" not in ClusterConfig(address="host:1").init_arguments()  # ray.init refuses it when joining
    monkeypatch.setenv("RAY_ADDRESS", "other:2")
    assert ClusterConfig().init_arguments()["address"] == "auto"


@pytest.mark.parametrize(
    "encoder",
    [{"std": [0.2, 0.0, 0.2]}, {"std": [0.2, -0.1, 0.2]}, {"mean": [0.5]}, {"mean": 0.5}, {"padding": "replicate"}],
)
def test_a_normalisation_is_three_values_and_divides(encoder: dict[str, object]):
    with pytest.raises(ConfigError, match=next(iter(encoder))):
        load_config(FitConfig, None, {"data": "d", "registry": "r", "defaults.encoder": encoder})


@pytest.mark.parametrize("where", ["defaults", "categories.screw"])
@pytest.mark.parametrize(("name", "values"), [("mean", [123.7, 116.3, 103.5]), ("std", [0.2, 58.4, 0.2])])
def test_a_normalisation_of_pixels_up_to_255_is_refused(
    write_yaml: WriteYaml, where: str, name: str, values: list[float]
) -> None:
    encoder = {"encoder": {name: values}}
    told = refused(write_yaml, {"defaults": encoder} if where == "defaults" else {"categories": {"screw": encoder}})
    assert f"{where}: encoder.{name} is {values}" in told
    assert "divide it by 255" in told
    assert DetectorConfig.model_validate(encoder)  # versions of before can be read


def test_an_import_lays_its_settings_over_what_the_file_names_and_that_over_what_it_leaves_open():
    config = ImportConfig(
        file="f", registry="r", category="c", detector={"encoder": {"name": "resnet34"}, "top_fraction": 0}
    )
    assumed = {"encoder": {"name": "wide_resnet50_2", "mean": (0, 0, 0)}, "input_size": 256}
    resolved = config.resolved(assumed, {"encoder": {"mean": (0.5, 0.5, 0.5)}, "resampling": "lanczos"})
    assert (resolved.encoder.name, resolved.encoder.mean) == ("resnet34", (0.5, 0.5, 0.5))
    assert (resolved.size, resolved.resampling, resolved.top_fraction) == ((256, 256), "lanczos", 0)


@pytest.mark.parametrize(
    ("given", "least", "most"), [(3, 3, 3), ("3", 3, 3), ("1:4", 1, 4), ({"min": 2, "max": 5}, 2, 5)]
)
def test_replicas_are_a_number_or_bounds(given: Any, least: int, most: int) -> None:
    config = load_config(ServeConfig, None, {"registry": "r", "replicas": given})
    assert config.replicas == Range(min=least, max=most)
    assert ServeConfig.model_validate(config.model_dump()) == config


@pytest.mark.parametrize("given", [0, "0:2", "4:1", "many", "1:2:3", True, "1:", ":4"])
def test_replicas_that_are_no_bounds_are_refused(given: Any) -> None:
    with pytest.raises(ConfigError, match="replicas"):
        load_config(ServeConfig, None, {"registry": "r", "replicas": given})


def test_a_server_that_could_never_let_its_largest_request_in_is_refused() -> None:
    with pytest.raises(ConfigError, match="max_images"):
        load_config(ServeConfig, None, {"registry": "r", "max_waiting": 10})


@pytest.mark.parametrize(
    ("calibration", "count", "cross"),
    [("auto", 8, True), ("auto", 199, True), ("auto", 200, False), ("cross", 1000, True), ("split", 8, False)],
)
def test_auto_fits_folds_below_200_images(calibration: str, count: int, cross: bool) -> None:
    assert DetectorConfig(calibration=calibration).is_cross(count) is cross


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"copies": 1}, "would repeat the images"),
        ({"copies": 2, "horizontal_flip": True}, "an image has one mirrored copy"),
    ],
)
def test_copies_that_would_be_alike_are_refused(settings: dict[str, object], says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        DetectorConfig.model_validate({"augmentation": settings})
    assert DetectorConfig.model_validate({"augmentation": settings | {"rotation": 5}})
