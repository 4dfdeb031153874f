"""SparseKD's weights and losses against loops, anchor heads and centre heads of mmdetection3d, guards and options."""

from __future__ import annotations

import math
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from limbeck.engine.registry import METHODS
from limbeck.errors import ConfigError, ShapeMismatch, UnknownName
from limbeck.pointcloud.methods._anchor_head import anchor_rows, positive_anchors
from limbeck.pointcloud.methods._bev import cells_in_boxes
from limbeck.pointcloud.methods._centre_head import centre_targets
from limbeck.pointcloud.methods._pivotal import (
    box_loss,
    centre_loss,
    direction_loss,
    position_weights,
    probabilities,
    score_loss,
)
from limbeck.pointcloud.methods.sparsekd import ANCHOR_MODES, CentreSparseKD, SparseKD
from tests.pointcloud.methods.clouds import RANGE, VOXEL, step, targets, voxels
from tests.pointcloud.methods.detectors import anchor_head, build
from tests.vision.methods import conftest as common

CAR = torch.tensor([[5.2, 1.1, -1.6, 3.9, 1.6, 1.56, 0.1], [11.0, -4.0, -1.6, 3.9, 1.6, 1.56, 1.5]])
WALKER = torch.tensor([[8.6, 3.4, -1.6, 0.8, 0.6, 1.73, 0.0]])


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


# --- weights of positions ---


def test_weights_are_the_product_of_their_factors() -> None:
    scores = torch.rand(2, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    mask = torch.rand(2, 4, 5, generator=torch.Generator().manual_seed(1))
    found = position_weights(scores, mask=mask, threshold=0.6, top=7)
    best = common.array(scores).max(1)
    for cloud in range(2):
        kept = sorted(range(20), key=lambda x: -best[cloud].ravel()[x])[:7]
        for x in range(20):
            m, y = best[cloud].ravel()[x], common.array(mask)[cloud].ravel()[x]
            expected = m * y if m > 0.6 and x in kept else 0.0
            assert found[cloud].flatten()[x].item() == pytest.approx(expected, rel=1e-6)
    assert 0 <= found.min() <= found.max() <= 1


@pytest.mark.parametrize("top", [1, 6, 20, 99])
def test_rank_has_as_many_positions_a_cloud_even_among_ties(top: int) -> None:
    scores = torch.rand(2, 3, 4, 5, generator=torch.Generator().manual_seed(0)).round(decimals=1) + 0.01
    found = position_weights(scores, top=top, soft=False)
    assert (found > 0).sum((1, 2)).tolist() == [min(top, 20)] * 2


def test_higher_threshold_never_adds_positions() -> None:
    scores = torch.rand(2, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    masks = [position_weights(scores, threshold=t, soft=False) > 0 for t in (0.0, 0.3, 0.6, 0.9)]
    assert all((low | ~high).all() for low, high in pairwise(masks))
    assert masks[0].all()


# --- scores ---


def score_reference(student: np.ndarray, teacher: np.ndarray, weights: np.ndarray) -> float:
    error = ((sigmoid(student) - sigmoid(teacher)) ** 2).sum(1)
    return float((weights * error).sum() / (weights.sum() + 1e-6))


def test_scores_value_and_gradient() -> None:
    student, teacher = common.randn(2, 3, 4, 5), common.randn(2, 3, 4, 5, seed=1)
    weights = torch.rand(2, 4, 5, generator=torch.Generator().manual_seed(2))

    def loss(s: Tensor, t: Tensor) -> Tensor:
        return score_loss(s, t, weights)

    common.check_reference(loss, lambda s, t: score_reference(s, t, common.array(weights)), student, teacher)
    common.check_one_sided(loss, student, teacher)
    for dtype in common.HALVES:
        common.check_half(loss, student, teacher, dtype)


@pytest.mark.parametrize("scale", [0.01, 1.0, 30.0])
def test_scale_of_the_weights_is_of_no_account(scale: float) -> None:
    """A constant difference δ of every class costs C δ² whatever the weights."""
    weights = torch.rand(2, 4, 5, generator=torch.Generator().manual_seed(2))
    low, high = (torch.full((2, 3, 4, 5), math.log(p / (1 - p))) for p in (0.3, 0.5))
    assert score_loss(low, high, scale * weights).item() == pytest.approx(3 * 0.2**2, rel=1e-4)
    assert score_loss(low, low, weights).item() == 0.0


def test_no_weight_is_zero_with_zero_gradient_and_so_is_each_cell_without() -> None:
    student, teacher = common.randn(2, 3, 4, 5).requires_grad_(), common.randn(2, 3, 4, 5, seed=1)
    loss = score_loss(student, teacher, torch.zeros(2, 4, 5))
    assert loss.item() == 0.0
    assert torch.autograd.grad(loss, student)[0].abs().max() == 0
    weights = torch.zeros(2, 4, 5)
    weights[0, 1, 2] = 0.4
    gradient = torch.autograd.grad(score_loss(student, teacher, weights), student)[0].abs().amax(1)
    assert gradient.nonzero().tolist() == [[0, 1, 2]]


def test_students_map_is_resized_to_the_teachers() -> None:
    teacher, weights = common.randn(2, 3, 4, 6), torch.rand(2, 4, 6, generator=torch.Generator().manual_seed(2))
    constant = torch.full((2, 3, 2, 3), 0.7)
    whole = torch.full((2, 3, 4, 6), 0.7)
    expected = score_loss(whole, teacher, weights)
    torch.testing.assert_close(score_loss(constant, teacher, weights), expected)
    student = common.randn(2, 3, 2, 3, seed=4)
    wide = nn.functional.interpolate(student.sigmoid(), (4, 6), mode="bilinear", align_corners=False)
    torch.testing.assert_close(score_loss(student, teacher, weights), score_loss(wide.logit(), teacher, weights))
    with pytest.raises(ShapeMismatch, match="SparseKD"):
        score_loss(student[:, :2], teacher, weights)


def test_clamp_stops_the_gradient_of_certain_cells() -> None:
    assert probabilities(torch.tensor([-20.0, 20.0]), 1e-4).tolist() == pytest.approx([1e-4, 1 - 1e-4])
    logits = torch.tensor([-20.0, 0.0]).requires_grad_()
    gradient = torch.autograd.grad(probabilities(logits, 1e-4).sum(), logits)[0]
    assert gradient.tolist() == [0.0, 0.25]


# --- boxes ---


def smooth(x: float) -> float:
    return 0.5 * x * x * 9 if abs(x) < 1 / 9 else abs(x) - 0.5 / 9


def test_box_term_is_a_loop_with_the_sine_of_the_yaws_difference() -> None:
    student, teacher = common.randn(5, 7, scale=0.3), common.randn(5, 7, seed=1, scale=0.3)
    student[:, 6] *= 8
    weights = torch.tensor([0.2, 1.0, 0.0, 3.0, 0.5])

    def reference(s: np.ndarray, t: np.ndarray) -> float:
        total = 0.0
        for i in range(5):
            a, b = s[i, 6], t[i, 6]
            codes = [s[i, d] - t[i, d] for d in range(6)]
            codes.append(math.sin(a) * math.cos(b) - math.cos(a) * math.sin(b))
            total += float(weights[i]) * sum(smooth(code) for code in codes)
        return total

    def loss(s: Tensor, t: Tensor) -> Tensor:
        return box_loss(s, t, weights)

    common.check_reference(loss, reference, student, teacher)
    common.check_one_sided(loss, student, teacher)
    turned = teacher.clone()
    turned[:, 6] += 2 * math.pi
    assert box_loss(turned, teacher, weights).item() == pytest.approx(0, abs=1e-10)
    assert box_loss(teacher, teacher, weights).item() == 0.0


@pytest.mark.parametrize("loss", [box_loss, direction_loss])
def test_no_boxes_is_zero_with_a_graph(loss: Any) -> None:
    student = torch.zeros(0, 7).requires_grad_()
    found = loss(student, torch.zeros(0, 7), torch.zeros(0))
    assert found.item() == 0.0
    found.backward()


def test_direction_term_is_the_divergence_of_two_classes() -> None:
    student, teacher, weights = common.randn(4, 2), common.randn(4, 2, seed=1), torch.tensor([1.0, 0.0, 2.0, 0.5])

    def reference(s: np.ndarray, t: np.ndarray) -> float:
        rows = [(common.softmax(a), common.softmax(b)) for a, b in zip(s, t, strict=True)]
        return sum(w * sum(p * math.log(p / q) for q, p in zip(*row)) for w, row in zip(weights.tolist(), rows))

    def loss(s: Tensor, t: Tensor) -> Tensor:
        return direction_loss(s, t, weights)

    common.check_reference(loss, reference, student, teacher)
    common.check_one_sided(loss, student, teacher)


def test_centre_term_is_a_loop_over_objects() -> None:
    student, teacher = common.randn(2, 8, 3, 4), common.randn(2, 8, 3, 4, seed=1)
    cells, valid = torch.tensor([[5, 11, 0], [2, 0, 0]]), torch.tensor([[1, 1, 0], [1, 0, 0]]).bool()
    total = 0.0
    for b, k in ((0, 0), (0, 1), (1, 0)):
        y, x = divmod(int(cells[b, k]), 4)
        total += float((student[b, :, y, x] - teacher[b, :, y, x]).abs().sum())
    assert centre_loss(student, teacher, cells, valid).item() == pytest.approx(total / 3, rel=1e-5)
    common.check_one_sided(lambda s, t: centre_loss(s, t, cells, valid), student, teacher)
    assert centre_loss(student, teacher, cells, ~valid & valid).item() == 0.0


# --- the link on anchor heads ---

SIZE = (16, 16)


@pytest.fixture(scope="module")
def head() -> Any:
    pytest.importorskip("mmdet3d")
    return anchor_head()


def example(boxes: list[Tensor], labels: list[list[int]]) -> Any:
    coors, counts = voxels((20, 20))
    given = targets(coors, counts, boxes, [torch.tensor(n, dtype=torch.int64) for n in labels])
    shapes = [(2, 18, *SIZE), (2, 42, *SIZE), (2, 12, *SIZE)]
    student = [common.randn(*s, seed=i, scale=0.5).requires_grad_() for i, s in enumerate(shapes)]
    teacher = [common.randn(*s, seed=9 + i, scale=0.5).requires_grad_() for i, s in enumerate(shapes)]
    return step(student, teacher, given)


def linked(head: Any, **options: Any) -> SparseKD:
    link = SparseKD(**options)
    link.members = dict(teacher=SimpleNamespace(bbox_head=head), student=SimpleNamespace(bbox_head=head))  # type: ignore
    shapes = [(2, 18, *SIZE), (2, 42, *SIZE), (2, 12, *SIZE)][: len(link.taps)]
    link.connect(shapes, shapes)
    return link


def test_positives_are_anchors_that_overlap_an_object_of_their_class(head: Any) -> None:
    batch = example([torch.cat([WALKER, CAR]), CAR[:0]], [[0, 2, 2], []])
    found = positive_anchors(head, SIZE, batch.targets).view(2, *SIZE, 3, 2)
    assert not found[1].any()
    per_class = found[0].any(3).sum((0, 1)).tolist()
    assert per_class[0] >= 1
    assert per_class[1] == 0
    assert per_class[2] >= 2
    where = found[0, :, :, 2].nonzero()
    centres = torch.stack([where[:, 1] + 0.5, where[:, 0] + 0.5 - 8], 1)  # cells of 1 m
    assert (torch.cdist(centres, CAR[:, :2]).amin(1) < 1.5).all()


def test_rows_are_the_heads_own_order(head: Any) -> None:
    """The code of an anchor is where mmdetection3d's loss reads it: cell by cell, anchor by anchor."""
    maps = common.randn(2, 42, 3, 4)
    rows = anchor_rows(maps, 7)
    for b, y, x, a, d in ((0, 0, 0, 0, 0), (1, 2, 3, 5, 6), (0, 1, 2, 3, 4)):
        assert rows[b, (y * 4 + x) * 6 + a, d] == maps[b, a * 7 + d, y, x]


@pytest.mark.parametrize("mode", ANCHOR_MODES)
@pytest.mark.parametrize("soft", [True, False])
def test_terms_are_those_of_loops(head: Any, mode: str, soft: bool) -> None:
    batch = example([torch.cat([WALKER, CAR]), CAR[1:]], [[0, 2, 2], [2]])
    link = linked(head, mode=mode, soft=soft, scores=2.0, box=0.5, direction=0.3, threshold=0.8, top=40)
    terms = link(batch)
    positive = positive_anchors(head, SIZE, batch.targets)
    best = sigmoid(common.array(batch.teacher[0])).max(1)
    rank = np.zeros((2, 256))
    for b in range(2):
        rank[b, np.argsort(-best[b].ravel(), kind="stable")[:40]] = 1
    mask: Any = {
        "boxes": cells_in_boxes(batch.targets.boxes, SIZE, RANGE).numpy(),
        "positives": positive.view(2, *SIZE, 6).any(3).numpy(),
        "confidence": best > 0.8,
        "rank": rank.reshape(2, *SIZE),
        "all": np.ones((2, *SIZE)),
    }[mode]
    weights = mask * (best if soft else 1)
    student, teacher = ([common.array(x) for x in side] for side in (batch.student, batch.teacher))
    assert terms["scores"].item() == pytest.approx(2 * score_reference(student[0], teacher[0], weights), rel=1e-4)
    boxes, directions = 0.0, 0.0
    for b in range(2):
        own = positive[b].nonzero()[:, 0].tolist()
        for row in own:
            cell, a = divmod(row, 6)
            y, x = divmod(cell, SIZE[1])
            s, t = (side[1][b, a * 7 : a * 7 + 7, y, x] for side in (student, teacher))
            boxes += (sum(smooth(s[d] - t[d]) for d in range(6)) + smooth(math.sin(s[6] - t[6]))) / len(own) / 2
            q, p = (common.softmax(side[2][b, a * 2 : a * 2 + 2, y, x]) for side in (student, teacher))
            directions += sum(v * math.log(v / u) for u, v in zip(q, p)) / len(own) / 2
    assert terms["box"].item() == pytest.approx(0.5 * boxes, rel=1e-4)
    assert terms["direction"].item() == pytest.approx(0.3 * directions, rel=1e-4)
    torch.stack(list(terms.values())).sum().backward()
    assert all(x.grad is not None and x.grad.abs().max() > 0 for x in batch.student)
    assert all(x.grad is None for x in batch.teacher)
    assert not list(link.parameters())


def test_equal_members_cost_nothing_and_a_full_turn_neither(head: Any) -> None:
    batch = example([CAR, WALKER], [[2, 2], [0]])
    batch.student = [x.detach().clone().requires_grad_() for x in batch.teacher]
    assert all(term.item() == 0.0 for term in linked(head, direction=0.2)(batch).values())
    with torch.no_grad():
        batch.student[1][:, 6::7] += 2 * math.pi
    assert linked(head)(batch)["box"].item() == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("mode", ["boxes", "positives"])
def test_batch_without_objects_is_zero_and_finite(head: Any, mode: str) -> None:
    link, batch = linked(head, mode=mode), example([CAR[:0], CAR[:0]], [[], []])
    terms = link(batch)
    assert [term.item() for term in terms.values()] == [0.0, 0.0]
    assert link.may_be_zero
    torch.stack(list(terms.values())).sum().backward()
    assert all(x.grad.isfinite().all() and x.grad.abs().max() == 0 for x in batch.student[:2])
    link(example([CAR, WALKER], [[2, 2], [0]]))
    assert not link.may_be_zero


def test_error_outside_all_boxes_changes_nothing(head: Any) -> None:
    batch = example([CAR, WALKER], [[2, 2], [0]])
    link, before = linked(head), linked(head)(batch)["scores"]
    outside = ~cells_in_boxes(batch.targets.boxes, SIZE, RANGE)
    with torch.no_grad():
        batch.student[0] += 5 * outside[:, None]
    torch.testing.assert_close(link(batch)["scores"], before, rtol=0, atol=0)


def test_factors_leave_terms_out(head: Any) -> None:
    batch = example([CAR, WALKER], [[2, 2], [0]])
    assert set(linked(head, scores=0.0)(batch)) == {"box"}
    assert set(linked(head, box=0.0)(batch)) == {"scores"}


def test_taps_and_heads_that_do_not_fit_are_named(head: Any) -> None:
    link = linked(head)
    with pytest.raises(ShapeMismatch, match="do not fit"):
        link.connect([(2, 18, 8, 8), (2, 42, 8, 8)], [(2, 18, 4, 4), (2, 42, 4, 4)])
    with pytest.raises(ShapeMismatch, match=r"\[42, 18\] channels.*'bbox_head.conv_cls'"):
        link.connect([(2, 42, 8, 8), (2, 18, 8, 8)], [(2, 42, 8, 8), (2, 18, 8, 8)])
    link.members = dict(teacher=nn.Linear(2, 2), student=nn.Linear(2, 2))
    with pytest.raises(ConfigError, match=r"member 'teacher' .Linear. has none"):
        link.connect([(2, 18, 8, 8)] * 2, [(2, 18, 8, 8)] * 2)


def test_options_are_checked() -> None:
    link = METHODS.make(dict(type="SparseKD", weight=0.25, direction=0.2, mode="rank"))
    assert (type(link), link.weight, len(link.taps)) == (SparseKD, 0.25, 3)
    wrong: list[tuple[dict[str, Any], type[Exception]]] = [
        (dict(mode="gaussian"), UnknownName),
        (dict(scores=-1.0), ConfigError),
        (dict(scores=0.0, box=0.0), ConfigError),
        (dict(threshold=1.0), ConfigError),
        (dict(top=0), ConfigError),
        (dict(taps=[("a", "b")]), ConfigError),
    ]
    for options, error in wrong:
        with pytest.raises(error, match="SparseKD"):
            SparseKD(**options)
    with pytest.raises(UnknownName, match="'boxes'"):
        CentreSparseKD(mode="boxes")
    with pytest.raises(UnknownName, match=r"'score'.*did you mean.*'scores'"):
        METHODS.make(dict(type="SparseKD", score=1.0))


# --- the link on centre heads ---


def centre_head() -> Any:
    return build(
        dict(
            type="CenterHead",
            in_channels=8,
            tasks=[dict(num_class=1, class_names=["Pedestrian"]), dict(num_class=2, class_names=["Cyclist", "Car"])],
            common_heads=dict(reg=(2, 2), height=(1, 2), dim=(3, 2), rot=(2, 2)),
            share_conv_channel=8,
            bbox_coder=dict(
                type="CenterPointBBoxCoder",
                post_center_range=list(RANGE),
                max_num=10,
                score_threshold=0.1,
                out_size_factor=2,
                voxel_size=list(VOXEL[:2]),
                pc_range=list(RANGE[:2]),
            ),
            separate_head=dict(type="SeparateHead", init_bias=-2.19, final_kernel=3),
            train_cfg=dict(
                grid_size=[32, 32, 1],
                voxel_size=list(VOXEL),
                out_size_factor=2,
                dense_reg=1,
                gaussian_overlap=0.1,
                max_objs=9,
                min_radius=2,
                point_cloud_range=list(RANGE),
            ),
        )
    )


NAMES = ("heatmap", "reg", "height", "dim", "rot")
WIDTHS = ((1, 2, 1, 3, 2), (2, 2, 1, 3, 2))
TASKS = [[f"pts_bbox_head.task_heads.{t}.{name}"] * 2 for t in range(2) for name in NAMES]


def centres(box: float = 0.2, size: tuple[int, int] = SIZE, **options: Any) -> CentreSparseKD:
    pytest.importorskip("mmdet3d")
    taps = TASKS if box else [TASKS[0], TASKS[5]]
    link = CentreSparseKD(taps=taps, box=box, **options)
    member = SimpleNamespace(pts_bbox_head=centre_head())
    link.members = dict(teacher=member, student=member)  # type: ignore[dict-item]
    widths = [w for task in WIDTHS for w in task[: 5 if box else 1]]
    link.connect([(2, w, *SIZE) for w in widths], [(2, w, *size) for w in widths])
    return link


def centre_batch(*, codes: bool = True, size: tuple[int, int] = SIZE, objects: bool = True) -> Any:
    coors, counts = voxels((20, 20))
    boxes = [torch.cat([WALKER, CAR]), CAR[1:]] if objects else [CAR[:0], CAR[:0]]
    labels = [torch.tensor([0, 2, 2]), torch.tensor([1])] if objects else [torch.zeros(0, dtype=torch.int64)] * 2
    widths = [w for task in WIDTHS for w in task[: 5 if codes else 1]]
    student = [common.randn(2, w, *size, seed=i).requires_grad_() for i, w in enumerate(widths)]
    teacher = [common.randn(2, w, *SIZE, seed=30 + i).requires_grad_() for i, w in enumerate(widths)]
    return step(student, teacher, targets(coors, counts, boxes, labels))


def splats(size: tuple[int, int], objects: list[tuple[float, float, float]]) -> np.ndarray:
    """The largest Gaussian at every cell: exp(−d² / 2σ²) inside a square of the radius, σ = (2 r + 1) / 6."""
    found = np.zeros(size)
    for x, y, radius in objects:
        column, row = int(x - RANGE[0]), int(y - RANGE[1])  # cells of 1 m
        for v in range(size[0]):
            for u in range(size[1]):
                if max(abs(u - column), abs(v - row)) <= radius:
                    d = (u - column) ** 2 + (v - row) ** 2
                    found[v, u] = max(found[v, u], math.exp(-d / (2 * ((2 * radius + 1) / 6) ** 2)))
    return found


def test_gaussian_terms_are_those_of_loops_over_tasks() -> None:
    link, batch = centres(), centre_batch()
    terms = link(batch)
    student, teacher = ([common.array(x) for x in side] for side in (batch.student, batch.teacher))
    car, walker = [(*row[:2], 2) for row in CAR.tolist()], [(*row[:2], 2) for row in WALKER.tolist()]
    placed = [[walker, []], [car, car[1:]]]
    heat, codes = 0.0, 0.0
    for task in range(2):
        s, t = (np.clip(sigmoid(side[5 * task]), 1e-4, 1 - 1e-4) for side in (student, teacher))
        gaussian = np.stack([splats(SIZE, own) for own in placed[task]])
        weights = t.max(1) * gaussian
        heat += 10 * (weights * ((s - t) ** 2).sum(1)).sum() / (weights.sum() + 1e-6) / 2
        apart = [
            np.abs(
                student[5 * task + d][b, :, int(y + 8), int(x)] - teacher[5 * task + d][b, :, int(y + 8), int(x)]
            ).sum()
            for b in range(2)
            for x, y, _ in placed[task][b]
            for d in range(1, 5)
        ]
        codes += 0.2 * sum(apart) / sum(len(own) for own in placed[task]) / 2
    assert terms["heatmap"].item() == pytest.approx(heat, rel=1e-4)
    assert terms["box"].item() == pytest.approx(codes, rel=1e-4)
    torch.stack(list(terms.values())).sum().backward()
    assert all(x.grad is not None and x.grad.abs().max() > 0 for x in batch.student)
    assert all(x.grad is None for x in batch.teacher)
    outside = (splats(SIZE, walker) == 0) & (batch.student[0].grad[0, 0].numpy() != 0)
    assert not outside.any()


def test_rank_and_confidence_make_one_mask_a_task() -> None:
    batch = centre_batch(codes=False)
    for options in (dict(mode="rank", top=9), dict(mode="confidence", threshold=0.7)):
        found = centres(box=0.0, soft=False, **options)(batch)["heatmap"]
        losses = []
        for task in range(2):
            scores = probabilities(batch.teacher[task], 1e-4)
            weights = position_weights(
                scores, threshold=options.get("threshold", 0.0), top=options.get("top"), soft=False
            )
            losses.append(score_loss(batch.student[task], batch.teacher[task], weights, clamp=1e-4))
        torch.testing.assert_close(found, 10 * torch.stack(losses).mean())


def test_equal_centre_heads_and_clouds_without_objects_cost_nothing() -> None:
    link, batch = centres(), centre_batch()
    batch.student = [x.detach().clone().requires_grad_() for x in batch.teacher]
    assert [term.item() for term in link(batch).values()] == [0.0, 0.0]
    empty = centre_batch(objects=False)
    terms = link(empty)
    assert [term.item() for term in terms.values()] == [0.0, 0.0]
    assert link.may_be_zero
    torch.stack(list(terms.values())).sum().backward()
    assert all(x.grad.abs().max() == 0 for x in empty.student)


def test_a_joined_box_only_raises_the_heat_map() -> None:
    pytest.importorskip("mmdet3d")
    head, batch = centre_head(), centre_batch()
    before = centre_targets(head, batch.targets)
    boxes, labels = batch.targets.boxes, batch.targets.labels
    more = torch.tensor([[6.4, 1.9, -1.6, 3.7, 1.5, 1.5, 0.3]])  # beside a car
    batch.targets.boxes = [torch.cat([boxes[0], more]), boxes[1]]
    batch.targets.labels = [torch.cat([labels[0], torch.tensor([2])]), labels[1]]
    after = centre_targets(head, batch.targets)
    assert all((b.heatmap >= a.heatmap).all() for a, b in zip(before, after, strict=True))
    assert (after[1].heatmap > before[1].heatmap).any()
    assert [int(b.valid.sum() - a.valid.sum()) for a, b in zip(before, after, strict=True)] == [0, 1]


def test_coarser_students_have_their_scores_resized_and_no_boxes() -> None:
    batch = centre_batch(codes=False, size=(8, 8))
    found = centres(box=0.0, size=(8, 8))(batch)["heatmap"]
    found.backward()
    assert found.item() > 0
    assert all(x.grad.abs().max() > 0 for x in batch.student)
    with pytest.raises(ShapeMismatch, match="set box=0"):
        centres(size=(8, 8))


def test_centre_taps_and_heads_that_do_not_fit_are_named() -> None:
    with pytest.raises(ConfigError, match="5 pairs of taps for each task"):
        CentreSparseKD(taps=TASKS[:4])
    link = centres()
    link.taps = link.taps[:5]
    with pytest.raises(ConfigError, match="taps 1 tasks and the teacher's head has 2"):
        link.connect([], [])
    link.members = dict(teacher=nn.Linear(2, 2))
    with pytest.raises(ConfigError, match="a CenterPoint detector, or SparseKD for anchor heads"):
        link.connect([], [])
    batch = centre_batch()
    batch.teacher[0] = batch.teacher[0][:, :, :8, :8]
    with pytest.raises(ShapeMismatch, match="grid_size and out_size_factor"):
        centres()(batch)
    assert CentreSparseKD(box=0.0).taps == [("pts_bbox_head.task_heads.0.heatmap",) * 2]
