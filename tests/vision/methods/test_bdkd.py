"""BD-KD against a loop over samples, the switch of its weights, and the online form with two trained members."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from limbeck.engine.adapter import Batch
from limbeck.engine.distiller import Distiller
from limbeck.engine.registry import METHODS
from limbeck.errors import ConfigError, ShapeMismatch
from limbeck.vision.methods.bdkd import BDKD, balanced_loss, reverse_loss
from limbeck.vision.methods.kd import kd_loss
from limbeck.vision.models import CIFARResNet
from tests.vision.methods import conftest as common

BOTH = pytest.mark.parametrize("loss", [balanced_loss, reverse_loss])
Loss = Callable[..., Tensor]


def example(batch: int = 6, classes: int = 7) -> tuple[Tensor, Tensor]:
    """Logits where the student is the surer in some samples and the less sure in others."""
    scale = torch.linspace(0.5, 6, batch).unsqueeze(1)
    return scale * common.randn(batch, classes, seed=0), scale.flip(0) * common.randn(batch, classes, seed=1)


def kl(p: list[float], q: list[float]) -> float:
    return sum(a * (math.log(a) - math.log(b)) for a, b in zip(p, q))


def entropy(p: list[float]) -> float:
    return -sum(a * math.log(a) for a in p)


def rows(student: np.ndarray, teacher: np.ndarray, temperature: float) -> list[tuple[float, float, bool]]:
    """Forward and reverse divergence of each sample, and whether the student is the surer."""
    result = []
    for z_s, z_t in zip(student, teacher):
        s, t = common.softmax(z_s / temperature), common.softmax(z_t / temperature)
        result.append((kl(t, s), kl(s, t), entropy(s) < entropy(t)))
    return result


def reference(student: np.ndarray, teacher: np.ndarray, delta: float = 2.0, temperature: float = 3.0) -> float:
    found = rows(student, teacher, temperature)
    total = sum(delta * f + r if sure else f + delta * r for f, r, sure in found)
    return temperature**2 * total / len(found)


@pytest.mark.parametrize(("delta", "temperature"), [(2.0, 3.0), (1.0, 1.0), (5.0, 4.0)])
def test_students_value_and_gradient_match_naive_reference(delta: float, temperature: float) -> None:
    student, teacher = example()
    sides = [sure for _, _, sure in rows(common.array(student), common.array(teacher), temperature)]
    assert 0 < sum(sides) < len(sides)  # one batch holds both cases
    common.check_reference(
        lambda s, t: balanced_loss(s, t, delta=delta, temperature=temperature),
        lambda s, t: reference(s, t, delta, temperature),
        student,
        teacher,
    )


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_teachers_value_and_gradient_match_naive_reference(temperature: float) -> None:
    def naive(trained: np.ndarray, other: np.ndarray) -> float:
        found = rows(trained, other, temperature)
        return temperature**2 * sum(reverse for _, reverse, _ in found) / len(found)

    common.check_reference(lambda s, t: reverse_loss(s, t, temperature=temperature), naive, *example())


def test_teachers_value_is_kd_with_the_sides_exchanged() -> None:
    a, b = example()
    torch.testing.assert_close(reverse_loss(a, b, temperature=2.0), kd_loss(b, a, temperature=2.0))


def test_delta_one_is_jeffreys_divergence() -> None:
    a, b = example()
    forward = balanced_loss(a, b, delta=1.0)
    torch.testing.assert_close(forward, balanced_loss(b, a, delta=1.0))
    torch.testing.assert_close(forward, reverse_loss(a, b) + reverse_loss(b, a))


def test_weights_switch_by_the_sign_of_the_entropy_gap() -> None:
    sure, unsure = torch.tensor([[4.0, 0.0, 0.0]]), torch.tensor([[1.0, 0.5, 0.0]])
    for student, teacher, f, r in ((sure, unsure, 3.0, 1.0), (unsure, sure, 1.0, 3.0)):
        forward, reverse = kd_loss(student, teacher, temperature=1.0), kd_loss(teacher, student, temperature=1.0)
        found = balanced_loss(student, teacher, delta=3.0, temperature=1.0)
        torch.testing.assert_close(found, f * forward + r * reverse)
    # Equal entropies count as the student not being too sure.
    student, teacher = torch.tensor([[2.0, 0.0, -1.0]]), torch.tensor([[-1.0, 2.0, 0.0]])
    forward, reverse = kd_loss(student, teacher, temperature=1.0), kd_loss(teacher, student, temperature=1.0)
    torch.testing.assert_close(balanced_loss(student, teacher, delta=3.0, temperature=1.0), forward + 3.0 * reverse)


def test_weights_are_by_sample_not_by_batch() -> None:
    student, teacher = example()
    alone = [balanced_loss(student[i : i + 1], teacher[i : i + 1]) for i in range(6)]
    torch.testing.assert_close(balanced_loss(student, teacher), torch.stack(alone).mean())


def test_normalise_divides_by_the_weights() -> None:
    student, teacher = example()
    expected = balanced_loss(student, teacher, delta=3.0) / 4
    torch.testing.assert_close(balanced_loss(student, teacher, delta=3.0, normalise=True), expected)


@BOTH
def test_never_negative_and_zero_without_gradient_at_equality(loss: Loss) -> None:
    student, teacher = example()
    assert loss(student, teacher) > 0
    assert abs(loss(teacher.clone(), teacher).item()) < 1e-6
    assert common.gradient_of(loss, teacher.clone(), teacher).abs().max() < 1e-6


@BOTH
def test_invariances(loss: Loss) -> None:
    student, teacher = example()
    expected = loss(student, teacher)
    shift, order = torch.linspace(-9, 9, 6).unsqueeze(1), torch.tensor([4, 2, 0, 5, 1, 3])
    classes = torch.tensor([3, 0, 6, 1, 5, 2, 4])
    for s, t in (
        (student + shift, teacher),
        (student, teacher + shift),
        (student[order], teacher[order]),
        (student[:, classes], teacher[:, classes]),
        (student.repeat(2, 1), teacher.repeat(2, 1)),
    ):
        torch.testing.assert_close(loss(s, t), expected, rtol=1e-4, atol=1e-5)
    assert not torch.isclose(loss(student[order], teacher), expected)


@BOTH
def test_certain_logits_stay_finite(loss: Loss) -> None:
    student = torch.tensor([[3000.0, 0.0]], requires_grad=True)
    value = loss(student, torch.tensor([[0.0, 3000.0]]))
    value.backward()
    assert value.item() in (pytest.approx(9 * 1000.0), pytest.approx(9 * 3000.0))
    assert student.grad is not None
    assert torch.isfinite(student.grad).all()


@BOTH
def test_gradient_reaches_trained_side_only(loss: Loss) -> None:
    common.check_one_sided(loss, *example())


@BOTH
@pytest.mark.parametrize("dtype", common.HALVES)
def test_autocast_keeps_float32_inside(loss: Loss, dtype: torch.dtype) -> None:
    common.check_half(loss, *example(classes=100), dtype)


@BOTH
@pytest.mark.parametrize(
    ("teacher", "student", "hint"),
    [
        ((5, 100), (5, 7), "a student head of 100 classes"),
        ((6, 7), (5, 7), "the same batch"),
        ((5, 7, 2, 2), (5, 7, 2, 2), r"tap logits \(B, C\)"),
        ((5, 1), (5, 1), "two or more would fit"),
    ],
)
def test_shapes_that_do_not_fit_are_named(
    loss: Loss, teacher: tuple[int, ...], student: tuple[int, ...], hint: str
) -> None:
    pattern = rf"BDKD: teacher logits \({', '.join(map(str, teacher))}\) and student logits .*; .*{hint}"
    with pytest.raises(ShapeMismatch, match=pattern):
        loss(torch.zeros(student), torch.zeros(teacher))
    with pytest.raises(ShapeMismatch, match=pattern):
        BDKD().connect([teacher], [student])


def test_link_gives_the_pure_loss_of_its_role() -> None:
    student, teacher = example()
    options = {"delta": 3.0, "temperature": 2.0, "normalise": True}
    terms = METHODS.make({"type": "BDKD", **options})(common.link_inputs(student, teacher))
    assert list(terms) == ["balanced"]
    torch.testing.assert_close(terms["balanced"], balanced_loss(student, teacher, **options))
    terms = BDKD(role="teacher", temperature=2.0)(common.link_inputs([student] * 2, [teacher] * 2))
    assert list(terms) == ["reverse"]
    torch.testing.assert_close(terms["reverse"], 2 * reverse_loss(student, teacher, temperature=2.0))


def test_registry_builds_it_and_refuses_typos() -> None:
    common.check_registered("BDKD", BDKD, weight=1.0, typo="dleta", meant="delta", delta=3.0, temperature=1.0)
    link = BDKD()
    assert (link.role, link.delta, link.temperature, link.normalise) == ("student", 2.0, 3.0, False)
    assert link.assumption


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"role": "both"}, "role of BDKD is 'student' or 'teacher'; got 'both'"),
        ({"delta": 0.5}, "BDKD needs delta >= 1; got 0.5"),
        ({"delta": float("nan")}, "BDKD needs delta >= 1"),
        ({"temperature": 0.0}, "BDKD needs temperature > 0"),
    ],
)
def test_bad_options_are_named(option: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        BDKD(**option)


# --- through the Distiller ---


def step(teacher: dict, links: list[dict]) -> tuple[Distiller, dict[str, Tensor]]:
    model = Distiller(
        members={
            "teacher": dict(model=CIFARResNet(8, 4), **teacher),
            "student": dict(type="trained", model=CIFARResNet(8, 2)),
        },
        links=links,
        adapter=dict(type="VisionAdapter"),
    ).train()
    return model, model.loss(Batch(common.randn(6, 3, 32, 32), torch.arange(6), torch.arange(6)))


def reached(model: Distiller, term: Tensor) -> set[str]:
    """The members whose parameters get a gradient that is not zero."""
    named = dict(model.members.named_parameters())
    slopes = torch.autograd.grad(term, list(named.values()), retain_graph=True, allow_unused=True)
    return {name.split(".")[0] for name, g in zip(named, slopes) if g is not None and bool(g.any())}


def test_online_form_trains_each_member_by_its_own_term() -> None:
    back = dict(type="BDKD", role="teacher", teacher="student", student="teacher")
    model, terms = step(dict(type="trained"), [dict(type="BDKD"), back])
    assert {name: reached(model, value) for name, value in terms.items()} == {
        "teacher.loss_ce": {"teacher"},
        "student.loss_ce": {"student"},
        "bdkd.loss_balanced": {"student"},
        "bdkd1.loss_reverse": {"teacher"},
    }
    assert all(name.startswith(("teacher.", "student.")) for name, _ in model.members.named_parameters())
    assert model.deploy is model.members["student"]


def test_online_terms_are_the_pure_losses_of_one_forward() -> None:
    back = dict(type="BDKD", role="teacher", teacher="student", student="teacher", weight=0.5)
    model, terms = step(dict(type="trained"), [dict(type="BDKD"), back])
    images = common.randn(6, 3, 32, 32)
    logits = {name: member(images) for name, member in model.members.items()}  # train mode: batch statistics again
    torch.testing.assert_close(terms["bdkd.loss_balanced"], balanced_loss(logits["student"], logits["teacher"]))
    torch.testing.assert_close(terms["bdkd1.loss_reverse"], 0.5 * reverse_loss(logits["teacher"], logits["student"]))


def test_offline_form_is_a_plain_link() -> None:
    model, terms = step(dict(type="frozen", initial_weights=True), [dict(type="BDKD")])
    assert sorted(terms) == ["bdkd.loss_balanced", "student.loss_ce"]
    assert reached(model, terms["bdkd.loss_balanced"]) == {"student"}


def test_a_frozen_teacher_cannot_be_trained_back() -> None:
    back = dict(type="BDKD", role="teacher", teacher="student", student="teacher")
    with pytest.raises(ConfigError, match=r"link 1 \(bdkd\) trains 'teacher', which is frozen"):
        step(dict(type="frozen", initial_weights=True), [dict(type="BDKD"), back])
