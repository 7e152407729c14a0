"""What the processes of a scoring job load: the plan and the readers do without torch."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from cflow_ray.data.archives import write_shards
from cflow_ray.store.storage import Storage

PROGRAM = """
import sys
import cflow_ray.score.run  # as the driver does
from cflow_ray.config import ScoreConfig
from cflow_ray.score.plan import plan_job
from cflow_ray.score.spans import pending
from cflow_ray.score.stages import ReadSpan, ScoreChunk
from cflow_ray.store.results import finished_parts
from cflow_ray.store.storage import Storage

config = ScoreConfig(inputs=[sys.argv[1]], registry=sys.argv[2], output=sys.argv[3])
output = Storage(config.output)
plan = plan_job(config, output)
scorer = ScoreChunk(config, plan.id)
for span in pending(plan, finished_parts(output), frozenset(), output).spans(1):
    for chunk in ReadSpan(config, plan.id)({"span": span.to_json()}):
        print([record["error"] for record in chunk["records"]], len(chunk["pixels"]))
        print("torch" in sys.modules)
        print(scorer(chunk)["rows"])
print("torch" in sys.modules)
"""


def test_who_plans_and_reads_imports_no_torch(registry: Path, miniature: Path, tmp_path: Path):
    image = next((miniature / "brick/test").rglob("*.png")).read_bytes()
    write_shards([("brick/a.png", image), ("brick/b.png", image)], Storage(str(tmp_path / "in")), "test", 100_000)
    command = [sys.executable, "-c", PROGRAM, str(tmp_path / "in"), str(registry), str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    errors_and_pixels, read, rows, scored = done.stdout.splitlines()
    assert errors_and_pixels.startswith("[None, None] ")
    assert (read, rows, scored) == ("False", "2", "True")
