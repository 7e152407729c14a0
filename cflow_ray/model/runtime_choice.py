"""Which runtime executes encoders and detectors: the one that is named, or the fastest that is installed."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING, TypeVar

import torch

from cflow_ray.config import Runtime as RuntimeName
from cflow_ray.errors import ConfigError
from cflow_ray.model.detector import Detector
from cflow_ray.model.encoder_model import CompiledEncoder, EncoderModel
from cflow_ray.model.extras import COMPILING, are_installed, check_runtime, loading
from cflow_ray.model.graph import Sizes
from cflow_ray.model.runtime import CompiledDetector, OnnxRuntime, OpenVinoRuntime, Runtime, TorchRuntime
from cflow_ray.model.threads import torch_threads

if TYPE_CHECKING:
    from cflow_ray.model.encoder import Encoder

log = logging.getLogger(__name__)

Input = TypeVar("Input")
Output = TypeVar("Output")

_MAKERS: dict[str, type[OnnxRuntime] | type[OpenVinoRuntime]] = {
    "onnxruntime": OnnxRuntime,
    "openvino": OpenVinoRuntime,
}


def open_runtime(name: RuntimeName, device: str = "cpu") -> Runtime:
    """The runtime of a name, with as many threads as torch has now; raises ConfigError where it cannot be loaded.

    `auto` is the fastest that can be, and torch off the CPU.
    """
    check_runtime(name)
    if name in _MAKERS:
        if torch.device(device).type != "cpu":
            raise ConfigError(f"runtime {name} runs on the CPU, not on {device}. Use runtime torch.")
        return _made(name)
    if name == "auto" and torch.device(device).type == "cpu":
        for fastest, (packages, _) in COMPILING.items():
            if are_installed(packages):
                try:
                    return AutoRuntime(_made(fastest))
                except ConfigError as error:
                    log.warning("%s", error)
    return TorchRuntime()


def _made(name: str) -> Runtime:
    with loading(name, ", or use runtime torch"):
        return _MAKERS[name]()


def fastest_runtime(device: str = "cpu") -> Runtime:
    """Runtime `auto`, one for the whole process: detectors of one structure are traced once."""
    return _fastest_runtime(device, torch.get_num_threads())


@cache
def _fastest_runtime(device: str, threads: int) -> Runtime:
    return open_runtime("auto", device)  # takes as many threads as torch has now


@contextmanager
def fast_encoder(
    encoder: Encoder, model: EncoderModel | None, size: tuple[int, int], device: str = "cpu"
) -> Iterator[CompiledEncoder]:
    """The encoder for images of one size by the fastest runtime, from its model where there is one.

    Meanwhile torch's own operations take as many threads as suit that runtime.
    """
    runtime = fastest_runtime(device)
    compiled = runtime.compile_model(model) if model is not None else None
    with torch_threads(runtime.torch_threads):
        yield compiled or runtime.compile_encoder(encoder, size)


class AutoRuntime:
    """A compiling runtime, and torch for what it cannot compile."""

    takes_models = True
    torch_threads = 1

    def __init__(self, runtime: Runtime) -> None:
        self.name = runtime.name
        self._threads = torch.get_num_threads()
        self._runtime = runtime
        self._torch = TorchRuntime()

    def compile_encoder(self, encoder: Encoder, size: tuple[int, int]) -> CompiledEncoder:
        """The runtime's function, or the encoder itself with a warning."""
        try:
            return self._runtime.compile_encoder(encoder, size)
        except ConfigError as error:
            log.warning("encoding with torch: %s", error)
            return self._threaded(self._torch.compile_encoder(encoder, size))

    def compile_model(self, model: EncoderModel) -> CompiledEncoder | None:
        """The runtime's function; None where it cannot, for the encoder may fare better."""
        try:
            return self._runtime.compile_model(model)
        except ConfigError as error:
            log.debug("making the encoder anew: %s", error)
            return None

    def compile_detector(self, detector: Detector, sizes: Sizes) -> CompiledDetector:
        """The runtime's function, or the detector's own method with a warning."""
        try:
            return self._runtime.compile_detector(detector, sizes)
        except ConfigError as error:
            log.warning("scoring with torch: %s", error)
            of_torch = self._torch.compile_detector(detector, sizes)
            return replace(of_torch, maps=self._threaded(of_torch.maps))

    def _threaded(self, function: Callable[[Input], Output]) -> Callable[[Input], Output]:
        def call(inputs: Input) -> Output:
            with torch_threads(self._threads):
                return function(inputs)

        return call
