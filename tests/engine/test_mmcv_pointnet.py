"""mmcv's operators of PointNet++ and PointRCNN against plain loops: random clouds, ties, duplicates, empty balls."""

from __future__ import annotations

import importlib
import sys

import numpy as np
import pytest
import torch
from torch.autograd import gradcheck

from limbeck.engine.mmcv_ops import install

pytest.importorskip("mmcv", reason="needs the 'pointcloud' extra")

if install() == "compiled":
    pytest.skip("mmcv's compiled operators are installed", allow_module_level=True)

ops = importlib.import_module("mmcv.ops")
ext = sys.modules["mmcv._ext"]
pointnet = importlib.import_module("limbeck.engine._mmcv_pointnet")
in_boxes = importlib.import_module("limbeck.engine._mmcv_points")


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture(params=["whole", "in pieces"])
def _cut(request, monkeypatch) -> None:
    """Once as it is, once so that hardly anything fits in one piece of work."""
    if request.param == "in pieces":
        for module in (pointnet, in_boxes):
            monkeypatch.setattr(module, "_PAIRS_AT_ONCE", 13)


def clouds(rng: np.random.Generator, points: int, batch: int = 2) -> np.ndarray:
    """Whole and half metres, exact in float32, so that many distances are equal; and some points twice."""
    xyz = rng.integers(-6, 7, (batch, points, 3)) / 2
    xyz[:, points // 2 : points // 2 + 2] = xyz[:, :1]
    return xyz


def tensor(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(array).float()


def squared(a: np.ndarray, b: np.ndarray) -> float:
    return sum((float(p) - float(q)) ** 2 for p, q in zip(a, b))


# Sampling


def naive_furthest(distance, points: int, samples: int) -> list[int]:
    chosen = [0]
    while len(chosen) < samples:
        nearest = [min(distance(c, i) for c in chosen) for i in range(points)]
        chosen.append(nearest.index(max(nearest)))
    return chosen


@pytest.mark.parametrize(("points", "samples"), [(40, 12), (5, 9), (1, 3), (7, 1), (6, 6)])
def test_furthest_points_match_a_loop(rng, points, samples) -> None:
    xyz = clouds(rng, points)
    want = [naive_furthest(lambda i, j, c=cloud: squared(c[i], c[j]), points, samples) for cloud in xyz]
    got = ops.furthest_point_sample(tensor(xyz), samples)
    assert got.dtype == torch.int32
    assert got.tolist() == want

    apart = np.array([[[squared(a, b) for b in cloud] for a in cloud] for cloud in xyz])
    assert ops.furthest_point_sample_with_dist(tensor(apart), samples).tolist() == want


def test_furthest_points_of_one_place_are_the_first_point() -> None:
    assert ops.furthest_point_sample(torch.ones(2, 5, 3), 4).tolist() == [[0] * 4] * 2


def test_furthest_points_keep_the_distances_to_the_samples(rng) -> None:
    xyz = clouds(rng, 30)
    nearest, index = torch.full((2, 30), 1e10), torch.zeros(2, 6, dtype=torch.int32)
    ext.furthest_point_sampling_forward(tensor(xyz), nearest, index, b=2, n=30, m=6)
    want = [[min(squared(c[s], p) for s in chosen[:-1]) for p in c] for c, chosen in zip(xyz, index.tolist())]
    assert nearest.tolist() == want


def test_samplers_by_distance_and_by_features_run(rng) -> None:
    xyz, features = tensor(clouds(rng, 20)), torch.randn(2, 4, 20)
    for kind, samples in (("D-FPS", 5), ("F-FPS", 5), ("FS", 10)):
        assert ops.PointsSampler([5], [kind], [-1])(xyz, features).shape == (2, samples)


# Neighbours


def naive_ball(points, center, low: float, high: float, limit: int) -> list[int]:
    found = [i for i, p in enumerate(points) if squared(p, center) == 0 or low**2 <= squared(p, center) < high**2]
    found = found[:limit]
    return found + found[:1] * (limit - len(found)) if found else [0] * limit


@pytest.mark.usefixtures("_cut")
@pytest.mark.parametrize(("low", "high"), [(0, 1.0), (1.0, 2.5), (0, 50.0), (0, 0.5)])
@pytest.mark.parametrize(("points", "limit"), [(60, 6), (1, 3), (4, 9)])
def test_ball_query_matches_a_loop(rng, points, limit, low, high) -> None:
    xyz, centers = clouds(rng, points), clouds(rng, 9)
    centers[:, 3] = 99  # nothing is near
    want = [[naive_ball(c, m, low, high, limit) for m in ms] for c, ms in zip(xyz, centers)]
    got = ops.ball_query(low, high, limit, tensor(xyz), tensor(centers))
    assert got.dtype == torch.int32
    assert got.tolist() == want


def test_ball_is_closed_inside_and_open_outside_and_holds_its_own_center() -> None:
    points = torch.tensor([[[9.0, 0, 0], [2, 0, 0], [1, 0, 0], [0, 0, 0], [0, 1.5, 0]]])
    center = torch.zeros(1, 1, 3)
    assert ops.ball_query(1.0, 2.0, 4, points, center).tolist() == [[[2, 3, 4, 2]]]
    assert ops.ball_query(0, 1.0, 2, points, center).tolist() == [[[3, 3]]]


def test_an_empty_ball_keeps_what_was_there() -> None:
    index = torch.full((1, 2, 3), 7, dtype=torch.int32)
    centers, points = torch.tensor([[[0.0, 0, 0], [50, 0, 0]]]), torch.zeros(1, 2, 3)
    ext.ball_query_forward(centers, points, index, b=1, n=2, m=2, min_radius=0.0, max_radius=1.0, nsample=3)
    assert index.tolist() == [[[0, 1, 0], [7, 7, 7]]]


def test_radii_are_squared_in_single_precision() -> None:
    radius = np.float32(0.1)
    assert float(radius * radius) != 0.1**2
    edge = float(np.sqrt(np.float64(radius * radius)))  # in float64 the points see the very radius of the operator
    points = torch.tensor([[[edge * (1 + 1e-12), 0, 0], [edge * (1 - 1e-12), 0, 0]]], dtype=torch.float64)
    assert ops.ball_query(0, 0.1, 2, points, torch.zeros(1, 1, 3, dtype=torch.float64)).tolist() == [[[1, 1]]]


def naive_nearest(points, center, k: int, missing: float) -> tuple[list[int], list[float]]:
    order = sorted(range(len(points)), key=lambda i: (squared(points[i], center), i))[:k]
    short = k - len(order)
    return order + [0] * short, [squared(points[i], center) for i in order] + [missing] * short


@pytest.mark.usefixtures("_cut")
@pytest.mark.parametrize("known", [50, 3, 2, 1])
def test_three_nearest_match_a_loop(rng, known) -> None:
    target, source = clouds(rng, 30), clouds(rng, known)
    want = [[naive_nearest(s, t, 3, np.inf) for t in ts] for ts, s in zip(target, source)]
    index = torch.full((2, 30, 3), -1, dtype=torch.int32)
    far = torch.full((2, 30, 3), -1.0)
    ext.three_nn_forward(tensor(target), tensor(source), far, index, b=2, n=30, m=known)
    assert index.tolist() == [[i for i, _ in row] for row in want]
    assert far.tolist() == [[d for _, d in row] for row in want]

    distance, same = ops.three_nn(tensor(target), tensor(source))
    assert torch.equal(distance, far.sqrt())
    assert torch.equal(same, index)


@pytest.mark.usefixtures("_cut")
@pytest.mark.parametrize(("points", "k"), [(40, 7), (3, 5), (1, 1)])
def test_nearest_neighbours_match_a_loop(rng, points, k) -> None:
    xyz, centers = clouds(rng, points), clouds(rng, 8)
    want = np.array([[naive_nearest(c, m, k, 1e10)[0] for m in ms] for c, ms in zip(xyz, centers)])
    got = ops.knn(k, tensor(xyz), tensor(centers))
    np.testing.assert_array_equal(got, want.transpose(0, 2, 1))
    turned = tensor(xyz).transpose(1, 2), tensor(centers).transpose(1, 2)
    assert torch.equal(ops.knn(k, *turned, True), got)
    assert ops.knn(1, tensor(xyz))[:, 0, 0].tolist() == [0, 0]  # among themselves, each nearest to itself


def test_nearest_neighbours_tell_squared_distances(rng) -> None:
    xyz, centers = clouds(rng, 4), clouds(rng, 3)
    index, far = torch.zeros(2, 3, 6, dtype=torch.int32), torch.zeros(2, 3, 6)
    ext.knn_forward(tensor(xyz), tensor(centers), index, far, b=2, n=4, m=3, nsample=6)
    assert far.tolist() == [[naive_nearest(c, m, 6, 1e10)[1] for m in ms] for c, ms in zip(xyz, centers)]


# Features at indices


def test_gathered_and_grouped_points_match_a_loop(rng) -> None:
    features = rng.normal(size=(2, 4, 11)).astype(np.float32)
    flat, deep = rng.integers(0, 11, (2, 7)), rng.integers(0, 11, (2, 5, 3))
    gathered = ops.gather_points(torch.from_numpy(features), torch.from_numpy(flat).int())
    for b, c, m in np.ndindex(2, 4, 7):
        assert gathered[b, c, m] == features[b, c, flat[b, m]]
    grouped = ops.grouping_operation(torch.from_numpy(features), torch.from_numpy(deep).int())
    for b, c, m, s in np.ndindex(2, 4, 5, 3):
        assert grouped[b, c, m, s] == features[b, c, deep[b, m, s]]


def test_interpolated_features_match_a_loop(rng) -> None:
    features, weight = rng.normal(size=(2, 4, 6)), rng.uniform(size=(2, 9, 3))
    index = rng.integers(0, 6, (2, 9, 3))
    got = ops.three_interpolate(torch.from_numpy(features), torch.from_numpy(index).int(), torch.from_numpy(weight))
    for b, c, n in np.ndindex(2, 4, 9):
        want = sum(weight[b, n, k] * features[b, c, index[b, n, k]] for k in range(3))
        np.testing.assert_allclose(got[b, c, n], want, atol=1e-12)


@pytest.mark.parametrize("op", ["gather", "group", "interpolate"])
def test_gradients_are_the_numeric_ones(rng, op) -> None:
    features = torch.from_numpy(rng.normal(size=(2, 3, 5))).requires_grad_()
    weight = torch.from_numpy(rng.uniform(size=(2, 4, 3)))
    flat, deep = (torch.from_numpy(rng.integers(0, 3, size)).int() for size in ((2, 6), (2, 4, 3)))  # some twice
    functions = {
        "gather": lambda x: ops.gather_points(x, flat),
        "group": lambda x: ops.grouping_operation(x, deep),
        "interpolate": lambda x: ops.three_interpolate(x, deep, weight),
    }
    assert gradcheck(functions[op], features)
    (grad,) = torch.autograd.grad(functions[op](features).sum(), features)
    assert not grad[..., 3:].any()  # no index names these


def test_no_gradient_reaches_the_places_of_points(rng) -> None:
    xyz = tensor(clouds(rng, 12)).requires_grad_()
    found = [ops.furthest_point_sample(xyz, 4), ops.ball_query(0, 2.0, 3, xyz, xyz), ops.knn(2, xyz)]
    assert not any(index.requires_grad for index in found)


# Boxes


def naive_inside(point, box) -> bool:
    x, y, z, dx, dy, dz, yaw = (float(v) for v in box)
    px, py = float(point[0]) - x, float(point[1]) - y
    along, across = px * np.cos(yaw) + py * np.sin(yaw), py * np.cos(yaw) - px * np.sin(yaw)
    return abs(along) < dx / 2 and abs(across) < dy / 2 and z <= point[2] <= z + dz


def scene(rng: np.random.Generator, points: int, boxes: int) -> tuple[np.ndarray, np.ndarray]:
    xyz = rng.uniform(-4, 4, (2, points, 3))
    size = rng.uniform(1, 5, (2, boxes, 3))
    return xyz, np.concatenate([rng.uniform(-3, 3, (2, boxes, 3)), size, rng.uniform(-4, 4, (2, boxes, 1))], 2)


@pytest.mark.usefixtures("_cut")
def test_points_in_boxes_match_a_loop_without_a_cuda_device(rng) -> None:
    xyz, boxes = scene(rng, 80, 7)
    want = np.array([[[naive_inside(p, box) for box in bs] for p in ps] for ps, bs in zip(xyz, boxes)])
    points, tboxes = tensor(xyz), tensor(boxes)
    for function in (ops.points_in_boxes_all, ops.points_in_boxes_cpu):
        np.testing.assert_array_equal(function(points, tboxes), want)
    first = np.where(want.any(2), want.argmax(2), -1)
    np.testing.assert_array_equal(ops.points_in_boxes_part(points, tboxes), first)
    assert (want.sum(2) > 1).any()
    assert (first < 0).any()


def test_points_and_boxes_of_wrong_shape_are_refused() -> None:
    for points, boxes in (((1, 4, 4), (1, 2, 7)), ((1, 4, 3), (1, 2, 8)), ((2, 4, 3), (1, 2, 7))):
        with pytest.raises(ValueError, match=r"points are \(B, M, 3\) and boxes \(B, T, 7\)"):
            ops.points_in_boxes_part(torch.zeros(points), torch.zeros(boxes))


def test_boxes_of_mmdet3d_find_their_points_without_a_cuda_device() -> None:
    pytest.importorskip("mmdet3d", reason="needs the 'pointcloud' extra")
    from mmdet3d.structures import LiDARInstance3DBoxes

    boxes = LiDARInstance3DBoxes(torch.tensor([[0.0, 0, 0, 2, 2, 2, 0], [9, 9, 0, 2, 2, 2, 0.3]]))
    points = torch.tensor([[9.0, 9, 1], [0, 0, 1], [5, 5, 5]])
    assert boxes.points_in_boxes_part(points).tolist() == [1, 0, -1]
    assert boxes.points_in_boxes_all(points).tolist() == [[0, 1], [1, 0], [0, 0]]


@pytest.mark.usefixtures("_cut")
@pytest.mark.parametrize("samples", [1, 4, 60])
def test_pooled_points_of_boxes_match_a_loop(rng, samples) -> None:
    xyz, boxes = scene(rng, 40, 6)
    boxes[:, 2, 0] = 99  # holds nothing
    features = rng.normal(size=(2, 40, 5))
    want, empty = np.zeros((2, 6, samples, 8)), np.zeros((2, 6))
    for b, m in np.ndindex(2, 6):
        inside = [i for i in range(40) if naive_inside(xyz[b, i], boxes[b, m])][:samples]
        empty[b, m] = not inside
        for s in range(samples if inside else 0):
            point = inside[s % len(inside)]
            want[b, m, s] = [*xyz[b, point], *features[b, point]]
    pooled, flag = ops.RoIPointPool3d(samples)(*(torch.from_numpy(a) for a in (xyz, features, boxes)))
    np.testing.assert_array_equal(pooled, want)
    np.testing.assert_array_equal(flag, empty)
    assert 2 <= empty.sum() < 12


def test_pooling_of_no_box_and_of_one_point() -> None:
    points, features = torch.zeros(1, 1, 3), torch.ones(1, 1, 2)
    pooled, flag = ops.RoIPointPool3d(4)(points, features, torch.zeros(1, 0, 7))
    assert (pooled.shape, flag.shape) == ((1, 0, 4, 5), (1, 0))
    box = torch.tensor([[[0.0, 0, 0, 1, 1, 1, 0]]])  # the point is on its floor
    pooled, flag = ops.RoIPointPool3d(4)(points, features, box)
    assert pooled.tolist() == [[[[0.0, 0, 0, 1, 1]] * 4]]
    assert flag.tolist() == [[0]]


# Voxels: the rest is in test_mmcv_ops


def test_a_single_point_is_one_voxel() -> None:
    voxels, cells, counts = ops.Voxelization([0.5, 0.5, 1], [0, 0, 0, 2, 2, 2], 3, 5)(
        torch.tensor([[1.2, 0.4, 1.5, 0.7]])
    )
    assert voxels.tolist() == [[pytest.approx([1.2, 0.4, 1.5, 0.7]), [0.0] * 4, [0.0] * 4]]
    assert (cells.tolist(), counts.tolist()) == ([[1, 0, 2]], [1])


def test_points_on_borders_belong_to_the_cell_above() -> None:
    on = [[0.0, 0, 0], [0.5, 0, 0], [2, 0, 0], [0, 2, 0], [0, 0, 2], [-1e-6, 0, 0], [1.5, 1.5, 1]]
    voxels, cells, _ = ops.Voxelization([0.5, 0.5, 1], [0, 0, 0, 2, 2, 2], 1, 9)(torch.tensor(on))
    assert cells.tolist() == [[0, 0, 0], [0, 0, 1], [1, 3, 3]]
    assert voxels[:, 0].tolist() == [on[0], on[1], on[6]]


def test_equal_points_fill_a_voxel_up_to_its_cap() -> None:
    voxels, cells, counts = ops.Voxelization([1, 1, 1], [0, 0, 0, 4, 4, 4], 3, 1)(torch.ones(9, 4) * 0.5)
    assert (voxels.shape, cells.tolist(), counts.tolist()) == ((1, 3, 4), [[0, 0, 0]], [3])
