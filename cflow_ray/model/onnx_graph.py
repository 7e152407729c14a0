"""Graphs as ONNX models, through torch's exporter of traces."""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from cflow_ray.model.threads import torch_threads

OPSET = 18


def onnx_model(
    graph: nn.Module, example: Sequence[Tensor], inputs: Sequence[str], outputs: Sequence[str], dynamic: bool = False
) -> bytes:
    """The ONNX model of a graph, serialised, with names for its inputs and outputs.

    All sizes are those of the example, with `dynamic` except the first of every input and output. Tracing takes
    0.6 CPU-seconds for a detector where torch's newer exporter takes 23, hence the choice.
    """
    content: Any = io.BytesIO()
    arguments: dict[str, Any] = {"input_names": list(inputs), "output_names": list(outputs), "opset_version": OPSET}
    if dynamic:
        arguments["dynamic_axes"] = {name: {0: "batch"} for name in (*inputs, *outputs)}
    torch._C._jit_set_onnx_log_output_stream("stderr")  # where an operation is missing it prints the graph, on stdout
    with warnings.catch_warnings(), torch.no_grad(), torch_threads(1):
        warnings.simplefilter("ignore")  # of the tracer, about sizes that are constants here
        torch.onnx.export(graph.eval(), tuple(example), content, dynamo=False, **arguments)
    model: bytes = content.getvalue()
    return model
