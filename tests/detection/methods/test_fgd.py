"""FGD against float64 references: box masks by brute force, attention, global relations, what learns, detectors."""

from __future__ import annotations

import math
from typing import Any, cast

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from limbeck.detection.methods._box_masks import box_cells, box_masks, target_masks
from limbeck.detection.methods.fgd import (
    FGD,
    GlobalContext,
    channel_attention,
    focal_losses,
    global_loss,
    spatial_attention,
)
from limbeck.detection.targets import DetectionTargets
from limbeck.engine.distiller import Distiller
from limbeck.engine.method import LinkInputs
from limbeck.engine.registry import METHODS
from limbeck.errors import ConfigError, ShapeMismatch, UnknownName
from tests.detection.methods.pyramids import detector_pair, toy_batch
from tests.vision.methods import conftest as common

IMAGE = (64, 80)  # padded height and width
SIZES = ((8, 10), (4, 5))


# --- float64 references ---


def naive_masks(
    boxes: list[tuple[float, float, float, float]], image: tuple[int, int], size: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """Cell by cell, box by box."""
    foreground = np.zeros(size)
    for x1, y1, x2, y2 in boxes:
        left, top = math.floor(x1 * size[1] / image[1]), math.floor(y1 * size[0] / image[0])
        right, bottom = math.ceil(x2 * size[1] / image[1]), math.ceil(y2 * size[0] / image[0])
        weight = 1 / ((bottom - top + 1) * (right - left + 1))
        for i in range(size[0]):
            for j in range(size[1]):
                if top <= i <= bottom and left <= j <= right:
                    foreground[i, j] = max(foreground[i, j], weight)
    free = foreground == 0
    return foreground, free / max(free.sum(), 1)


def naive_attention(x: np.ndarray, t: float) -> tuple[np.ndarray, np.ndarray]:
    """Of one image (C, H, W)."""
    spatial = np.array(common.softmax(np.abs(x).mean(0).ravel() / t)).reshape(x.shape[1:]) * x[0].size
    return spatial, np.array(common.softmax(np.abs(x).mean((1, 2)) / t)) * len(x)


def naive_focal(s: np.ndarray, t: np.ndarray, fg: np.ndarray, bg: np.ndarray, heat: float) -> dict[str, float]:
    totals = dict(foreground=0.0, background=0.0, attention=0.0)
    for i in range(len(s)):
        (a_s, c_s), (a_t, c_t) = naive_attention(s[i], heat), naive_attention(t[i], heat)
        for c, y, x in np.ndindex(*s[i].shape):
            error = a_t[y, x] * c_t[c] * (s[i, c, y, x] - t[i, c, y, x]) ** 2
            totals["foreground"] += fg[i, y, x] * error
            totals["background"] += bg[i, y, x] * error
        totals["attention"] += np.abs(c_s - c_t).sum() + np.abs(a_s - a_t).sum()
    return {name: value / len(s) for name, value in totals.items()}


def naive_context(block: GlobalContext, x: np.ndarray) -> np.ndarray:
    """R of one image (C, H, W)."""
    first, norm, last = block.block[0], block.block[1], block.block[3]

    def conv(layer: Any, v: np.ndarray) -> np.ndarray:
        return common.array(layer.weight)[:, :, 0, 0] @ v + common.array(layer.bias)[:, None]

    flat = x.reshape(len(x), -1)
    share = np.array(common.softmax(conv(block.context, flat)[0]))
    hidden = conv(first, (flat @ share)[:, None])[:, 0]
    hidden = (hidden - hidden.mean()) / np.sqrt(hidden.var() + 1e-5)
    weight, bias = (common.array(p).ravel() for p in (cast(Any, norm).weight, cast(Any, norm).bias))
    return x + conv(last, np.maximum(hidden * weight + bias, 0)[:, None])[:, :, None]


# --- toys ---


def targets_of(*images: list[tuple[float, float, float, float]], valid: tuple[int, int] = IMAGE) -> DetectionTargets:
    most = max(1, *(len(image) for image in images))
    boxes, labels = torch.zeros(len(images), most, 4), torch.full((len(images), most), -1)
    for i, image in enumerate(images):
        if image:
            boxes[i, : len(image)], labels[i, : len(image)] = torch.tensor(image), 0
    return DetectionTargets(boxes, labels, torch.tensor([valid] * len(images)), IMAGE)


TARGETS = targets_of([(8.0, 8.0, 40.0, 30.0), (30.0, 20.0, 50.0, 60.0)], [(60.0, 3.0, 80.0, 20.0)])


def connected(teacher: int = 4, student: int = 3, **options: Any) -> FGD:
    torch.manual_seed(0)
    link = FGD(**{"taps": [("a", "a"), ("b", "b")], **options})
    link.connect([(2, teacher, *s) for s in SIZES], [(2, student, *s) for s in SIZES])
    return link


def inputs(teacher: int = 4, student: int = 3, targets: DetectionTargets = TARGETS) -> LinkInputs:
    return LinkInputs(
        teacher=[common.randn(2, teacher, *s, seed=i) for i, s in enumerate(SIZES)],
        student=[common.randn(2, student, *s, seed=9 + i).requires_grad_() for i, s in enumerate(SIZES)],
        targets=targets,
    )


# --- box masks ---


@st.composite
def drawn_boxes(draw: Any) -> list[tuple[float, float, float, float]]:
    """Overlapping, tiny and large boxes, inside the image, across its border and outside of it."""
    found = []
    for _ in range(draw(st.integers(0, 5))):
        x, y = draw(st.floats(-30, 100, width=32)), draw(st.floats(-30, 90, width=32))
        w, h = (draw(st.one_of(st.floats(0, 2, width=32), st.floats(0, 120, width=32))) for _ in range(2))
        found.append(tuple(float(np.float32(v)) for v in (x, y, x + w, y + h)))
    return found


@settings(max_examples=60, deadline=None)
@given(drawn_boxes(), drawn_boxes(), st.sampled_from([(64, 80), (57, 80), (64, 71), (33, 47)]), st.sampled_from(SIZES))
def test_box_masks_equal_brute_force(one: Any, other: Any, image: tuple[int, int], size: tuple[int, int]) -> None:
    targets = targets_of(one, other, valid=image)
    found = target_masks(targets, size, box_scale="img_shape")
    for i, boxes in enumerate((one, other)):
        for mask, expected in zip(found, naive_masks(boxes, image, size)):
            np.testing.assert_allclose(mask[i].numpy(), expected, rtol=1e-6)
    padded = target_masks(targets, size, box_scale="pad_shape")
    np.testing.assert_allclose(padded[0][0].numpy(), naive_masks(one, IMAGE, size)[0], rtol=1e-6)


def test_corner_on_a_cells_border_stays_there() -> None:
    for width in range(1, 400, 7):
        x = torch.tensor([[[float(width), 0.0, float(width), 1.0]]])
        cells = box_cells(x, torch.tensor([[1, 3 * width]]), (1, 3))
        assert cells[0, 0, [0, 2]].tolist() == [1, 1]


def test_sum_of_a_mask_inside_and_at_the_border() -> None:
    inside, whole = targets_of([(9.0, 9.0, 30.0, 30.0)]), targets_of([(0.0, 0.0, 80.0, 64.0)])
    assert target_masks(inside, (8, 10), box_scale="img_shape")[0].sum().item() == pytest.approx(1.0)
    foreground, background = target_masks(whole, (8, 10), box_scale="img_shape")
    assert foreground.sum().item() == pytest.approx(80 / (9 * 11))  # the last row and column fall off the map
    assert not background.any()


def test_order_and_duplicates_change_nothing_and_the_smaller_box_wins() -> None:
    large, small = (0.0, 0.0, 60.0, 60.0), (20.0, 20.0, 30.0, 30.0)
    masks = [
        target_masks(targets_of(list(boxes)), (8, 10), box_scale="img_shape")
        for boxes in ((large, small), (small, large), (small, large, small))
    ]
    for fg, bg in masks[1:]:
        assert torch.equal(fg, masks[0][0])
        assert torch.equal(bg, masks[0][1])
    alone = target_masks(targets_of([small]), (8, 10), box_scale="img_shape")[0]
    assert bool((masks[0][0][alone > 0] == alone[alone > 0]).all())


def test_crowds_and_padding_do_not_count() -> None:
    targets = targets_of([(8.0, 8.0, 40.0, 30.0), (0.0, 0.0, 80.0, 64.0)], [(60.0, 3.0, 80.0, 20.0)])
    targets.crowd = torch.tensor([[False, True], [False, False]])
    expected = targets_of([(8.0, 8.0, 40.0, 30.0)], [(60.0, 3.0, 80.0, 20.0)])
    for found, wanted in zip(*(target_masks(x, (8, 10), box_scale="img_shape") for x in (targets, expected))):
        assert torch.equal(found, wanted)
    none = box_masks(torch.zeros(2, 0, 4), torch.zeros(2, 0).bool(), torch.tensor([IMAGE] * 2), (2, 3))
    assert not none[0].any()
    torch.testing.assert_close(none[1].sum((1, 2)), torch.ones(2))
    with pytest.raises(UnknownName, match="unknown box_scale 'image' of FGD"):
        target_masks(targets, (8, 10), box_scale="image")


# --- attention and losses ---


def test_attentions_are_positive_add_up_and_are_one_for_equal_strength() -> None:
    x = common.randn(2, 5, 4, 6, scale=2)
    spatial, channel = spatial_attention(x, temperature=0.5), channel_attention(x, temperature=0.5)
    assert spatial.min() > 0
    assert channel.min() > 0
    torch.testing.assert_close(spatial.sum((1, 2)), torch.full((2,), 24.0))
    torch.testing.assert_close(channel.sum(1), torch.full((2,), 5.0))
    for i in range(2):
        expected = naive_attention(common.array(x[i]), 0.5)
        np.testing.assert_allclose(spatial[i].numpy(), expected[0], rtol=1e-5)
        np.testing.assert_allclose(channel[i].numpy(), expected[1], rtol=1e-5)
    signs = 3.0 * common.randn(2, 5, 4, 6).sign()
    torch.testing.assert_close(spatial_attention(signs), torch.ones(2, 4, 6))
    torch.testing.assert_close(channel_attention(signs), torch.ones(2, 5))


@pytest.mark.parametrize("name", ["foreground", "background", "attention"])
def test_focal_losses_match_the_reference(name: str) -> None:
    fg, bg = target_masks(TARGETS, (4, 5), box_scale="img_shape")
    common.check_reference(
        lambda s, t: focal_losses(s, t, fg, bg, temperature=0.8)[name],
        lambda s, t: naive_focal(s, t, common.array(fg), common.array(bg), 0.8)[name],
        common.randn(2, 3, 4, 5),
        common.randn(2, 3, 4, 5, seed=1),
    )


def test_teachers_attention_weighs_and_only_the_student_gets_a_gradient() -> None:
    fg, bg = target_masks(TARGETS, (4, 5), box_scale="img_shape")
    s, t = common.randn(2, 3, 4, 5), common.randn(2, 3, 4, 5, seed=1)

    def loss(s: Tensor, t: Tensor) -> Tensor:
        return torch.stack(list(focal_losses(s, t, fg, bg).values())).sum()

    common.check_one_sided(loss, s, t)
    for dtype in common.HALVES:
        common.check_half(loss, s, t, dtype)
    with pytest.raises(ShapeMismatch, match="FGD"):
        focal_losses(s, t[:, :2], fg, bg)


def test_boxes_everywhere_or_nowhere_leave_a_term_empty() -> None:
    s, t = common.randn(1, 3, 4, 5), common.randn(1, 3, 4, 5, seed=1)
    for boxes, empty in (([(0.0, 0.0, 80.0, 64.0)], "background"), ([], "foreground")):
        terms = focal_losses(s, t, *target_masks(targets_of(cast(Any, boxes)), (4, 5), box_scale="img_shape"))
        assert {name for name, value in terms.items() if value.item() == 0.0} == {empty}
        assert all(math.isfinite(value.item()) for value in terms.values())


# --- global relations ---


def test_global_context_matches_the_reference_and_is_the_identity_at_first() -> None:
    torch.manual_seed(0)
    block, x = GlobalContext(6), common.randn(2, 6, 3, 4)
    torch.testing.assert_close(block(x), x, rtol=0, atol=0)
    for parameter in block.parameters():
        nn.init.normal_(parameter)
    for i in range(2):
        np.testing.assert_allclose(block(x)[i].detach().numpy(), naive_context(block, common.array(x[i])), rtol=1e-4)
    assert not torch.allclose(block(x), x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(block(x.bfloat16()), block(x.bfloat16().float()))


def test_global_loss_is_a_sum_and_grows_with_the_square_of_the_maps() -> None:
    s, t = common.randn(2, 3, 4, 5), common.randn(2, 3, 4, 5, seed=1)
    expected = ((common.array(s) - common.array(t)) ** 2).sum() / 2
    assert global_loss(s, t).item() == pytest.approx(expected, rel=1e-5)
    link, batch = connected(student=4), inputs(student=4)
    large = LinkInputs(teacher=[3 * t for t in batch.teacher], student=[3 * s for s in batch.student], targets=TARGETS)
    torch.testing.assert_close(link(large)["global"], 9 * link(batch)["global"])


# --- the link ---


def test_link_matches_the_reference_with_blocks_away_from_the_identity() -> None:
    factors = dict(foreground=1.0, background=2.0, attention=0.5, relation=0.25)
    link, batch = connected(temperature=0.8, **factors), inputs()
    for parameter in (*link.student_relations.parameters(), *link.teacher_relations.parameters()):
        nn.init.normal_(parameter)
    totals = {"foreground": 0.0, "background": 0.0, "attention": 0.0, "global": 0.0}
    for i, (s, t) in enumerate(zip(batch.student, batch.teacher)):
        kernel, bias = common.array(link.bridges[i].weight)[:, :, 0, 0], common.array(link.bridges[i].bias)
        bridged = np.einsum("dc,bchw->bdhw", kernel, common.array(s)) + bias[:, None, None]
        masks = [common.array(m) for m in target_masks(TARGETS, SIZES[i], box_scale="img_shape")]
        level = naive_focal(bridged, common.array(t), masks[0], masks[1], 0.8)
        blocks = cast(GlobalContext, link.student_relations[i]), cast(GlobalContext, link.teacher_relations[i])
        for one, other in zip(bridged, common.array(t)):
            gap = naive_context(blocks[0], one) - naive_context(blocks[1], other)
            level["global"] = level.get("global", 0.0) + (gap**2).sum() / 2
        for name, factor in zip(totals, factors.values()):
            totals[name] += factor * level[name]
    terms = link(batch)
    assert list(terms) == list(totals)
    for name, expected in totals.items():
        assert terms[name].item() == pytest.approx(expected, rel=1e-4), name


def test_equal_maps_give_zero_at_first() -> None:
    link, batch = connected(student=4), inputs(student=4)
    equal = LinkInputs(teacher=batch.teacher, student=[t.clone() for t in batch.teacher], targets=TARGETS)
    assert all(value.item() == 0.0 for value in link(equal).values())
    assert not list(link.bridges.parameters())  # none at equal widths


def test_gradient_reaches_student_bridge_and_after_a_step_every_block() -> None:
    link, batch = connected(teacher=12, relation=1.0), inputs(teacher=12)
    for t in batch.teacher:
        t.requires_grad_()
    torch.stack(list(link(batch).values())).sum().backward()
    assert all(t.grad is None for t in batch.teacher)
    assert all(s.grad is not None and s.grad.any() for s in batch.student)
    blocks = [*link.student_relations, *link.teacher_relations]
    for block in blocks:  # what lies before a convolution of zeros gets exactly nothing
        still = {name for name, p in block.named_parameters() if p.grad is None or not p.grad.any()}
        assert still == {name for name, _ in block.named_parameters()} - {"block.3.weight", "block.3.bias"}
    assert all(p.grad is not None and p.grad.any() for p in link.bridges.parameters())
    torch.optim.SGD(link.parameters(), lr=0.01).step()
    link.zero_grad()
    torch.stack(list(link(inputs(teacher=12)).values())).sum().backward()
    for block in blocks:
        silent = {name for name, p in block.named_parameters() if not cast(Tensor, p.grad).any()}
        assert silent <= {"context.bias"}  # a constant before a soft-max


def test_batch_of_two_equal_images_is_one() -> None:
    link, box = connected(), [(8.0, 8.0, 40.0, 30.0)]
    batch = inputs(targets=targets_of(box))
    one = LinkInputs([t[:1] for t in batch.teacher], [s[:1] for s in batch.student], targets_of(box))
    two = LinkInputs(
        [t[:1].repeat(2, 1, 1, 1) for t in batch.teacher],
        [s[:1].repeat(2, 1, 1, 1) for s in batch.student],
        targets_of(box, box),
    )
    for name, value in link(one).items():
        torch.testing.assert_close(link(two)[name], value)


def test_factors_of_zero_leave_terms_and_blocks_out() -> None:
    link = connected(relation=0.0, background=0.0)
    assert list(link(inputs())) == ["foreground", "attention"]
    assert {name.split(".")[0] for name, _ in link.named_parameters()} == {"bridges"}


def test_options_targets_and_maps_that_do_not_fit_are_refused() -> None:
    common.check_registered("FGD", FGD, weight=1.0, typo="temprature", meant="temperature", temperature=0.8)
    assert list(FGD().factors.values()) == [1e-3, 5e-4, 5e-4, 5e-6]
    assert FGD().taps == [(f"neck.fpn_convs.{i}.conv",) * 2 for i in range(5)]
    for options in (dict(attention=-1.0), dict(foreground=0.0, background=0.0, attention=0.0, relation=0.0)):
        with pytest.raises(ConfigError, match="FGD needs foreground, background, attention and relation >= 0"):
            FGD(**cast(Any, options))
    with pytest.raises(ConfigError, match="FGD needs temperature > 0"):
        FGD(temperature=0.0)
    with pytest.raises(UnknownName, match=r"unknown box_scale 'pad' of FGD; did you mean 'pad_shape'\?"):
        METHODS.make(dict(type="FGD", box_scale="pad"))
    with pytest.raises(ConfigError, match="FGD masks by ground-truth boxes; got targets NoneType"):
        connected()(LinkInputs(inputs().teacher, inputs().student))
    with pytest.raises(ShapeMismatch, match=r"FGD: teacher map .* do not fit"):
        FGD(taps=[("a", "a")]).connect([(2, 3, 4, 5)], [(2, 3, 4, 6)])


def test_fgd_and_mgd_pass_the_guards_on_detectors_and_leave_the_student_plain() -> None:
    teacher, student = detector_pair()
    taps = [(f"neck.fpn_convs.{i}.conv",) * 2 for i in range(2)]
    links = [dict(type="FGD", taps=taps), dict(type="MGD", taps=taps)]
    members = {
        "teacher": dict(type="frozen", model=teacher, initial_weights=True),
        "student": dict(type="trained", model=student),
    }
    model = Distiller(members=members, links=links, adapter=dict(type="DetectionAdapter")).train()
    plain = set(model.deploy.state_dict())
    optimizer, history = torch.optim.Adam(model.parameters(), lr=0.005), []
    for _ in range(6):
        terms = model.loss(toy_batch())
        history.append(terms["fgd.loss_global"].item() + terms["mgd1.loss_generation"].item())
        optimizer.zero_grad()
        torch.stack([v for k, v in terms.items() if "loss" in k]).sum().backward()
        optimizer.step()
    assert {"fgd.loss_foreground", "fgd.loss_background", "fgd.loss_attention"} <= terms.keys()
    assert history[-1] < history[0]
    assert set(model.deploy.state_dict()) == plain
