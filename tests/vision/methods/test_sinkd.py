"""SinKD against a naive Sinkhorn loop in the plain domain, what its plan sums to, and its blindness to pairing."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from limbeck.engine.adapter import Batch
from limbeck.engine.distiller import Distiller
from limbeck.engine.registry import METHODS
from limbeck.errors import ConfigError, ShapeMismatch
from limbeck.vision.methods.sinkd import SinKD, sinkd_loss, sinkhorn_plan
from limbeck.vision.models import CIFARResNet
from tests.vision.methods import conftest as common


def example(batch: int = 5, classes: int = 7, scale: float = 3.0) -> tuple[Tensor, Tensor]:
    return common.randn(batch, classes, seed=0, scale=scale), common.randn(batch, classes, seed=1, scale=scale)


def naive_plan(cost: list[list[float]], epsilon: float, iterations: int) -> list[list[float]]:
    size = range(len(cost))
    plan = [[math.exp(-d / epsilon) for d in row] for row in cost]
    for _ in range(iterations):
        plan = [[v / sum(row) for v in row] for row in plan]
        sums = [sum(plan[i][j] for i in size) for j in size]
        plan = [[plan[i][j] / sums[j] for j in size] for i in size]
    return plan


def reference(
    student: np.ndarray, teacher: np.ndarray, temperature: float = 2.0, epsilon: float = 0.1, iterations: int = 20
) -> float:
    p, q = ([common.softmax(row / temperature) for row in z] for z in (student, teacher))
    cost = [[sum(abs(a - b) for a, b in zip(x, y)) for y in q] for x in p]
    plan = naive_plan(cost, epsilon, iterations)
    return sum(plan[i][j] * cost[i][j] for i in range(len(p)) for j in range(len(p)))


def test_value_and_gradient_match_naive_reference() -> None:
    common.check_reference(lambda s, t: sinkd_loss(s, t, normalise=False), lambda s, t: reference(s, t), *example(5, 6))
    # Few rounds: the gradient through each of them shows.
    common.check_reference(
        lambda s, t: sinkd_loss(s, t, temperature=1.0, epsilon=0.5, iterations=2),
        lambda s, t: reference(s, t, 1.0, 0.5, 2) / 4,
        *example(4, 5),
    )


def test_gradient_passes_through_the_plan() -> None:
    student, teacher = example(5, 6)
    found = common.gradient_of(sinkd_loss, student, teacher)

    def with_fixed_plan(s: Tensor, t: Tensor) -> Tensor:
        cost = torch.cdist((s / 2).softmax(1), (t / 2).softmax(1), p=1.0)
        return (sinkhorn_plan(cost).detach() * cost).sum() / 5

    assert (found - common.gradient_of(with_fixed_plan, student, teacher)).abs().max() > 0.05 * found.abs().max()


@pytest.mark.parametrize(("scale", "rows"), [(1.0, 1e-5), (4.0, 0.1)])
def test_plan_sums_to_one_over_columns_and_nearly_over_rows(scale: float, rows: float) -> None:
    p, q = ((z / 2).softmax(1) for z in example(64, 100, scale))
    plan = sinkhorn_plan(torch.cdist(p, q, p=1.0))
    assert plan.min() >= 0
    torch.testing.assert_close(plan.sum(0), torch.ones(64), rtol=0, atol=1e-5)
    torch.testing.assert_close(plan.sum(1), torch.ones(64), rtol=0, atol=rows)


def test_one_sample_costs_its_distance() -> None:
    student, teacher = example(1, 7)
    p, q = (common.softmax(common.array(z)[0] / 2) for z in (student, teacher))
    expected = sum(abs(a - b) for a, b in zip(p, q))
    assert sinkd_loss(student, teacher).item() == pytest.approx(expected, rel=1e-5)
    assert sinkd_loss(student, teacher, normalise=False).item() == pytest.approx(expected, rel=1e-5)


def test_pairing_is_not_seen() -> None:
    student, teacher = example(6, 8)
    order = torch.tensor([3, 5, 0, 1, 4, 2])
    expected = sinkd_loss(student, teacher)
    for s, t in ((student[order], teacher), (student, teacher[order]), (student[order], teacher[order])):
        torch.testing.assert_close(sinkd_loss(s, t), expected)
    classes = torch.tensor([7, 0, 2, 1, 3, 5, 4, 6])
    torch.testing.assert_close(sinkd_loss(student[:, classes], teacher[:, classes]), expected)
    assert not torch.isclose(sinkd_loss(student[:, classes], teacher), expected)


def test_shift_of_a_sample_changes_nothing() -> None:
    student, teacher = example()
    shift = torch.tensor([[5.0], [-3.0], [0.5], [20.0], [-11.0]])
    expected = sinkd_loss(student, teacher)
    torch.testing.assert_close(sinkd_loss(student + shift, teacher), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(sinkd_loss(student, teacher + shift), expected, rtol=1e-4, atol=1e-5)


def test_range_and_mean_over_the_batch() -> None:
    for seed in range(50):
        student, teacher = (common.randn(9, 4, seed=2 * seed + i, scale=8) for i in range(2))
        mean = sinkd_loss(student, teacher)
        assert 0 <= mean <= 2
        torch.testing.assert_close(sinkd_loss(student, teacher, normalise=False), 9 * mean)
    opposite = torch.tensor([[1000.0, 0.0], [1000.0, 0.0]])
    assert sinkd_loss(opposite, opposite.flip(1)).item() == pytest.approx(2.0)


def test_repeated_batch_keeps_the_mean() -> None:
    student, teacher = example()
    torch.testing.assert_close(sinkd_loss(student.repeat(2, 1), teacher.repeat(2, 1)), sinkd_loss(student, teacher))


def test_equal_members_cost_only_the_blur() -> None:
    apart = 100.0 * torch.eye(5)
    assert 0 <= sinkd_loss(apart, apart) < 1e-6
    same = common.randn(1, 7, seed=0).repeat(5, 1)
    assert sinkd_loss(same, same).item() == 0.0
    logits = common.randn(6, 5, seed=0)
    costs = [sinkd_loss(logits, logits, epsilon=e).item() for e in (0.5, 0.1, 0.02, 0.002)]
    assert costs == sorted(costs, reverse=True)
    assert costs[1] > 1e-3
    assert costs[-1] < 1e-5


def test_small_epsilon_finds_the_best_matching() -> None:
    scipy = pytest.importorskip("scipy.optimize")
    student, teacher = example(6, 5)
    p, q = (np.array([common.softmax(row / 2) for row in common.array(z)]) for z in (student, teacher))
    cost = np.abs(p[:, None] - q[None]).sum(-1)
    rows, columns = scipy.linear_sum_assignment(cost)
    found = sinkd_loss(student, teacher, epsilon=1e-3, iterations=2000, normalise=False)
    assert found.item() == pytest.approx(cost[rows, columns].sum(), rel=1e-2)


def test_gradient_reaches_student_only_and_stays_finite() -> None:
    common.check_one_sided(sinkd_loss, *example())
    for seed in range(200):
        student, teacher = (common.randn(8, 5, seed=2 * seed + i, scale=1 + seed / 10) for i in range(2))
        slope = common.gradient_of(sinkd_loss, student, teacher)
        assert torch.isfinite(slope).all()
        torch.testing.assert_close(slope.sum(1), torch.zeros(8), rtol=0, atol=1e-5)  # shifts cost nothing


@pytest.mark.parametrize("dtype", common.HALVES)
def test_autocast_keeps_float32_inside(dtype: torch.dtype) -> None:
    common.check_half(sinkd_loss, *example(8, 100, scale=5.0), dtype)


@pytest.mark.parametrize(
    ("teacher", "student", "hint"),
    [
        ((5, 100), (5, 7), "a student head of 100 classes"),
        ((6, 7), (5, 7), "the same batch"),
        ((5, 7, 2, 2), (5, 7, 2, 2), r"tap logits \(B, C\)"),
        ((5, 1), (5, 1), "two or more would fit"),
    ],
)
def test_shapes_that_do_not_fit_are_named(teacher: tuple[int, ...], student: tuple[int, ...], hint: str) -> None:
    pattern = rf"SinKD: teacher logits \({', '.join(map(str, teacher))}\) and student logits .*; .*{hint}"
    with pytest.raises(ShapeMismatch, match=pattern):
        sinkd_loss(torch.zeros(student), torch.zeros(teacher))
    with pytest.raises(ShapeMismatch, match=pattern):
        SinKD().connect([teacher], [student])


def test_link_gives_the_pure_loss_with_its_options() -> None:
    student, teacher = example()
    options = {"temperature": 1.0, "epsilon": 0.2, "iterations": 5, "normalise": False}
    link = METHODS.make({"type": "SinKD", **options})
    link.connect([(5, 7)], [(5, 7)])
    terms = link(common.link_inputs(student, teacher))
    assert list(terms) == ["sinkhorn"]
    torch.testing.assert_close(terms["sinkhorn"], sinkd_loss(student, teacher, **options))
    default = SinKD()(common.link_inputs([student, student], [teacher, teacher]))["sinkhorn"]
    torch.testing.assert_close(default, 2 * sinkd_loss(student, teacher))


def test_registry_builds_it_and_refuses_typos() -> None:
    common.check_registered("SinKD", SinKD, weight=0.1, typo="epsilom", meant="epsilon", epsilon=0.2, iterations=5)
    link = SinKD()
    assert (link.temperature, link.epsilon, link.iterations, link.normalise) == (2.0, 0.1, 20, True)
    assert link.assumption


@pytest.mark.parametrize("option", [{"temperature": 0.0}, {"epsilon": 0.0}, {"epsilon": -1.0}, {"iterations": 0}])
def test_options_must_be_positive(option: dict) -> None:
    (name,) = option
    with pytest.raises(ConfigError, match=f"SinKD needs {name} >"):
        SinKD(**option)


def test_it_trains_a_student_beside_kd() -> None:
    model = Distiller(
        members={
            "teacher": dict(type="frozen", model=CIFARResNet(8, 4), initial_weights=True),
            "student": dict(type="trained", model=CIFARResNet(8, 2)),
        },
        links=[dict(type="KD", weight=0.9), dict(type="SinKD", weight=0.5)],
        adapter=dict(type="VisionAdapter"),
        task_weight=0.1,
    ).train()
    found = {}
    hooks = [
        m.register_forward_hook(lambda _m, _a, out, n=n: found.update({n: out.detach()}))
        for n, m in (("teacher", model.frozen["teacher"]), ("student", model.members["student"]))
    ]
    terms = model.loss(Batch(common.randn(6, 3, 32, 32), torch.arange(6)))
    for hook in hooks:
        hook.remove()
    assert sorted(terms) == ["kd.loss_kl", "sinkd1.loss_sinkhorn", "student.loss_ce"]
    expected = reference(common.array(found["student"]), common.array(found["teacher"])) / 6
    assert terms["sinkd1.loss_sinkhorn"].item() == pytest.approx(0.5 * expected, rel=1e-4)
