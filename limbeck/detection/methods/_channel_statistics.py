"""Mean and deviation of a map's channels over batch and positions, by which PKD and CrossKD normalise."""

from __future__ import annotations

import torch
from torch import Tensor

EPS = 1e-6  # beside every deviation in the official codes; a constant channel becomes 0


def channel_statistics(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and unbiased standard deviation of each channel over all B · H · W values, (1, C, 1, 1) each.

    They are of this process's batch alone, padding and all. One value alone has deviation 0.

    Args:
        x: (B, C, H, W), float32.

    >>> [s.flatten().tolist() for s in channel_statistics(torch.tensor([[[[1.0, 3.0, 5.0]]]]))]
    [[3.0], [2.0]]
    """
    mean, _, std = _centred(x)
    return mean, std


def standardised(x: Tensor) -> Tensor:
    """(x − mean) / (std + 1e-6) channel by channel; gradients pass through both."""
    _, centred, std = _centred(x)
    return centred / (std + EPS)


def _centred(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean, what is left of the map, and its deviation by a norm: half the time of `torch.std_mean` on a CPU."""
    values = x.numel() // x.shape[1]
    mean = x.mean(dim=(0, 2, 3), keepdim=True)
    centred = x - mean
    std = torch.linalg.vector_norm(centred, dim=(0, 2, 3), keepdim=True) / max(values - 1, 1) ** 0.5
    return mean, centred, std


def aligned(student: Tensor, teacher: Tensor) -> Tensor:
    """The student's map with the teacher's mean and deviation in each channel.

    Args:
        student, teacher: (B, C, H, W) of one C, float32. The teacher's gradient is stopped.
    """
    mean, std = channel_statistics(teacher.detach())
    return std * standardised(student) + mean
