"""MasKD against naive references: masks, both stages, what is learned where, and the token file."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import chain, islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from mmengine.model import BaseDataPreprocessor
from torch import Tensor, nn

from limbeck.detection.methods import maskd
from limbeck.detection.methods._receptive_tokens import (
    ReceptiveTokens,
    TokenWeights,
    learn_tokens,
    masked_features,
    read_tokens,
    stage1_loss,
    token_batches,
    token_dice,
    token_masks,
)
from limbeck.detection.methods._teacher_stage import task_loss
from limbeck.detection.methods.maskd import MasKD, maskd_loss, regression_loss
from limbeck.engine.adapter import Batch, Forward, TaskAdapter
from limbeck.engine.config import DataConfig, RunConfig
from limbeck.engine.distiller import Distiller
from limbeck.engine.losses import IGNORE
from limbeck.engine.method import LinkInputs, TrainingSet
from limbeck.engine.prepare import prepare_links
from limbeck.engine.registry import DATASETS
from limbeck.engine.weights import hash_state, save_weights
from limbeck.errors import ConfigError, CorruptFile, NonFiniteLoss, ShapeMismatch, UnknownName
from tests.detection.methods.pyramids import detector_pair, training_set
from tests.vision.methods import conftest as common

K, SIZE = 3, (4, 5)  # classes, and the size of the teacher's logits


# --- naive references, float64 ---


def naive_masks(features: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    b, c, h, w = features.shape
    out = np.zeros((b, len(tokens), h, w))
    for i, m, y, x in np.ndindex(*out.shape):
        out[i, m, y, x] = 1 / (1 + math.exp(-sum(tokens[m, k] * features[i, k, y, x] for k in range(c))))
    return out


def naive_loss(s: np.ndarray, t: np.ndarray, masks: np.ndarray, w: np.ndarray | None = None, eps: float = 0.0) -> float:
    total = 0.0
    for i in range(len(s)):
        for m in range(masks.shape[1]):
            area = masks[i, m].sum() + eps
            of_channels = [(masks[i, m] ** 2 * (s[i, c] - t[i, c]) ** 2).sum() / area for c in range(s.shape[1])]
            total += (1 / masks.shape[1] if w is None else w[i, m]) * sum(of_channels) / s.shape[1]
    return total / len(s)


def naive_dice(masks: np.ndarray) -> float:
    values = []
    for image in masks:
        for i in range(len(image)):
            for j in range(len(image)):
                if i != j:
                    squares = (image[i] ** 2).sum() + (image[j] ** 2).sum()
                    values.append(2 * (image[i] * image[j]).sum() / (squares + 2e-12))
    return sum(values) / len(values)


def naive_resize(x: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Bilinear, pixel centres at halves."""
    out = np.zeros((*x.shape[:2], *size))
    for y, z in np.ndindex(*size):
        corners = []
        for place, old, new in ((y, x.shape[2], size[0]), (z, x.shape[3], size[1])):
            at = max((place + 0.5) * old / new - 0.5, 0.0)
            low = min(int(at), old - 1)
            corners.append((low, min(low + 1, old - 1), at - low))
        (a, b, u), (c, d, v) = corners
        upper, lower = (1 - v) * x[:, :, a, c] + v * x[:, :, a, d], (1 - v) * x[:, :, b, c] + v * x[:, :, b, d]
        out[:, :, y, z] = (1 - u) * upper + u * lower
    return out


def naive_stage1(tokens: np.ndarray, maps: list[np.ndarray], labels: np.ndarray, aux: float) -> float:
    total = 0.0
    for head, logits in enumerate(maps):
        masks = naive_masks(logits, tokens)
        large = naive_resize(sum(masks[:, m, None] * logits for m in range(len(tokens))), labels.shape[1:])
        values = [
            -math.log(common.softmax(large[i, :, y, x])[labels[i, y, x]])
            for i, y, x in np.ndindex(*labels.shape)
            if labels[i, y, x] != 255
        ]
        entropy = sum(values) / len(values)
        total += entropy + naive_dice(masks) if head == 0 else aux * entropy
    return total


# --- toys ---


def label_maps(count: int, size: tuple[int, int] = (8, 10), seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, K, (count, *size), generator=generator)
    labels[torch.rand(labels.shape, generator=generator) < 0.1] = IGNORE
    return labels


def split(count: int = 6, heads: int = 1, batch: int = 4) -> TrainingSet:
    """A split of `count` samples whose logits know something of the labels."""
    labels = label_maps(count)
    small = F.interpolate(labels[:, None].float(), SIZE, mode="nearest")[:, 0].long().clamp(max=K - 1)
    maps = [common.randn(count, K, *SIZE, seed=i) + 2 * F.one_hot(small, K).movedim(-1, 1) for i in range(heads)]

    def read(name: str | None = None) -> Iterator[tuple[list[Tensor], Tensor, Tensor]]:
        for start in range(0, count, batch):
            rows = torch.arange(start, min(start + batch, count))
            yield [m[rows] for m in maps], labels[rows], rows

    return TrainingSet(labels=torch.empty(0), classes=K, teacher_taps=read)


def prepared(heads: int = 1, seed: int = 0, student: tuple[int, int] = SIZE, **options: Any) -> MasKD:
    torch.manual_seed(seed)
    taps = [("logits", "logits"), *[("aux_logits", "aux_logits")] * (heads - 1)]
    link = MasKD(taps=taps, **{"masks": 4, "stage1_iterations": 3, "stage1_batch_size": 2, **options})
    link.connect([(2, K, *SIZE)] * heads, [(2, K, *student)] * heads)
    if link.wants_data:
        link.prepare(split(heads=heads))
    return link


def token_file(
    folder: Path, widths: tuple[int, ...] = (6, 6), count: int = 4, *, prob: bool = True, scale: float = 1.0
) -> str:
    """Tokens that vary enough to make masks far from ½."""
    torch.manual_seed(3)
    levels = nn.ModuleList([ReceptiveTokens(c, count, prob=prob) for c in widths])
    for level in levels:
        cast(ReceptiveTokens, level).tokens.normal_().mul_(scale)
    path = folder / f"tokens{len(widths)}{count}{prob}{scale}.safetensors"
    save_weights(path, levels.state_dict(), metadata={})
    return str(path)


def detector(tokens: str, teacher: int = 6, student: int = 5, levels: int = 2, seed: int = 0, **options: Any) -> MasKD:
    torch.manual_seed(seed)
    taps = options.pop("taps", [(f"neck[{i}]", f"neck[{i}]") for i in range(levels)])
    link = MasKD(form="detection", tokens=tokens, taps=taps, **options)
    extra = len(taps) - levels
    shapes = [(2, c, 4, 6 - i) for i in range(levels) for c in (teacher, student)]
    link.connect(shapes[::2] + [(2, 7)] * extra, shapes[1::2] + [(2, 7)] * extra)
    return link


def levels_of(teacher: int = 6, student: int = 5, levels: int = 2, progress: float = 0.0) -> LinkInputs:
    return LinkInputs(
        teacher=[common.randn(2, teacher, 4, 6 - i, seed=i) for i in range(levels)],
        student=[common.randn(2, student, 4, 6 - i, seed=9 + i).requires_grad_() for i in range(levels)],
        progress=progress,
    )


def spy_masks(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    seen: list[Tensor] = []

    def spied(student: Tensor, teacher: Tensor, masks: Tensor, **options: Any) -> Tensor:
        seen.append(masks)
        return maskd_loss(student, teacher, masks, **options)

    monkeypatch.setattr(maskd, "maskd_loss", spied)
    return seen


# --- masks ---


def test_masks_match_the_naive_reference() -> None:
    features, tokens = common.randn(2, 3, 4, 5), common.randn(6, 3, seed=1)
    expected = naive_masks(common.array(features), common.array(tokens))
    np.testing.assert_allclose(token_masks(features, tokens).numpy(), expected, rtol=1e-5)
    with pytest.raises(ShapeMismatch, match=r"tokens \(6, 3\) do not fit features \(2, 4, 4, 5\)"):
        token_masks(common.randn(2, 4, 4, 5), tokens)


def test_masked_features_match_the_naive_reference_and_plain_sum_is_weight_one() -> None:
    t, masks, w = common.randn(2, 3, 4, 5), common.randn(2, 6, 4, 5, seed=1).sigmoid(), common.randn(2, 6).softmax(1)
    weighted = sum(w[:, m, None, None, None] * masks[:, m, None] * t for m in range(6))
    torch.testing.assert_close(masked_features(t, masks, w), weighted)
    torch.testing.assert_close(masked_features(t, masks), sum(masks[:, m, None] * t for m in range(6)))


def test_weights_are_the_softmax_of_pooled_scores_and_add_up_to_one() -> None:
    torch.manual_seed(0)
    branch, features = TokenWeights(3, 6), common.randn(2, 3, 4, 5, scale=3)
    found = branch(features)
    torch.testing.assert_close(found.sum(1), torch.ones(2))
    kernel, score = common.array(branch.conv.weight), common.array(branch.score.weight)[:, :, 0, 0]
    padded = np.pad(common.array(features), ((0, 0), (0, 0), (1, 1), (1, 1)))
    for i in range(2):
        pooled = [
            sum((kernel[c] * padded[i, :, y : y + 3, x : x + 3]).sum() for y in range(4) for x in range(5)) / 20
            for c in range(3)
        ]
        np.testing.assert_allclose(found[i].detach().numpy(), common.softmax(score @ pooled), rtol=1e-4)


def test_initial_numbers_have_the_official_spread() -> None:
    torch.manual_seed(0)
    level = ReceptiveTokens(256, 64, prob=True)
    assert level.tokens.std().item() == pytest.approx(0.01, rel=0.05)
    assert level.prob is not None
    assert level.prob.conv.weight.std().item() == pytest.approx(math.sqrt(2 / (9 * 256)), rel=0.02)
    assert level.prob.score.weight.std().item() == pytest.approx(math.sqrt(2 / 64), rel=0.05)
    assert not level.prob.conv.bias.any()
    assert not level.prob.score.bias.any()
    assert not any(p.requires_grad for p in level.parameters())


# --- Dice ---


def test_dice_matches_the_naive_reference() -> None:
    masks = common.randn(3, 4, 4, 5).sigmoid()
    assert token_dice(masks).item() == pytest.approx(naive_dice(common.array(masks)), rel=1e-5)


def test_dice_is_one_for_equal_and_zero_for_disjoint_masks() -> None:
    one = common.randn(2, 1, 4, 5).sigmoid()
    assert token_dice(one.expand(2, 5, 4, 5)).item() == pytest.approx(1.0, rel=1e-6)
    disjoint = F.one_hot(torch.arange(20).remainder(4).view(4, 5), 4).movedim(-1, 0)[None].float()
    assert token_dice(disjoint).item() == 0.0
    assert token_dice(torch.zeros(1, 3, 2, 2)).item() == 0.0  # no masks at all: no 0 / 0


@settings(max_examples=30, deadline=None)
@given(hnp.arrays(np.float32, (2, 3, 2, 2), elements=st.floats(0, 1, width=32)))
def test_dice_is_between_zero_and_one(masks: np.ndarray) -> None:
    assert -1e-6 <= token_dice(torch.from_numpy(masks)).item() <= 1 + 1e-6


# --- the loss of stage 2 ---


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("eps", [0.0, 1e-5, 2.0])
def test_value_and_gradient_match_the_naive_reference(weighted: bool, eps: float) -> None:
    masks = common.randn(2, 4, 3, 5, seed=2, scale=2).sigmoid()
    w = common.randn(2, 4, seed=3).softmax(1) if weighted else None
    common.check_reference(
        lambda s, t: maskd_loss(s, t, masks, weights=w, eps=eps),
        lambda s, t: naive_loss(s, t, common.array(masks), None if w is None else common.array(w), eps),
        common.randn(2, 3, 3, 5),
        common.randn(2, 3, 3, 5, seed=1),
    )


def test_equal_maps_give_zero_and_masks_of_one_half_give_half_the_error() -> None:
    s, t, masks = common.randn(2, 3, 4, 5), common.randn(2, 3, 4, 5, seed=1), torch.full((2, 4, 4, 5), 0.5)
    assert maskd_loss(t.clone(), t, common.randn(2, 4, 4, 5).sigmoid()).item() == 0.0
    for w in (None, common.randn(2, 4, seed=2).softmax(1)):
        torch.testing.assert_close(maskd_loss(s, t, masks, weights=w), 0.5 * (s - t).square().mean())


def test_masks_of_no_area_add_nothing() -> None:
    s = common.randn(1, 3, 4, 5).requires_grad_()
    loss = maskd_loss(s, torch.zeros(1, 3, 4, 5), torch.zeros(1, 4, 4, 5))
    loss.backward()
    assert loss.item() == 0.0
    assert s.grad is not None
    assert not s.grad.any()


def test_gradient_reaches_the_student_alone() -> None:
    masks = common.randn(2, 4, 4, 5).sigmoid().requires_grad_()
    w = common.randn(2, 4).softmax(1).requires_grad_()
    common.check_one_sided(
        lambda s, t: maskd_loss(s, t, masks, weights=w), common.randn(2, 3, 4, 5), common.randn(2, 3, 4, 5, seed=1)
    )
    assert masks.grad is None
    assert w.grad is None


@pytest.mark.parametrize("dtype", common.HALVES)
def test_half_precision_is_computed_in_float32(dtype: torch.dtype) -> None:
    s, t, tokens = common.randn(2, 3, 8, 9, scale=5), common.randn(2, 3, 8, 9, seed=1), common.randn(4, 3)
    common.check_half(lambda s, t: maskd_loss(s, t, token_masks(t, tokens), eps=1e-5), s, t, dtype)
    common.check_half(regression_loss, s, t, dtype)
    masks = token_masks(t, tokens).to(dtype)
    with torch.autocast("cpu", dtype=dtype):
        torch.testing.assert_close(token_dice(masks), token_dice(masks.float()))
        torch.testing.assert_close(token_masks(t.to(dtype), tokens), token_masks(t.to(dtype).float(), tokens))


@pytest.mark.parametrize(
    ("student", "masks", "weights"),
    [
        ((2, 3, 4, 6), (2, 4, 4, 5), None),
        ((2, 3, 4, 5), (2, 4, 4, 6), None),
        ((2, 3, 4, 5), (1, 4, 4, 5), None),
        ((2, 3, 4, 5), (2, 4, 4, 5), (2, 3)),
    ],
)
def test_shapes_that_do_not_fit_are_refused(student: tuple, masks: tuple, weights: tuple | None) -> None:
    w = None if weights is None else torch.zeros(weights)
    with pytest.raises(ShapeMismatch, match=r"MasKD: .* do not fit"):
        maskd_loss(torch.zeros(student), torch.zeros(2, 3, 4, 5), torch.zeros(masks), weights=w)


@pytest.mark.parametrize("beta", [0.0, 0.11, 1.0])
def test_regression_matches_the_naive_reference_and_is_zero_for_equal_outputs(beta: float) -> None:
    def reference(s: np.ndarray, t: np.ndarray) -> float:
        gaps = [abs(a - b) for a, b in zip(s.ravel(), t.ravel())]
        return sum(g**2 / (2 * beta) if g < beta else g - beta / 2 for g in gaps) / len(gaps)

    s, t = common.randn(2, 4, 3), common.randn(2, 4, 3, seed=1)
    common.check_reference(lambda s, t: regression_loss(s, t, beta=beta), reference, s, t)
    common.check_one_sided(lambda s, t: regression_loss(s, t, beta=beta), s, t)
    assert regression_loss(t.clone(), t, beta=beta).item() == 0.0


# --- stage 1 ---


@pytest.mark.parametrize("heads", [1, 2])
def test_stage_one_loss_and_gradient_match_the_naive_reference(heads: int) -> None:
    labels = label_maps(2, (5, 7))
    maps = [common.randn(2, K, 3, 4, seed=i, scale=2) for i in range(heads)]
    tokens = common.randn(4, K, seed=5).requires_grad_()
    loss = stage1_loss(tokens, maps, labels, aux_weight=0.3)

    def value(x: np.ndarray) -> float:
        return naive_stage1(x, [common.array(m) for m in maps], labels.numpy(), 0.3)

    assert loss.item() == pytest.approx(value(common.array(tokens)), rel=1e-5)
    slope = common.numeric_gradient(value, common.array(tokens))
    found = torch.autograd.grad(loss, tokens)[0].double().numpy()
    np.testing.assert_allclose(found, slope, rtol=1e-3, atol=1e-4 * np.abs(slope).max())


def test_labels_to_ignore_change_nothing_and_a_batch_of_them_leaves_the_overlap() -> None:
    labels, maps, tokens = label_maps(1, SIZE), [common.randn(1, K, *SIZE)], common.randn(4, K)
    moved = [torch.where(labels[:, None] == IGNORE, 50.0, maps[0])]
    masks = token_masks(maps[0], tokens)  # the same masks for both, so that only cross entropy could differ
    entropies = [F.cross_entropy(masked_features(m, masks), labels, ignore_index=IGNORE) for m in (maps[0], moved[0])]
    torch.testing.assert_close(*entropies)
    torch.testing.assert_close(stage1_loss(tokens, maps, labels), entropies[0] + token_dice(masks))
    none = torch.full_like(labels, IGNORE)
    torch.testing.assert_close(stage1_loss(tokens, maps, none), token_dice(masks))


def test_tokens_learn_by_momentum_and_a_polynomial_rate() -> None:
    data, tokens, lr = split(), 0.01 * common.randn(4, K), 0.1
    maps, labels, _ = next(data.teacher_taps())
    found, losses = learn_tokens(tokens, [(maps, labels)] * 3, iterations=3, lr=lr)
    expected, speed = tokens.clone(), torch.zeros_like(tokens)
    for step in range(3):
        expected.requires_grad_()
        loss = stage1_loss(expected, maps, labels)
        assert losses[step].item() == pytest.approx(loss.item(), rel=1e-5)
        speed = 0.9 * speed + torch.autograd.grad(loss, expected)[0]
        expected = (expected - lr * (1 - step / 3) ** 0.9 * speed).detach()
    torch.testing.assert_close(found, expected)
    assert not found.requires_grad


def test_learning_lowers_the_loss_and_pulls_masks_apart() -> None:
    torch.manual_seed(0)
    data = split()
    batches = token_batches(data.teacher_taps, K, size=4, max_megabytes=1)
    tokens = 0.01 * common.randn(4, K)
    found, losses = learn_tokens(tokens, batches, iterations=150)
    assert losses[-10:].mean() < 0.95 * losses[:10].mean()
    maps, _, _ = next(data.teacher_taps())
    assert token_dice(token_masks(maps[0], found)) < token_dice(token_masks(maps[0], tokens))


def test_logits_that_are_not_finite_stop_stage_one() -> None:
    with pytest.raises(NonFiniteLoss, match=r"stage 1 became non-finite within 2 iterations at learning rate 0\.1"):
        learn_tokens(
            common.randn(4, K), [([torch.full((1, K, 2, 2), 1e30).half()], label_maps(1, (2, 2)))] * 2, iterations=2
        )


# --- batches of stage 1 ---


def names_of(labels: Tensor) -> list[int]:
    """Which samples of the split these label maps are."""
    known = label_maps(6)
    return [next(i for i, k in enumerate(known) if torch.equal(k, row.long())) for row in labels]


def test_split_in_memory_is_read_once_and_drawn_in_another_order_every_pass() -> None:
    data, passes = split(), []

    def read() -> Iterator[tuple[list[Tensor], Tensor, Tensor]]:
        passes.append(1)
        return data.teacher_taps()

    torch.manual_seed(0)
    batches = list(islice(token_batches(read, K, size=2, max_megabytes=1), 9))
    drawn = [names_of(labels) for _, labels in batches]
    rounds = [list(chain(*drawn[i : i + 3])) for i in (0, 3, 6)]
    assert all(sorted(r) == list(range(6)) for r in rounds)
    assert len({tuple(r) for r in rounds}) > 1
    assert len(passes) == 1
    torch.manual_seed(0)
    again = islice(token_batches(read, K, size=2, max_megabytes=1), 9)
    assert [names_of(labels) for _, labels in again] == drawn
    maps, _, ids = next(data.teacher_taps())
    for found, of in zip(batches[0][0][0], drawn[0]):
        if of in ids:
            torch.testing.assert_close(found.float(), maps[0][of], rtol=1e-3, atol=1e-3)


def test_split_too_large_for_memory_is_read_again_in_order_of_ids() -> None:
    data, passes = split(), []

    def read() -> Iterator[tuple[list[Tensor], Tensor, Tensor]]:
        passes.append(1)
        return data.teacher_taps()

    batches = list(islice(token_batches(read, K, size=5, max_megabytes=0.0), 6))
    assert list(chain(*(names_of(labels) for _, labels in batches))) == 5 * list(range(6))
    assert all(len(maps[0]) == len(labels) == 5 for maps, labels in batches)
    assert len(passes) == 5
    limit = sum(x.numel() * 2 for maps, labels, _ in data.teacher_taps() for x in (*maps, labels)) / 0.999999e6
    passes.clear()
    list(islice(token_batches(read, K, size=5, max_megabytes=limit), 6))  # 16 bits a number: it just fits
    assert len(passes) == 1


def test_split_smaller_than_a_batch_is_one_batch() -> None:
    for limit in (1.0, 0.0):
        sizes = [len(y) for _, y in islice(token_batches(split(2).teacher_taps, K, size=4, max_megabytes=limit), 3)]
        assert sizes == ([2, 2, 2] if limit else [4, 4, 4])


def test_samples_that_tokens_cannot_learn_from_are_named() -> None:
    maps, labels, ids = next(split().teacher_taps())
    cases: list[tuple[list, type[Exception], str]] = [
        ([], ConfigError, "has no samples"),
        ([(maps, labels[:, 0, 0], ids)], ConfigError, r"label maps \(B, H, W\); got targets \(4,\)"),
        ([(maps, labels.float(), ids)], ConfigError, "got targets .* of torch.float32"),
        ([(maps, [object()] * 4, ids)], ConfigError, "got targets list: .* tokens="),
        ([([m[:, :2] for m in maps], labels, ids)], ShapeMismatch, "do not fit a data set of 3 classes"),
        ([(maps, labels.clamp(max=3), ids)], ShapeMismatch, "label 3 is neither in 0 to 2 nor 255"),
        ([(maps, labels, ids), (maps, labels[:, 1:], ids)], ShapeMismatch, "samples of one size"),
    ]
    for samples, kind, said in cases:
        with pytest.raises(kind, match=said):
            next(token_batches(lambda samples=samples: iter(samples), K, size=2, max_megabytes=1))


# --- the segmentation form ---


def dense_inputs(
    heads: int = 1, student: tuple[int, int] = SIZE, progress: float = 0.0, scale: float = 2.0
) -> LinkInputs:
    return LinkInputs(
        teacher=[common.randn(2, K, *SIZE, seed=20 + i, scale=scale) for i in range(heads)],
        student=[common.randn(2, K, *student, seed=30 + i, scale=scale).requires_grad_() for i in range(heads)],
        targets=label_maps(2),
        progress=progress,
    )


def test_segmentation_link_matches_the_naive_reference_with_auxiliary_head() -> None:
    link, batch = prepared(heads=2), dense_inputs(heads=2)
    tokens = common.array(cast(ReceptiveTokens, link.receptive[0]).tokens)
    values = [
        0.5 * naive_loss(*map(common.array, (s, t)), naive_masks(common.array(t), tokens), eps=1e-5)
        for s, t in zip(batch.student, batch.teacher)
    ]
    terms = link(batch)
    assert list(terms) == ["mask"]
    assert terms["mask"].item() == pytest.approx(values[0] + 0.4 * values[1], rel=1e-5)
    assert prepared(heads=2, aux_weight=1.0, seed=0).aux_weight == 1.0
    assert len(link.receptive) == 1  # both heads share their tokens
    assert not list(link.parameters())


def test_tokens_of_zero_give_a_quarter_of_the_squared_error(tmp_path: Path) -> None:
    link = prepared(tokens=token_file(tmp_path, (K,), prob=False, scale=0.0))
    batch = dense_inputs()
    expected = 0.25 * (batch.student[0] - batch.teacher[0]).square().mean()
    torch.testing.assert_close(link(batch)["mask"], expected, rtol=1e-5, atol=0)


def test_students_logits_of_another_size_are_resized_to_the_teachers() -> None:
    for size in ((8, 10), (2, 3)):
        link, batch = prepared(student=size), dense_inputs(student=size)
        tokens = common.array(cast(ReceptiveTokens, link.receptive[0]).tokens)
        s, t = naive_resize(common.array(batch.student[0]), SIZE), common.array(batch.teacher[0])
        expected = 0.5 * naive_loss(s, t, naive_masks(t, tokens), eps=1e-5)
        assert link(batch)["mask"].item() == pytest.approx(expected, rel=1e-5)


def test_preparing_learns_the_tokens_and_depends_on_the_generator_alone() -> None:
    link, again, other = prepared(), prepared(), prepared(seed=1)
    tokens = [cast(ReceptiveTokens, x.receptive[0]).tokens for x in (link, again, other)]
    assert torch.equal(tokens[0], tokens[1])
    assert not torch.equal(tokens[0], tokens[2])
    torch.manual_seed(0)
    start = ReceptiveTokens(K, 4).tokens
    assert (tokens[0] - start).abs().max() > 1e-3
    batches = token_batches(split().teacher_taps, K, size=2, max_megabytes=1)
    torch.testing.assert_close(tokens[0], learn_tokens(start, batches, iterations=3)[0])


def test_resumed_link_takes_the_saved_tokens() -> None:
    link, other, batch = prepared(), prepared(seed=1), dense_inputs()
    assert not torch.equal(link(batch)["mask"], other(batch)["mask"])
    assert list(link.state_dict()) == ["receptive.0.tokens"]
    other.load_state_dict(link.state_dict())
    assert torch.equal(link(batch)["mask"], other(batch)["mask"])


def test_segmentation_is_never_customised_unless_asked() -> None:
    first, last = (dense_inputs(progress=p) for p in (0.0, 1.0))
    link = prepared()
    assert torch.equal(link(first)["mask"], link(last)["mask"])
    asked = prepared(customise_after=0.5)
    assert torch.equal(asked(first)["mask"], link(first)["mask"])
    assert not torch.equal(asked(last)["mask"], link(last)["mask"])


@pytest.mark.parametrize("dtype", common.HALVES)
def test_half_precision_logits_are_computed_in_float32(dtype: torch.dtype) -> None:
    link, batch = prepared(student=(8, 10)), dense_inputs(student=(8, 10))
    half = LinkInputs(teacher=[batch.teacher[0].to(dtype)], student=[batch.student[0].to(dtype)])
    back = LinkInputs(teacher=[half.teacher[0].float()], student=[half.student[0].float()])
    with torch.autocast("cpu", dtype=dtype):
        found = link(half)["mask"]
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, link(back)["mask"], rtol=1e-5, atol=1e-7)


# --- the detection form ---


@pytest.mark.parametrize("prob", [True, False])
@pytest.mark.parametrize("progress", [0.0, 0.25, 0.5, 1.0])
def test_detection_link_matches_the_naive_reference(tmp_path: Path, prob: bool, progress: float) -> None:
    link = detector(token_file(tmp_path), prob=prob, customise_after=0.5)
    batch, total = levels_of(progress=progress), 0.0
    for i, (s, t) in enumerate(zip(batch.student, batch.teacher)):
        level, phi = cast(ReceptiveTokens, link.receptive[i]), link.bridges[i]
        kernel, bias = common.array(phi.weight)[:, :, 0, 0], common.array(phi.bias)
        bridged = np.einsum("dc,bchw->bdhw", kernel, common.array(s)) + bias[:, None, None]
        masks = naive_masks(common.array(t), common.array(level.tokens))
        if progress >= 0.5:
            masks = masks * naive_masks(bridged, common.array(level.tokens))
        w = level.weights(t)
        assert (w is not None) is prob
        total += naive_loss(bridged, common.array(t), masks, None if w is None else common.array(w))
    assert link(batch)["mask"].item() == pytest.approx(total, rel=1e-4)


def test_identity_bridge_and_equal_maps_give_zero(tmp_path: Path) -> None:
    link, batch = detector(token_file(tmp_path), student=6, customise_after=0.5), levels_of(student=6)
    for phi in link.bridges:
        nn.init.eye_(phi.weight.data.view(6, 6))
        nn.init.zeros_(phi.bias)
    for progress in (0.0, 1.0):
        equal = LinkInputs(teacher=batch.teacher, student=[t.clone() for t in batch.teacher], progress=progress)
        assert link(equal)["mask"].item() == 0.0


@pytest.mark.parametrize("prob", [True, False])
def test_tokens_of_zero_give_half_the_squared_error_of_every_level(tmp_path: Path, prob: bool) -> None:
    link = detector(token_file(tmp_path, scale=0.0), prob=prob, customise_after=0.5)
    batch = levels_of()
    errors = [
        0.5 * (phi(s) - t).square().mean() for phi, s, t in zip(link.bridges, batch.student, batch.teacher, strict=True)
    ]
    torch.testing.assert_close(link(batch)["mask"], torch.stack(errors).sum())


def test_customised_masks_are_smaller_and_inside_zero_and_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen, link = spy_masks(monkeypatch), detector(token_file(tmp_path), customise_after=0.5)
    for progress in (0.4, 0.5):
        link(levels_of(progress=progress))
    for before, after in zip(seen[:2], seen[2:], strict=True):
        assert bool((after <= before).all())
        assert not torch.equal(after, before)
        assert after.min() > 0
        assert after.max() < 1


def test_order_of_tokens_with_their_scores_changes_nothing(tmp_path: Path) -> None:
    link, batch = detector(token_file(tmp_path), customise_after=0.5), levels_of(progress=1.0)
    expected, order = link(batch)["mask"].detach(), torch.tensor([2, 0, 3, 1])
    first = cast(ReceptiveTokens, link.receptive[0])
    assert first.prob is not None
    first.tokens = first.tokens[order]
    mismatched = link(batch)["mask"]
    assert not torch.isclose(mismatched, expected)
    first.prob.score.weight.data = first.prob.score.weight[order]
    assert first.prob.score.bias is not None
    first.prob.score.bias.data = first.prob.score.bias[order]
    torch.testing.assert_close(link(batch)["mask"].detach(), expected)


@pytest.mark.parametrize("progress", [0.0, 1.0])
def test_students_gradient_is_that_with_constant_masks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, progress: float
) -> None:
    seen, link = spy_masks(monkeypatch), detector(token_file(tmp_path), customise_after=0.5)
    batch = levels_of(progress=progress)
    for t in batch.teacher:
        t.requires_grad_()
    link(batch)["mask"].backward()
    assert all(t.grad is None for t in batch.teacher)
    for i, (s, t) in enumerate(zip(batch.student, batch.teacher)):
        level, phi = cast(ReceptiveTokens, link.receptive[i]), link.bridges[i]
        masks, w = common.array(seen[i]), common.array(level.weights(t))
        kernel, bias = common.array(phi.weight)[:, :, 0, 0], common.array(phi.bias)

        def value(x: np.ndarray, t: Tensor = t, masks=masks, w=w, kernel=kernel, bias=bias) -> float:
            bridged = np.einsum("dc,bchw->bdhw", kernel, x) + bias[:, None, None]
            return naive_loss(bridged, common.array(t), masks, w)

        slope = common.numeric_gradient(value, common.array(s))
        assert s.grad is not None
        np.testing.assert_allclose(s.grad.numpy(), slope, rtol=1e-3, atol=1e-4 * np.abs(slope).max())
        assert phi.weight.grad is not None
        assert phi.weight.grad.any()
        assert not level.tokens.requires_grad
        assert all(p.grad is None and not p.requires_grad for p in level.parameters())


def test_bridges_are_there_at_equal_widths_and_alone_are_trained(tmp_path: Path) -> None:
    link = detector(token_file(tmp_path), student=6)
    trained = {n for n, p in link.named_parameters() if p.requires_grad}
    assert trained == {f"bridges.{i}.{x}" for i in range(2) for x in ("weight", "bias")}


def test_regression_outputs_are_the_last_taps_with_their_factors(tmp_path: Path) -> None:
    taps = [("neck[0]", "neck[0]"), ("reg", "reg"), ("reg2", "reg2")]
    link = detector(token_file(tmp_path, (6,)), levels=1, taps=taps, regression=[0.2, 0.1], regression_beta=0.11)
    batch = levels_of(levels=1)
    outputs = [(common.randn(2, 7, seed=i), common.randn(2, 7, seed=5 + i)) for i in range(2)]
    batch.student += [s for s, _ in outputs]
    batch.teacher += [t for _, t in outputs]
    terms = link(batch)
    first, second = (regression_loss(s, t, beta=0.11) for s, t in outputs)
    torch.testing.assert_close(terms["regression"], 0.2 * first + 0.1 * second)
    alone = detector(token_file(tmp_path, (6,)), levels=1)
    assert list(alone(levels_of(levels=1))) == ["mask"]
    torch.testing.assert_close(terms["mask"], alone(levels_of(levels=1))["mask"])


def test_detection_learns_tokens_and_branches_of_every_level_by_the_teachers_heads() -> None:
    teacher, _ = detector_pair()
    data = training_set(teacher)
    maps, targets, _ = next(iter(data.teacher_taps()))
    taps = [("neck[0]",) * 2, ("neck[1]",) * 2]
    torch.manual_seed(0)
    link = MasKD(form="detection", taps=taps, stage1_iterations=12)
    assert (link.masks, link.stage1_lr, link.wants_data) == (6, 0.01, True)
    link.members = {"teacher": teacher}
    link.connect([tuple(m.shape) for m in maps], [tuple(m.shape) for m in maps])
    levels = [cast(ReceptiveTokens, level) for level in link.receptive]

    def objective() -> float:
        masks = [level.masks(t) for level, t in zip(levels, maps)]
        seen = [masked_features(t, m, level.weights(t)) for level, t, m in zip(levels, maps, masks)]
        return (task_loss(teacher, seen, targets) + sum(token_dice(m) for m in masks)).item()

    weights = hash_state(teacher.state_dict())
    before, start = {k: v.clone() for k, v in link.state_dict().items()}, objective()
    link.prepare(data)
    assert objective() < start
    moved = {name for name, value in link.state_dict().items() if not torch.equal(value, before[name])}
    assert moved == {name for name in before if name.startswith("receptive.")}
    assert hash_state(teacher.state_dict()) == weights
    assert {name.split(".")[0] for name, p in link.named_parameters() if p.requires_grad} == {"bridges"}
    assert not any(level.tokens.requires_grad for level in levels)
    link(LinkInputs(teacher=maps, student=maps))["mask"].backward()


# --- the token file ---


def test_learned_tokens_can_be_stored_and_named(tmp_path: Path) -> None:
    link, path = prepared(), tmp_path / "tokens.safetensors"
    save_weights(path, link.receptive.state_dict(), metadata={"teacher": "toy"})
    named, batch = prepared(tokens=str(path), masks=9), dense_inputs()
    assert not named.wants_data
    assert torch.equal(named(batch)["mask"], link(batch)["mask"])


def test_file_that_does_not_fit_is_named(tmp_path: Path) -> None:
    plain, weighed = token_file(tmp_path, prob=False), token_file(tmp_path)
    with pytest.raises(CorruptFile, match="no such weight file"):
        detector(str(tmp_path / "none.safetensors"))
    with pytest.raises(CorruptFile, match=r"level 2 needs '2.tokens' of \(M, 6\), found none"):
        detector(weighed, levels=3)
    with pytest.raises(CorruptFile, match=r"level 0 needs '0.tokens' of \(M, 7\), found \(4, 6\)"):
        detector(weighed, teacher=7)
    with pytest.raises(CorruptFile, match=r"lacks 0.prob.conv.*set prob=False"):
        detector(plain)
    assert cast(ReceptiveTokens, detector(plain, prob=False).receptive[0]).prob is None
    assert cast(ReceptiveTokens, read_tokens(weighed, [6], prob=False)[0]).prob is None


# --- options, shapes, the engine ---


def test_step_without_stage_one_is_refused() -> None:
    link = MasKD()
    link.connect([(2, K, *SIZE)], [(2, K, *SIZE)])
    with pytest.raises(ConfigError, match=r"no learned tokens yet; call prepare\(data\)"):
        link(dense_inputs())


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (dict(masks=1), "masks >= 2"),
        (dict(customise_after=1.5), "customise_after in"),
        (dict(prob=True), "neither prob nor regression"),
        (dict(regression=[1.0]), "neither prob nor regression"),
        (dict(form="detection", tokens="x", regression=[1.0]), "leave no map"),
        (dict(form="detection", tokens="x", regression_beta=-1.0), "regression_beta >= 0"),
        (dict(stage1_iterations=0), "stage1_iterations >= 1"),
        (dict(stage1_batch_size=0), "stage1_batch_size >= 1"),
        (dict(stage1_lr=0.0), "stage1_lr > 0"),
    ],
)
def test_options_out_of_range_are_refused(options: dict, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        MasKD(**options)


@pytest.mark.parametrize(
    ("teacher", "student", "said"),
    [
        ((2, 3, 4, 5), (2, 4, 4, 5), "a student head of 3 classes"),
        ((2, 3, 4, 5), (3, 3, 4, 5), "the same batch"),
        ((2, 3, 4, 5), (2, 3), r"tap logits \(B, C, H, W\)"),
        ((2, 1, 4, 5), (2, 1, 4, 5), "two or more would fit"),
    ],
)
def test_logits_that_do_not_fit_are_named(teacher: tuple, student: tuple, said: str) -> None:
    with pytest.raises(ShapeMismatch, match=f"MasKD: .*{said}"):
        MasKD().connect([teacher], [student])


def test_maps_that_do_not_fit_are_named(tmp_path: Path) -> None:
    link = MasKD(form="detection", tokens=token_file(tmp_path, (6,)))
    for student in ((2, 5, 4, 5), (3, 5, 4, 6), (2, 5)):
        with pytest.raises(ShapeMismatch, match="MasKD compares maps of one size: teacher tap"):
            link.connect([(2, 6, 4, 6)], [student])
    with pytest.raises(ShapeMismatch, match=r"heads of \[3, 4\] classes cannot share tokens"):
        MasKD(taps=[("a", "a"), ("b", "b")]).connect([(2, 3, 4, 5), (2, 4, 4, 5)], [(2, 3, 4, 5), (2, 4, 4, 5)])
    outputs = MasKD(form="detection", tokens="x", taps=[("a", "a"), ("b", "b")], regression=[1.0])
    with pytest.raises(ShapeMismatch, match="MasKD's regression term"):
        outputs.connect([(2, 6, 4, 6), (9, 4)], [(2, 6, 4, 6), (8, 4)])


def test_registry_builds_it_and_refuses_typos() -> None:
    common.check_registered("MasKD", MasKD, weight=1.0, typo="mask", meant="masks", masks=6)
    with pytest.raises(UnknownName, match="unknown form 'detecton' of MasKD; did you mean 'detection'"):
        MasKD(form="detecton")
    link = MasKD()
    assert (link.masks, link.stage1_iterations, link.stage1_lr, link.stage1_batch_size) == (8, 2000, 0.1, 16)
    assert (link.taps, link.aux_weight, link.customise_after) == ([("logits", "logits")], 0.4, None)


class ToyDense(nn.Module):
    """Logits at half the image's size, with batch norm and drop-out before them."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, width, 3, 2, 1), nn.BatchNorm2d(width), nn.ReLU(), nn.Dropout(0.5))
        self.conv_seg = nn.Conv2d(width, K, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv_seg(self.stem(x))


@DATASETS.register_module()
class MasKDToyData(torch.utils.data.Dataset):
    """Ten 8×10 images whose grey says the class of the pixel."""

    classes = ("a", "b", "c")

    def __init__(self, split: str = "train", augment: dict | None = None) -> None:
        self.maps = label_maps(10)
        self.images = self.maps.clamp(max=K)[:, None].float() + common.randn(10, 1, 8, 10, scale=0.3)
        self.labels = torch.zeros(10)  # a label for each sample, which MasKD does not read

    def __len__(self) -> int:
        return 10

    def __getitems__(self, indices: list[int]) -> dict[str, Any]:
        ids = torch.tensor(indices)
        return dict(inputs=self.images[ids], data_samples=dict(labels=self.maps[ids], ids=ids))


class ToyDenseAdapter(TaskAdapter):
    def preprocessor(self, deploy: nn.Module) -> nn.Module:
        return BaseDataPreprocessor()

    def batch(self, inputs: Any, data_samples: Any) -> Batch:
        return Batch(inputs, data_samples["labels"], data_samples["ids"])

    def member_inputs(self, batch: Batch, deploy: nn.Module, member: nn.Module) -> Any:
        return batch.inputs

    def forward(self, model: nn.Module, inputs: Any, batch: Batch, *, with_loss: bool) -> Forward:
        logits = model(inputs)
        large = F.interpolate(logits, inputs.shape[-2:], mode="bilinear")
        losses = {"loss_ce": F.cross_entropy(large, batch.targets, ignore_index=IGNORE)} if with_loss else {}
        return Forward(losses, {"logits": logits})

    def predict(self, model: nn.Module, inputs: Any, batch: Batch) -> list[Any]:
        return list(model(inputs))

    def example(self, deploy: nn.Module) -> Batch:
        return Batch(torch.zeros(2, 1, 8, 10), torch.zeros(2, 8, 10, dtype=torch.long))


def toy_config() -> RunConfig:
    data = dict(type="MasKDToyData", augment=dict(flip=True))
    return cast(RunConfig, SimpleNamespace(data=DataConfig(train=data, val=data, test=data, eval_batch_size=4)))


def toy_distiller(**options: Any) -> Distiller:
    torch.manual_seed(0)
    teacher = ToyDense(6)
    for _ in range(3):  # running statistics of its own
        teacher(MasKDToyData().images)
    nn.init.normal_(teacher.conv_seg.weight)  # logits as large as a trained network's
    members = {
        "teacher": dict(type="frozen", model=teacher, initial_weights=True),
        "student": dict(type="trained", model=ToyDense(4)),
    }
    link = dict(type="MasKD", masks=4, stage1_iterations=20, stage1_batch_size=4, **options)
    model = Distiller(members=members, links=[link], adapter=ToyDenseAdapter())
    prepare_links(model, toy_config())
    return model


@pytest.mark.parametrize("megabytes", [1000.0, 0.0])
def test_stage_one_through_the_engine_changes_no_teacher_and_no_generator(megabytes: float) -> None:
    model, again = toy_distiller(max_megabytes=megabytes), toy_distiller(max_megabytes=megabytes)
    assert hash_state(model.frozen["teacher"].state_dict()) == model.frozen_hashes["teacher"]
    assert not any(p.requires_grad or p.grad is not None for p in model.frozen["teacher"].parameters())
    tokens, same = (cast(ReceptiveTokens, cast(MasKD, m.links[0]).receptive[0]).tokens for m in (model, again))
    assert torch.equal(tokens, same)
    assert tokens.abs().max() > 0.05  # from 0.01
    after = torch.get_rng_state()
    prepare_links(model, toy_config())
    assert torch.equal(torch.get_rng_state(), after)


def test_distiller_trains_it_and_keeps_the_tokens_out_of_the_student() -> None:
    model, data = toy_distiller(), MasKDToyData()
    tokens = cast(ReceptiveTokens, cast(MasKD, model.links[0]).receptive[0]).tokens.clone()
    model.train()
    optimizer, losses = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=0.1), []
    batch = Batch(data.images[:6], targets=data.maps[:6], ids=torch.arange(6))
    for _ in range(30):
        terms = model.loss(batch)
        losses.append(terms["maskd.loss_mask"].item())
        optimizer.zero_grad()
        torch.stack(list(terms.values())).sum().backward()
        optimizer.step()
        model.iteration += 1
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])
    assert torch.equal(cast(ReceptiveTokens, cast(MasKD, model.links[0]).receptive[0]).tokens, tokens)
    assert "links.0.receptive.0.tokens" in model.state_dict()
    assert not any("tokens" in key for key in model.deploy.state_dict())
