"""Receptive tokens of MasKD (arXiv 2205.14589): the masks they make, how they are learned, and how they are read."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from limbeck.engine.losses import IGNORE
from limbeck.engine.weights import read_weights
from limbeck.errors import ConfigError, CorruptFile, NonFiniteLoss, ShapeMismatch

TINY = 1e-12  # in the Dice coefficient, once for each mask
Sample = tuple[list[Tensor], Tensor]  # maps (B, K, h, w) and label maps (B, H, W)
Reader = Callable[[], Iterator[tuple[list[Tensor], Tensor, Tensor]]]


def token_masks(features: Tensor, tokens: Tensor) -> Tensor:
    """Soft masks M_m = σ(R_m · F), one for each token, (B, M, H, W) in (0, 1) and float32.

    Args:
        features: F (B, C, H, W).
        tokens: R (M, C).
    Raises: ShapeMismatch when the tokens have another width than the features.
    """
    if features.dim() != 4 or tokens.dim() != 2 or features.shape[1] != tokens.shape[1]:
        raise ShapeMismatch(
            f"MasKD: tokens {tuple(tokens.shape)} do not fit features {tuple(features.shape)}; "
            "tokens (M, C) for a map (B, C, H, W) would"
        )
    with torch.autocast(features.device.type, enabled=False):
        return torch.einsum("mc,bchw->bmhw", tokens.float(), features.float()).sigmoid()


def token_dice(masks: Tensor) -> Tensor:
    """How much the masks of an image overlap: the mean Dice coefficient of their ordered pairs.

    mean over images and i ≠ j of 2⟨M_i, M_j⟩ / (‖M_i‖² + ‖M_j‖² + 2·10⁻¹²): 1 for equal masks, 0 for disjoint ones.

    Args:
        masks: (B, M, H, W), M ≥ 2.
    Returns: scalar in [0, 1], computed in float32.
    """
    count = masks.shape[1]
    with torch.autocast(masks.device.type, enabled=False):
        flat = masks.float().flatten(2)
        products = flat @ flat.transpose(1, 2)
    squares = products.diagonal(dim1=1, dim2=2)
    dice = 2.0 * products / (squares[:, :, None] + squares[:, None, :] + 2.0 * TINY)
    others = ~torch.eye(count, dtype=torch.bool, device=masks.device)
    return dice[:, others].mean()


class TokenWeights(nn.Module):
    """The weight of each mask in an image, w = softmax(conv1×1(mean_HW conv3×3(F))): (B, M), each row adds up to 1.

    Convolutions start from N(0, 2 / (k² · C_out)), biases from 0.

    Args:
        width: C of the features.
        count: M.
    """

    def __init__(self, width: int, count: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)
        self.score = nn.Conv2d(width, count, 1)
        for conv in (self.conv, self.score):
            nn.init.normal_(conv.weight, std=(2 / (conv.kernel_size[0] ** 2 * conv.out_channels)) ** 0.5)
            nn.init.zeros_(cast(Tensor, conv.bias))

    def forward(self, features: Tensor) -> Tensor:
        """Weights (B, M) of features (B, C, H, W), in float32."""
        with torch.autocast(features.device.type, enabled=False):
            pooled = self.conv(features.float()).mean((2, 3), keepdim=True)
            return self.score(pooled).flatten(1).softmax(dim=1)


class ReceptiveTokens(nn.Module):
    """The frozen tokens of one level, from N(0, 0.01²), with a branch that weighs their masks where asked.

    The tokens are a buffer: saved for resume, never trained by a run's optimiser.

    Args:
        width: C of the features.
        count: M.
        prob: add the `TokenWeights`.
    """

    tokens: Tensor

    def __init__(self, width: int, count: int, *, prob: bool = False) -> None:
        super().__init__()
        self.register_buffer("tokens", 0.01 * torch.randn(count, width))
        self.prob = TokenWeights(width, count).requires_grad_(False) if prob else None

    def masks(self, features: Tensor) -> Tensor:
        """M (B, M, H, W) of features (B, C, H, W)."""
        return token_masks(features, self.tokens)

    def weights(self, features: Tensor) -> Tensor | None:
        """w (B, M), or None without the branch."""
        return None if self.prob is None else self.prob(features)


def masked_features(features: Tensor, masks: Tensor, weights: Tensor | None = None) -> Tensor:
    """T' = Σ_m w_m M_m ⊙ T, what the teacher's task loss sees while tokens are learned; w = 1 without weights.

    Args:
        features: T (B, C, H, W).
        masks: M (B, M, H, W).
        weights: w (B, M).
    """
    total = masks.sum(1) if weights is None else torch.einsum("bm,bmhw->bhw", weights, masks)
    return features.float() * total[:, None]


def stage1_loss(tokens: Tensor, maps: Sequence[Tensor], labels: Tensor, *, aux_weight: float = 0.4) -> Tensor:
    """What segmentation's tokens are learned by: L = CE(T'_0) + aux_weight · Σ_{i>0} CE(T'_i) + Dice(M(T_0)).

    T' is brought to the label maps' size, bilinear; CE is the mean over the pixels that have a class.

    Args:
        tokens: R (M, K).
        maps: the teacher's logits (B, K, h, w), the main head's first, then auxiliary heads'.
        labels: (B, H, W) int64, 255 = ignore.
    Returns: scalar in float32.
    """
    loss = torch.zeros((), device=tokens.device)
    valid = (labels != IGNORE).sum().clamp(min=1)
    for index, logits in enumerate(maps):
        masks = token_masks(logits, tokens)
        large = F.interpolate(masked_features(logits, masks), labels.shape[-2:], mode="bilinear", align_corners=False)
        entropy = F.cross_entropy(large, labels, ignore_index=IGNORE, reduction="sum") / valid
        loss = loss + (entropy + token_dice(masks) if index == 0 else aux_weight * entropy)
    return loss


def learn_tokens(
    tokens: Tensor, batches: Iterable[Sample], *, iterations: int, lr: float = 0.1, aux_weight: float = 0.4
) -> tuple[Tensor, Tensor]:
    """Stage 1 of segmentation: SGD with momentum 0.9 on `stage1_loss`, lr · (1 − i / iterations)^0.9.

    Args:
        tokens: (M, K) to start from.
        batches: as many as iterations, or more.
    Returns: learned tokens (M, K), and the loss of every iteration.
    Raises: NonFiniteLoss when the loss or the tokens became NaN or infinite.
    """
    leaf = tokens.detach().clone().requires_grad_()
    optimizer = torch.optim.SGD([leaf], lr=lr, momentum=0.9)
    losses: list[Tensor] = []
    with torch.enable_grad():
        for step, (maps, labels) in zip(range(iterations), batches):
            optimizer.param_groups[0]["lr"] = lr * (1 - step / iterations) ** 0.9
            maps, labels = [m.to(leaf.device).float() for m in maps], labels.to(leaf.device).long()
            loss = stage1_loss(leaf, maps, labels, aux_weight=aux_weight)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
    found = torch.stack(losses)
    if not (torch.isfinite(found).all() and torch.isfinite(leaf).all()):
        raise NonFiniteLoss(
            f"MasKD: the loss of stage 1 became non-finite within {iterations} iterations at learning rate {lr}; "
            "lower stage1_lr, or check the teacher's logits"
        )
    return leaf.detach(), found.cpu()


def token_batches(read: Reader, classes: int, *, size: int, max_megabytes: float) -> Iterator[Sample]:
    """Batches of teacher logits and label maps without end, as float16 and int16 on the CPU.

    The split is kept in memory where it takes at most `max_megabytes` (10⁶ bytes), and every pass draws another order
    from torch's generator. Where it takes more, the teacher is run again for every pass, in the order of ids.

    Args:
        read: starts a pass over the split; yields (maps, label maps, ids).
        classes: K.
        size: samples a batch, or all where there are fewer.
    Raises: ConfigError without label maps or samples; ShapeMismatch for other numbers of classes, or sizes that differ.
    """
    stream, kept, used = _packed(read(), classes), [], 0
    for maps, labels in stream:
        kept.append((maps, labels))
        used += sum(x.numel() * x.element_size() for x in (*maps, labels))
        if used > max_megabytes * 1e6:
            yield from _regrouped(chain(_drained(kept), stream, _repeated(read, classes)), size)
    if not kept:
        raise ConfigError("MasKD learns its tokens on the training split, which has no samples; check the data set")
    maps, labels = _joined(kept)
    kept.clear()
    size = min(size, len(labels))
    while True:
        order = torch.randperm(len(labels))
        for start in range(0, len(labels) - size + 1, size):
            rows = order[start : start + size]
            yield [m[rows] for m in maps], labels[rows]


def _packed(samples: Iterable[tuple[list[Tensor], Tensor, Tensor]], classes: int) -> Iterator[Sample]:
    first = None
    for maps, labels, _ in samples:
        _check_sample(maps, labels, classes)
        sizes = [tuple(x.shape[1:]) for x in (*maps, labels)]
        first = sizes if first is None else first
        if sizes != first:
            raise ShapeMismatch(
                f"MasKD learns its tokens on samples of one size; got {first} and {sizes}: resize the training split"
            )
        yield [m.detach().half().cpu() for m in maps], labels.to(torch.int16).cpu()


def _check_sample(maps: Sequence[Tensor], labels: object, classes: int) -> None:
    if not isinstance(labels, Tensor) or labels.dim() != 3 or labels.is_floating_point():
        got = f"{tuple(labels.shape)} of {labels.dtype}" if isinstance(labels, Tensor) else type(labels).__name__
        raise ConfigError(
            f"MasKD learns its tokens from integer label maps (B, H, W); got targets {got}: use a data set for "
            "segmentation, or name tokens that were learned beforehand with tokens='….safetensors'"
        )
    for logits in maps:
        if logits.dim() != 4 or logits.shape[1] != classes:
            raise ShapeMismatch(
                f"MasKD: teacher logits {tuple(logits.shape)} do not fit a data set of {classes} classes; "
                f"logits (B, {classes}, h, w) would"
            )
    wrong = ((labels < 0) | (labels >= classes)) & (labels != IGNORE)
    if bool(wrong.any()):
        raise ShapeMismatch(
            f"MasKD: label {int(labels[wrong][0])} is neither in 0 to {classes - 1} nor {IGNORE} (ignore); "
            "a model with one class for each label of the data set would fit"
        )


def _drained(kept: list[Sample]) -> Iterator[Sample]:
    while kept:  # emptied on the way, so that what does not fit into memory does not stay there
        yield kept.pop(0)


def _repeated(read: Reader, classes: int) -> Iterator[Sample]:
    while True:
        yield from _packed(read(), classes)


def _joined(samples: Sequence[Sample]) -> Sample:
    maps = [torch.cat(parts) for parts in zip(*(maps for maps, _ in samples))]
    return maps, torch.cat([labels for _, labels in samples])


def _regrouped(stream: Iterator[Sample], size: int) -> Iterator[Sample]:
    pool: list[Sample] = []
    for sample in stream:
        pool.append(sample)
        while sum(len(labels) for _, labels in pool) >= size:
            maps, labels = _joined(pool)
            yield [m[:size] for m in maps], labels[:size]
            pool = [([m[size:] for m in maps], labels[size:])]


def read_tokens(path: str | Path, widths: Sequence[int], *, prob: bool) -> nn.ModuleList:
    """Tokens from a safetensors file, the state of a `ModuleList` of `ReceptiveTokens`: '0.tokens' (M, C_0), ….

    Args:
        widths: C of every level.
        prob: take the branches '0.prob.conv.weight', … too, which are left alone otherwise.
    Raises: CorruptFile when the file is absent or damaged, or holds no tokens of these widths.
    """
    state, _ = read_weights(path)
    levels = []
    for level, width in enumerate(widths):
        found = state.get(f"{level}.tokens")
        if found is None or found.dim() != 2 or found.shape[1] != width or len(found) == 0:
            got = "none" if found is None else str(tuple(found.shape))
            raise CorruptFile(
                f"{path} does not fit MasKD's taps: level {level} needs '{level}.tokens' of (M, {width}), found {got}; "
                "name tokens that were learned on these taps of this teacher"
            )
        levels.append(ReceptiveTokens(width, len(found), prob=prob))
    modules = nn.ModuleList(levels)
    wrong = [k for k, v in modules.state_dict().items() if k not in state or state[k].shape != v.shape]
    if wrong:
        raise CorruptFile(
            f"{path} lacks {', '.join(wrong[:3])} in the shape of MasKD's taps; name a file with the branches that "
            "weigh the masks, or set prob=False"
        )
    modules.load_state_dict({key: state[key] for key in modules.state_dict()})
    return modules
