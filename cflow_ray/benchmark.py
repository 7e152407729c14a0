"""A published benchmark with one command: fit every category of the data set, print its tables beside the paper's."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cflow_ray.config import FitConfig, load_config
from cflow_ray.errors import ConfigError
from cflow_ray.evaluation.figures import Metrics
from cflow_ray.evaluation.published import MVTEC_AD, PAPER_WRN50
from cflow_ray.store.storage import Storage
from cflow_ray.train.queue import Watch
from cflow_ray.train.run import fit
from cflow_ray.train.task import Outcome

BENCHMARKS = {"mvtec_ad": MVTEC_AD}
"""Benchmarks by name, with their categories in the order of the tables."""
_CONFIGS = Path(__file__).parents[1] / "jobs" / "configs"


@dataclass(frozen=True)
class BenchmarkResult:
    """What a benchmark gave: figures of the models kept, which no test image has chosen."""

    name: str
    metrics: dict[str, Metrics]
    outcomes: tuple[Outcome, ...]

    def as_dict(self) -> dict[str, Any]:
        """The figures as JSON, the paper's beside them."""
        return {
            "benchmark": self.name,
            "protocol": "the model kept, by held-out likelihood (recipe paper: of the last step); no test image chose anything",
            "categories": {outcome.category: outcome.as_dict() for outcome in self.outcomes},
            "paper_wrn50_best_epoch_on_test": PAPER_WRN50,
        }


def benchmark_config(name: str, config_file: str | None, flags: Mapping[str, Any]) -> FitConfig:
    """The fit of a benchmark: its own file of `jobs/configs` unless another is given, flags laid over it."""
    if name not in BENCHMARKS:
        raise ConfigError(f"no benchmark {name!r}; there is {', '.join(BENCHMARKS)}.")
    own = _CONFIGS / f"{name}.yaml"
    if config_file is None and not own.is_file():
        raise ConfigError(f"{own.name} lies in jobs/configs of the source, which is not here; give it with --config.")
    return load_config(FitConfig, config_file or str(own), flags)


def run_benchmark(name: str, config: FitConfig, watch: Watch) -> BenchmarkResult:
    """Fit what is not fitted yet and gather the figures; `benchmark.json` is left in the registry's root."""
    outcomes = {outcome.category: outcome for outcome in fit(config, watch)}
    ordered = [outcomes[category] for category in (*BENCHMARKS[name], *outcomes) if category in outcomes]
    distinct = tuple({outcome.category: outcome for outcome in ordered}.values())
    metrics = {outcome.category: outcome.metrics for outcome in distinct if outcome.status != "failed"}
    result = BenchmarkResult(name, metrics, distinct)
    content = json.dumps(result.as_dict(), indent=2).encode()
    Storage(config.registry, config.storage_options).write("benchmark.json", content)
    return result
