"""Attributes of images that need no labels (ink mass, width, height), and images sorted by one into low and high."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from limbeck.errors import ConfigError, ShapeMismatch, UnknownName

Attribute = str | Callable[[Tensor], Tensor]
FAINT = 0.1


def ink_mass(images: Tensor) -> Tensor:
    """Mean intensity of each image on a scale from 0 to 1, (B,) float64; images (B, C, H, W) in [−1, 1]."""
    return ((images.double() + 1) / 2).flatten(1).mean(1)


def width(images: Tensor) -> Tensor:
    """How far the ink spreads from left to right, in pixels, (B,) float64; images (B, C, H, W) in [−1, 1].

    ASSUMPTION: √(12 var + 1), var the variance of the ink's column: w equal columns are w wide. It changes smoothly,
    which a bounding box does not. Ink below 0.1 of the full intensity is no ink; an image without any is 0 wide.
    """
    return _extent(images, 2)


def height(images: Tensor) -> Tensor:
    """As `width`, from top to bottom."""
    return _extent(images, 3)


ATTRIBUTES: dict[str, Callable[[Tensor], Tensor]] = {"ink_mass": ink_mass, "width": width, "height": height}


def measure(images: Tensor, attribute: Attribute) -> Tensor:
    """An attribute of each image, (B,) float64 on the CPU.

    Args:
        images: (B, C, H, W). attribute: a name of `ATTRIBUTES`, or a function of images.
    Raises: UnknownName; ConfigError for other than one finite number an image.
    """
    if isinstance(attribute, str):
        if attribute not in ATTRIBUTES:
            raise UnknownName("attribute", attribute, ATTRIBUTES)
        attribute = ATTRIBUTES[attribute]
    with torch.no_grad():
        found = torch.as_tensor(attribute(images)).to("cpu", torch.float64)
    if found.shape != (len(images),) or not bool(torch.isfinite(found).all()):
        raise ConfigError(
            f"an attribute is one finite number for each of {len(images)} images; got {tuple(found.shape)}"
            f"{'' if bool(torch.isfinite(found).all()) else ' with NaN or infinity'}"
        )
    return found


@dataclass(frozen=True, eq=False)
class Pairs:
    """Images of little and of much of an attribute; any low and high one of a class make a pair.

    low: (N, C, H, W), the spec's A. high: (M, C, H, W), its B; floating, in [−1, 1].
    low_labels, high_labels: (N,) and (M,) int64, of the same classes; None where the model has no classes.
    """

    low: Tensor
    high: Tensor
    low_labels: Tensor | None = None
    high_labels: Tensor | None = None

    def __post_init__(self) -> None:
        for name, images, labels in (("low", self.low, self.low_labels), ("high", self.high, self.high_labels)):
            if images.ndim != 4 or not len(images) or not images.is_floating_point():
                raise ConfigError(
                    f"{name} images are (N, C, H, W) numbers in [-1, 1], 1 or more; got {images.dtype} "
                    f"{tuple(images.shape)}"
                )
            if not bool(torch.isfinite(images).all()):
                raise ConfigError(f"{name} images hold NaN or infinity; leave those images out")
            if labels is not None:
                _check_labels(labels, len(images))
        if self.low.shape[1:] != self.high.shape[1:]:
            low, high = tuple(self.low.shape[1:]), tuple(self.high.shape[1:])
            raise ShapeMismatch(f"low images are {low} and high ones {high}; make them of one shape")
        if (self.low_labels is None) != (self.high_labels is None):
            raise ConfigError("low and high images both have labels, or neither; give the missing ones")
        if self.low_labels is not None and self.high_labels is not None:
            one_sided = set(self.low_labels.tolist()) ^ set(self.high_labels.tolist())
            if one_sided:
                raise ConfigError(f"class {min(one_sided)} has low or high images alone; give both, or leave it out")

    def draw(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor | None]:
        """Low and high images (count, C, H, W) and their classes (count,): a high one, and any low one of its class."""
        high = torch.randint(len(self.high), (count,), generator=generator)
        chance = torch.rand(count, generator=generator, dtype=torch.float64)
        if self.high_labels is None:
            return self.low[(chance * len(self.low)).long()], self.high[high], None
        labels = self.high_labels.cpu().long()[high]
        order, counts = self._low_by_class
        first = counts.cumsum(0) - counts
        low = order[first[labels] + (chance * counts[labels]).long()]
        return self.low[low], self.high[high], labels

    @cached_property
    def _low_by_class(self) -> tuple[Tensor, Tensor]:
        """Indices of the low images, class by class, and how many each class has."""
        assert self.low_labels is not None  # as `high_labels`
        labels = self.low_labels.cpu().long()
        return labels.argsort(stable=True), labels.bincount()


def halves(images: Tensor, labels: Tensor | None, attribute: Attribute, *, share: float = 0.5) -> Pairs:
    """Sort the images of each class by an attribute: the lower half is low and the upper one high.

    Args:
        images: (N, C, H, W) in [−1, 1]. labels: (N,), or None to sort all together.
        attribute: see `measure`.
        share: of a class's images in each of low and high; 0.5 are halves, less leaves the middle out.
    Raises: ConfigError for a share out of range, or a class with no low and high images; as `measure` and `Pairs`.
    """
    if not 0 < share <= 0.5:
        raise ConfigError(f"share of the images that are low, and that are high, is in (0, 0.5]; got {share}")
    if labels is not None:
        _check_labels(labels, len(images))
    values = measure(images, attribute)
    groups = torch.zeros(len(images), dtype=torch.int64) if labels is None else labels.cpu()
    low, high = [], []
    for group in groups.unique():
        members = (groups == group).nonzero().flatten()
        members = members[values[members].argsort(stable=True)]
        count = int(len(members) * share)
        if not count or values[members[0]] == values[members[-1]]:
            where = "" if labels is None else f" of class {int(group)}"
            raise ConfigError(
                f"the {len(members)} images{where} cannot be parted into low and high: there are too few, or all have "
                "the same value; give other images"
            )
        low.append(members[:count])
        high.append(members[-count:])
    lows, highs = torch.cat(low), torch.cat(high)
    if labels is None:
        return Pairs(images[lows], images[highs])
    return Pairs(images[lows], images[highs], labels[lows], labels[highs])


def _check_labels(labels: Tensor, count: int) -> None:
    if labels.shape != (count,) or labels.is_floating_point() or (count and int(labels.min()) < 0):
        raise ConfigError(
            f"labels of {count} images are as many integers from 0 on; got {labels.dtype} {tuple(labels.shape)}"
            f"{f', the least {labels.min()}' if labels.numel() else ''}"
        )


def _extent(images: Tensor, summed: int) -> Tensor:
    """Of the ink along one side, having summed over the other; see `width`."""
    ink = ((images.double() + 1) / 2).clamp(0, 1).mean(1, keepdim=True)
    ink = torch.where(ink < FAINT, 0.0, ink).sum((1, summed))
    total = ink.sum(1)
    place = torch.arange(ink.shape[1], dtype=torch.float64, device=ink.device)
    share = ink / total.clamp(min=1e-12)[:, None]
    middle = (share * place).sum(1, keepdim=True)
    variance = (share * (place - middle).square()).sum(1)
    return torch.where(total > 0, (12 * variance + 1).sqrt(), 0.0)
