"""PointDistiller against loops in float64; gradients, permutations, weights, neighbours, guards, presets, ablations."""

from __future__ import annotations

import warnings
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor

from limbeck.engine.method import LinkInputs
from limbeck.errors import ConfigError, ShapeMismatch, UnknownName
from limbeck.pointcloud.methods._graphs import EdgeLayer
from limbeck.pointcloud.methods.pointdistiller import WITHIN, PointDistiller
from tests.pointcloud.methods.clouds import step, targets, voxels
from tests.vision.methods import conftest as common

WIDTHS = (6, 4)  # of teacher and student


def link(
    shapes: tuple[tuple[int, ...], tuple[int, ...]] = ((12, 6), (12, 4)), taps: Any = None, **options: Any
) -> PointDistiller:
    torch.manual_seed(0)
    options = dict(num_voxels=5, kneighbours=3, channels=7, temperature=20.0) | options
    found = PointDistiller(taps=taps, **options)
    found.connect([shapes[0]], [shapes[1]])
    return found


def rows(sizes: tuple[int, ...] = (12,), seed: int = 0, widths: tuple[int, int] = WIDTHS) -> LinkInputs:
    """A step with taps of voxels, as many a cloud as `sizes` says."""
    coors, counts = voxels(sizes, seed)
    teacher, student = (common.randn(sum(sizes), w, seed=seed + w) for w in widths)
    if widths[0] == widths[1]:
        student = student + 0.3 * common.randn(*student.shape, seed=99)
    return step([student.requires_grad_()], [teacher.requires_grad_()], targets(coors, counts))


# --- an independent reference ---


def encode(weight: np.ndarray, features: np.ndarray, edges: list[list[tuple[int, int]]], fuse: str) -> list[np.ndarray]:
    """max(0, BN(W e)), one (K, C') array a centre, of the explicit edge vectors."""
    raw = []
    for graph in edges:
        for j, i in graph:
            first = features[j] if fuse == "concat" else features[i] - features[j]
            raw.append(weight @ np.concatenate([first, features[i]]))
    table = np.array(raw)
    table = np.maximum((table - table.mean(0)) / np.sqrt(table.var(0) + 1e-5), 0)
    cuts = np.cumsum([len(graph) for graph in edges])[:-1]
    return np.split(table, cuts)


def reference(
    found: PointDistiller,
    student: np.ndarray,
    teacher: np.ndarray,
    scores: np.ndarray,
    groups: list[list[int]],
    *,
    centres: int,
    k: int,
    tau: float,
    fuse: str = "concat",
    pool: str = "none",
    reweight: Any = True,
) -> float:
    edges: list[list[tuple[int, int]]] = []
    weights: list[float] = []
    for group in groups:
        chosen = sorted(group, key=lambda r: -scores[r])[:centres]
        for i in chosen:
            near = sorted(group, key=lambda j: (j != i, ((teacher[i] - teacher[j]) ** 2).sum()))[:k]
            edges.append([(j, i) for j in near])
        powers = [np.exp((scores[i] - scores[chosen[0]]) / tau) for i in chosen]
        weights += [len(chosen) * p / sum(powers) if reweight is True else 1.0 for p in powers]
    layers = [cast(EdgeLayer, side[0]) for side in (found.teacher_layers, found.student_layers)]
    sides = [encode(common.array(layer.weight), x, edges, fuse) for layer, x in zip(layers, (teacher, student))]
    if pool == "max":
        sides = [[g.max(0, keepdims=True) for g in side] for side in sides]
    if reweight is False:
        return 5e-4 * float(np.sqrt(sum(((t - s) ** 2).sum() for t, s in zip(*sides))))
    total = 0.0
    for w, t, s in zip(weights, *sides):
        for edge in range(t.shape[0]):
            for channel in range(t.shape[1]):
                total += w * (t[edge, channel] - s[edge, channel]) ** 2 / t.size
    return 2 * total / len(weights)


@pytest.mark.parametrize("fuse", ["concat", "sub"])
@pytest.mark.parametrize("pool", ["none", "max"])
@pytest.mark.parametrize("reweight", [True, "official", False])
def test_loss_and_gradient_are_those_of_loops(fuse: str, pool: str, reweight: Any) -> None:
    batch = rows()
    found = link(fuse=fuse, pool=pool, reweight=reweight)
    loss = found(batch)["graph"]
    teacher, scores = common.array(batch.teacher[0]), batch.targets.num_points.double().numpy()
    options: Any = dict(centres=5, k=3, tau=20.0, fuse=fuse, pool=pool, reweight=reweight)

    def plain(x: np.ndarray) -> float:
        return reference(found, x, teacher, scores, [list(range(12))], **options)

    student = common.array(batch.student[0])
    assert loss.item() == pytest.approx(plain(student), rel=1e-5)
    loss.backward()
    gradient = batch.student[0].grad
    assert gradient is not None
    slope = common.numeric_gradient(plain, student)
    np.testing.assert_allclose(gradient.numpy(), slope, rtol=1e-3, atol=1e-4 * np.abs(slope).max())


@pytest.mark.parametrize("scope", ["cloud", "batch"])
def test_several_clouds_of_other_sizes(scope: str) -> None:
    batch = rows((8, 3, 6))
    found = link(((17, 6), (17, 4)), num_voxels=12, kneighbours=4, scope=scope)
    coors, scores = batch.targets.coors, batch.targets.num_points.double().numpy()
    whole = list(range(17))
    groups = [whole] if scope == "batch" else [[r for r in whole if coors[r, 0] == b] for b in range(3)]
    centres = 12 if scope == "batch" else 4  # N / B; the cloud of 3 voxels has 3 centres of 3 neighbours
    student, teacher = (common.array(x[0]) for x in (batch.student, batch.teacher))
    expected = reference(found, student, teacher, scores, groups, centres=centres, k=4, tau=20.0)
    assert found(batch)["graph"].item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("pool", ["none", "max"])
def test_maps_are_rows_of_cells_weighted_by_the_teachers_signed_maximum(pool: str) -> None:
    teacher, student = common.randn(2, 6, 3, 4, seed=1), common.randn(2, 4, 3, 4, seed=2)
    found = link((tuple(teacher.shape), tuple(student.shape)), pool=pool, temperature=0.7)
    flat = [common.array(x).transpose(0, 2, 3, 1).reshape(24, -1) for x in (student, teacher)]
    groups = [list(range(12)), list(range(12, 24))]
    expected = reference(found, *flat, flat[1].max(1), groups, centres=5, k=3, tau=0.7, pool=pool)
    assert found(step([student], [teacher]))["graph"].item() == pytest.approx(expected, rel=1e-5)


def test_points_are_as_maps_of_one_row() -> None:
    teacher, student = common.randn(2, 6, 9, seed=1), common.randn(2, 4, 9, seed=2)
    points, maps = (
        link((tuple(t), tuple(s)), pool="max") for t, s in (((2, 6, 9), (2, 4, 9)), ((2, 6, 1, 9), (2, 4, 1, 9)))
    )
    maps.load_state_dict(points.state_dict())
    points.settings = maps.settings = [("maps", points.settings[0][1])]
    expected = maps(step([student[:, :, None]], [teacher[:, :, None]]))["graph"]
    torch.testing.assert_close(points(step([student], [teacher]))["graph"], expected, rtol=0, atol=0)


def test_taps_are_added() -> None:
    torch.manual_seed(0)
    shapes = [(2, 6, 3, 4), (2, 8, 2, 2)], [(2, 4, 3, 4), (2, 3, 2, 2)]
    taps = [("backbone[0]", "backbone[0]"), ("backbone[1]", "backbone[1]")]
    both = PointDistiller(taps=taps, num_voxels=4, kneighbours=2)
    both.connect(*shapes)
    teacher, student = ([common.randn(*s, seed=i) for i, s in enumerate(side)] for side in shapes)
    parts = 0.0
    for i in range(2):
        one = PointDistiller(taps=taps[i : i + 1], num_voxels=4, kneighbours=2)
        one.connect([shapes[0][i]], [shapes[1][i]])
        for mine, theirs in ((one.student_layers, both.student_layers), (one.teacher_layers, both.teacher_layers)):
            mine[0].load_state_dict(theirs[i].state_dict())
        parts += one(step([student[i]], [teacher[i]]))["graph"].item()
    assert both(step(student, teacher))["graph"].item() == pytest.approx(parts, rel=1e-6)
    assert both.logged["teacher_mean"].shape == (2,)


# --- zero ---


@pytest.mark.parametrize("reweight", [True, "official", False])
@pytest.mark.parametrize("graph", [True, False])
def test_equal_members_cost_nothing_and_only_chosen_rows_count(reweight: Any, graph: bool) -> None:
    batch = rows(widths=(6, 6))
    found = link(((12, 6), (12, 6)), reweight=reweight, graph=graph, num_voxels=2)
    if graph:
        found.student_layers[0].load_state_dict(found.teacher_layers[0].state_dict())
    equal = batch.teacher[0].detach().clone()
    batch.student = [equal.requires_grad_()]
    loss = found(batch)["graph"]
    assert loss.item() == 0.0
    loss.backward()
    assert equal.grad is not None
    assert equal.grad.isfinite().all()
    used = used_rows(found, batch, graph=graph)
    for row in range(12):
        changed = equal.detach().clone()
        changed[row] += 0.5
        assert (found(step([changed], batch.teacher, batch.targets))["graph"].item() > 0) == (row in used)


def used_rows(found: PointDistiller, batch: LinkInputs, *, graph: bool = True) -> set[int]:
    """Centres by count, and their nearest by brute force, of one cloud."""
    settings = found.settings[0][1]
    teacher = common.array(batch.teacher[0])
    centres = batch.targets.num_points.argsort(descending=True)[: settings.num_voxels].tolist()
    near = [np.argsort(((teacher - teacher[i]) ** 2).sum(1))[: settings.kneighbours].tolist() for i in centres]
    return {*centres, *(j for row in near for j in row if graph)}


# --- gradients ---


def test_gradient_reaches_student_and_both_layers_and_neither_teacher_nor_other_rows() -> None:
    batch = rows()
    found = link(num_voxels=2)
    found(batch)["graph"].backward()
    assert batch.teacher[0].grad is None
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in found.parameters())
    gradient = batch.student[0].grad
    assert gradient is not None
    reached = {r for r in range(12) if gradient[r].abs().max() > 0}
    assert reached == used_rows(found, batch)
    assert len(reached) < 12


def test_frozen_layer_of_the_teacher_stays() -> None:
    batch, found = rows(), link(freeze_teacher_edge=True)
    found(batch)["graph"].backward()
    assert all(p.grad is None for p in found.teacher_layers.parameters())
    assert all(p.grad is not None for p in found.student_layers.parameters())


def test_only_the_students_features_move_the_student_not_the_choice() -> None:
    """With its layer silent the loss is blind to the student's features: they decide neither centres nor neighbours."""
    batch, found = rows(), link()
    with torch.no_grad():
        cast(Any, found.student_layers[0]).weight.zero_()
    first = found(batch)["graph"]
    other = step([batch.student[0].detach() * 5 + 1], batch.teacher, batch.targets)
    torch.testing.assert_close(found(other)["graph"], first)


# --- permutation ---


@pytest.mark.parametrize("scope", ["cloud", "batch"])
def test_order_of_voxels_is_of_no_account(scope: str) -> None:
    batch = rows((7, 9))
    found = link(((16, 6), (16, 4)), scope=scope, num_voxels=6)
    order = torch.randperm(16, generator=torch.Generator().manual_seed(3))
    given = batch.targets
    moved = step(
        [batch.student[0][order]],
        [batch.teacher[0][order]],
        targets(given.coors[order], given.num_points[order], clouds=2),
    )
    torch.testing.assert_close(found(moved)["graph"], found(batch)["graph"], rtol=1e-5, atol=1e-7)


def test_ties_of_importance_are_broken_by_the_order_of_rows() -> None:
    batch = rows()
    batch.targets.num_points = torch.full((12,), 32)
    found = link(num_voxels=4, kneighbours=1)
    found(batch)["graph"].backward()
    gradient = batch.student[0].grad
    assert gradient is not None
    assert (gradient.abs().amax(1) > 0).nonzero()[:, 0].tolist() == [0, 1, 2, 3]


# --- weights ---


def test_equal_counts_weigh_as_no_weights() -> None:
    batch = rows()
    batch.targets.num_points = torch.full((12,), 7)
    found, uniform = link(), link(reweight="official")
    uniform.load_state_dict(found.state_dict())
    torch.testing.assert_close(found(batch)["graph"], uniform(batch)["graph"], rtol=1e-6, atol=0)
    assert found.logged["effective_centres"].item() == pytest.approx(5)


def test_small_temperature_leaves_the_fullest_and_a_large_one_all() -> None:
    batch = rows()
    alone = link(temperature=1e-4)
    alone(batch)
    assert alone.logged["effective_centres"].item() == pytest.approx(1)
    wide = link(temperature=1e9)
    wide(batch)
    assert wide.logged["effective_centres"].item() == pytest.approx(5)


# --- sizes ---


def test_more_centres_and_neighbours_than_rows_are_clipped() -> None:
    batch = rows()
    found, exact = link(num_voxels=999, kneighbours=999), link(num_voxels=12, kneighbours=12)
    exact.load_state_dict(found.state_dict())
    torch.testing.assert_close(found(batch)["graph"], exact(batch)["graph"], rtol=0, atol=0)


@pytest.mark.parametrize("sizes", [(0, 0), (1, 0)])
def test_batch_of_one_edge_or_none_is_zero_with_a_graph(sizes: tuple[int, int]) -> None:
    coors, counts = voxels(sizes)
    count = sum(sizes)
    student = torch.ones(count, 4).requires_grad_()
    batch = step([student], [torch.ones(count, 6)], targets(coors.view(-1, 4), counts, clouds=2))
    loss = link()(batch)["graph"]
    assert loss.item() == 0.0
    loss.backward()


def test_cloud_without_voxels_changes_only_the_share_of_centres() -> None:
    batch = rows((12,))
    given = batch.targets
    found = link(num_voxels=8)
    with_empty = step(batch.student, batch.teacher, targets(given.coors, given.num_points, clouds=2))
    expected = link(num_voxels=4)
    expected.load_state_dict(found.state_dict())
    torch.testing.assert_close(found(with_empty)["graph"], expected(batch)["graph"], rtol=0, atol=0)


# --- sampling and ablations ---


def test_random_sampling_draws_by_step_alone() -> None:
    batch, found = rows(), link(sampling="random", num_voxels=4, kneighbours=1)
    values = []
    for draw in (1, 1, 2):
        batch.draw = draw
        values.append(found(batch)["graph"].item())
    assert values[0] == values[1] != values[2]


@pytest.mark.parametrize("widths", [(6, 4), (6, 6)])
def test_without_graph_the_centres_rows_are_compared_through_a_bridge(widths: tuple[int, int]) -> None:
    batch = rows(widths=widths)
    found = link(((12, widths[0]), (12, widths[1])), graph=False)
    bridge = found.student_layers[0]
    assert len(list(found.parameters())) == (2 if widths[0] != widths[1] else 0)
    loss = found(batch)["graph"]
    scores = batch.targets.num_points.double().numpy()
    chosen = np.argsort(-scores)[:5]
    weights = np.exp((scores[chosen] - scores.max()) / 20.0)
    weights *= 5 / weights.sum()
    mine = common.array(bridge(batch.student[0]))[chosen]
    errors = ((common.array(batch.teacher[0])[chosen] - mine) ** 2).mean(1)
    assert loss.item() == pytest.approx(2 * (weights * errors).mean(), rel=1e-5)
    loss.backward()
    assert batch.teacher[0].grad is None
    gradient = batch.student[0].grad
    assert gradient is not None
    assert sorted((gradient.abs().amax(1) > 0).nonzero()[:, 0].tolist()) == sorted(chosen.tolist())


# --- alignment and guards ---


def members(batch: LinkInputs, student: tuple[Tensor, Tensor]) -> dict[str, Any]:
    given = batch.targets
    teacher = (given.coors, given.num_points)
    sides = dict(teacher=teacher, student=student)
    return {name: SimpleNamespace(coors=coors, num_points=points) for name, (coors, points) in sides.items()}


def test_voxels_of_other_members_must_be_the_same() -> None:
    batch, found = rows(), link()
    given = batch.targets
    batch.inputs = members(batch, (given.coors, given.num_points))
    expected = found(batch)["graph"]
    torch.testing.assert_close(expected, found(step(batch.student, batch.teacher, given))["graph"], rtol=0, atol=0)
    batch.inputs = members(batch, (given.coors.flip(0), given.num_points))
    with pytest.raises(ShapeMismatch, match=r"'voxel_encoder'.*other coordinates.*align='coors'"):
        found(batch)


def test_align_by_coordinates_joins_what_both_have() -> None:
    batch = rows()
    given = batch.targets
    found = link(align="coors")
    keep = torch.tensor([7, 2, 9, 4, 0, 11, 5])  # the student has these, in another order, and two of its own
    own = torch.tensor([[0, 1, 0, 0], [0, 2, 5, 5]]).int()
    coors, points = torch.cat([given.coors[keep], own]), torch.zeros(9).int()
    student = torch.cat([batch.student[0][keep], torch.full((2, 4), 50.0)])
    joined = step([student], batch.teacher, given, inputs=members(batch, (coors, points)))
    order = keep.sort().values
    alone = step(
        [batch.student[0][order]], [batch.teacher[0][order]], targets(given.coors[order], given.num_points[order])
    )
    torch.testing.assert_close(found(joined)["graph"], found(alone)["graph"], rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    ("teacher", "student", "said"),
    [
        ((12, 6), (11, 4), "voxel_encoder.*align='coors'"),
        ((2, 6, 4, 4), (2, 4, 8, 8), "4×4 and 8×8 cells have other strides"),
        ((2, 6, 9), (2, 4, 8), "not of the same places"),
        ((2, 6, 9), (2, 4, 3, 3), "on both sides"),
        ((6,), (4,), "on both sides"),
    ],
)
def test_taps_that_do_not_fit_are_named(teacher: tuple[int, ...], student: tuple[int, ...], said: str) -> None:
    with pytest.raises(ShapeMismatch, match=said):
        link((teacher, student))


def test_rows_that_are_no_voxels_are_refused() -> None:
    batch, found = rows(), link()
    batch.targets.coors, batch.targets.num_points = batch.targets.coors[:9], batch.targets.num_points[:9]
    with pytest.raises(ShapeMismatch, match="'voxel_encoder' has 12 rows for 9 voxels"):
        found(batch)
    batch.targets = None
    with pytest.raises(ConfigError, match="3D detection"):
        found(batch)


def test_warns_once_when_the_teachers_graph_features_are_flat() -> None:
    batch, found = rows(), link()
    with torch.no_grad():
        cast(Any, found.teacher_layers[0]).norm.weight.fill_(1e-5)
    with pytest.warns(UserWarning, match="freeze_teacher_edge"):
        found(batch)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found(batch)
    assert set(found.logged) == {"effective_centres", "teacher_mean", "teacher_std"}


@pytest.mark.parametrize("dtype", common.HALVES)
def test_half_precision_is_computed_in_float32(dtype: torch.dtype) -> None:
    found, batch = link(), rows()

    def loss(student: Tensor, teacher: Tensor) -> Tensor:
        return found(step([student], [teacher], batch.targets))["graph"]

    common.check_half(loss, batch.student[0].detach(), batch.teacher[0].detach(), dtype)


# --- options ---


def test_presets_by_kind_of_tap() -> None:
    shapes: dict[str, Any] = {
        "rows": ((12, 64), (12, 16)),
        "maps": ((2, 128, 4, 4), (2, 32, 4, 4)),
        "points": ((2, 128, 9), (2, 45, 9)),
    }
    wanted = {"rows": (6000, 128, 16, 1e-2), "maps": (256, 128, 32, 1e-4), "points": (6000, 128, 45, 1e-3)}
    for kind, (teacher, student) in shapes.items():
        found = PointDistiller(preset="official")
        found.connect([teacher], [student])
        ((name, settings),) = found.settings
        layer = cast(EdgeLayer, found.student_layers[0])
        assert (name, layer.weight.shape) == (kind, (wanted[kind][2], 2 * student[1]))
        assert (settings.num_voxels, settings.kneighbours, settings.temperature) == wanted[kind][:2] + wanted[kind][3:]
        assert settings.pool == ("max" if kind == "points" else "none")
        assert found.assumption == ""
    found = PointDistiller(preset="official", kneighbours=7)
    found.connect([(12, 64)], [(12, 16)])
    assert found.settings[0][1].kneighbours == 7
    desk = PointDistiller()
    desk.connect([(12, 64)], [(12, 16)])
    assert desk.assumption == WITHIN


def test_registry_builds_it_and_refuses_typos() -> None:
    common.check_registered("PointDistiller", PointDistiller, weight=1.0, typo="kneighbors", meant="kneighbours")


@pytest.mark.parametrize(
    ("options", "error"),
    [
        (dict(preset="paper"), UnknownName),
        (dict(sampling="best"), UnknownName),
        (dict(fuse="add"), UnknownName),
        (dict(pool="mean"), UnknownName),
        (dict(scope="image"), UnknownName),
        (dict(align="key"), UnknownName),
        (dict(reweight="yes"), ConfigError),
        (dict(num_voxels=0), ConfigError),
        (dict(kneighbours=0), ConfigError),
        (dict(channels=0), ConfigError),
        (dict(temperature=0.0), ConfigError),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error, match="PointDistiller"):
        PointDistiller(**options)
