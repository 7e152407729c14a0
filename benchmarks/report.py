"""The result of a measurement: printed as one JSON line, and written with machine, versions, commit and command."""

from __future__ import annotations

import json
import os
import platform
import shlex
import subprocess
import sys
from argparse import Namespace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.sides import ANOMALIB, CHECKOUT, OURS

RESULTS = Path(__file__).parent / "results"
KEYS = ("name", "ours", "peer", "ratio", "unit", "conditions")
"""What the last line of stdout holds; `ratio` above 1 means better than the peer."""

_PACKAGES = (
    *("torch", "torchvision", "timm", "FrEIA", "numpy", "scipy"),
    *("lightning", "anomalib", "openvino", "onnxruntime"),
)


def publish(result: dict[str, Any], options: Namespace, detail: dict[str, Any]) -> None:
    """Write `results/<name>.json` and print the result as the last line; a quick run is printed only."""
    result["name"] = name_on(result["name"], options.device, options.runtime)
    result["conditions"] |= {"device": options.device, "threads": options.threads, "quick": options.quick}
    if not options.quick:
        write(result | {"detail": detail})
    print(json.dumps({key: result[key] for key in KEYS}), flush=True)


def name_on(name: str, device: str, runtime: str = "auto") -> str:
    """The name of a result, which says so where it comes from another device than a CPU or a runtime asked for."""
    return name + (f"-{device}" if device != "cpu" else "") + (f"-{runtime}" if runtime != "auto" else "")


def write(result: dict[str, Any]) -> None:
    """Write `results/<name>.json`, the origin of the figures beside them."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{result['name']}.json"
    path.write_text(json.dumps(result | _origin(), indent=1) + "\n", encoding="utf-8")


def significant(value: float, digits: int = 4) -> float:
    """A figure less its noise."""
    return float(f"{value:.{digits}g}")


def commit() -> str:
    """The checkout's commit, marked where the package has changed since."""
    return _git("rev-parse", "HEAD") + ("+changes" if _git("status", "--porcelain", "cflow_ray") else "")


def _origin() -> dict[str, Any]:
    return {
        "measured": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": _machine(),
        "versions": {"ours": _versions(OURS), "peer": _versions(ANOMALIB)},
        "commit": commit(),
        "command": shlex.join(["python", "-m", f"benchmarks.{Path(sys.argv[0]).stem}", *map(_portable, sys.argv[1:])]),
    }


def _portable(argument: str) -> str:
    """An argument as it reads from the checkout: no absolute path of this machine."""
    return os.path.relpath(argument, CHECKOUT) if os.path.isabs(argument) else argument


def _machine() -> dict[str, Any]:
    facts = dict(line.split(":", 1) for line in Path("/proc/cpuinfo").read_text().splitlines() if ":" in line)
    facts = {key.strip(): value.strip() for key, value in facts.items()}
    bytes_of_memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "cpu": facts.get("model name", platform.machine()),
        "family_model": f"{facts.get('cpu family', '?')}/{facts.get('model', '?')}",
        "cores": os.cpu_count(),
        "memory_gb": round(bytes_of_memory / 1e9, 1),
        "load_average": os.getloadavg()[0],
        "python": platform.python_version(),
    }


def _versions(python: Path) -> dict[str, str]:
    code = (
        "import json, sys; from importlib.metadata import distributions; "
        "print(json.dumps({d.name: d.version for d in distributions() if d.name in sys.argv[1:]}))"
    )
    if not python.exists():
        return {}
    shown = subprocess.run([python, "-c", code, *_PACKAGES], capture_output=True, text=True, check=True).stdout
    found: dict[str, str] = json.loads(shown)
    return found


def _git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=CHECKOUT, capture_output=True, text=True, check=False).stdout.strip()
