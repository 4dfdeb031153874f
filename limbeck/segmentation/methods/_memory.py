"""Class-wise memory of features: a ring buffer of unit vectors for each class, and what a labelled batch adds to it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from limbeck.engine.losses import IGNORE


class ClassMemory(nn.Module):
    """One ring buffer a class, of rows of length 1; Gaussian directions until they are overwritten.

    Rows and pointers are persistent buffers: saved for resume, K · Q · C numbers a checkpoint.

    Args:
        classes: K.
        length: Q, rows a class.
        width: C, numbers a row.
    """

    rows: Tensor
    pointer: Tensor

    def __init__(self, classes: int, length: int, width: int) -> None:
        super().__init__()
        self.register_buffer("rows", F.normalize(torch.randn(classes, length, width), dim=2))
        self.register_buffer("pointer", torch.zeros(classes, dtype=torch.int64))

    @torch.no_grad()
    def write(self, rows: Tensor, labels: Tensor) -> None:
        """Put rows, divided by their norm, behind the newest of their class; the oldest make room.

        Args:
            rows: (M, C); of more than Q rows of one class, the last Q stay.
            labels: class of each row in [0, K), (M,).
        """
        classes, length, _ = self.rows.shape
        count = torch.bincount(labels, minlength=classes)
        place = place_in_group(labels, classes)
        keep = place >= count[labels] - length  # so that no slot is written twice, which has no defined order
        labels, place = labels[keep], place[keep]
        self.rows[labels, (self.pointer[labels] + place) % length] = F.normalize(rows[keep].to(self.rows), dim=1)
        self.pointer.copy_((self.pointer + count) % length)

    def draw(self, size: int, generator: torch.Generator) -> Tensor:
        """Copies of random rows, about `size`: the same n = ⌊size / K⌋ + 1 slots of every class, (K · n, C).

        No slot twice; the whole queue where it has fewer.
        """
        classes, length, _ = self.rows.shape
        slots = torch.randperm(length, generator=generator)[: size // classes + 1]
        return self.rows[:, slots.to(self.rows.device)].flatten(0, 1)


def place_in_group(group: Tensor, groups: int) -> Tensor:
    """How many earlier elements are of the same group, (M,).

    Args:
        group: of each element, integers in [0, groups), (M,).

    >>> place_in_group(torch.tensor([2, 0, 2, 2, 0]), 3).tolist()
    [0, 0, 1, 2, 1]
    """
    order = group.argsort(stable=True)
    count = torch.bincount(group, minlength=groups)
    start = count.cumsum(0) - count
    place = torch.empty_like(group)
    place[order] = torch.arange(len(group), device=group.device) - start[group[order]]
    return place


def region_entries(features: Tensor, labels: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """Mean feature of each class in each image where it occurs, image by image.

    Args:
        features: (B, N, C).
        labels: (B, N), classes and `IGNORE`.
    Returns: means (M, C) and their classes (M,).
    """
    of_class = F.one_hot(_ignore_last(labels, classes), classes + 1)[:, :, :classes].to(features.dtype)
    count = of_class.sum(dim=1)
    means = of_class.transpose(1, 2) @ features / count.clamp(min=1.0)[:, :, None]
    image, label = count.nonzero(as_tuple=True)
    return means[image, label], label


def pixel_entries(
    labels: Tensor, classes: int, limit: int, generator: torch.Generator, *, own: bool = True
) -> tuple[Tensor, Tensor]:
    """Random positions, up to `limit` of each class in each image.

    Args:
        labels: (B, N), classes and `IGNORE`.
        own: take the class's own positions. False does as the official code of CIRKD: of n positions of a class, it
            draws numbers below n and takes them as positions of the whole image, whatever the label there.
    Returns: positions in [0, B · N), (M,), and the class each stands for (M,).
    """
    images, size = labels.shape
    label = _ignore_last(labels, classes)
    group = (label + (classes + 1) * torch.arange(images, device=labels.device)[:, None]).flatten()
    label, groups = label.flatten(), images * (classes + 1)
    shuffle = torch.randperm(images * size, generator=generator).to(labels.device)
    taken = (place_in_group(group[shuffle], groups) < limit) & (label[shuffle] < classes)
    position = shuffle[taken]
    stands_for = label[position]
    if not own:
        position = position // size * size + place_in_group(group, groups)[position]
    return position, stands_for


def _ignore_last(labels: Tensor, classes: int) -> Tensor:
    return labels.masked_fill(labels == IGNORE, classes)
