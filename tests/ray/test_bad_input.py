"""What arrives from a line is not always an image: every record becomes a row, with a score or an error."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from cflow_ray.cli import main
from cflow_ray.config import ScoreConfig
from cflow_ray.score.plan import plan_job
from cflow_ray.score.run import score
from cflow_ray.store.results import read_results
from cflow_ray.store.storage import Storage
from tests.tars import tar_of

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("cluster")]

SCORED, FAILED = "scored", "failed"


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def records(miniature: Path) -> dict[str, tuple[bytes, str]]:
    """Key -> bytes and what must become of them."""
    content = (miniature / "brick/test/good/000.png").read_bytes()
    image = Image.open(io.BytesIO(content)).convert("RGB")
    exif = Image.Exif()
    exif[0x0112] = 6
    deep = Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)
    return {
        "brick/good.png": (content, SCORED),
        "brick/grey.png": (encoded(image.convert("L")), SCORED),
        "brick/palette.png": (encoded(image.convert("L").convert("P")), SCORED),
        "brick/transparent.png": (encoded(image.convert("RGBA")), SCORED),
        "brick/16-bit.png": (encoded(deep), SCORED),
        "brick/cmyk.jpg": (encoded(image.convert("CMYK"), "JPEG"), SCORED),
        "brick/rotated.jpg": (encoded(image, "JPEG", exif=exif), SCORED),
        "brick/dot.png": (encoded(Image.new("RGB", (1, 1))), SCORED),
        "brick/corrupt.png": (content[: len(content) // 2], FAILED),
        "brick/empty.png": (b"", FAILED),
        "brick/text.png": (b"this is no image", FAILED),
        "zippr/good.png": (content, FAILED),
        "no-category.png": (content, FAILED),
    }


def write_tar(path: Path, records: dict[str, tuple[bytes, str]]) -> None:
    path.write_bytes(tar_of((key, content) for key, (content, _) in records.items()))


def test_every_record_becomes_a_row(registry: Path, records: dict[str, tuple[bytes, str]], tmp_path: Path):
    (tmp_path / "in").mkdir()
    write_tar(tmp_path / "in" / "mixed.tar", records)
    config = ScoreConfig(
        inputs=(str(tmp_path / "in"),), registry=str(registry), output=str(tmp_path / "out"), chunk_records=4
    )
    summary = score(config)

    rows = {row["key"]: row for row in read_results(Storage(config.output)).to_pylist()}
    assert list(rows) == list(records)
    assert (summary.rows, summary.errors) == (len(records), sum(fate == FAILED for _, fate in records.values()))
    for key, (_, fate) in records.items():
        row = rows[key]
        assert (row["error"] is None, row["score"] is not None) == (fate == SCORED, fate == SCORED), row
    assert "'zippr'" in rows["zippr/good.png"]["error"]
    assert "brick" in rows["zippr/good.png"]["error"]
    assert rows["brick/16-bit.png"]["score"] == pytest.approx(rows["brick/grey.png"]["score"], abs=1e-6)
    assert rows["brick/palette.png"]["score"] == pytest.approx(rows["brick/good.png"]["score"], abs=1e-6)


def test_a_truncated_tar_gives_its_rows_up_to_the_damage(
    registry: Path, records: dict[str, tuple[bytes, str]], tmp_path: Path
):
    whole = tmp_path / "whole.tar"
    write_tar(whole, {f"brick/{number}.png": records["brick/good.png"] for number in range(5)})
    member = 512 + -(-len(records["brick/good.png"][0]) // 512) * 512
    (tmp_path / "cut.tar").write_bytes(whole.read_bytes()[: 3 * member + 700])
    config = ScoreConfig(inputs=(str(tmp_path / "cut.tar"),), registry=str(registry), output=str(tmp_path / "out"))
    score(config)

    rows = read_results(Storage(config.output)).to_pylist()
    assert [row["key"] for row in rows] == ["brick/0.png", "brick/1.png", "brick/2.png", "brick/3.png", ""]
    assert [row["error"] is None for row in rows] == [True, True, True, False, False]
    assert "damaged tar" in rows[-1]["error"]


def test_a_second_run_reads_nothing_again_and_a_lost_part_alone_is_made_again(
    registry: Path, records: dict[str, tuple[bytes, str]], tmp_path: Path
):
    write_tar(tmp_path / "in.tar", {f"brick/{number}.png": records["brick/good.png"] for number in range(6)})
    config = ScoreConfig(
        inputs=(str(tmp_path / "in.tar"),), registry=str(registry), output=str(tmp_path / "out"), chunk_records=2
    )
    first = score(config)
    before = read_results(Storage(config.output))
    part = next(Path(config.output).glob("shard=*/part-000000002.parquet"))
    part.unlink()
    second = score(config)

    assert (first.rows, first.rows_of_this_run) == (6, 6)
    assert (second.rows, second.rows_of_this_run, second.chunks_already_done) == (6, 2, 2)
    assert read_results(Storage(config.output)).column("key").equals(before.column("key"))
    (tmp_path / "in.tar").unlink()
    assert score(config).rows_of_this_run == 0


def test_what_ends_a_task_is_told_in_one_line(registry: Path, records: dict[str, tuple[bytes, str]], tmp_path: Path):
    write_tar(tmp_path / "in.tar", records)
    config = ScoreConfig(inputs=(str(tmp_path / "in.tar"),), registry=str(registry), output=str(tmp_path / "out"))
    plan = plan_job(config, Storage(config.output))
    (tmp_path / "out" / "_index" / f"{plan.shards[0].id}.json").write_text("{}")
    arguments = ["score", *config.inputs, "--registry", config.registry, "--output", config.output]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 1
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert line.endswith("is damaged; give another --output.")
    assert "Traceback" not in result.stderr
