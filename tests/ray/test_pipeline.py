"""The plan that Ray Data makes of the scoring pipeline."""

from __future__ import annotations

from pathlib import Path

import pytest

from cflow_ray.config import ScoreConfig
from cflow_ray.score.plan import Span
from cflow_ray.score.run import pipeline

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("cluster")]


def test_reading_is_not_fused_into_the_scoring_actors(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Neighbours with equal resource requests would be one operator, and decoding would block the model."""
    config = ScoreConfig(inputs=("in",), registry="registry", output=str(tmp_path))
    pipeline([Span("shard", (first,)) for first in range(0, 8, 2)], config, "plan", (1, 1)).explain()
    _, _, optimised = capsys.readouterr().out.partition("Physical Plan (Optimized)")
    actors, tasks, *_ = optimised.strip("- \n").splitlines()
    assert actors.startswith("ActorPoolMapOperator[Map(ScoreChunk)]")
    assert "TaskPoolMapOperator" in tasks
    assert "ReadSpan" in tasks
    assert "ScoreChunk" not in tasks
