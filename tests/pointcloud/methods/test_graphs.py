"""Centres, neighbours, weights and edge layers of local graphs, against sorting and explicit edges."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from limbeck.errors import ShapeMismatch, UnknownName
from limbeck.pointcloud.methods._graphs import (
    EdgeLayer,
    Graphs,
    effective_centres,
    graph_loss,
    nearest_rows,
    sample_centres,
    softmax_weights,
)
from limbeck.pointcloud.methods._rows import common_rows
from tests.pointcloud.methods.clouds import voxels
from tests.vision.methods import conftest as common


@pytest.mark.parametrize("count", [1, 7, 40, 99])
def test_centres_are_the_first_of_a_stable_sort(count: int) -> None:
    scores = torch.randint(1, 6, (40,), generator=torch.Generator().manual_seed(0)).float()
    order = sorted(range(40), key=lambda r: (-scores[r].item(), r))
    assert sample_centres(scores, count).tolist() == order[:count]
    rising = sorted(range(40), key=lambda r: (scores[r].item(), r))
    assert sample_centres(scores, count, sampling="bottom").tolist() == rising[:count]
    both = sample_centres(scores, count, sampling="both").tolist()
    kept = min(count, 40)
    assert len({*both}) == len(both) == kept
    assert both[: (kept + 1) // 2] == order[: (kept + 1) // 2]
    rest = [r for r in rising if r not in both[: (kept + 1) // 2]]
    assert both[(kept + 1) // 2 :] == rest[: kept // 2]


def test_random_centres_are_as_many_and_differ_from_draw_to_draw() -> None:
    found = [
        sample_centres(torch.zeros(50), 20, sampling="random", generator=torch.Generator().manual_seed(i)).tolist()
        for i in (0, 0, 1)
    ]
    assert found[0] == found[1] != found[2]
    assert len({*found[0]}) == 20
    with pytest.raises(UnknownName, match="'best'"):
        sample_centres(torch.zeros(5), 2, sampling="best")


def brute_force(features: torch.Tensor, centre: int, count: int) -> list[int]:
    x = common.array(features)
    distance = ((x - x[centre]) ** 2).sum(1)
    return sorted(range(len(x)), key=lambda j: (j != centre, distance[j], j))[:count]


@pytest.mark.parametrize("chunk", [1, 3, 512])
@pytest.mark.parametrize("block", [1, 4, 10, 9999])
@pytest.mark.parametrize("whole", [False, True])
def test_neighbours_are_those_of_brute_force_however_cut(chunk: int, block: int, whole: bool) -> None:
    features = common.randn(30, 5, seed=1)
    if whole:  # small integers: many distances are equal, and all are exact
        features = features.round()
    centres = torch.tensor([4, 29, 0, 17, 5])
    for count in (1, 6, 30, 99):
        found = nearest_rows(features, centres, count, chunk=chunk, block=block)
        assert found.tolist() == [brute_force(features, int(i), count) for i in centres]


def test_a_centre_is_its_own_first_neighbour_among_equal_rows() -> None:
    found = nearest_rows(torch.ones(9, 4), torch.tensor([8, 3]), 3)
    assert found.tolist() == [[8, 0, 1], [3, 0, 1]]
    assert nearest_rows(torch.ones(9, 4), torch.zeros(0, dtype=torch.int64), 3).shape == (0, 3)


def test_weights_are_a_softmax_of_mean_one() -> None:
    scores = torch.tensor([32.0, 32.0, 5.0, 1.0])
    for temperature in (0.01, 1.0, 10.0, 1e6):
        assert softmax_weights(scores, temperature).sum().item() == pytest.approx(4, rel=1e-6)
    expected = 4 * np.array(common.softmax(scores.double().numpy() / 10))
    np.testing.assert_allclose(softmax_weights(scores, 10.0).numpy(), expected, rtol=1e-5)
    assert softmax_weights(scores, 1e-2).tolist() == [2.0, 2.0, 0.0, 0.0]  # ties share
    torch.testing.assert_close(softmax_weights(scores, 1e9), torch.ones(4))
    assert softmax_weights(torch.full((5,), 3.0), 0.1).tolist() == pytest.approx([1.0] * 5)
    assert effective_centres(softmax_weights(scores, 1e-2)).item() == pytest.approx(2)
    assert not softmax_weights(scores.requires_grad_(), 1.0).requires_grad


@pytest.mark.parametrize("fuse", ["concat", "sub"])
def test_split_projection_is_the_convolution_of_explicit_edges(fuse: str) -> None:
    torch.manual_seed(0)
    layer, rows = EdgeLayer(6, 5, fuse=fuse), common.randn(9, 6).requires_grad_()
    centres, neighbours = torch.tensor([2, 7, 4]), torch.tensor([[2, 1, 0, 5], [7, 3, 8, 2], [4, 4, 6, 1]])
    near, own = rows[neighbours], rows[centres][:, None].expand(3, 4, 6)
    edges = torch.cat([near if fuse == "concat" else own - near, own], dim=2)
    convolution = torch.nn.Conv2d(12, 5, 1, bias=False)
    convolution.weight.data = layer.weight.data[:, :, None, None]
    expected = torch.nn.BatchNorm2d(5)(convolution(edges.permute(2, 0, 1)[None])).relu()[0].permute(1, 2, 0)
    found = layer(rows, *Graphs([centres], [neighbours], None).edges)
    torch.testing.assert_close(found.view(3, 4, 5), expected, rtol=1e-5, atol=1e-5)
    slopes = [torch.autograd.grad(x.square().sum(), rows, retain_graph=True)[0] for x in (found, expected)]
    torch.testing.assert_close(*slopes, rtol=1e-4, atol=1e-5)


def test_one_neighbour_is_the_centre_itself() -> None:
    layer, rows = EdgeLayer(6, 5), common.randn(9, 6)
    centres = torch.tensor([2, 7])
    graphs = Graphs([centres], [nearest_rows(rows, centres, 1)], None)
    left, right = layer.weight.chunk(2, dim=1)
    expected = layer.norm(rows[centres] @ (left + right).T).relu()
    torch.testing.assert_close(layer(rows, *graphs.edges), expected)


def test_edge_layer_starts_kaiming_normal_over_the_fan_out() -> None:
    torch.manual_seed(0)
    layer = EdgeLayer(300, 64)
    assert layer.weight.std().item() == pytest.approx((2 / 64) ** 0.5, rel=0.02)
    assert [name for name, _ in layer.named_parameters()] == ["weight", "norm.weight", "norm.bias"]
    with pytest.raises(UnknownName, match="'add'"):
        EdgeLayer(3, 4, fuse="add")


@pytest.mark.parametrize("pool", ["none", "max"])
def test_order_of_a_centres_neighbours_is_of_no_account(pool: str) -> None:
    torch.manual_seed(0)
    layers, rows = (EdgeLayer(6, 5), EdgeLayer(4, 5)), (common.randn(9, 6), common.randn(9, 4, seed=1))
    centres, neighbours = torch.tensor([2, 7]), torch.tensor([[2, 1, 0, 5], [7, 3, 8, 2]])
    losses = []
    for order in ([0, 1, 2, 3], [3, 1, 0, 2]):
        graphs = Graphs([centres], [neighbours[:, order]], [torch.tensor([0.5, 1.5])])
        losses.append(graph_loss(*(layer(x, *graphs.edges) for layer, x in zip(layers, rows)), graphs, pool=pool))
    torch.testing.assert_close(*losses)


def test_sides_that_differ_are_refused() -> None:
    graphs = Graphs([torch.tensor([0])], [torch.tensor([[0, 1]])], None)
    with pytest.raises(ShapeMismatch, match="PointDistiller"):
        graph_loss(torch.zeros(2, 3), torch.zeros(2, 4), graphs)
    with pytest.raises(UnknownName, match="'mean'"):
        graph_loss(torch.zeros(2, 3), torch.zeros(2, 3), graphs, pool="mean")


def test_common_rows_are_those_of_a_dictionary() -> None:
    first, _ = voxels((200, 150), seed=0)
    second, _ = voxels((120, 250), seed=1)
    second = torch.cat([second, torch.tensor([[5, 3, 40, 2]]).int()])  # beyond the other's extent
    where = {tuple(row): i for i, row in enumerate(second.tolist())}
    expected = [(i, where[tuple(row)]) for i, row in enumerate(first.tolist()) if tuple(row) in where]
    found = common_rows(first, second)
    assert list(zip(*(x.tolist() for x in found))) == expected
    assert len(expected) > 30
    assert [len(x) for x in common_rows(first[:0], second)] == [0, 0]
