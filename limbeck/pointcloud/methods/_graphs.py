"""Local graphs over voxels or points: which are centres, which are neighbours, how edges are encoded and weighted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from limbeck.engine.bridges import require_same_shape
from limbeck.errors import ConfigError, UnknownName

SAMPLINGS = ("top", "bottom", "both", "random")
FUSIONS = ("concat", "sub")
POOLS = ("none", "max")
CHUNK, BLOCK = 256, 16384  # centres and rows whose distances are in memory at a time: 16 MB
OWN = 1 << 40  # taken from the key of a row's distance to itself, below every other key
NORM_FACTOR = 5e-4  # on the official unweighted loss


@dataclass(slots=True)
class Graphs:
    """Graphs of several clouds over one stack of rows.

    centres: rows that are centres, one (N_b,) int64 a cloud.
    neighbours: rows that belong to each of them, one (N_b, K_b) int64 a cloud.
    weights: φ of each centre, one (N_b,) a cloud, of mean 1; None for the official unweighted loss.
    """

    centres: list[Tensor]
    neighbours: list[Tensor]
    weights: list[Tensor] | None

    @property
    def edges(self) -> tuple[Tensor, Tensor]:
        """Neighbour and centre of every edge, (E,) each: cloud by cloud, centre by centre."""
        ends = [(j.flatten(), i.repeat_interleave(j.shape[1])) for i, j in zip(self.centres, self.neighbours)]
        return torch.cat([j for j, _ in ends]), torch.cat([i for _, i in ends])


def sample_centres(
    scores: Tensor, count: int, *, sampling: str = "top", generator: torch.Generator | None = None
) -> Tensor:
    """The rows that become centres: min(count, R) of R, ties in the order of the rows.

    Args:
        scores: importance (R,).
        sampling: 'top', the largest; 'bottom', the smallest; 'both', the larger half of `count` from the top and the
            rest from the bottom; 'random', without the scores.
        generator: of random numbers, on the CPU.
    Returns: int64 (min(count, R),).
    Raises: UnknownName for another `sampling`.

    >>> sample_centres(torch.tensor([1.0, 3.0, 3.0, 2.0]), 2).tolist()
    [1, 2]
    """
    if sampling not in SAMPLINGS:
        raise UnknownName("sampling", sampling, SAMPLINGS, "of PointDistiller")
    count = min(count, len(scores))
    if sampling == "random":
        return torch.randperm(len(scores), generator=generator)[:count].to(scores.device)
    if sampling == "bottom":
        return scores.argsort(stable=True)[:count]
    falling = scores.argsort(descending=True, stable=True)
    if sampling == "top":
        return falling[:count]
    top = falling[: (count + 1) // 2]
    rest = torch.ones_like(scores, dtype=torch.bool).index_fill(0, top, False)
    rising = scores.argsort(stable=True)
    return torch.cat([top, rising[rest[rising]][: count // 2]])


def nearest_rows(features: Tensor, centres: Tensor, count: int, *, chunk: int = CHUNK, block: int = BLOCK) -> Tensor:
    """The min(count, R) rows nearest to each centre by squared distance, nearest first, ties in the order of the rows.

    A centre is the first of its own neighbours, also among equal rows. Distances are |a|² + |b|² − 2ab of `chunk`
    centres with `block` rows at a time, and the best are kept from block to block.

    Args:
        features: (R, C).
        centres: rows (N,) int64.
    Returns: int64 (N, min(count, R)).

    >>> nearest_rows(torch.tensor([[0.0], [1.0], [3.0]]), torch.tensor([1]), 2).tolist()
    [[1, 0]]
    """
    count = min(count, len(features))
    if count == 1:
        return centres[:, None]
    features = features.detach().float()
    squares = features.square().sum(1)
    found = [_nearest(features, squares, part, count, block) for part in centres.split(chunk)]
    return torch.cat(found) if found else centres.new_zeros(0, count)


def _nearest(features: Tensor, squares: Tensor, centres: Tensor, count: int, block: int) -> Tensor:
    mine = features[centres]
    best = centres.new_zeros(len(centres), 0)
    for start in range(0, len(features), block):
        rows = slice(start, min(start + block, len(features)))
        distances = torch.addmm(squares[rows], mine, features[rows].T, alpha=-2)
        distances.add_(squares[centres, None]).clamp_(min=0).abs_()  # a sum of −0 would have the bits of the largest
        own = ((centres >= rows.start) & (centres < rows.stop)).nonzero()[:, 0]
        distances[own, centres[own] - start] = -1.0
        best = torch.cat([best, _smallest(distances, start, count)], dim=1)
        best = best.topk(min(count, best.shape[1]), dim=1, largest=False).values
    return best & 0xFFFFFFFF


def _smallest(distances: Tensor, start: int, count: int) -> Tensor:
    """Keys of the `count` smallest of each row (N, M), those of equal value in the order of the columns."""
    if count >= distances.shape[1]:
        return _keys(distances, torch.arange(distances.shape[1], device=distances.device), start)
    values, columns = distances.topk(count + 1, dim=1, largest=False)
    keys = _keys(values, columns, start)[:, :count]
    tied = (values[:, count - 1] == values[:, count]).nonzero()[:, 0]
    if len(tied):  # which of several equal ones topk takes is not said
        whole = _keys(distances[tied], torch.arange(distances.shape[1], device=distances.device), start)
        keys[tied] = whole.topk(count, dim=1, largest=False).values
    return keys


def _keys(distances: Tensor, columns: Tensor, start: int) -> Tensor:
    """A distance's bits, which are in its order where it is not negative, then its row: all keys differ."""
    rows = columns + start
    return torch.where(distances < 0, rows - OWN, distances.view(torch.int32).long() * (1 << 32) + rows)


def softmax_weights(scores: Tensor, temperature: float) -> Tensor:
    """φ = N · softmax(s / τ) of N centres: their mean is 1.

    Args:
        scores: s (N,).
        temperature: τ > 0.

    >>> softmax_weights(torch.tensor([4.0, 4.0]), 0.01).tolist()
    [1.0, 1.0]
    """
    return len(scores) * (scores.detach().float() / temperature).softmax(0)


def effective_centres(weights: Tensor) -> Tensor:
    """(Σφ)² / Σφ²: how many centres of equal weight would count as much."""
    return weights.sum().square() / weights.square().sum()


class EdgeLayer(nn.Module):
    """G = ReLU(BN(W e)) of edges e = [F_j ; F_i], neighbour first, or [F_i − F_j ; F_i] with fuse='sub'.

    W e = W_a F_j + W_b F_i: each row is projected once, then gathered, which is the 1×1 convolution over all edges at a
    2C / C' of its memory. W starts Kaiming normal (fan-out), without a bias; batch norm is over all edges of the batch.

    Args:
        width: C of the rows.
        channels: C' of the encoding.
    """

    def __init__(self, width: int, channels: int, *, fuse: str = "concat") -> None:
        super().__init__()
        if fuse not in FUSIONS:
            raise UnknownName("fuse", fuse, FUSIONS, "of PointDistiller")
        self.fuse = fuse
        self.weight = nn.Parameter(torch.empty(channels, 2 * width))
        nn.init.kaiming_normal_(self.weight, mode="fan_out", nonlinearity="relu")
        self.norm = nn.BatchNorm1d(channels)

    def forward(self, rows: Tensor, neighbour: Tensor, centre: Tensor) -> Tensor:
        """G (E, C') of rows (R, C) and the ends (E,) of the edges."""
        left, right = self.weight.chunk(2, dim=1)
        near, own = rows @ left.T, rows @ right.T
        if self.fuse == "sub":
            near, own = -near, own + near
        edges = near.index_select(0, neighbour) + own.index_select(0, centre)
        return self.norm(edges).relu()


def graph_loss(student: Tensor, teacher: Tensor, graphs: Graphs, *, pool: str = "none") -> Tensor:
    """2 / N · Σ_i φ_i · mean_{k,c} (G_T − G_S)² over the N centres of all clouds; without weights 5e-4 · ‖G_T − G_S‖₂.

    With as many centres and neighbours in every cloud it is 2 · mean over (B, N, K, C') of φ (G_T − G_S)².

    Args:
        student, teacher: edges (E, C') in the order of `Graphs.edges`; both carry gradients.
        pool: 'max' takes the largest value over the neighbours of a centre first, on either side.
    Returns: scalar ≥ 0; 0, with a graph, without centres.
    Raises: ShapeMismatch when the two differ; UnknownName for another `pool`.
    """
    require_same_shape(student, teacher, "PointDistiller")
    if pool not in POOLS:
        raise UnknownName("pool", pool, POOLS, "of PointDistiller")
    sides = []
    for side in (student, teacher):
        clouds = side.split([j.numel() for j in graphs.neighbours])
        shaped = [x.view(*j.shape, side.shape[1]) for x, j in zip(clouds, graphs.neighbours)]
        sides.append([x.amax(1, keepdim=True) if pool == "max" and x.numel() else x for x in shaped])
    return weighted_error(sides[0], sides[1], graphs.weights)


def weighted_error(student: Sequence[Tensor], teacher: Sequence[Tensor], weights: Sequence[Tensor] | None) -> Tensor:
    """2 / N · Σ_i φ_i · mean of a centre's squared errors; without weights 5e-4 times the root of all squares' sum.

    Args:
        student, teacher: one (N_b, K_b, C') a cloud.
        weights: one (N_b,) a cloud.
    """
    errors = [(t - s).flatten(1) for s, t in zip(student, teacher)]
    if weights is None:
        return NORM_FACTOR * torch.linalg.vector_norm(torch.cat([e.flatten() for e in errors]))
    total = max(sum(len(w) for w in weights), 1)
    parts = [(w[:, None] * e.square()).sum() / max(e.shape[1], 1) for w, e in zip(weights, errors)]
    return 2 / total * torch.stack(parts).sum()


def check_counts(what: str, **counts: int | None) -> None:
    """Check that counts which are given are at least 1. Raises: ConfigError."""
    for name, value in counts.items():
        if value is not None and value < 1:
            raise ConfigError(f"{what} needs {name} >= 1; got {value}")
