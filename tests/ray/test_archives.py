"""The same images in archives of every kind: the same scores, and a row for each record whatever is wrong with it."""

from __future__ import annotations

import gzip
import io
import json
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from cflow_ray.config import ScoreConfig
from cflow_ray.score.run import score
from cflow_ray.store.results import read_results
from cflow_ray.store.storage import Storage
from tests.tars import tar_of

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("cluster")]


@pytest.fixture(scope="module")
def images(miniature: Path) -> dict[str, bytes]:
    """The test images of brick by their keys."""
    paths = sorted((miniature / "brick" / "test").rglob("*.png"))
    return {str(path.relative_to(miniature)): path.read_bytes() for path in paths}


def with_sides(files: dict[str, bytes], **fields: Any) -> Iterator[tuple[str, bytes]]:
    """Each image with a side-car beside it, as WebDataset writes them."""
    for key, content in files.items():
        yield key, content
        yield f"{key.removesuffix('.png')}.json", json.dumps(fields).encode()


def zip_of(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for key, content in files.items():
            archive.writestr(key, content)
    return buffer.getvalue()


def parquet_of(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.table({"key": list(files), "image": list(files.values())}), buffer, row_group_size=4)
    return buffer.getvalue()


def config_of(registry: Path, output: Path, *inputs: Path, **settings: Any) -> ScoreConfig:
    return ScoreConfig(inputs=tuple(map(str, inputs)), registry=str(registry), output=str(output), **settings)


def rows_of(config: ScoreConfig) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = read_results(Storage(config.output)).to_pylist()
    return rows


def test_one_image_has_one_score_in_archives_of_every_kind(registry: Path, images: dict[str, bytes], tmp_path: Path):
    archives = {
        "a.tar": tar_of(images.items()),
        "b.tar.gz": gzip.compress(tar_of(images.items())),
        "c.zip": zip_of(images),
        "d.parquet": parquet_of(images),
    }
    inputs = tmp_path / "in"
    for name, content in archives.items():
        inputs.mkdir(exist_ok=True)
        (inputs / name).write_bytes(content)
    for key, content in images.items():
        (inputs / key).parent.mkdir(parents=True, exist_ok=True)
        (inputs / key).write_bytes(content)
    config = config_of(registry, tmp_path / "out", inputs, chunk_records=3)
    summary = score(config)

    rows = rows_of(config)
    assert (summary.rows, summary.errors) == (5 * len(images), 0)
    for key in images:
        scores = [row["score"] for row in rows if row["key"] == key]
        assert len(scores) == 5
        assert max(scores) - min(scores) <= 1e-5
    assert len({row["image_id"] for row in rows}) == len(rows)
    assert score(config).rows_of_this_run == 0  # the streamed shard's length is known now
    assert json.loads((tmp_path / "out/_summary.json").read_text())["rows"] == len(rows)


def test_a_streamed_archive_goes_on_where_parts_are_missing(registry: Path, images: dict[str, bytes], tmp_path: Path):
    (tmp_path / "in.tgz").write_bytes(gzip.compress(tar_of(images.items())))
    config = config_of(registry, tmp_path / "out", tmp_path / "in.tgz", chunk_records=2)
    score(config)
    before = rows_of(config)
    parts = sorted((tmp_path / "out").glob("shard=*/part-*.parquet"))
    for part in parts[1:3]:
        part.unlink()
    assert score(config).rows_of_this_run == 4
    for length in (tmp_path / "out/_index").glob("*.length.json"):
        length.unlink()  # as after a kill before the end
    parts[0].unlink()
    again = score(config)
    assert (again.rows_of_this_run, again.rows) == (2, len(images))
    assert [row["key"] for row in rows_of(config)] == [row["key"] for row in before]


def test_side_cars_name_the_category_and_are_kept(registry: Path, images: dict[str, bytes], tmp_path: Path):
    files = {f"{number:04}.png": content for number, content in enumerate(images.values())}
    (tmp_path / "in.tar").write_bytes(tar_of(with_sides(files, part="brick", line=3)))
    config = config_of(registry, tmp_path / "out", tmp_path / "in.tar", category_field="part")
    assert score(config).errors == 0
    rows = rows_of(config)
    assert [row["key"] for row in rows] == list(files)
    assert {row["category"] for row in rows} == {"brick"}
    assert {row["fields"] for row in rows} == {'{"part": "brick", "line": 3}'}


def test_every_dead_record_is_a_row_that_says_why(registry: Path, images: dict[str, bytes], tmp_path: Path):
    good = next(iter(images.values()))
    bomb = io.BytesIO()
    Image.new("1", (12_000, 12_000)).save(bomb, "PNG")
    files = {
        "brick/good.png": (good, None),
        "brick/cut.png": (good[:-200], "damaged_image"),
        "brick/empty.png": (b"", "empty_file"),
        "brick/text.png": (b"no image", "no_image"),
        "brick/bomb.png": (bomb.getvalue(), "too_large"),
        "brick/large.png": (bytes(10**6), "too_large"),
        "../brick/up.png": (good, "unsafe_name"),
        "/brick/root.png": (good, "unsafe_name"),
        "zippr/good.png": (good, "unknown_category"),
        "good.png": (good, "no_category"),
    }
    content = {key: data for key, (data, _) in files.items()}
    cut = tar_of((f"brick/{number}.png", good) for number in range(3))
    (tmp_path / "a.tar").write_bytes(tar_of(content.items()))
    (tmp_path / "b.zip").write_bytes(zip_of(content))
    (tmp_path / "c.tar.gz").write_bytes(gzip.compress(tar_of(content.items())))
    (tmp_path / "d.parquet").write_bytes(parquet_of(content))
    (tmp_path / "e.tar").write_bytes(cut[: len(cut) // 2])
    (tmp_path / "f.zip").write_bytes(b"no zip")
    (tmp_path / "g.tar.gz").write_bytes(gzip.compress(cut)[:-500])
    config = config_of(registry, tmp_path / "out", tmp_path, max_image_size=500_000, chunk_records=4)
    summary = score(config)

    rows = rows_of(config)
    for archive in ("a", "b.zip", "c.tar.gz", "d.parquet"):
        found = {row["key"]: row["error_kind"] for row in rows if row["image_id"].startswith(f"{archive}-")}
        assert found == {key: kind for key, (_, kind) in files.items()}, archive
    damaged = {row["image_id"].split("-")[0] for row in rows if row["error_kind"] == "damaged_archive"}
    assert damaged == {"e", "f.zip", "g.tar.gz"}
    assert summary.rows == len(rows)
    assert summary.errors == sum(summary.errors_by_kind.values()) == sum(row["error"] is not None for row in rows)
    assert summary.errors_by_kind["too_large"] == 8
    assert len({row["image_id"] for row in rows}) == len(rows)
