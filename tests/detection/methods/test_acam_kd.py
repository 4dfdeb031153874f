"""ACAM-KD against float64 references: fusion, masks, losses, what learns by what, its ablations, and a detector."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from limbeck.detection.methods import _cooperative_masks
from limbeck.detection.methods._cooperative_masks import (
    CooperativeMasks,
    channel_masks,
    cross_attention,
    fewer_positions,
)
from limbeck.detection.methods.acam_kd import ACAMKD, diversity_loss, masked_losses
from limbeck.engine.adapter import Batch
from limbeck.engine.distiller import Distiller
from limbeck.engine.method import LinkInputs
from limbeck.engine.registry import METHODS
from limbeck.errors import ConfigError, ShapeMismatch, UnknownName
from tests.detection.methods.pyramids import detector_pair, toy_batch, training_set
from tests.vision.methods import conftest as common

C, N = 6, (4, 5)  # width and size of the first level


# --- float64 references ---


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def naive_attention(q: np.ndarray, k: np.ndarray, v: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of one image, columns (C, N); the fused columns and the rows of A."""
    rows = np.array([common.softmax(q[:, i] @ k / np.sqrt(len(q))) for i in range(q.shape[1])])
    return v @ rows.T, rows


def naive_conv(conv: nn.Module, x: np.ndarray) -> np.ndarray:
    kernel, bias = common.array(cast(Tensor, conv.weight))[:, :, 0, 0], common.array(cast(Tensor, conv.bias))
    return kernel @ x + bias[:, None]


def naive_masks(level: CooperativeMasks, t: np.ndarray, s: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """M^c (B, M, C) and M^s (B, M, N) by the equations, image by image."""
    found: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])
    of_channels, of_positions = common.array(cast(Tensor, level.channel)), common.array(cast(Tensor, level.spatial))
    for ti, si in zip(t.reshape(*t.shape[:2], -1), s.reshape(*s.shape[:2], -1)):
        asks, answers = {"teacher": (ti, si), "student": (si, ti), "teacher_only": (ti, ti)}[level.query]
        if level.source == "fusion":
            parts = (naive_conv(level.w_q, asks), naive_conv(level.w_k, answers), naive_conv(level.w_v, answers))
            f, _ = naive_attention(*parts)
        else:
            f = ti
        found[0].append(np.array([[sigmoid(m * v) for v in f.mean(1)] for m in of_channels[:, 0]]))
        found[1].append(np.array([[sigmoid(m @ f[:, p]) for p in range(f.shape[1])] for m in of_positions]))
    return np.array(found[0]), np.array(found[1])


def naive_losses(
    s: np.ndarray, t: np.ndarray, of_channels: np.ndarray, of_positions: np.ndarray, power: int = 1
) -> tuple[float, float]:
    """L^c and L^s with the M × C × N products."""
    totals = np.zeros(2)
    for si, ti, mc, ms in zip(s, t, of_channels, of_positions):
        gap = (ti - si).reshape(len(si), -1)
        count = len(mc)
        for row in mc:
            products = row[:, None] * gap
            totals[0] += (products**2).sum() / (gap.shape[1] * (row**power).sum() + 1e-6) / count
        for row in ms:
            totals[1] += ((row * gap) ** 2).sum() / (gap.shape[0] * (row**power).sum() + 1e-6) / count
    return totals[0] / len(s), totals[1] / len(s)


def naive_diversity(masks: np.ndarray, form: str) -> float:
    values = []
    for image in masks.reshape(*masks.shape[:2], -1):
        pairs = [(i, j) for i in range(len(image)) for j in range(len(image)) if i != j]
        norms = (image**2).sum(1)
        if form == "pairwise":
            values.append(np.mean([2 * image[i] @ image[j] / (norms[i] + norms[j]) for i, j in pairs]))
        else:
            values.append(2 * sum(image[i] @ image[j] for i, j in pairs) / (norms.sum() + norms.sum()))
    return float(np.mean(values))


# --- toys ---


def shapes(width: int, levels: int = 2, batch: int = 2) -> list[tuple[int, ...]]:
    return [(batch, width, N[0], N[1] - i) for i in range(levels)]


def connected(student: int = 5, levels: int = 2, **options: Any) -> ACAMKD:
    """A link whose selectors make masks far from ½."""
    torch.manual_seed(0)
    taps = options.pop("taps", [(f"neck[{i}]", f"neck[{i}]") for i in range(levels)])
    link = ACAMKD(**{"taps": taps, "count": 4, **options})
    link.connect(shapes(C, levels), shapes(student, levels))
    for level in link.levels:
        for selectors in (level.channel, level.spatial):
            if selectors is not None:
                nn.init.normal_(cast(Tensor, selectors))
    return link


def inputs(student: int = 5, levels: int = 2, batch: int = 2) -> LinkInputs:
    pairs = zip(shapes(C, levels, batch), shapes(student, levels, batch))
    values = [
        (common.randn(*t, seed=i), common.randn(*s, seed=9 + i).requires_grad_()) for i, (t, s) in enumerate(pairs)
    ]
    return LinkInputs(teacher=[t for t, _ in values], student=[s for _, s in values])


def bridged(link: ACAMKD, batch: LinkInputs) -> list[np.ndarray]:
    found = []
    for conv, s in zip(link.bridges, batch.student):
        flat = [naive_conv(conv, x) for x in common.array(s.flatten(2))] if link.align else list(common.array(s))
        found.append(np.array(flat).reshape(len(s), -1, *s.shape[2:]))
    return found


def identity(link: ACAMKD) -> ACAMKD:
    for conv in link.bridges:
        nn.init.eye_(cast(Tensor, conv.weight).data.view(C, C))
        nn.init.zeros_(cast(Tensor, conv.bias))
    return link


# --- fusion ---


def test_fusion_is_the_explicit_softmax_and_its_rows_add_up_to_one() -> None:
    q, k, v = (common.randn(2, c, *size, seed=i) for i, (c, size) in enumerate([(3, N), (3, (2, 3)), (C, (2, 3))]))
    found = cross_attention(q, k, v)
    for i in range(2):
        columns, rows = naive_attention(*(common.array(x[i].flatten(1)) for x in (q, k, v)))
        np.testing.assert_allclose(rows.sum(1), 1.0)
        np.testing.assert_allclose(found[i].flatten(1).numpy(), columns, atol=1e-5)
    ones = cross_attention(q, k, torch.ones_like(v))
    torch.testing.assert_close(ones, torch.ones(2, C, *N))


def test_fusion_takes_the_fused_operator_and_never_holds_the_matrix() -> None:
    q, k, v = (common.randn(1, c, 8, 9, seed=c).requires_grad_() for c in (3, 3, 6))
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):  # raises where it does not apply
        cross_attention(q, k, v).square().sum().backward()
    assert all(x.grad is not None and x.grad.any() for x in (q, k, v))


def test_constant_student_gives_constant_fusion_and_masks() -> None:
    torch.manual_seed(0)
    level = CooperativeMasks(C, 4)
    student = common.randn(2, C, 1, 1).expand(2, C, *N)
    fused = level.fuse(common.randn(2, C, *N, seed=1), student)
    torch.testing.assert_close(fused, fused[:, :, :1, :1].expand_as(fused))
    masks = level(common.randn(2, C, *N, seed=1), student)["spatial"]
    torch.testing.assert_close(masks, masks[:, :, :1, :1].expand_as(masks))


@pytest.mark.parametrize(("most", "stride"), [(None, 1), (63, 1), (62, 2), (20, 2), (19, 3), (2, 7), (1, 9)])
def test_positions_are_pooled_by_the_smallest_stride_that_fits(most: int | None, stride: int) -> None:
    x = common.randn(2, 3, 7, 9)
    found = fewer_positions(x, most)
    size = -(-7 // stride), -(-9 // stride)
    assert tuple(found.shape[2:]) == size
    cells = [
        [x[:, :, i * stride : (i + 1) * stride, j * stride : (j + 1) * stride].mean((2, 3)) for j in range(size[1])]
        for i in range(size[0])
    ]
    expected = torch.stack([torch.stack(row, dim=2) for row in cells], dim=2)
    torch.testing.assert_close(found, expected)


def test_pooling_is_of_keys_and_values_alone() -> None:
    torch.manual_seed(0)
    level = CooperativeMasks(C, 4, max_tokens=6)
    t, s = common.randn(2, C, *N), common.randn(2, C, *N, seed=1)
    pooled = fewer_positions(s, 6)
    expected = cross_attention(level.w_q(t), level.w_k(pooled), level.w_v(pooled))
    assert expected.shape == t.shape
    torch.testing.assert_close(level.fuse(t, s), expected)


# --- masks ---


@pytest.mark.parametrize("query", _cooperative_masks.QUERIES)
def test_masks_match_the_reference_for_every_query(query: str) -> None:
    link, batch = connected(query=query), inputs()
    for level, t, s, masks in zip(
        link.levels, batch.teacher, bridged(link, batch), link.masks(batch.teacher, batch.student), strict=True
    ):
        expected = naive_masks(cast(CooperativeMasks, level), common.array(t), s)
        np.testing.assert_allclose(masks["channel"].numpy(), expected[0], rtol=1e-4)
        np.testing.assert_allclose(masks["spatial"].flatten(2).numpy(), expected[1], rtol=1e-4)
        assert not masks["spatial"].requires_grad
        assert all(m.min() > 0 and m.max() < 1 for m in masks.values())


def test_selectors_of_zero_give_one_half_and_half_the_squared_error() -> None:
    link, batch = connected(), inputs()
    for level in link.levels:
        nn.init.zeros_(cast(Tensor, level.channel))
        nn.init.zeros_(cast(Tensor, level.spatial))
    for masks in link.masks(batch.teacher, batch.student):
        assert all(bool((m == 0.5).all()) for m in masks.values())
    expected = sum(0.5 * ((common.array(t) - s) ** 2).mean() for t, s in zip(batch.teacher, bridged(link, batch)))
    terms = link(batch)
    assert terms["channel"].item() == pytest.approx(expected, rel=1e-5)
    assert terms["spatial"].item() == pytest.approx(expected, rel=1e-5)


def test_channel_selector_is_a_monotone_function_of_the_mean() -> None:
    fused = common.randn(2, C, *N)
    masks = channel_masks(fused, torch.tensor([[2.0], [-0.5], [0.0]]))
    order = fused.mean((2, 3)).argsort(1)
    sorted_masks = masks.gather(2, order[:, None].expand_as(masks))
    assert bool((sorted_masks[:, 0].diff() > 0).all())
    assert bool((sorted_masks[:, 1].diff() < 0).all())
    assert bool((masks[:, 2] == 0.5).all())


def test_first_masks_are_near_one_half() -> None:
    torch.manual_seed(0)
    level = CooperativeMasks(64, 6)
    assert tuple(level.w_q.weight.shape) == (32, 64, 1, 1)
    assert tuple(CooperativeMasks(19, 19).w_k.weight.shape) == (9, 19, 1, 1)
    assert tuple(CooperativeMasks(1, 2).w_k.weight.shape) == (1, 1, 1, 1)
    assert cast(Tensor, level.spatial).std().item() == pytest.approx(0.01, rel=0.2)
    for masks in level(common.randn(2, 64, 6, 8), common.randn(2, 64, 6, 8, seed=1)).values():
        assert (masks - 0.5).abs().max() < 0.15


def test_permuting_positions_permutes_spatial_masks_and_changes_no_loss() -> None:
    link, batch = connected(levels=1), inputs(levels=1)
    order = torch.randperm(20, generator=torch.Generator().manual_seed(0))

    def mixed(xs: list[Tensor]) -> list[Tensor]:
        return [x.flatten(2)[:, :, order].view_as(x) for x in xs]

    other = LinkInputs(teacher=mixed(batch.teacher), student=mixed(batch.student))
    (before,), (after,) = link.masks(batch.teacher, batch.student), link.masks(other.teacher, other.student)
    torch.testing.assert_close(after["channel"], before["channel"])
    torch.testing.assert_close(after["spatial"].flatten(2), before["spatial"].flatten(2)[:, :, order])
    terms, same = link(batch), link(other)
    for name, value in terms.items():
        torch.testing.assert_close(same[name], value)


# --- losses ---


@pytest.mark.parametrize("normalise", ["mass", "square"])
@pytest.mark.parametrize("kind", ["channel", "spatial"])
def test_masked_losses_match_the_products(kind: str, normalise: str) -> None:
    of_channels, of_positions = common.randn(2, 4, 3).sigmoid(), common.randn(2, 4, 3, 5, seed=1).sigmoid()
    flat = common.array(of_positions.flatten(2))
    common.check_reference(
        lambda s, t: masked_losses(s, t, dict(channel=of_channels, spatial=of_positions), normalise=normalise)[kind],
        lambda s, t: naive_losses(s, t, common.array(of_channels), flat, 1 + (normalise == "square"))[
            kind == "spatial"
        ],
        common.randn(2, 3, 3, 5),
        common.randn(2, 3, 3, 5, seed=1),
    )


def test_square_is_unchanged_by_the_scale_of_a_mask_and_mass_is_not() -> None:
    s, t, masks = common.randn(2, 3, 4, 5), common.randn(2, 3, 4, 5, seed=1), common.randn(2, 4, 3, seed=2).sigmoid()
    for normalise, factor in (("square", 1.0), ("mass", 0.1)):
        found = [masked_losses(s, t, {"channel": m}, normalise=normalise)["channel"] for m in (masks, 0.1 * masks)]
        torch.testing.assert_close(found[1], factor * found[0], rtol=1e-4, atol=0)


@pytest.mark.parametrize("form", ["pairwise", "ratio"])
def test_diversity_matches_the_reference(form: str) -> None:
    for masks in (common.randn(3, 4, 6).sigmoid(), common.randn(3, 4, 3, 5).sigmoid()):
        assert diversity_loss(masks, form=form).item() == pytest.approx(naive_diversity(common.array(masks), form))
        torch.testing.assert_close(diversity_loss(0.3 * masks, form=form), diversity_loss(masks, form=form))
        torch.testing.assert_close(diversity_loss(masks[:, [2, 0, 3, 1]], form=form), diversity_loss(masks, form=form))


def test_diversity_of_equal_and_disjoint_masks_and_of_equal_norms() -> None:
    one = common.randn(2, 1, 6).sigmoid().expand(2, 4, 6)
    assert diversity_loss(one).item() == pytest.approx(1.0)
    assert diversity_loss(one, form="ratio").item() == pytest.approx(3.0)
    disjoint = torch.eye(4)[None]
    assert diversity_loss(disjoint).item() == diversity_loss(disjoint, form="ratio").item() == 0.0
    equal = nn.functional.normalize(common.randn(3, 5, 7).sigmoid(), dim=2)
    torch.testing.assert_close(diversity_loss(equal, form="ratio"), 4 * diversity_loss(equal))


def test_gradient_of_losses_reaches_student_and_masks_alone_and_half_is_float32() -> None:
    masks = dict(channel=common.randn(2, 4, 3).sigmoid().requires_grad_(), spatial=common.randn(2, 4, 4, 5).sigmoid())
    s, t = common.randn(2, 3, 4, 5), common.randn(2, 3, 4, 5, seed=1)

    def loss(s: Tensor, t: Tensor) -> Tensor:
        return torch.stack(list(masked_losses(s, t, masks).values())).sum()

    common.check_one_sided(loss, s, t)
    assert masks["channel"].grad is not None
    assert masks["channel"].grad.any()
    masks = {kind: mask.detach() for kind, mask in masks.items()}
    for dtype in common.HALVES:
        common.check_half(loss, s, t, dtype)
        with torch.autocast("cpu", dtype=dtype):
            for form in ("pairwise", "ratio"):
                half = masks["spatial"].to(dtype)
                torch.testing.assert_close(diversity_loss(half, form=form), diversity_loss(half.float(), form=form))


# --- the link ---


@pytest.mark.parametrize("source", ["fusion", "teacher"])
def test_link_matches_the_reference(source: str) -> None:
    link, batch = connected(source=source, diversity_weight=0.5), inputs()
    expected = np.zeros(3)
    for level, t, s in zip(link.levels, batch.teacher, bridged(link, batch)):
        masks = naive_masks(cast(CooperativeMasks, level), common.array(t), s)
        expected[:2] += naive_losses(s, common.array(t), *masks)
        expected[2] += 0.5 * np.mean([naive_diversity(m, "pairwise") for m in masks])
    terms = link(batch)
    assert list(terms) == ["channel", "spatial", "diversity"]
    np.testing.assert_allclose([x.item() for x in terms.values()], expected, rtol=1e-4)
    assert [tuple(x.shape) for x in link.logged.values()] == [(2,), (2,)]
    (first, second) = link.masks(batch.teacher, batch.student)
    torch.testing.assert_close(link.logged["spatial"], torch.stack([first["spatial"].mean(), second["spatial"].mean()]))


def test_batch_of_two_is_the_mean_of_two_images() -> None:
    link, batch = connected(), inputs()
    apart = [
        link(LinkInputs(teacher=[t[i : i + 1] for t in batch.teacher], student=[s[i : i + 1] for s in batch.student]))
        for i in range(2)
    ]
    for name, value in link(batch).items():
        torch.testing.assert_close(value, (apart[0][name] + apart[1][name]) / 2)


def test_identity_bridge_and_equal_maps_give_zero_but_masks_still_overlap() -> None:
    link, batch = identity(connected(student=C)), inputs(student=C)
    terms = link(LinkInputs(teacher=batch.teacher, student=[t.clone().requires_grad_() for t in batch.teacher]))
    assert terms["channel"].item() == terms["spatial"].item() == 0.0
    assert terms["diversity"].item() > 0.1


def test_students_gradient_is_that_with_constant_masks_and_everything_learns() -> None:
    link, batch = connected(), inputs()
    for t in batch.teacher:
        t.requires_grad_()
    constant = link.masks(batch.teacher, batch.student)
    torch.stack(list(link(batch).values())).sum().backward()
    assert all(t.grad is None for t in batch.teacher)
    for i, (s, t, masks) in enumerate(zip(batch.student, batch.teacher, constant)):
        leaf = s.detach().clone().requires_grad_()
        parts = masked_losses(link.bridges[i](leaf), t, masks)
        expected = torch.autograd.grad(torch.stack(list(parts.values())).sum(), leaf)[0]
        torch.testing.assert_close(s.grad, expected)
    silent = {name for name, p in link.named_parameters() if p.grad is None or not p.grad.abs().max() > 1e-9}
    # A bias of the keys is a constant of each row before the softmax.
    assert silent <= {f"levels.{i}.w_k.bias" for i in range(2)}


def test_without_detaching_the_student_moves_the_masks_too() -> None:
    apart, free, gradients = connected(), connected(detach_mask_inputs=False), []
    for link in (apart, free):
        batch = inputs()
        torch.stack(list(link(batch).values())).sum().backward()
        gradients.append(cast(Tensor, batch.student[0].grad))
    assert not torch.allclose(*gradients)
    alone = inputs()
    link = connected(detach_mask_inputs=False)
    assert torch.autograd.grad(link(alone)["diversity"], alone.student[0])[0].any()


def test_masks_learn_by_diversity_alone_where_asked() -> None:
    link, batch = connected(mask_objective="diversity"), inputs()
    terms = link(batch)
    selectors = [p for level in link.levels for p in level.parameters()]
    found = torch.autograd.grad(terms["channel"] + terms["spatial"], selectors, allow_unused=True, retain_graph=True)
    assert all(g is None for g in found)
    assert torch.autograd.grad(terms["diversity"], cast(Tensor, link.levels[0].spatial))[0].any()
    joint = connected()(inputs())
    torch.testing.assert_close(joint, terms)  # the values are the same


@pytest.mark.parametrize(
    ("options", "names"),
    [
        (dict(masks="channel"), ["channel", "diversity"]),
        (dict(masks="spatial"), ["spatial", "diversity"]),
        (dict(masks="none"), ["feature"]),
        (dict(diversity_weight=0.0), ["channel", "spatial"]),
    ],
)
def test_ablations_leave_terms_and_parameters_out(options: dict[str, Any], names: list[str]) -> None:
    link, batch = connected(**options), inputs()
    terms = link(batch)
    assert list(terms) == names
    torch.stack(list(terms.values())).sum().backward()
    assert all(p.grad is not None for p in link.parameters())
    if names == ["feature"]:
        expected = sum(((common.array(t) - s) ** 2).mean() for t, s in zip(batch.teacher, bridged(link, batch)))
        assert terms["feature"].item() == pytest.approx(expected, rel=1e-5)
        assert not any("levels" in name for name, _ in link.named_parameters())
        assert link.masks(batch.teacher, batch.student) == [{}, {}]
    if "diversity" in names:
        kind = names[0]
        overlap = [diversity_loss(m[kind]) for m in link.masks(batch.teacher, batch.student)]
        torch.testing.assert_close(terms["diversity"], torch.stack(overlap).sum())


def test_masks_of_the_teacher_alone_do_not_follow_the_student() -> None:
    for options, moves in ((dict(source="teacher"), False), (dict(query="teacher_only"), False), ({}, True)):
        link, batch = connected(**cast(Any, options)), inputs()
        before = link.masks(batch.teacher, batch.student)[0]
        after = link.masks(batch.teacher, [s + 1 for s in batch.student])[0]
        assert (not torch.equal(before["spatial"], after["spatial"])) is moves
    assert not any("w_q" in name for name, _ in connected(source="teacher").named_parameters())


@pytest.mark.parametrize("dtype", common.HALVES)
def test_half_precision_maps_are_computed_in_float32(dtype: torch.dtype) -> None:
    link, batch = connected(), inputs()
    half = LinkInputs(teacher=[t.to(dtype) for t in batch.teacher], student=[s.to(dtype) for s in batch.student])
    back = LinkInputs(teacher=[t.float() for t in half.teacher], student=[s.float() for s in half.student])
    with torch.autocast("cpu", dtype=dtype):
        found = link(half)
    for name, value in link(back).items():
        assert found[name].dtype == torch.float32
        torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-7)


def test_small_masks_are_warned_of_once() -> None:
    link, batch = connected(levels=1, source="teacher"), inputs(levels=1)
    batch.teacher[0].add_(9.0)
    nn.init.constant_(cast(Tensor, link.levels[0].spatial), -1.0)
    with pytest.warns(UserWarning, match=r"smallest mean of a level's masks is now .*spatial masks 0\.000"):
        link(batch)
    link(batch)
    link._warned = False
    link.normalise = "square"
    link(batch)


# --- segmentation ---


def test_segmentation_has_no_bridge_and_a_mask_a_class() -> None:
    link = ACAMKD(form="segmentation")
    assert link.taps == [("logits", "logits")]
    link.connect([(2, 19, 4, 5)], [(2, 19, 2, 3)])
    level = cast(CooperativeMasks, link.levels[0])
    assert tuple(cast(Tensor, level.spatial).shape) == (19, 19)
    assert tuple(level.w_q.weight.shape) == (9, 19, 1, 1)
    assert isinstance(link.bridges[0], nn.Identity)
    t, s = common.randn(2, 19, 4, 5), common.randn(2, 19, 2, 3, seed=1).requires_grad_()
    large = nn.functional.interpolate(s, (4, 5), mode="bilinear", align_corners=False)
    masks = link.masks([t], [s])[0]
    expected = masked_losses(large, t, masks)
    terms = link(common.link_inputs(s, t))
    torch.testing.assert_close(terms["spatial"], expected["spatial"])
    assert "resized" in link.assumption
    assert "resized" not in ACAMKD.assumption


def test_auxiliary_heads_count_by_their_weight() -> None:
    taps = [("logits", "logits"), ("aux_logits", "aux_logits")]
    with pytest.raises(ConfigError, match=r"2 pairs of taps in segmentation, but aux_weight=0\.0"):
        ACAMKD(form="segmentation", taps=taps)
    link = connected(student=C, form="segmentation", taps=taps, aux_weight=0.4)
    batch = inputs(student=C)
    whole = link(batch)
    link.aux_weight = 1.0
    full = link(batch)
    only = [
        masked_losses(s, t, m)
        for s, t, m in zip(batch.student, batch.teacher, link.masks(batch.teacher, batch.student))
    ]
    torch.testing.assert_close(whole["channel"], only[0]["channel"] + 0.4 * only[1]["channel"])
    torch.testing.assert_close(full["channel"], only[0]["channel"] + only[1]["channel"])


# --- options and shapes ---


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (dict(count=1), "count >= 2"),
        (dict(max_tokens=0), "max_tokens >= 1"),
        (dict(diversity_weight=-1.0), "diversity_weight >= 0"),
        (dict(mask_objective="diversity", diversity_weight=0.0), "would learn by nothing"),
        (dict(stage1_iterations=0), "stage1_iterations >= 1"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        ACAMKD(**options)


def test_registry_builds_it_and_refuses_typos() -> None:
    common.check_registered("ACAMKD", ACAMKD, weight=1.0, typo="max_token", meant="max_tokens", max_tokens=None)
    for option in ("form", "masks", "source", "query", "normalise", "diversity", "mask_objective"):
        with pytest.raises(UnknownName, match=f"unknown {option} 'x' of ACAM-KD"):
            METHODS.make({"type": "ACAMKD", option: "x"})
    assert ACAMKD().taps == [(f"neck[{i}]",) * 2 for i in range(5)]


def test_maps_that_do_not_fit_are_named() -> None:
    link = ACAMKD(taps=[("a", "a")])
    with pytest.raises(ShapeMismatch, match=r"ACAM-KD: teacher tap .* the same batch"):
        link.connect([(2, 6, 4, 5)], [(3, 6, 4, 5)])
    with pytest.raises(ShapeMismatch, match=r"ACAM-KD: teacher tap .* same kind"):
        link.connect([(2, 6, 4, 5)], [(2, 6)])
    with pytest.raises(ShapeMismatch, match="differ in width; set align=True"):
        ACAMKD(form="segmentation").connect([(2, 6, 4, 5)], [(2, 5, 4, 5)])
    with pytest.raises(ShapeMismatch, match="ACAM-KD"):
        masked_losses(torch.zeros(1, 2, 3, 4), torch.zeros(1, 2, 3, 5), {})


# --- fixed masks, and the engine ---


def test_fixed_masks_are_learned_on_the_teacher_before_the_first_step_and_never_after() -> None:
    teacher, _ = detector_pair()
    link = ACAMKD(source="fixed", count=3, taps=[("neck[0]",) * 2, ("neck[1]",) * 2], stage1_iterations=4)
    link.members = {"teacher": teacher}
    data = training_set(teacher)
    maps, _, _ = next(iter(data.teacher_taps()))
    torch.manual_seed(0)
    link.connect([tuple(m.shape) for m in maps], [tuple(m.shape) for m in maps])
    assert link.wants_data
    with pytest.raises(ConfigError, match="has not learned its fixed masks yet"):
        link(LinkInputs(teacher=maps, student=maps))
    before = {name: value.clone() for name, value in link.state_dict().items()}
    weights = {name: value.clone() for name, value in teacher.state_dict().items()}
    link.prepare(data)
    moved = {name for name, value in link.state_dict().items() if not torch.equal(value, before[name])}
    assert moved == {f"levels.{i}.{kind}" for i in range(2) for kind in ("channel", "spatial")}
    assert all(torch.equal(value, weights[name]) for name, value in teacher.state_dict().items())
    assert not any(module.training for module in teacher.modules())
    assert {name.split(".")[0] for name, _ in link.named_parameters()} == {"bridges"}
    students = [m.clone().requires_grad_() for m in maps]
    terms = link(LinkInputs(teacher=maps, student=students))
    assert list(terms) == ["channel", "spatial"]
    assert all(term.requires_grad for term in terms.values())


def test_detectors_learn_by_it_and_the_masks_move() -> None:
    teacher, student = detector_pair()
    batch = toy_batch()
    link = dict(type="ACAMKD", taps=[("neck[0]", "neck[0]"), ("neck[1]", "neck[1]")], count=3)
    members = {
        "teacher": dict(type="frozen", model=teacher, initial_weights=True),
        "student": dict(type="trained", model=student),
    }
    model = Distiller(members=members, links=[link], adapter=dict(type="DetectionAdapter")).train()
    plain = set(model.deploy.state_dict())
    method = cast(ACAMKD, model.links[0])
    optimizer, history, means = torch.optim.Adam(model.parameters(), lr=0.01), [], []
    for _ in range(8):
        terms = model.loss(cast(Batch, batch))
        history.append(terms["acamkd.loss_channel"].item() + terms["acamkd.loss_spatial"].item())
        means.append(method.logged["spatial"])
        optimizer.zero_grad()
        torch.stack([v for k, v in terms.items() if "loss" in k]).sum().backward()
        optimizer.step()
        model.iteration += 1
    assert history[-1] < 0.8 * history[0]
    assert (means[-1] - means[0]).abs().max() > 1e-3
    assert set(model.deploy.state_dict()) == plain
    assert "links.0.levels.0.spatial" in model.state_dict()
