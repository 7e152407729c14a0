"""The device that networks run on."""

from __future__ import annotations

import torch

from cflow_ray.errors import ConfigError


def prepared_device(gpus: float) -> str:
    """The device of a worker with a share of GPUs, on which torch multiplies float32 as float32, as on a CPU.

    Raises ConfigError where torch cannot use it.
    """
    if not gpus:
        return "cpu"
    if not torch.cuda.is_available():
        raise ConfigError(
            f"torch {torch.__version__} cannot use a GPU here. Install a build for CUDA on every node with a GPU, or ask "
            "for none."
        )
    multiply_in_float32()
    return f"cuda:{torch.cuda.current_device()}"  # a worker's own of a node's; threads it starts would take the first


def multiply_in_float32() -> None:
    """Keep this process's GPU from TF32, whose 10 bits would move scores by more than 1e-5."""
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False
