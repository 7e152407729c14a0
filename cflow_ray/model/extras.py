"""What a runtime needs besides the core's packages, looked up without importing any of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from cflow_ray.config import Runtime
from cflow_ray.errors import ConfigError

COMPILING: dict[Runtime, tuple[tuple[str, ...], str]] = {
    "onnxruntime": (("onnx", "onnxruntime"), "onnx"),
    "openvino": (("onnx", "openvino"), "openvino"),
}
"""Runtimes that compile, fastest first: the packages they need, and the extra that brings all of them."""


def are_installed(packages: Sequence[str]) -> bool:
    """Whether all of the packages are there."""
    return not _missing(packages)


def check_runtime(name: Runtime) -> None:
    """Raises ConfigError where what a runtime needs is not installed."""
    if name in COMPILING:
        check_installed(f"runtime {name}", *COMPILING[name])


def check_installed(what: str, packages: Sequence[str], extra: str) -> None:
    """Raises ConfigError where not all of the packages are there; the extra brings them."""
    if missing := _missing(packages):
        raise ConfigError(f"{what} needs {' and '.join(missing)}, not installed. Run: pip install 'cflow-ray[{extra}]'")


def imported(package: str) -> Any:
    """A package of an extra; ConfigError where it is installed and cannot be loaded."""
    with loading(package):
        return import_module(package)


@contextmanager
def loading(package: str, instead: str = "") -> Iterator[None]:
    """Raises ConfigError where an installed package cannot be loaded; `instead` names another way."""
    try:
        yield
    except Exception as error:  # a library that is broken raises what it likes
        reason = " ".join(str(error).split())
        raise ConfigError(
            f"{package} is installed and cannot be loaded ({reason}). Install it again{instead}."
        ) from error


def _missing(packages: Sequence[str]) -> list[str]:
    return [package for package in packages if find_spec(package) is None]
