"""From a foreign file to verdicts: import, calibrate on normal images, score; and calibrate again."""

from __future__ import annotations

import json
import subprocess
import sys
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image
from torch import Tensor

from cflow_ray.calibrate import Recalibrated, calibrate
from cflow_ray.cli import main
from cflow_ray.config import CalibrateConfig, DataConfig, ImportConfig
from cflow_ray.data.datasets import read_data_set
from cflow_ray.data.images import prepare
from cflow_ray.data.synthetic import normal_images
from cflow_ray.errors import CheckpointError, DataError
from cflow_ray.store.importing import import_checkpoint
from cflow_ray.store.registry import Registry
from cflow_ray.store.storage import Storage
from tests.foreign import CHANNELS, freia_decoder, official_checkpoint, official_encoder, saved

SIDE = 64
NORMALS, FRESH = 40, 60


def write_images(folder: Path, count: int, seed: int) -> None:
    folder.mkdir(parents=True)
    for number, pixels in enumerate(islice(normal_images("grass", count, "train", seed, SIDE), count)):
        Image.fromarray(np.ascontiguousarray(pixels)).save(folder / f"{number:03}.png")


@pytest.fixture(scope="session")
def places(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of the official code, a data set of normal images, and a registry with the checkpoint imported."""
    root = tmp_path_factory.mktemp("calibrate")
    torch.manual_seed(0)
    np.random.seed(0)
    decoders = [freia_decoder(channels) for channels in CHANNELS[1:]]  # layer3 and layer4
    (root / "grass.pt").write_bytes(saved(official_checkpoint(official_encoder(), decoders)))
    write_images(root / "data" / "grass" / "train" / "good", NORMALS, seed=0)
    write_images(root / "few" / "grass" / "train" / "good", 7, seed=0)
    import_into(root, root / "registry")
    return root


def import_into(places: Path, registry: Path) -> str:
    detector = {"encoder": {"name": "resnet18"}, "input_size": SIDE, "target_fpr": 0.2}
    config = ImportConfig(registry=str(registry), file=str(places / "grass.pt"), category="grass", detector=detector)
    return import_checkpoint(config).version


@pytest.fixture(scope="session")
def calibrated_once(places: Path) -> Recalibrated:
    return calibrate(settings(places))


def settings(places: Path, registry: str = "registry", data: str = "data", **others: object) -> CalibrateConfig:
    return CalibrateConfig(registry=str(places / registry), data=str(places / data), category="grass", **others)


def scores_of(registry: Registry, version: str, images: list[Tensor]) -> list[float]:
    bank = registry.bank()
    return [bank.score_batch([image], [("grass", version)])[0].score for image in images]


def prepared(registry: Registry, version: str, folder: Path) -> list[Tensor]:
    config = registry.manifest("grass", version).detector.input
    return [torch.from_numpy(prepare(path.read_bytes(), config).pixels_3HW) for path in sorted(folder.iterdir())]


# -- the calibration


def test_the_calibrated_version_is_new_promoted_and_has_the_weights_of_the_imported(
    places: Path, calibrated_once: Recalibrated
) -> None:
    registry = Registry(Storage(str(places / "registry")))
    assert registry.best("grass") == calibrated_once.version != calibrated_once.calibrated
    manifest = registry.manifest("grass", calibrated_once.version)
    assert manifest.is_calibrated
    assert len(manifest.calibration_scores) == NORMALS / 2
    assert manifest.origin.startswith(f"{calibrated_once.calibrated} calibrated on ")
    assert not registry.manifest("grass", calibrated_once.calibrated).is_calibrated  # written once, never changed
    before, after = (registry.fitted("grass", version) for version in (calibrated_once.calibrated, manifest.version))
    for decoder, same in zip(before.decoders, after.decoders, strict=True):
        assert all(torch.equal(tensor, same.state()[name]) for name, tensor in decoder.state().items())
    assert (
        registry.encoder_model(manifest.detector.encoder, manifest.encoder_digest, manifest.detector.size) is not None
    )
    assert calibrated_once.images == NORMALS
    assert calibrated_once.notes == ("20 calibration images support false-alarm rates down to 0.0477.",)
    assert calibrated_once.smallest_target == pytest.approx(1 / (NORMALS / 2 + 1))


def test_half_of_the_images_have_the_calibration_scores_when_they_are_scored(
    places: Path, calibrated_once: Recalibrated
) -> None:
    registry = Registry(Storage(str(places / "registry")))
    images = prepared(registry, calibrated_once.version, places / "data/grass/train/good")
    scores = np.array(scores_of(registry, calibrated_once.version, images))
    kept = registry.manifest("grass", calibrated_once.version).calibration_scores
    nearest = [np.abs(scores - score).min() for score in kept]
    assert max(nearest) < 2e-3  # features are kept in half precision


def test_fresh_normals_have_the_p_values_of_normals_and_others_the_smallest(
    places: Path, calibrated_once: Recalibrated, tmp_path: Path
) -> None:
    registry = Registry(Storage(str(places / "registry")))
    write_images(tmp_path / "fresh", FRESH, seed=1)
    fresh = prepared(registry, calibrated_once.version, tmp_path / "fresh")
    calibration = registry.detector("grass", calibrated_once.version).calibration
    p_values = np.array([calibration.p_value(s) for s in scores_of(registry, calibrated_once.version, fresh)])
    assert 0.3 < p_values.mean() < 0.75
    assert (p_values <= 0.2).mean() < 0.5
    noise = [torch.randint(0, 256, (3, SIDE, SIDE), dtype=torch.uint8) for _ in range(3)]
    assert {calibration.p_value(s) for s in scores_of(registry, calibrated_once.version, noise)} == {1 / 21}


# -- which version


def test_without_a_version_the_promoted_is_calibrated_again_and_the_seed_draws_the_halves(
    places: Path, tmp_path: Path
) -> None:
    registry = Registry.create(Storage(str(tmp_path / "registry")))
    imported = import_into(places, tmp_path / "registry")
    first = calibrate(settings(places, registry=str(tmp_path / "registry")))
    again = calibrate(settings(places, registry=str(tmp_path / "registry")))
    other = calibrate(settings(places, registry=str(tmp_path / "registry"), seed=1))
    assert (first.calibrated, again.calibrated, other.calibrated) == (imported, first.version, again.version)
    manifests = [registry.manifest("grass", found.version) for found in (first, again, other)]
    assert manifests[0].calibration_scores == manifests[1].calibration_scores
    assert manifests[0].peaks == manifests[1].peaks
    assert not set(manifests[0].calibration_scores) & set(manifests[2].calibration_scores)
    assert registry.best("grass") == other.version
    newest = import_into(places, tmp_path / "registry")
    assert calibrate(settings(places, registry=str(tmp_path / "registry"))).calibrated == newest
    named = calibrate(settings(places, registry=str(tmp_path / "registry"), version=first.version))
    assert named.calibrated == first.version


def test_weights_that_know_the_images_are_told_from_others(places: Path, tmp_path: Path) -> None:
    """A fit of this project knows its data: calibrating on them again cannot keep its promise."""
    registry = Registry(Storage(str(places / "registry")))
    imported = registry.versions("grass")[0]
    data = read_data_set(DataConfig(data=str(places / "data")), {})
    manifest = registry.manifest("grass", imported)
    digest = data.digest("grass", data.root.sizes())
    known = registry.add(
        "grass",
        registry.fitted("grass", imported),
        lambda version: manifest.model_copy(update={"version": version, "weights_data_digest": digest}),
    )
    found = calibrate(settings(places, version=known))
    assert [note for note in found.notes if "fitted on these images" in note]
    again = calibrate(settings(places, version=found.version))
    assert [note for note in again.notes if "fitted on these images" in note]
    assert registry.manifest("grass", again.version).data_digest == ""


# -- refused


def test_too_few_normals_are_refused_and_nothing_is_written(places: Path, calibrated_once: Recalibrated) -> None:
    registry = Registry(Storage(str(places / "registry")))
    before = registry.versions("grass")
    with pytest.raises(DataError, match=r"7 normal training images of 'grass'.*at least 8"):
        calibrate(settings(places, data="few"))
    assert registry.versions("grass") == before


def test_unreadable_images_are_left_out_and_count_against_the_least(places: Path, tmp_path: Path) -> None:
    folder = tmp_path / "data" / "grass" / "train" / "good"
    write_images(folder, 9, seed=2)
    (folder / "000.png").write_bytes(b"no image")
    found = calibrate(settings(places, data=str(tmp_path / "data")))
    assert found.images == 8
    assert found.notes[0].startswith("left out grass/train/good/000.png")
    (folder / "001.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"7 normal .*at least 8"):
        calibrate(settings(places, data=str(tmp_path / "data")))


@pytest.mark.parametrize(
    ("changes", "error", "says"),
    [
        ({"category": "screw"}, CheckpointError, "no version of 'screw'.*models import"),
        ({"version": "v99"}, CheckpointError, "no version 'v99'"),
        ({"data": "/nowhere"}, DataError, "does not exist"),
    ],
)
def test_what_is_missing_is_named(places: Path, changes: dict[str, str], error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        calibrate(settings(places).model_copy(update=changes))


def test_a_data_set_without_the_category_is_refused(places: Path, tmp_path: Path) -> None:
    write_images(tmp_path / "data" / "moss" / "train" / "good", 1, seed=0)
    with pytest.raises(DataError, match=r"no category 'grass'.*moss"):
        calibrate(settings(places, data=str(tmp_path / "data")))


# -- the command line


def test_a_version_that_nobody_promoted_is_named_and_can_be_calibrated(places: Path, tmp_path: Path) -> None:
    imported = import_into(places, tmp_path / "registry")
    registry = Registry(Storage(str(tmp_path / "registry")))
    with pytest.raises(CheckpointError, match=rf"no version of 'grass' is promoted; there are {imported}\..*calibrate"):
        registry.best("grass")
    calibrated = calibrate(settings(places, registry=str(tmp_path / "registry"))).version
    registry.storage.remove("grass/best.json")
    assert calibrate(settings(places, registry=str(tmp_path / "registry"))).calibrated == calibrated


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def test_the_two_commands_lead_from_a_file_to_a_promoted_version(places: Path, tmp_path: Path) -> None:
    registry = tmp_path / "registry"
    chosen = ["--encoder", "resnet18", "--input-size", SIDE, "--target-fpr", "0.1"]
    imported = run("models", "import", places / "grass.pt", "--registry", registry, "--category", "grass", *chosen)
    assert imported.exit_code == 0, imported.output
    assert "not calibrated yet" in imported.stdout
    assert "--later-freia" in imported.stdout
    command = imported.stdout[imported.stdout.index("cflow-ray models calibrate") :].split()
    assert command[3] == "grass"
    assert "not calibrated" in run("models", "list", "--registry", registry).stdout

    folder = tmp_path / "pictures"
    write_images(folder, 12, seed=3)
    config = tmp_path / "calibrate.yaml"
    config.write_text("layout: folder\nnormal_dir: pictures\n")
    found = run(
        "models", "calibrate", *command[3:5], "--registry", registry, "--data", tmp_path, "--config", config, "--json"
    )
    assert found.exit_code == 0, found.output
    values = json.loads(found.stdout)
    assert values["calibrated"] == command[4]
    assert values["images"] == 12
    assert values["smallest_target"] == pytest.approx(1 / 7)
    assert values["target_fpr"] == 0.1
    assert "false-alarm rates down to 0.143; at the target of 0.1 nothing" in values["notes"][0]
    listed = json.loads(run("models", "list", "--registry", registry, "--json").stdout)["versions"]
    assert [(entry["calibrated"], entry["promoted"]) for entry in listed] == [(False, False), (True, True)]
    shown = json.loads(run("models", "show", "grass", "--registry", registry, "--json").stdout)
    assert shown["version"] == values["version"]


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["import", "--registry", "r", "--category", "c"], 2, "'file' is missing"),
        (["import", "f.pt", "--registry", "r"], 2, "'category' is missing"),
        (["import", "no-such.pt", "--registry", "r", "--category", "c"], 1, "no-such.pt"),
        (["import", "no-such.pt", "--registry", "r", "--category", "../c"], 1, "cannot name a category"),
        (["calibrate", "--registry", "r", "--data", "d"], 2, "'category' is missing"),
        (["calibrate", "c", "--registry", "no-such-registry", "--data", "d"], 1, "is no registry"),
    ],
)
def test_misuse_is_told_in_one_line(arguments: list[str], code: int, says: str, tmp_path: Path) -> None:
    result = run("models", *arguments)
    assert result.exit_code == code, result.output
    assert says in result.stderr
    assert result.stdout == ""


def test_neither_command_needs_ray() -> None:
    code = "import sys, cflow_ray.calibrate, cflow_ray.store.importing; sys.exit('ray' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
