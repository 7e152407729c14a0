"""Scores over HTTP: one image or several, of one category or mixed, with what is asked for beyond the verdict."""

from __future__ import annotations

import asyncio
import base64
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cflow_ray.data.images import prepare
from cflow_ray.model.verdict import judge
from cflow_ray.store.registry import Registry
from cflow_ray.store.storage import Storage
from tests.serving import CALIBRATION, Served, files, kind_of, serving

pytestmark = pytest.mark.anyio

CATEGORIES = ("cat", "cup", "rocket")
FORMATS = ("PNG", "JPEG", "BMP", "TIFF", "WEBP", "GIF", "PPM")


def as_file(content: bytes, form: str) -> bytes:
    buffer = io.BytesIO()
    Image.open(io.BytesIO(content)).save(buffer, form)
    return buffer.getvalue()


def library_score(root: Path, category: str, content: bytes) -> float:
    """The score of the library, as the archive job asks for it."""
    registry = Registry(Storage(str(root)))
    key = (category, registry.best(category))
    bank = registry.bank()
    return bank.score_batch([prepare(content, bank.detector(key).config.input).pixels_3HW], [key])[0].score


async def test_an_image_gets_its_verdict(served: Served, images: list[bytes]) -> None:
    answer = await served.client.post("/v1/score/cat", content=images[0])
    assert answer.status_code == 200, answer.text
    verdict = answer.json()
    assert verdict["category"] == "cat"
    assert verdict["checkpoint"].startswith("v1-")
    assert (verdict["width"], verdict["height"]) == (64, 64)
    assert verdict["p_value"] == (1 + sum(score >= verdict["score"] for score in CALIBRATION)) / 40
    assert verdict["is_anomaly"] == (verdict["score"] > verdict["threshold"])
    assert verdict["timings"].keys() == {"read_ms", "decode_ms", "wait_ms", "model_ms", "judge_ms"}
    assert all(value >= 0 for value in verdict["timings"].values())
    assert not {"map_png", "overlay_png"} & verdict.keys()


@pytest.mark.parametrize("media_type", [None, "image/png", "application/octet-stream", "image/x-unheard-of"])
async def test_the_bytes_decide_whatever_image_they_are_called(
    served: Served, images: list[bytes], media_type: str | None
) -> None:
    headers = {} if media_type is None else {"content-type": media_type}
    assert (await served.client.post("/v1/score/cat", content=images[0], headers=headers)).status_code == 200


async def test_every_format_and_category_scores_as_the_library_while_batching_happens(
    fitted_registry: Path, images: list[bytes]
) -> None:
    posts = [(category, as_file(images[0], form)) for category in CATEGORIES for form in FORMATS]
    async with serving(fitted_registry) as served:
        for category in CATEGORIES:
            await served.client.post(f"/v1/score/{category}", content=images[0])
        answers = await asyncio.gather(
            *(served.client.post(f"/v1/score/{category}", content=content) for category, content in posts)
        )
        batches = served.service.metrics.batch_images.collect()[0].samples
    sums = {sample.name: sample.value for sample in batches if not sample.labels}
    assert sums["cflow_ray_batch_images_sum"] == len(posts) + len(CATEGORIES)
    assert sums["cflow_ray_batch_images_count"] < len(posts)  # so that batches were mixed
    for (category, content), answer in zip(posts, answers, strict=True):
        assert abs(answer.json()["score"] - library_score(fitted_registry, category, content)) <= 1e-5


async def test_several_images_are_answered_in_order_and_a_bad_one_costs_itself_only(
    served: Served, images: list[bytes]
) -> None:
    alone = [(await served.client.post("/v1/score/cat", content=image)).json()["score"] for image in images[:3]]
    posted = files([images[0], b"no image", images[1], images[2]])
    answer = await served.client.post("/v1/score/cat", files=posted)
    assert answer.status_code == 200, answer.text
    items = answer.json()["images"]
    assert [item["name"] for item in items] == ["0.png", "1.png", "2.png", "3.png"]
    assert items[1]["answer"] is None
    assert items[1]["problem"]["type"] == "urn:cflow-ray:problem:bad-image"
    scored = [item["answer"]["score"] for item in items if item["problem"] is None]
    assert scored == pytest.approx(alone, abs=1e-5)


async def test_a_field_names_the_category_of_the_files_after_it(served: Served, images: list[bytes]) -> None:
    parts = [("cat", 0), ("cat", 1), ("rocket", 2), ("zippr", 3)]
    body = [("category", (None, "cat")), *files(images[:2])]
    body += [("category", (None, "rocket")), ("image", ("2.png", images[2]))]
    body += [("category", (None, "zippr")), ("image", ("3.png", images[3]))]
    items = (await served.client.post("/v1/score", files=body)).json()["images"]
    for item, (category, image) in zip(items[:3], parts[:3], strict=True):
        alone = (await served.client.post(f"/v1/score/{category}", content=images[image])).json()
        assert item["answer"]["category"] == category
        assert item["answer"]["score"] == pytest.approx(alone["score"], abs=1e-5)
    assert items[3]["problem"]["known"] == ["cat", "cup", "rocket"]


@pytest.mark.parametrize(
    ("path", "body", "says"),
    [
        ("/v1/score", [("image", ("a.png", b"x"))], "before the first file"),
        ("/v1/score/cat", [("category", (None, "cat"))], "no meaning"),
        ("/v1/score", [("category", (None, "cat"))], "no file"),
        ("/v1/score", [("category", (None, "c" * 2000)), ("image", ("a.png", b"x"))], "maximum size"),
    ],
)
async def test_a_form_that_says_nothing_is_refused(
    served: Served, path: str, body: list[tuple[str, object]], says: str
) -> None:
    answer = await served.client.post(path, files=body)
    assert kind_of(answer) == "invalid-request"
    assert says in answer.json()["detail"]


async def test_a_form_that_was_cut_off_is_refused(served: Served, images: list[bytes]) -> None:
    whole = served.client.build_request("POST", "/v1/score/cat", files=files(images[:2]))
    content = await whole.aread()
    for end in (40, len(content) // 2, len(content) - 4):
        answer = await served.client.post(
            "/v1/score/cat", content=content[:end], headers=dict(whole.headers) | {"content-length": str(end)}
        )
        assert kind_of(answer) == "invalid-request"


async def test_another_rate_of_false_alarms_moves_threshold_and_regions(served: Served, images: list[bytes]) -> None:
    own = (await served.client.post("/v1/score/cat", content=images[0])).json()
    for rate, threshold in ((0.025, CALIBRATION[-1]), (0.5, CALIBRATION[-20]), (0.01, None)):
        answer = (await served.client.post(f"/v1/score/cat?target_fpr={rate}", content=images[0])).json()
        assert answer["score"] == own["score"]
        assert answer["threshold"] == threshold
        assert answer["is_anomaly"] == (threshold is not None and answer["score"] > threshold)
        assert bool(answer["regions"]) <= (threshold is not None)


@pytest.mark.parametrize("query", ["target_fpr=0", "target_fpr=nan", "target_fpr=2", "map=jpg", "overlay=x", "mpa=png"])
async def test_a_question_that_makes_no_sense_is_refused(served: Served, images: list[bytes], query: str) -> None:
    answer = await served.client.post(f"/v1/score/cat?{query}", content=images[0])
    assert kind_of(answer) == "invalid-request"
    assert query.split("=", maxsplit=1)[0] in answer.json()["detail"]


async def test_pictures_show_the_map_and_the_image_under_it(
    served: Served, fitted_registry: Path, images: list[bytes]
) -> None:
    wide = io.BytesIO()
    Image.open(io.BytesIO(images[0])).resize((200, 100)).save(wide, "PNG")
    path = "/v1/score/cat?map=png&overlay=1&target_fpr=0.5"
    answer = (await served.client.post(path, content=wide.getvalue())).json()
    drawn = Image.open(io.BytesIO(base64.b64decode(answer["map_png"])))
    assert (drawn.size, drawn.mode) == ((200, 100), "L")

    registry = Registry(Storage(str(fitted_registry)))
    key = ("cat", registry.best("cat"))
    bank = registry.bank()
    detector = bank.detector(key)
    image = prepare(wide.getvalue(), detector.config.input)
    (finding,) = bank.score_batch([image.pixels_3HW], [key])
    expected = Image.fromarray(np.round(255 * finding.map_HW).astype(np.uint8)).resize(
        (200, 100), Image.Resampling.BILINEAR
    )
    assert np.abs(np.asarray(drawn, float) - np.asarray(expected, float)).max() <= 1

    overlay = np.asarray(Image.open(io.BytesIO(base64.b64decode(answer["overlay_png"]))), float)
    plain = np.asarray(Image.open(wide).convert("RGB"), float)
    assert overlay.shape == plain.shape
    verdict = judge(finding.score, finding.map_HW, detector.calibration, 0.5, image.frame)
    assert verdict.regions
    changed = np.abs(overlay - plain).max(axis=2) > 2
    left, top, right, bottom = verdict.regions[0].box
    assert changed[top:bottom, left:right].any()
    below = np.asarray(drawn) < 255 * CALIBRATION[-20] - 2
    assert below.any()
    assert not changed[below].any()
