"""Graphs as ONNX models, through torch's exporter of traces."""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from cflow_ray.model.threads import torch_threads

OPSET = 18


def onnx_model(
    graph: nn.Module,
    example: Sequence[Tensor],
    inputs: Sequence[str],
    outputs: Sequence[str],
    dynamic: bool = False,
    with_weights: bool = True,
) -> bytes:
    """The ONNX model of a graph, serialised, with names for its inputs and outputs.

    All sizes are those of the example, with `dynamic` except the first of every input and output. Tracing takes
    0.6 CPU-seconds for a detector where torch's newer exporter takes 23, hence the choice. Not `with_weights`, buffers
    are inputs, under their names, and nothing is computed from their values.
    """
    content: Any = io.BytesIO()
    arguments: dict[str, Any] = {"input_names": list(inputs), "output_names": list(outputs), "opset_version": OPSET}
    if dynamic:
        arguments["dynamic_axes"] = {name: {0: "batch"} for name in (*inputs, *outputs)}
    if not with_weights:
        arguments |= {"export_params": False, "keep_initializers_as_inputs": True, "do_constant_folding": False}
    torch._C._jit_set_onnx_log_output_stream("stderr")  # where an operation is missing it prints the graph, on stdout
    with warnings.catch_warnings(), torch.no_grad(), torch_threads(1):
        warnings.simplefilter("ignore")  # of the tracer, about sizes that are constants here
        torch.onnx.export(graph.eval(), tuple(example), content, dynamo=False, **arguments)
    model: bytes = content.getvalue()
    return model


@dataclass(frozen=True)
class ModelStructure:
    """The ONNX model of a graph without the values of its buffers: traced once, filled for every graph like it."""

    content: bytes
    """Serialised; of the buffers it says that they are elsewhere."""

    @classmethod
    def of(cls, graph: nn.Module, example: Sequence[Tensor], inputs: Sequence[str], outputs: Sequence[str]) -> Self:
        """The structure of a graph; ValueError where the exporter has merged buffers or made others of them."""
        import onnx  # noqa: PLC0415  # an extra

        model = onnx.load_from_string(onnx_model(graph, example, inputs, outputs, with_weights=False))
        of_caller = [value for value in model.graph.input if value.name in inputs]
        found = {value.name for value in model.graph.input} - {*inputs}
        buffers = dict(graph.named_buffers())
        if model.graph.initializer or found != {*buffers}:
            raise ValueError(f"the exporter made other weights of it: {sorted(found ^ {*buffers})}")
        del model.graph.input[:]
        model.graph.input.extend(of_caller)
        for name, buffer in buffers.items():
            weight = model.graph.initializer.add(name=name, data_type=onnx.TensorProto.FLOAT, dims=buffer.shape)
            weight.data_location = onnx.TensorProto.EXTERNAL
            weight.external_data.add(key="location", value="given with the model")
            weight.external_data.add(key="length", value=str(buffer.nbytes))
        return cls(model.SerializeToString())

    def filled(self, graph: nn.Module) -> bytes:
        """The model of a graph of this structure, whole."""
        import onnx  # noqa: PLC0415  # an extra

        model = onnx.load_from_string(self.content)
        del model.graph.initializer[:]
        model.graph.initializer.extend(
            onnx.numpy_helper.from_array(value, name) for name, value in values_of(graph).items()
        )
        content: bytes = model.SerializeToString()
        return content


def values_of(graph: nn.Module) -> dict[str, NDArray[np.float32]]:
    """The buffers of a graph, where they are contiguous without a copy."""
    return {name: buffer.contiguous().numpy() for name, buffer in graph.named_buffers()}
