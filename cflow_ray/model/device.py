"""The device that networks run on."""

from __future__ import annotations

import torch

from cflow_ray.errors import ConfigError


def prepare_device(device: str) -> None:
    """Make torch compute on a device what it computes on a CPU, in float32 throughout.

    Raises ConfigError where torch cannot use it.
    """
    if torch.device(device).type != "cuda":
        return
    if not torch.cuda.is_available():
        raise ConfigError(
            f"torch {torch.__version__} cannot use a GPU here. Install a build for CUDA on every node with a GPU, or ask "
            "for none."
        )
    torch.backends.cudnn.allow_tf32 = False  # its 10 bits would move scores by more than 1e-5
    torch.backends.cuda.matmul.allow_tf32 = False
