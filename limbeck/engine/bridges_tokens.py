"""Spatial forms of a tap: tokens, maps in either layout and vectors, and how one is rearranged into another."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from limbeck.errors import ConfigError, ShapeMismatch

Kind = Literal["vector", "tokens", "map"]
Layout = Literal["nchw", "nhwc"]
Size = tuple[int, int]
KINDS: dict[int, Kind] = {2: "vector", 3: "tokens", 4: "map"}


def token_grid(tokens: int, prefix: int | None = None) -> tuple[int, int] | None:
    """Number of prefix tokens and side of the square grid of the others; None where there is no such grid.

    Without `prefix`, none is tried first, then one (a class token): no two squares are neighbours, so one fits at most.

    >>> token_grid(64), token_grid(65), token_grid(198, prefix=2), token_grid(50), token_grid(51)
    ((0, 8), (1, 8), (2, 14), (1, 7), None)
    """
    for count in (0, 1) if prefix is None else (prefix,):
        side = math.isqrt(max(tokens - count, 0))
        if side and side * side == tokens - count:
            return count, side
    return None


@dataclass(frozen=True, slots=True)
class TapForm:
    """What a tapped tensor is.

    kind: 'vector' (B, D), 'tokens' (B, prefix + h·w, D), 'map' (B, C, H, W) or, with layout 'nhwc', (B, H, W, C).
    width: D or C.
    size: (h, w); (1, 1) for a vector.
    prefix: number of class, distillation and register tokens before the patches.
    """

    kind: Kind
    width: int
    size: Size = (1, 1)
    prefix: int = 0
    layout: Layout = "nchw"

    @property
    def positions(self) -> int:
        """h · w."""
        return self.size[0] * self.size[1]

    def to_map(self, x: Tensor) -> Tensor:
        """A tensor of this form as a map (B, C, h, w): row-major, without prefix tokens; a vector as 1×1."""
        if self.kind == "map":
            return x if self.layout == "nchw" else x.permute(0, 3, 1, 2)
        x = x[:, self.prefix :] if self.kind == "tokens" else x[:, None]
        return x.transpose(1, 2).unflatten(2, self.size)

    def without_prefix(self, x: Tensor) -> Tensor:
        """A tensor of this form without its prefix tokens."""
        return x[:, self.prefix :] if self.prefix else x

    def from_map(self, x: Tensor) -> Tensor:
        """A map (B, C, h, w) in this form, without prefix tokens."""
        if self.kind == "map":
            return x if self.layout == "nchw" else x.permute(0, 2, 3, 1)
        return map_to_tokens(x) if self.kind == "tokens" else x.mean((2, 3))


def tap_form(
    shape: tuple[int, ...], *, what: str = "tap", layout: Layout = "nchw", prefix: int | None = None
) -> TapForm:
    """Read the form of a tap from its shape.

    Four axes are ambiguous: they are (B, C, H, W) unless `layout` says 'nhwc', as timm's Swin has it.

    Args:
        shape: with batch axis.
        what: names the tap in errors.
        prefix: number of prefix tokens; inferred as 0 or 1 from the token count where not given.
    Raises: ShapeMismatch for other than 2 to 4 axes and for tokens without a square grid; ConfigError for an unknown
        layout.
    """
    if layout not in ("nchw", "nhwc"):
        raise ConfigError(f"{what}: layout is 'nchw' or 'nhwc'; got {layout!r}")
    if len(shape) not in KINDS:
        raise ShapeMismatch(
            f"{what}: {shape} is neither a vector (B, D), tokens (B, N, D) nor a map (B, C, H, W); tap another layer"
        )
    kind = KINDS[len(shape)]
    if kind == "vector":
        return TapForm(kind, shape[1])
    if kind == "map":
        width, size = (shape[1], shape[2:]) if layout == "nchw" else (shape[3], shape[1:3])
        return TapForm(kind, width, (size[0], size[1]), layout=layout)
    found = token_grid(shape[1], prefix)
    if found is None:
        tried = "with none or one class token" if prefix is None else f"after {prefix} prefix tokens"
        raise ShapeMismatch(
            f"{what}: {shape[1]} tokens {shape} make no square grid {tried}; "
            "give the number of prefix tokens, or tap a layer of square grid"
        )
    return TapForm(kind, shape[2], (found[1], found[1]), prefix=found[0])


def tokens_to_map(x: Tensor, prefix: int | None = None) -> Tensor:
    """Tokens (B, prefix + h·h, D) as a map (B, D, h, h), row-major; class and other prefix tokens are dropped.

    Args:
        prefix: how many come before the patches; inferred as 0 or 1 where not given.
    Raises: ShapeMismatch when the rest is not a square number or `x` has no three axes.
    """
    if x.dim() != 3:
        raise ShapeMismatch(f"tokens_to_map: tokens (B, N, D) are needed; got {tuple(x.shape)}")
    return tap_form(tuple(x.shape), what="tokens_to_map", prefix=prefix).to_map(x)


def map_to_tokens(x: Tensor, *, layout: Layout = "nchw") -> Tensor:
    """A map (B, C, H, W), or (B, H, W, C) with layout 'nhwc', as tokens (B, H·W, C), row-major.

    Raises: ShapeMismatch when `x` has no four axes.
    """
    if x.dim() != 4:
        raise ShapeMismatch(f"map_to_tokens: a map of four axes is needed; got {tuple(x.shape)}")
    return x.flatten(2).transpose(1, 2) if layout == "nchw" else x.flatten(1, 2)
