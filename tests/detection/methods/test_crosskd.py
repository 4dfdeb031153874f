"""CrossKD against a head written out in float64, its terms against loops, where gradients go, and what it refuses."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from limbeck.detection.methods._assignment import Anchors, assign_anchors, centerness_total
from limbeck.detection.methods._dense_heads import rows
from limbeck.detection.methods.crosskd import BRIDGED, CrossKD, class_sum, distribution_mean, overlap_sum
from limbeck.detection.targets import DetectionTargets, mmdet_samples
from limbeck.engine.method import LinkInputs
from limbeck.engine.registry import METHODS
from limbeck.errors import ConfigError, ShapeMismatch, UnknownName
from tests.detection.methods import dense_heads as toys
from tests.vision.methods import conftest as common

KINDS = ("GFL", "Retina", "ATSS", "FCOS")
OUTPUTS = {
    "GFL": ("gfl_cls", "gfl_reg"),
    "Retina": ("retina_cls", "retina_reg"),
    "ATSS": ("atss_cls", "atss_reg"),
    "FCOS": ("conv_cls", "conv_reg"),
}
LEVELS = [(f"neck[{i}]", f"neck[{i}]") for i in range(3)]

# --- losses ---


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def naive_class(cross: np.ndarray, teacher: np.ndarray, weights: Sequence[float], beta: float = 1.0) -> float:
    total = 0.0
    for u, row_c, row_t in zip(weights, cross, teacher):
        for c, t in zip(row_c, row_t):
            q, p = sigmoid(c), sigmoid(t)
            total += u * -(p * math.log(q) + (1 - p) * math.log(1 - q)) * abs(q - p) ** beta
    return total


def naive_distribution(cross: np.ndarray, teacher: np.ndarray, r: Sequence[float]) -> float:
    total = 0.0
    for weight, c, t in zip(r, cross, teacher):
        for side_c, side_t in zip(c.reshape(4, -1), t.reshape(4, -1)):
            q, p = common.softmax(side_c), common.softmax(side_t)
            total += weight * sum(x * (math.log(x) - math.log(y)) for x, y in zip(p, q))
    return total / (4 * sum(r))


def naive_iou(a: Sequence[float], b: Sequence[float]) -> tuple[float, float]:
    """IoU and GIoU."""
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    shared = max(width, 0.0) * max(height, 0.0)
    union = sum((x[2] - x[0]) * (x[3] - x[1]) for x in (a, b)) - shared
    hull = (max(a[2], b[2]) - min(a[0], b[0])) * (max(a[3], b[3]) - min(a[1], b[1]))
    iou = shared / max(union, 1e-6)
    return iou, iou - (hull - union) / max(hull, 1e-6)


def naive_overlap(cross: np.ndarray, teacher: np.ndarray, r: Sequence[float], loss: str) -> float:
    pairs = [naive_iou(a, b) for a, b in zip(cross, teacher)]
    return sum(w * ((1 - giou) if loss == "giou" else -math.log(max(iou, 1e-6))) for w, (iou, giou) in zip(r, pairs))


WEIGHTS = torch.tensor([1.0, 0.0, 0.4, 1.0])
LOGITS = common.randn(4, 3, scale=2), common.randn(4, 3, seed=1, scale=2)
SIDES = common.randn(4, 20, scale=2), common.randn(4, 20, seed=1, scale=2)
BOXES = (
    torch.tensor([[0.0, 1.0, 9.0, 8.0], [3.0, 3.0, 6.0, 9.0], [0.5, 2.0, 7.0, 7.5], [1.0, 1.0, 4.0, 4.0]]),
    torch.tensor([[1.0, 2.0, 8.0, 9.5], [2.0, 1.0, 5.0, 8.0], [4.0, 3.0, 12.0, 9.0], [0.5, 0.5, 6.0, 3.0]]),
)


@pytest.mark.parametrize("beta", [1.0, 2.0])
def test_class_term_matches_loops_with_gradient_through_both_factors(beta: float) -> None:
    common.check_reference(
        lambda s, t: class_sum(s, t, WEIGHTS, beta=beta),
        lambda s, t: naive_class(s, t, WEIGHTS.tolist(), beta),
        *LOGITS,
    )
    torch.testing.assert_close(class_sum(*LOGITS), class_sum(*LOGITS, torch.ones(4)))


def test_box_terms_match_loops_with_gradient() -> None:
    common.check_reference(
        lambda s, t: distribution_mean(s, t, WEIGHTS), lambda s, t: naive_distribution(s, t, WEIGHTS.tolist()), *SIDES
    )
    for loss in ("giou", "iou"):
        common.check_reference(
            lambda s, t, loss=loss: overlap_sum(s, t, WEIGHTS, loss=loss),
            lambda s, t, loss=loss: naive_overlap(s, t, WEIGHTS.tolist(), loss),
            *BOXES,
        )


def test_class_term_is_zero_for_equal_probabilities_alone_and_blind_to_the_order_of_classes() -> None:
    _, teacher = LOGITS
    assert class_sum(teacher.clone(), teacher).item() == 0.0
    changed = teacher.clone()
    changed[2, 1] += 0.1
    assert class_sum(changed, teacher).item() > 0.0
    order = [2, 0, 1]
    cross = LOGITS[0]
    torch.testing.assert_close(
        class_sum(cross[:, order], teacher[:, order], WEIGHTS), class_sum(cross, teacher, WEIGHTS)
    )
    # With β = 0 what is left is the cross entropy, which the teacher's entropy keeps above 0.
    entropy = F.binary_cross_entropy_with_logits(teacher, teacher.sigmoid(), reduction="sum")
    torch.testing.assert_close(class_sum(teacher.clone(), teacher, beta=0.0), entropy)


def test_distribution_term_is_blind_to_a_constant_on_a_side_and_to_the_scale_of_all_weights() -> None:
    cross, teacher = SIDES
    expected = distribution_mean(cross, teacher, WEIGHTS)
    shift = torch.tensor([3.0, -8.0, 0.5, 20.0]).repeat_interleave(5)
    torch.testing.assert_close(distribution_mean(cross + shift, teacher, WEIGHTS), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(distribution_mean(cross, teacher - shift, WEIGHTS), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(distribution_mean(cross, teacher, 0.01 * WEIGHTS), expected)
    assert distribution_mean(cross, teacher, 0 * WEIGHTS).item() == 0.0


def test_rows_of_weight_zero_contribute_nothing() -> None:
    for loss, (cross, teacher) in ((class_sum, LOGITS), (distribution_mean, SIDES), (overlap_sum, BOXES)):
        leaf = cross.clone().requires_grad_()
        loss(leaf, teacher, WEIGHTS).backward()
        assert leaf.grad is not None
        assert not leaf.grad[1].any()
        assert leaf.grad[[0, 2, 3]].abs().sum(1).gt(0).all()


@pytest.mark.parametrize("dtype", common.HALVES)
def test_half_precision_is_computed_in_float32(dtype: torch.dtype) -> None:
    for loss, pair in ((class_sum, LOGITS), (distribution_mean, SIDES), (overlap_sum, BOXES)):
        common.check_half(lambda s, t, loss=loss: loss(s, t, WEIGHTS), *pair, dtype)
        common.check_one_sided(lambda s, t, loss=loss: loss(s, t, WEIGHTS), *pair)


def test_shapes_that_differ_are_named() -> None:
    for loss, (cross, teacher) in ((class_sum, LOGITS), (distribution_mean, SIDES), (overlap_sum, BOXES)):
        with pytest.raises(ShapeMismatch, match="CrossKD's"):
            loss(cross, teacher[:3], WEIGHTS)


# --- the cross prediction ---


def linked(kind: str, *, teacher: nn.Module | None = None, student: nn.Module | None = None, **options: Any) -> CrossKD:
    link = CrossKD(taps=LEVELS, **options)
    link.members = {"teacher": teacher or toys.teacher(kind), "student": student or toys.student(kind)}
    widths = [link.members[name].bbox_head.in_channels for name in ("teacher", "student")]
    link.connect(*([(2, width, *size) for size in toys.level_sizes()] for width in widths))
    return link


def step(given: DetectionTargets, *, width: int = 8) -> LinkInputs:
    student = [x.requires_grad_() for x in toys.pyramid(width=width)]
    return LinkInputs(student=student, teacher=toys.pyramid(seed=7), targets=given)


def block(module: Any, x: Tensor, *, activate: bool = True) -> Tensor:
    bias = None if module.conv.bias is None else module.conv.bias.double()
    x = F.conv2d(x, module.conv.weight.double(), bias, padding=1)
    if module.with_norm:
        x = F.group_norm(x, 4, module.norm.weight.double(), module.norm.bias.double())
    return x.clamp(min=0) if activate else x


def naive_cross(
    kind: str, student: Any, teacher: Any, level: int, maps: Sequence[Tensor], index: int, hold: str
) -> list[Tensor]:
    """Class logits and raw box outputs of one level, in float64 from the weights."""
    found = []
    branches = zip(("cls_convs", "reg_convs"), OUTPUTS[kind])
    for convs, output in branches:
        held = []
        for head, x in zip((student, teacher), maps):
            x = x.double()
            for number, module in enumerate(getattr(head, convs)[:index]):
                x = block(module, x, activate=hold == "post" or number < index - 1)
            held.append(x)
        flat_s, flat_t = (x.movedim(1, 0).flatten(1) for x in held)
        shape = (1, -1, 1, 1)
        s = (held[0] - flat_s.mean(1).view(shape)) / (flat_s.std(1).view(shape) + 1e-6)
        x = s * flat_t.std(1).view(shape) + flat_t.mean(1).view(shape)
        x = x.clamp(min=0) if index else x
        for module in getattr(teacher, convs)[index:]:
            x = block(module, x)
        layer = getattr(teacher, output)
        found.append(F.conv2d(x, layer.weight.double(), layer.bias.double(), padding=1))
    if kind != "Retina":
        found[1] = found[1] * teacher.scales[level].scale.double()
    if kind == "FCOS":
        found[1] = found[1].exp()
    return found


@pytest.mark.parametrize("hold", ["post", "pre"])
@pytest.mark.parametrize("index", [0, 1, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_cross_prediction_is_the_teachers_rest_on_aligned_maps(kind: str, index: int, hold: str) -> None:
    link, batch = linked(kind, index=index, hold=hold), step(toys.targets())
    mine, theirs = (link.members[name].bbox_head for name in ("student", "teacher"))
    for level in (0, 2):
        maps = batch.student[level], batch.teacher[level]
        cross, _ = link.predictions(level, *maps)
        expected = naive_cross(kind, mine, theirs, level, maps, index, hold)
        for found, wanted in zip((cross.classes, cross.boxes), expected):
            torch.testing.assert_close(found.double(), wanted, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("hold", ["post", "pre"])
@pytest.mark.parametrize("kind", [*KINDS, "FCOS normalised"])
def test_teachers_prediction_is_its_heads_own(kind: str, hold: str) -> None:
    changes = dict(norm_on_bbox=True, centerness_on_reg=True) if kind == "FCOS normalised" else {}
    kind = kind.split()[0]
    link = linked(kind, teacher=toys.teacher(kind, **changes), student=toys.student(kind, **changes), hold=hold)
    maps = toys.pyramid(seed=7)
    with torch.no_grad():
        own = link.members["teacher"].bbox_head(tuple(maps))
    for level, x in enumerate(maps):
        _, found = link.predictions(level, toys.pyramid()[level], x)
        torch.testing.assert_close(found.classes, own[0][level], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(found.boxes, own[1][level], rtol=1e-4, atol=1e-5)
        if kind == "ATSS":
            torch.testing.assert_close(found.centerness, own[2][level], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("hold", ["post", "pre"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_student_like_its_teacher_predicts_the_same_and_pays_nothing(kind: str, hold: str) -> None:
    link = linked(kind, student=toys.student(kind, seed=1), hold=hold)
    maps = toys.pyramid(seed=7)
    for level, x in enumerate(maps):
        cross, own = link.predictions(level, x, x)
        torch.testing.assert_close(cross.classes, own.classes, rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(cross.boxes, own.boxes, rtol=2e-3, atol=1e-3)
    terms = link(LinkInputs(student=[x.requires_grad_() for x in maps], teacher=maps, targets=toys.targets()))
    other = link(step(toys.targets()))
    for name in ("class", "box"):
        assert abs(terms[name].item()) < 1e-3 * other[name].item()


def test_positive_affine_change_of_held_channels_is_free() -> None:
    link, batch = linked("GFL", hold="pre"), step(toys.targets())
    before = link(batch)
    factor, shift = torch.linspace(0.3, 4.0, 8), torch.linspace(-2.0, 3.0, 8)
    for convs in (link.members["student"].bbox_head.cls_convs, link.members["student"].bbox_head.reg_convs):
        norm = convs[0].norm
        with torch.no_grad():
            norm.weight.mul_(factor)
            norm.bias.mul_(factor).add_(shift)
    torch.testing.assert_close(link(batch), before, rtol=1e-3, atol=1e-4)


def test_maps_before_and_after_the_relu_differ() -> None:
    batch = step(toys.targets())
    post, pre = (linked("GFL", hold=hold)(batch) for hold in ("post", "pre"))
    assert all(not torch.isclose(post[name], pre[name], rtol=1e-3) for name in post)


# --- terms ---


def naive_boxes(anchors: np.ndarray, deltas: np.ndarray, stds: Sequence[float]) -> np.ndarray:
    found, most = [], abs(math.log(16 / 1000))
    for (x1, y1, x2, y2), row in zip(anchors, deltas):
        dx, dy, dw, dh = (d * s for d, s in zip(row, stds))
        width, height = x2 - x1, y2 - y1
        x, y = (x1 + x2) / 2 + dx * width, (y1 + y2) / 2 + dy * height
        width *= math.exp(min(max(dw, -most), most))
        height *= math.exp(min(max(dh, -most), most))
        found.append([x - width / 2, y - height / 2, x + width / 2, y + height / 2])
    return np.array(found)


def both(link: CrossKD, batch: LinkInputs, part: str, width: int) -> list[np.ndarray]:
    pairs = [link.predictions(level, s, t) for level, (s, t) in enumerate(zip(batch.student, batch.teacher))]
    return [common.array(torch.cat([rows(getattr(pair[side], part), width) for pair in pairs])) for side in (0, 1)]


def flat(levels: Sequence[Tensor]) -> list[float]:
    return torch.cat([level.flatten() for level in levels]).tolist()


def assigned(link: CrossKD) -> Anchors:
    return assign_anchors(link.members["student"].bbox_head, toys.level_sizes(), toys.targets())


@pytest.mark.parametrize("kind", ["GFL", "Retina", "ATSS"])
def test_terms_of_heads_with_anchors_match_loops(kind: str) -> None:
    link, batch = linked(kind), step(toys.targets())
    given = assigned(link)
    u = flat(given.weights)
    assert 0.0 in u  # the narrower image's padding
    assert given.positives > 2
    cross, teacher = both(link, batch, "classes", toys.CLASSES)
    r = [weight * sigmoid(max(t)) for weight, t in zip(u, teacher)]
    assert all(0 < x < 1 for x, weight in zip(r, u) if weight)
    expected = {"class": naive_class(cross, teacher, u) / given.positives}
    if kind == "GFL":
        expected["box"] = 4 * naive_distribution(*both(link, batch, "boxes", 4 * toys.BINS), r)
    else:
        anchors = common.array(torch.cat([level.repeat(2, 1) for level in given.anchors]))
        stds = [0.1, 0.1, 0.2, 0.2] if kind == "ATSS" else [1.0] * 4
        boxes = [naive_boxes(anchors, deltas, stds) for deltas in both(link, batch, "boxes", 4)]
        expected["box"] = naive_overlap(*boxes, r, "giou") / given.positives
    if kind == "ATSS":
        positive = [label < toys.CLASSES for label in flat(given.labels)]
        found, wanted = (x[positive, 0] for x in both(link, batch, "centerness", 1))
        logs = [(sigmoid(c), sigmoid(t)) for c, t in zip(found, wanted)]
        total = -sum(p * math.log(q) + (1 - p) * math.log(1 - q) for q, p in logs)
        expected["centerness"] = total / given.positives
    terms = link(batch)
    assert {n: v.item() for n, v in terms.items()} == {n: pytest.approx(v, rel=1e-3) for n, v in expected.items()}


def test_terms_of_fcos_match_loops() -> None:
    link, batch = linked("FCOS"), step(toys.targets())
    divisor = centerness_total(link.members["student"].bbox_head, toys.level_sizes(), toys.targets())
    cross, teacher = both(link, batch, "classes", toys.CLASSES)
    r = [sigmoid(max(t)) for t in teacher]
    boxes = [x * np.array([-1, -1, 1, 1]) for x in both(link, batch, "boxes", 4)]
    terms = link(batch)
    assert list(terms) == ["class", "box"]
    assert terms["class"].item() == pytest.approx(0.4 * naive_class(cross, teacher, [1.0] * len(r)) / divisor, rel=1e-3)
    assert terms["box"].item() == pytest.approx(0.75 * naive_overlap(*boxes, r, "iou") / divisor, rel=1e-3)


@pytest.mark.parametrize("normalised", [False, True])
def test_divisor_of_fcos_is_that_of_the_students_own_box_loss(normalised: bool) -> None:
    from mmdet.models.utils import unpack_gt_instances

    head, given = toys.make_head("FCOS", norm_on_bbox=normalised).train(), toys.targets()
    seen: list[float] = []

    class Spy(nn.Module):
        def forward(self, pred: Tensor, target: Tensor, *, weight: Tensor, avg_factor: Tensor) -> Tensor:
            seen.append(float(avg_factor))
            return pred.sum()

    head.loss_bbox = Spy()
    objects, _, metas = unpack_gt_instances(mmdet_samples(given.shapes, given.input_shape, given))
    head.loss_by_feat(*head(tuple(toys.pyramid())), objects, metas)
    assert centerness_total(head, toys.level_sizes(), given) == pytest.approx(seen[0], rel=1e-6)
    assert seen[0] > 1
    assert centerness_total(head, toys.level_sizes(), toys.targets(empty=True)) == 1.0


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_without_boxes_is_finite_and_trains_towards_the_teacher(kind: str) -> None:
    batch = step(toys.targets(empty=True))
    terms = linked(kind)(batch)
    assert all(value.isfinite() for value in terms.values())
    assert terms["class"] > 0
    torch.stack(list(terms.values())).sum().backward()
    assert all(x.grad is not None and x.grad.isfinite().all() for x in batch.student)
    if kind == "ATSS":
        assert terms["centerness"].item() == 0.0


def test_factors_multiply_and_zero_leaves_a_term_out() -> None:
    batch = step(toys.targets())
    every = linked("ATSS")(batch)
    assert list(every) == ["class", "box", "centerness"]
    found = linked("ATSS", class_factor=0.5, box_factor=0.0, centerness_factor=3.0)(batch)
    torch.testing.assert_close(found, {"class": 0.5 * every["class"], "centerness": 3 * every["centerness"]})


# --- where gradients go ---


@pytest.mark.parametrize("index", [0, 1, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_gradient_reaches_the_students_convolutions_up_to_the_hand_over_and_nothing_after(
    kind: str, index: int
) -> None:
    link, batch = linked(kind, index=index), step(toys.targets())
    torch.stack(list(link(batch).values())).sum().backward()
    student = link.members["student"].bbox_head
    front = [f"{branch}.{number}." for branch in ("cls_convs", "reg_convs") for number in range(index)]
    for name, parameter in student.named_parameters():
        if any(name.startswith(start) for start in front):
            # A bias before group norm or alignment has no effect of its own.
            assert parameter.grad is not None, name
            assert name.endswith("bias") or parameter.grad.abs().max() > 0, name
        else:
            assert parameter.grad is None, name
    assert all(p.grad is None for p in link.members["teacher"].parameters())
    assert all(x.grad is not None and x.grad.abs().max() > 0 for x in batch.student)
    assert all(not x.requires_grad for x in batch.teacher)


def test_each_term_reaches_its_own_branch() -> None:
    for name, branch, other in (("class", "cls_convs", "reg_convs"), ("box", "reg_convs", "cls_convs")):
        link = linked("GFL")
        link(step(toys.targets()))[name].backward()
        head = link.members["student"].bbox_head
        assert getattr(head, branch)[0].conv.weight.grad.abs().max() > 0
        assert getattr(head, other)[0].conv.weight.grad is None


def test_teachers_maps_receive_no_gradient_even_where_they_ask_for_it() -> None:
    link, batch = linked("GFL"), step(toys.targets())
    batch.teacher = [x.requires_grad_() for x in batch.teacher]
    torch.stack(list(link(batch).values())).sum().backward()
    assert all(x.grad is None for x in batch.teacher)


def test_link_owns_neither_head() -> None:
    link = linked("GFL")
    assert not list(link.parameters())
    assert not link.state_dict()
    assert link.assumption == ""


@pytest.mark.parametrize("index", [0, 1])
def test_other_widths_get_a_trained_bridge_a_branch(index: int) -> None:
    torch.manual_seed(0)
    link = linked("GFL", student=toys.student("GFL", width=4), index=index)
    assert [tuple(p.shape) for p in link.parameters()] == [(8, 4, 1, 1)] * 2
    assert (link.assumption, CrossKD.assumption) == (BRIDGED, "")
    batch = step(toys.targets(), width=4)
    torch.stack(list(link(batch).values())).sum().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in (*link.parameters(), *batch.student))


def test_half_precision_taps_give_the_float32_terms() -> None:
    link, batch = linked("GFL"), step(toys.targets())
    batch.student = [x.detach().bfloat16() for x in batch.student]
    batch.teacher = [x.bfloat16() for x in batch.teacher]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = link(batch)
    batch.student, batch.teacher = [x.float() for x in batch.student], [x.float() for x in batch.teacher]
    torch.testing.assert_close(found, link(batch), rtol=1e-5, atol=1e-7)


# --- what a user can do wrong ---


def test_hand_over_is_the_last_but_one_convolution_and_fcoss_the_middle_one() -> None:
    for kind, index in (("GFL", 3), ("Retina", 3), ("ATSS", 3), ("FCOS", 2)):
        members = dict(teacher=toys.teacher(kind, stacked_convs=4), student=toys.student(kind, stacked_convs=4))
        assert linked(kind, **members).index == index
        assert linked(kind).index == 1


def test_wrong_options_are_refused() -> None:
    for options in (dict(index=-1), dict(class_factor=-1.0), dict(box_factor=-1.0), dict(beta=-1.0)):
        with pytest.raises(ConfigError, match="CrossKD needs"):
            CrossKD(**options)
    with pytest.raises(ConfigError, match="no term left"):
        CrossKD(class_factor=0.0, box_factor=0.0)
    with pytest.raises(UnknownName, match="'middle'"):
        CrossKD(hold="middle")


def test_detectors_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ConfigError, match="a GFLHead as teacher and a ATSSHead as student"):
        linked("GFL", student=toys.student("ATSS"))
    with pytest.raises(ConfigError, match="cls_out_channels=3 and the student's 4"):
        linked("GFL", student=toys.student("GFL", num_classes=4))
    with pytest.raises(ConfigError, match="index=3 is past the last"):
        linked("GFL", index=3)
    with pytest.raises(ConfigError, match="head of 'teacher', which is trained"):
        linked("GFL", teacher=toys.student("GFL"))
    with pytest.raises(ConfigError, match="batch norm twice"):
        linked("Retina", student=toys.student("Retina", norm_cfg=dict(type="BN")))
    link = CrossKD(taps=LEVELS[:2])
    link.members = {"teacher": toys.teacher("GFL"), "student": toys.student("GFL")}
    shapes = [(2, 8, *size) for size in toys.level_sizes()[:2]]
    with pytest.raises(
        ConfigError, match=r"2 levels are tapped and the student's head has 3; tap 'neck\[0\]' to 'neck\[2\]'"
    ):
        link.connect(shapes, shapes)
    with pytest.raises(ShapeMismatch, match="CrossKD"):
        link.connect(shapes, shapes[::-1])


def test_targets_without_boxes_are_refused() -> None:
    batch = step(toys.targets())
    batch.targets = torch.zeros(2, dtype=torch.int64)
    with pytest.raises(ConfigError, match=r"CrossKD assigns anchors to ground-truth boxes"):
        linked("GFL")(batch)


def test_registry_builds_it_and_refuses_typos() -> None:
    link = METHODS.make({"type": "CrossKD", "hold": "pre"})
    assert type(link) is CrossKD
    assert (link.weight, link.hold, link.taps) == (1.0, "pre", [(f"neck[{i}]", f"neck[{i}]") for i in range(5)])
    with pytest.raises(UnknownName, match=r"did you mean.*'box_factor'"):
        METHODS.make({"type": "CrossKD", "boxfactor": 1.0})
