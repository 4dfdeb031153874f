"""LD against naive references: divergences, the region by brute force, the student's assignment, and gradients."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from limbeck.detection.methods._assignment import assign_anchors
from limbeck.detection.methods._valuable_region import batch_region, box_thresholds, overlaps, valuable_region
from limbeck.detection.methods.ld import LD, class_loss, localisation_loss, mean_divergence
from limbeck.detection.targets import DetectionTargets, mmdet_samples
from limbeck.engine.method import LinkInputs
from limbeck.engine.registry import METHODS
from limbeck.errors import ConfigError, ShapeMismatch, UnknownName
from tests.detection.methods import dense_heads as toys
from tests.vision.methods import conftest as common

# --- divergences ---


def naive_divergence(student: Sequence[float], teacher: Sequence[float], temperature: float) -> float:
    q, p = (common.softmax(np.asarray(z) / temperature) for z in (student, teacher))
    return temperature**2 * sum(x * (math.log(x) - math.log(y)) for x, y in zip(p, q)) / len(p)


def naive_sides(student: np.ndarray, teacher: np.ndarray, temperature: float) -> float:
    """Σ of the four sides of one anchor."""
    pairs = zip(student.reshape(4, -1), teacher.reshape(4, -1))
    return sum(naive_divergence(s, t, temperature) for s, t in pairs)


@pytest.mark.parametrize("temperature", [1.0, 10.0])
def test_divergence_is_the_textbooks_over_the_number_of_entries(temperature: float) -> None:
    student, teacher = common.randn(4, 17, scale=3), common.randn(4, 17, seed=1, scale=3)
    found = mean_divergence(student, teacher, temperature=temperature)
    expected = [naive_divergence(s, t, temperature) for s, t in zip(common.array(student), common.array(teacher))]
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-4)
    log_q, p = (student / temperature).log_softmax(1), (teacher / temperature).softmax(1)
    textbook = F.kl_div(log_q, p, reduction="none").sum(1) * temperature**2 / 17
    torch.testing.assert_close(found, textbook, rtol=1e-4, atol=1e-6)
    assert (found > 0).all()


def test_losses_match_naive_references_with_gradient() -> None:
    student, teacher = common.randn(3, 20, scale=3), common.randn(3, 20, seed=1, scale=3)
    weights = torch.tensor([0.2, 0.7, 0.05])
    common.check_reference(
        lambda s, t: localisation_loss(s, t, weights, temperature=3.0),
        lambda s, t: sum(float(w) * naive_sides(a, b, 3.0) / 4 for w, a, b in zip(weights, s, t)),
        student,
        teacher,
    )
    common.check_reference(
        lambda s, t: class_loss(s, t, temperature=2.0),
        lambda s, t: sum(naive_divergence(a, b, 2.0) for a, b in zip(s, t)) / 3,
        student,
        teacher,
    )


@pytest.mark.parametrize("side", [0, 1])
def test_a_constant_on_the_bins_of_a_side_or_on_all_classes_changes_nothing(side: int) -> None:
    logits = [common.randn(3, 20, scale=3), common.randn(3, 20, seed=1, scale=3)]
    weights = torch.rand(3)
    before = localisation_loss(*logits, weights), class_loss(*logits)
    shifted = list(logits)
    shifted[side] = logits[side] + torch.tensor([4.0, -9.0, 0.5, 20.0]).repeat_interleave(5)
    torch.testing.assert_close(localisation_loss(*shifted, weights), before[0], rtol=1e-4, atol=1e-5)
    shifted[side] = logits[side] + torch.tensor([[7.0], [-3.0], [12.0]])
    torch.testing.assert_close(class_loss(*shifted), before[1], rtol=1e-4, atol=1e-5)


def test_equal_logits_and_no_anchors_cost_exactly_nothing() -> None:
    logits = common.randn(3, 20, scale=3)
    assert localisation_loss(logits, logits.clone(), torch.ones(3)).item() == 0.0
    assert class_loss(logits, logits.clone()).item() == 0.0
    leaf = logits.clone().requires_grad_()
    none = leaf[torch.zeros(3, dtype=torch.bool)]
    for loss in (localisation_loss(none, none.detach(), torch.ones(0)), class_loss(none, none.detach())):
        assert loss.item() == 0.0
        loss.backward(retain_graph=True)
    assert leaf.grad is not None
    assert not leaf.grad.any()


def test_large_temperature_is_the_squared_difference_of_centred_logits() -> None:
    student, teacher = common.randn(4, 17), common.randn(4, 17, seed=1)
    difference = (teacher - teacher.mean(1, keepdim=True)) - (student - student.mean(1, keepdim=True))
    limit = difference.square().mean(1) / (2 * 17)
    torch.testing.assert_close(
        mean_divergence(student.double(), teacher.double(), temperature=100.0), limit, rtol=0.05, atol=1e-4
    )


@pytest.mark.parametrize("dtype", common.HALVES)
def test_half_precision_is_computed_in_float32(dtype: torch.dtype) -> None:
    student, teacher = common.randn(3, 20, scale=3), common.randn(3, 20, seed=1, scale=3)
    for loss in (lambda s, t: localisation_loss(s, t, torch.ones(3)), class_loss):
        common.check_half(loss, student, teacher, dtype)
        common.check_one_sided(loss, student, teacher)


def test_logits_that_do_not_fit_are_named() -> None:
    with pytest.raises(ShapeMismatch, match="four sides"):
        localisation_loss(torch.zeros(2, 6), torch.zeros(2, 6), torch.ones(2))
    with pytest.raises(ShapeMismatch, match="LD"):
        class_loss(torch.zeros(2, 6), torch.zeros(2, 5))


# --- the region ---


def naive_overlaps(a: Sequence[float], b: Sequence[float]) -> tuple[float, float]:
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    common_area = max(width, 0.0) * max(height, 0.0)
    areas = [(x[2] - x[0]) * (x[3] - x[1]) for x in (a, b)]
    iou = common_area / (sum(areas) - common_area)
    centres = [((x[0] + x[2]) / 2, (x[1] + x[3]) / 2) for x in (a, b)]
    apart = math.dist(*centres) ** 2
    hull = (max(a[2], b[2]) - min(a[0], b[0])) ** 2 + (max(a[3], b[3]) - min(a[1], b[1])) ** 2
    return iou, iou - apart / hull


def naive_region(
    levels: Sequence[Sequence[Sequence[float]]], boxes: Sequence[Sequence[float]], topk: int = 9, gamma: float = 0.25
) -> list[float]:
    found = [0.0] * sum(len(level) for level in levels)
    for box in boxes:
        centre = ((box[0] + box[2]) / 2, (box[1] + box[3]) / 2)
        near = []
        for level in levels:
            ordered = sorted(level, key=lambda a: math.dist(((a[0] + a[2]) / 2, (a[1] + a[3]) / 2), centre))
            near += [naive_overlaps(anchor, box)[0] for anchor in ordered[:topk]]
        threshold = float(np.mean(near) + np.std(near, ddof=1))
        for i, anchor in enumerate(a for level in levels for a in level):
            iou, diou = naive_overlaps(anchor, box)
            if gamma * threshold <= diou < threshold:
                found[i] = max(found[i], iou)
    return found


def anchor_grid(size: int = 64, strides: Sequence[int] = (8, 16, 32)) -> list[Tensor]:
    levels = []
    for stride in strides:
        centres = torch.arange(size // stride) * float(stride)
        y, x = torch.meshgrid(centres, centres, indexing="ij")
        half = 2.0 * stride
        levels.append(torch.stack([x - half, y - half, x + half, y + half], dim=-1).reshape(-1, 4))
    return levels


BOXES = [[5.3, 7.1, 37.6, 41.9], [20.7, 11.3, 61.2, 50.8], [3.1, 45.2, 14.7, 57.9]]


@pytest.mark.parametrize(("topk", "gamma"), [(9, 0.25), (4, 0.5)])
def test_region_is_that_of_brute_force(topk: int, gamma: float) -> None:
    levels = anchor_grid()
    anchors, counts = torch.cat(levels), [len(level) for level in levels]
    found = valuable_region(anchors, counts, torch.tensor(BOXES), topk=topk, gamma=gamma)
    expected = naive_region([level.tolist() for level in levels], BOXES, topk, gamma)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-4, atol=1e-6)
    assert 0 < (found > 0).sum() < len(found)


def test_members_lie_between_the_thresholds_and_count_with_their_overlap() -> None:
    levels = anchor_grid()
    anchors, counts, boxes = torch.cat(levels), [len(level) for level in levels], torch.tensor(BOXES)
    iou, diou = overlaps(anchors, boxes)
    assert (diou <= iou).all()
    threshold = box_thresholds(iou, anchors, counts, boxes)
    for j in range(len(boxes)):
        v = valuable_region(anchors, counts, boxes[j : j + 1])
        member = v > 0
        assert member.any()
        assert (diou[member, j] >= 0.25 * threshold[j]).all()
        assert (diou[member, j] < threshold[j]).all()
        torch.testing.assert_close(v[member], iou[member, j])
    both = torch.stack([valuable_region(anchors, counts, boxes[j : j + 1]) for j in range(len(boxes))]).amax(0)
    torch.testing.assert_close(valuable_region(anchors, counts, boxes), both)


def test_no_boxes_make_an_empty_region() -> None:
    levels = anchor_grid()
    counts = [len(level) for level in levels]
    assert not valuable_region(torch.cat(levels), counts, torch.zeros(0, 4)).any()


def test_region_of_a_batch_leaves_out_padding_crowds_and_anchors_that_take_no_part() -> None:
    head = toys.make_head("GFL")
    given = toys.targets()
    assigned = assign_anchors(head, toys.level_sizes(), given)
    found = torch.cat(batch_region(assigned, given), dim=1)
    counts = [len(level) for level in assigned.anchors]
    # The second image is 56 wide, padded to 64 of 80: whole columns of cells take no part.
    assert assigned.inside[0].all()
    assert not assigned.inside[1].all()
    for image in range(2):
        inside = assigned.inside[image]
        split = zip(assigned.anchors, inside.split(counts))
        boxes = given.boxes[image][given.labels[image] >= 0].tolist()
        expected = naive_region([level[kept].tolist() for level, kept in split], boxes)
        np.testing.assert_allclose(found[image, inside].numpy(), expected, rtol=1e-4, atol=1e-6)
        assert not found[image, ~inside].any()
    crowd = torch.zeros_like(given.labels, dtype=torch.bool)
    crowd[0, 1:] = True
    alone = DetectionTargets(given.boxes, given.labels, given.shapes, given.input_shape, crowd)
    region = torch.cat(batch_region(assigned, alone), dim=1)
    expected = naive_region([level.tolist() for level in assigned.anchors], given.boxes[0, :1].tolist())
    np.testing.assert_allclose(region[0].numpy(), expected, rtol=1e-4, atol=1e-6)


def test_an_anchor_may_be_positive_and_in_the_region() -> None:
    given, head = toys.targets(), toys.make_head("GFL")
    assigned = assign_anchors(head, toys.level_sizes(), given)
    positive = torch.cat(assigned.labels, dim=1) < toys.CLASSES
    region = torch.cat(batch_region(assigned, given), dim=1) > 0
    assert (positive & region).any()
    assert (region & ~positive).any()


# --- the assignment ---


def test_assignment_is_what_the_students_own_loss_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    from mmdet.models.utils import unpack_gt_instances

    head, given = toys.make_head("GFL").train(), toys.targets()
    seen: list[Any] = []
    original = head.loss_by_feat_single

    def spied(*args: Any, **options: Any) -> Any:
        seen.append((args[3], args[4], options["avg_factor"]))
        return original(*args, **options)

    monkeypatch.setattr(head, "loss_by_feat_single", spied)
    objects, crowds, metas = unpack_gt_instances(mmdet_samples(given.shapes, given.input_shape, given))
    head.loss_by_feat(*head(tuple(toys.pyramid())), objects, metas, crowds)
    found = assign_anchors(head, toys.level_sizes(), given)
    assert len(seen) == len(found.labels) == 3
    for level, (labels, weights, positives) in enumerate(seen):
        assert torch.equal(found.labels[level], labels)
        assert torch.equal(found.weights[level], weights)
        assert found.positives == positives
    assert found.positives == sum(int((level < toys.CLASSES).sum()) for level in found.labels)


# --- the link ---


def taps(levels: int = 3) -> list[tuple[str, str]]:
    return [(f"{name}[{i}]", f"{name}[{i}]") for name in ("cls_logits", "box_outputs") for i in range(levels)]


def shapes(batch: int = 2, bins: int = toys.BINS) -> list[tuple[int, ...]]:
    sizes = toys.level_sizes()
    return [(batch, toys.CLASSES, *s) for s in sizes] + [(batch, 4 * bins, *s) for s in sizes]


def linked(**options: Any) -> LD:
    link = LD(taps=taps(), **options)
    link.members = {"teacher": toys.teacher("GFL"), "student": toys.student("GFL")}
    link.connect(shapes(), shapes())
    return link


def outputs(seed: int, repeat: int = 1, shift: float = 0.0) -> list[Tensor]:
    found = [common.randn(*s, seed=seed + i, scale=2) for i, s in enumerate(shapes())]
    found = [x + shift if i < 3 else x for i, x in enumerate(found)]
    return [x.repeat(repeat, 1, 1, 1) for x in found]


def step(given: DetectionTargets, repeat: int = 1, shift: float = 0.0) -> LinkInputs:
    student = [x.requires_grad_() for x in outputs(0, repeat, shift)]
    teacher = [x.requires_grad_() for x in outputs(50, repeat)]
    return LinkInputs(student=student, teacher=teacher, targets=given)


def naive_terms(
    batch: LinkInputs, given: DetectionTargets, *, temperature: float = 10.0
) -> tuple[dict[str, float], float]:
    """Terms without their factors, from loops over images, cells and sides; and Σ w."""
    head = toys.make_head("GFL")
    assigned = assign_anchors(head, toys.level_sizes(), given)
    regions = batch_region(assigned, given)
    terms, total = {"ld": 0.0, "vlr": 0.0, "kd": 0.0}, 0.0
    for level in range(3):
        (s_cls, t_cls), (s_box, t_box) = (
            tuple(np.moveaxis(common.array(x[i]), 1, -1) for x in (batch.student, batch.teacher))
            for i in (level, 3 + level)
        )
        size, divergences = s_cls.shape[:3], []
        for b, y, x in np.ndindex(*size):
            cell = y * size[2] + x
            sides = naive_sides(s_box[b, y, x], t_box[b, y, x], temperature)
            terms["vlr"] += float(regions[level][b, cell]) * sides / 16
            if assigned.labels[level][b, cell] < toys.CLASSES:
                weight = 1 / (1 + math.exp(-s_cls[b, y, x].max()))
                total += weight
                terms["ld"] += weight * sides / 4
                divergences.append(naive_divergence(s_cls[b, y, x], t_cls[b, y, x], 2.0))
        terms["kd"] += float(np.mean(divergences)) if divergences else 0.0
    return terms, total


def test_terms_match_loops_over_cells_with_their_official_factors() -> None:
    given = toys.targets()
    batch = step(given)
    expected, total = naive_terms(batch, given)
    found = linked()(batch)
    factors = {"ld": 0.25, "vlr": 0.25, "kd": 10.0}
    assert {n: v.item() for n, v in found.items()} == {
        n: pytest.approx(factors[n] * v, rel=1e-4) for n, v in expected.items()
    }
    normalised = linked(normalise=True)(batch)
    assert total > 1
    for name, value in found.items():
        divisor = 1.0 if name == "kd" else total
        assert normalised[name].item() == pytest.approx(value.item() / divisor, rel=1e-4)


def test_equal_outputs_cost_nothing() -> None:
    batch = step(toys.targets())
    batch.teacher = [x.detach().clone() for x in batch.student]
    assert all(value.item() == 0.0 for value in linked()(batch).values())


def test_no_boxes_cost_exactly_nothing_and_keep_the_graph() -> None:
    batch = step(toys.targets(empty=True))
    terms = linked(normalise=True)(batch)
    assert {name: value.item() for name, value in terms.items()} == {"ld": 0.0, "vlr": 0.0, "kd": 0.0}
    torch.stack(list(terms.values())).sum().backward()
    assert all(x.grad is not None and not x.grad.any() for x in batch.student)


def test_each_term_reaches_its_own_output_and_none_the_teacher() -> None:
    for name in ("ld", "vlr", "kd"):
        batch = step(toys.targets())
        linked()(batch)[name].backward()
        norms = [0.0 if x.grad is None else x.grad.abs().sum().item() for x in batch.student]
        classes, boxes = sum(norms[:3]), sum(norms[3:])
        assert (classes > 0, boxes > 0) == ((True, False) if name == "kd" else (False, True))
        assert all(x.grad is None for x in batch.teacher)


def test_twice_the_images_double_the_sums_unless_normalised() -> None:
    once, twice = step(toys.targets(), shift=3.0), step(toys.targets(repeat=2), repeat=2, shift=3.0)
    for normalise, factor in ((False, 2.0), (True, 1.0)):
        link = linked(normalise=normalise)
        first, second = link(once), link(twice)
        for name in ("ld", "vlr"):
            torch.testing.assert_close(second[name], factor * first[name], rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(second["kd"], first["kd"], rtol=1e-4, atol=1e-6)


def test_terms_of_factor_zero_are_left_out() -> None:
    batch = step(toys.targets())
    every = linked()(batch)
    found = linked(vlr=0.0, kd=0.0, ld=0.5)(batch)
    assert list(found) == ["ld"]
    torch.testing.assert_close(found["ld"], 2 * every["ld"])


def test_main_term_is_mmdetections_own() -> None:
    pytest.importorskip("mmdet", reason="needs the 'detection' extra")
    from mmdet.models.losses import KnowledgeDistillationKLDivLoss

    student, teacher, weights = common.randn(6, 68, scale=2), common.randn(6, 68, seed=1, scale=2), torch.rand(6)
    loss = KnowledgeDistillationKLDivLoss(loss_weight=0.25, T=10)
    repeated = weights[:, None].expand(-1, 4).reshape(-1)
    expected = loss(student.reshape(-1, 17), teacher.reshape(-1, 17), weight=repeated, avg_factor=4.0)
    torch.testing.assert_close(0.25 * localisation_loss(student, teacher, weights), expected, rtol=1e-4, atol=1e-6)


# --- what a user can do wrong ---


def test_wrong_options_are_refused() -> None:
    for options in (dict(ld=-1.0), dict(ld=0.0, vlr=0.0, kd=0.0), dict(gamma=1.0), dict(temperature=0.0)):
        with pytest.raises(ConfigError, match="LD needs"):
            LD(taps=taps(), **options)
    with pytest.raises(ConfigError, match="3 pairs"):
        LD(taps=taps()[:3])


def connect(teacher: Any, student: Any, tapped: list[tuple[str, str]] | None = None, found: Any = None) -> None:
    link = LD(taps=taps() if tapped is None else tapped)
    link.members = {"teacher": teacher, "student": student}
    found = shapes() if found is None else found
    link.connect(found, found)


def test_detectors_that_do_not_fit_are_refused() -> None:
    gfl = toys.teacher("GFL")
    with pytest.raises(ConfigError, match="ATSSHead of member 'student' predicts no distribution"):
        connect(gfl, toys.student("ATSS"))
    with pytest.raises(ConfigError, match="cls_out_channels=3 and the student's 4"):
        connect(gfl, toys.student("GFL", num_classes=4))
    anchors = dict(type="AnchorGenerator", ratios=[1.0], octave_base_scale=8, scales_per_octave=1, strides=[8, 16, 32])
    with pytest.raises(ConfigError, match="anchor_generator"):
        connect(gfl, toys.student("GFL", anchor_generator=anchors))
    with pytest.raises(ConfigError, match="no one-stage head 'bbox_head'"):
        connect(torch.nn.Linear(2, 2), toys.student("GFL"))
    with pytest.raises(ConfigError, match="2 levels are tapped and the student's head has 3"):
        connect(gfl, toys.student("GFL"), taps(2), [shapes()[i] for i in (0, 1, 3, 4)])
    with pytest.raises(ShapeMismatch, match="are not class logits, then box outputs"):
        connect(gfl, toys.student("GFL"), found=shapes()[::-1])


def test_bins_that_differ_are_named() -> None:
    link = LD(taps=taps())
    link.members = {"teacher": toys.teacher("GFL", reg_max=8), "student": toys.student("GFL")}
    with pytest.raises(ShapeMismatch, match="LD"):
        link.connect(shapes(bins=9), shapes())


def test_targets_without_boxes_are_refused() -> None:
    batch = step(toys.targets())
    batch.targets = torch.zeros(2, dtype=torch.int64)
    with pytest.raises(ConfigError, match="LD assigns anchors to ground-truth boxes; got targets Tensor"):
        linked()(batch)


def test_registry_builds_it_and_refuses_typos() -> None:
    link = METHODS.make({"type": "LD", "normalise": True})
    assert type(link) is LD
    assert (link.weight, link.normalise, len(link.taps)) == (1.0, True, 10)
    assert link.taps[0] == ("cls_logits[0]", "cls_logits[0]")
    assert link.taps[5] == ("box_outputs[0]", "box_outputs[0]")
    assert link.assumption
    assert LD.assumption == ""
    with pytest.raises(UnknownName, match=r"did you mean.*'normalise'"):
        METHODS.make({"type": "LD", "normalize": True})
