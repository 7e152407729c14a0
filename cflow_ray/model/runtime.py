"""What executes encoders and detectors: torch, which is the oracle, or a runtime that compiles their graphs for a CPU.

A compiled graph takes one image: so an image's score does not depend on its batch at all, nothing is compiled for every
size of a batch, and activations stay in the cache. Encoder and detector are two graphs because a mixed batch has one
encoder and many detectors. lite0 at 256 px, one thread, CPU-ms an image at batches of 1 / 8 / 32: torch 45 / 46 / 46,
onnxruntime 25 / 24 / 24, OpenVINO 25 / 25 / 25; encoder and detector in one graph gain 1 to 4 %, graphs with a dynamic
batch take 27 to 36. Of detectors of one structure the first is traced, in 0.6 CPU-seconds; onnxruntime compiles each in
0.2. Maps are within 2e-6 of torch's, scores within 5e-7.
"""

from __future__ import annotations

import importlib
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cflow_ray.config import Runtime as RuntimeName
from cflow_ray.errors import ConfigError
from cflow_ray.model.detector import Detector
from cflow_ray.model.encoder_model import INPUT, CompiledEncoder, EncoderModel, encoder_model, example_image
from cflow_ray.model.graph import DetectorGraph, Sizes
from cflow_ray.model.onnx_graph import ModelStructure, values_of

if TYPE_CHECKING:
    from cflow_ray.model.encoder import Encoder

# Shapes: B images, level l with C_l channels and h_l x w_l locations, H x W pixels of the network's input.

Run = Callable[[Sequence[NDArray[Any]]], Sequence[NDArray[np.float32]]]
"""One image's inputs to its outputs, each with a first axis of 1; the outputs hold until the next call."""

Weights = Mapping[str, NDArray[np.float32]]

_AGREEMENT = 1e-4  # of features, as a share of their largest; measured 2e-6


@dataclass(frozen=True)
class CompiledDetector:
    """A function equal to `Detector.maps`; what it needs is freed with it."""

    maps: Callable[[Sequence[Tensor]], Tensor]
    """The levels (B, C_l, h_l, w_l) of a pyramid to maps (B, H, W)."""
    bytes: int
    """Memory that it takes besides the detector, about."""


class Runtime(Protocol):
    """Makes functions of encoders and detectors."""

    name: RuntimeName

    @property
    def torch_threads(self) -> int:
        """How many threads torch's own operations should take around what is compiled."""

    takes_models: bool
    """Whether `compile_model` does anything."""

    def compile_encoder(self, encoder: Encoder, size: tuple[int, int]) -> CompiledEncoder:
        """A function equal to the encoder for images of this height and width."""

    def compile_model(self, model: EncoderModel) -> CompiledEncoder | None:
        """A function equal to the encoder of a model; None where it takes the encoder itself."""

    def compile_detector(self, detector: Detector, sizes: Sizes) -> CompiledDetector:
        """A function equal to `detector.maps` for levels of these sizes."""


class TorchRuntime:
    """The modules as they are; works on every device."""

    name: RuntimeName = "torch"
    takes_models = False

    @property
    def torch_threads(self) -> int:
        """As many as torch has."""
        return torch.get_num_threads()

    def compile_encoder(self, encoder: Encoder, size: tuple[int, int]) -> CompiledEncoder:
        """The encoder itself."""
        return encoder

    def compile_model(self, model: EncoderModel) -> CompiledEncoder | None:
        """Torch executes no ONNX."""
        return None

    def compile_detector(self, detector: Detector, sizes: Sizes) -> CompiledDetector:
        """The detector's own method. The biases of these sizes are made now, so that its memory grows no more."""
        detector.make_position_biases(sizes)
        return CompiledDetector(detector.maps, 0)


class _GraphRuntime(ABC):
    """What the compiling runtimes have in common: they read ONNX, and run every image of a batch by itself.

    They take as many threads as torch has when they are made.
    """

    name: RuntimeName
    takes_models = True
    torch_threads = 1
    copies = 2.0
    """Of a detector's weights and biases in a compiled graph: as they are, and as its kernels want them."""
    _side_by_side: Executor | None = None
    """Threads that run images of a batch at once, of a runtime whose functions may be called so."""

    def __init__(self) -> None:
        self._threads = torch.get_num_threads()
        self._structures: dict[Hashable, ModelStructure] = {}

    def compile_encoder(self, encoder: Encoder, size: tuple[int, int]) -> CompiledEncoder:
        """The encoder's graph; raises ConfigError where the runtime lacks an operation or gives other features."""
        with self._refusing(encoder.config.name):
            model = encoder_model(encoder, size)
        return self.compile_model(model)

    def compile_model(self, model: EncoderModel) -> CompiledEncoder:
        """The same of an encoder's graph that was kept."""
        with self._refusing(model.name):
            run = self._load(model.content, [INPUT], self._threads_of_an_image)
            alone = self._load(model.content, [INPUT], self._threads) if self._side_by_side else run
            found = run([example_image(model.size).numpy()])
        for level, wanted in zip(found, model.features, strict=True):
            difference = (torch.from_numpy(level) - wanted).abs().max() / wanted.abs().max().clamp(min=1e-6)
            if not difference <= _AGREEMENT:
                raise ConfigError(
                    f"{self.name} gives other features of {model.name} than torch, by {difference:.0e} of the "
                    "largest. Use runtime torch."
                )
        return lambda images_B3HW: _each_by_itself(
            run if len(images_B3HW) > 1 else alone, [images_B3HW], self._side_by_side
        )

    def compile_detector(self, detector: Detector, sizes: Sizes) -> CompiledDetector:
        """The detector's graph."""
        graph = DetectorGraph(detector, sizes)
        levels = [f"level_{number}" for number in range(len(sizes))]
        with self._refusing("the detector"):
            if graph.structure not in self._structures:
                pyramid = tuple(torch.zeros(1, C, *size) for C, size in zip(graph.channels, sizes, strict=True))
                self._structures[graph.structure] = ModelStructure.of(graph, pyramid, levels, ["maps"])
            run = self._load_filled(self._structures[graph.structure], graph, levels)
        return CompiledDetector(
            lambda pyramid: _each_by_itself(run, pyramid, self._side_by_side)[0], int(self.copies * graph.bytes)
        )

    @property
    def _threads_of_an_image(self) -> int:
        return 1 if self._side_by_side else self._threads

    @contextmanager
    def _refusing(self, what: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # exporter and runtimes raise what they like
            reason = str(error).strip().partition("\n")[0]
            raise ConfigError(f"{self.name} cannot compile {what}: {reason}. Use runtime torch.") from error

    def _load_filled(self, structure: ModelStructure, graph: DetectorGraph, names: Sequence[str]) -> Run:
        return self._load(structure.filled(graph), names, self._threads_of_an_image)

    @abstractmethod
    def _load(self, model: bytes, names: Sequence[str], threads: int) -> Run: ...


class OnnxRuntime(_GraphRuntime):
    """onnxruntime's CPU provider, with as many threads as torch has now.

    They take an image of a batch each. A lone image has them all in the encoder, which is compiled once more for that:
    of two threads, 25 ms instead of 28. Were every graph compiled so, images side by side would get into each other's
    way: 17 ms and 31 CPU-ms an image instead of 16 and 27 (lite0 at 256 px, batch 16), in a busy server 38 images/s for 45.
    """

    name: RuntimeName = "onnxruntime"
    copies = 1.25  # most weights stay the detector's own: 62 MB a detector where OpenVINO takes 86, 20 of them its own

    def __init__(self) -> None:
        super().__init__()
        self._onnxruntime = importlib.import_module("onnxruntime")
        if self._threads > 1:
            self._side_by_side = ThreadPoolExecutor(self._threads, thread_name_prefix="onnxruntime")

    def _load_filled(self, structure: ModelStructure, graph: DetectorGraph, names: Sequence[str]) -> Run:
        # It takes weights where they lie, and no more copies are made on the way: 60 MB less at the peak.
        return self._load(structure.content, names, self._threads_of_an_image, values_of(graph))

    def _load(self, model: bytes, names: Sequence[str], threads: int, weights: Weights = MappingProxyType({})) -> Run:
        options = self._options(threads)
        tensors = [self._onnxruntime.OrtValue.ortvalue_from_numpy(value) for value in weights.values()]
        options.add_external_initializers([*weights], tensors)
        session = self._onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])

        # `held`: the session points to the weights and does not keep them.
        def run(arrays: Sequence[NDArray[Any]], held: Weights = weights) -> Sequence[NDArray[np.float32]]:
            found: list[NDArray[np.float32]] = session.run(None, dict(zip(names, arrays, strict=True)))
            return found

        return run

    def _options(self, threads: int) -> Any:
        options = self._onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        options.enable_cpu_mem_arena = False  # 12 MB less a detector, no slower
        # Threads that spin while they wait take the CPU from others: two threads on a busy machine, 74 CPU-ms for 28.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        return options


class OpenVinoRuntime(_GraphRuntime):
    """OpenVINO's CPU plugin in float32, with as many threads as torch has now."""

    name: RuntimeName = "openvino"

    def __init__(self) -> None:
        super().__init__()
        sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # or importing it reports to Google
        self._core = importlib.import_module("openvino").Core()
        self._settings = {
            "INFERENCE_PRECISION_HINT": "f32",  # or bfloat16 where the processor has it, which moves scores by 9e-4
            "NUM_STREAMS": 1,
            "ENABLE_CPU_PINNING": False,  # or all actors of a node would take the same cores
        }

    def _load(self, model: bytes, names: Sequence[str], threads: int) -> Run:
        settings = self._settings | {"INFERENCE_NUM_THREADS": threads}
        request = self._core.compile_model(self._core.read_model(model), "CPU", settings).create_infer_request()

        def run(arrays: Sequence[NDArray[Any]]) -> list[NDArray[np.float32]]:
            found = request.infer(dict(zip(names, arrays, strict=True)), share_inputs=True, share_outputs=True)
            return list(found.values())

        return run


def _each_by_itself(run: Run, inputs: Sequence[Tensor], side_by_side: Executor | None) -> list[Tensor]:
    """Outputs of a batch from a function of one image, called in turn or by several threads at once."""
    outputs: list[Tensor] = []
    arrays = [tensor.contiguous().numpy() for tensor in inputs]
    images = range(len(arrays[0]))

    def run_one(image: int) -> Sequence[NDArray[np.float32]]:
        return run([array[image : image + 1] for array in arrays])

    all_found = map(run_one, images) if side_by_side is None or len(images) == 1 else side_by_side.map(run_one, images)
    for image, found in enumerate(all_found):
        if not outputs:
            outputs = [torch.empty(len(images), *output.shape[1:]) for output in found]
        for output, of_image in zip(outputs, found, strict=True):
            output[image] = torch.from_numpy(of_image[0])
    return outputs
