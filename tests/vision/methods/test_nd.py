"""ND against a loop over samples, its two regimes, and the teacher's class centres."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from limbeck.engine.adapter import Batch
from limbeck.engine.distiller import Distiller
from limbeck.engine.method import TrainingSet
from limbeck.engine.registry import METHODS
from limbeck.errors import ConfigError, ShapeMismatch
from limbeck.vision.methods.nd import ND, class_centres, nd_loss
from limbeck.vision.models import CIFARResNet
from tests.vision.methods import conftest as common

LABELS = torch.tensor([0, 2, 1, 2, 0, 1])
CENTRES = common.randn(3, 5, seed=7, scale=2.0)


def example(scale: float = 1.0) -> tuple[Tensor, Tensor]:
    """Student embeddings whose norm is below the teacher's in some rows and above in others."""
    return scale * common.randn(6, 5, seed=0) * torch.linspace(0.2, 4, 6).unsqueeze(1), common.randn(6, 5, seed=1)


def loss(student: Tensor, teacher: Tensor) -> Tensor:
    return nd_loss(student, teacher, centres=CENTRES, labels=LABELS)


def norm(v: np.ndarray) -> float:
    return math.sqrt(sum(x * x for x in v))


def reference(student: np.ndarray, teacher: np.ndarray) -> float:
    total, centres = 0.0, common.array(CENTRES)
    for s, t, y in zip(student, teacher, LABELS.tolist()):
        along = sum(a * b for a, b in zip(s, centres[y])) / norm(centres[y])
        total += 1 - along / max(norm(s), norm(t))
    return total / len(student)


def training_set(features: Tensor, labels: Tensor, classes: int, batch: int = 4) -> TrainingSet:
    def taps() -> Iterator[tuple[list[Tensor], Tensor, Tensor]]:
        for ids in torch.arange(len(labels)).split(batch):
            yield [features[ids]], labels[ids], ids

    return TrainingSet(labels=labels, classes=classes, teacher_taps=taps)


def connected(student: int = 5, teacher: int = 5) -> ND:
    link = ND()
    link.connect([(6, teacher)], [(6, student)])
    link.prepare(training_set(CENTRES[:, :1].expand(3, teacher) if teacher != 5 else CENTRES, torch.arange(3), 3))
    return link


def test_value_and_gradient_match_naive_reference() -> None:
    student, teacher = example()
    longer = student.norm(dim=1) > teacher.norm(dim=1)
    assert longer.any()
    assert not longer.all()
    common.check_reference(loss, reference, student, teacher)


def test_range_and_aligned_cases() -> None:
    directions = (CENTRES / CENTRES.norm(dim=1, keepdim=True))[LABELS]
    _, teacher = example()
    norms = teacher.norm(dim=1, keepdim=True)
    assert abs(loss(1.5 * norms * directions, teacher).item()) < 1e-6
    assert abs(loss(norms * directions, teacher).item()) < 1e-6
    assert loss(0.25 * norms * directions, teacher).item() == pytest.approx(0.75)
    assert loss(-3.0 * norms * directions, teacher).item() == pytest.approx(2.0)
    for seed in range(20):
        assert 0 <= loss(common.randn(6, 5, seed=seed, scale=seed / 4), teacher) <= 2


def test_long_student_feels_direction_only() -> None:
    student, teacher = example(scale=100.0)
    torch.testing.assert_close(loss(7.0 * student, teacher), loss(student, teacher))
    slope = common.gradient_of(loss, student, teacher)
    assert slope.abs().max() > 0
    torch.testing.assert_close((slope * student).sum(1), torch.zeros(6), rtol=0, atol=1e-6)


def test_short_student_is_pulled_along_its_class() -> None:
    student, teacher = example(scale=1e-3)
    directions = (CENTRES / CENTRES.norm(dim=1, keepdim=True))[LABELS]
    slope = common.gradient_of(loss, student, teacher)
    torch.testing.assert_close(slope, -directions / (6 * teacher.norm(dim=1, keepdim=True)))
    # Affine: half-way between two students the loss is half-way between theirs.
    other = student.flip(0)
    torch.testing.assert_close(
        loss((student + other) / 2, teacher), (loss(student, teacher) + loss(other, teacher)) / 2
    )


def test_continuous_where_the_norms_are_equal() -> None:
    student, teacher = example()
    student = student / student.norm(dim=1, keepdim=True) * teacher.norm(dim=1, keepdim=True)
    below, at, above = (loss(f * student, teacher) for f in (1 - 1e-4, 1.0, 1 + 1e-4))
    torch.testing.assert_close(below, at, rtol=0, atol=5e-4)
    torch.testing.assert_close(above, at, rtol=0, atol=1e-6)


def test_zero_embeddings_on_both_sides_stay_finite() -> None:
    student = torch.zeros(6, 5, requires_grad=True)
    value = loss(student, torch.zeros(6, 5))
    assert value.item() == 1.0
    value.backward()
    assert student.grad is not None
    torch.testing.assert_close(student.grad.norm(dim=1), torch.full((6,), 1 / 6))


def test_gradient_reaches_neither_teacher_nor_centres() -> None:
    centres = CENTRES.clone().requires_grad_()
    common.check_one_sided(lambda s, t: nd_loss(s, t, centres=centres, labels=LABELS), *example())
    assert centres.grad is None


def test_batch_order_and_repetition_change_nothing() -> None:
    student, teacher = example()
    order = torch.tensor([4, 2, 0, 5, 1, 3])
    shuffled = nd_loss(student[order], teacher[order], centres=CENTRES, labels=LABELS[order])
    torch.testing.assert_close(shuffled, loss(student, teacher))
    twice = nd_loss(student.repeat(2, 1), teacher.repeat(2, 1), centres=CENTRES, labels=LABELS.repeat(2))
    torch.testing.assert_close(twice, loss(student, teacher))
    # Centres count by direction alone.
    torch.testing.assert_close(nd_loss(student, teacher, centres=9 * CENTRES, labels=LABELS), loss(student, teacher))


@pytest.mark.parametrize("dtype", common.HALVES)
def test_autocast_keeps_float32_inside(dtype: torch.dtype) -> None:
    common.check_half(loss, *example(), dtype)


def test_class_centres_are_the_means_by_class() -> None:
    features, labels = common.randn(23, 4, seed=3, scale=50.0), torch.arange(23) % 3
    found = class_centres(training_set(features, labels, 3), 4)
    for k in range(3):
        rows = [f for f, y in zip(common.array(features), labels.tolist()) if y == k]
        np.testing.assert_allclose(found[k].numpy(), sum(rows) / len(rows), rtol=1e-6)
    assert found.dtype == torch.float32
    assert torch.equal(found, class_centres(training_set(features, labels, 3), 4))
    torch.testing.assert_close(found, class_centres(training_set(features, labels, 3, batch=23), 4))
    half = class_centres(training_set(features.half(), labels, 3), 4)
    np.testing.assert_allclose(half[0].numpy(), features.half()[labels == 0].double().mean(0).numpy(), rtol=1e-6)


def test_many_samples_lose_no_digits() -> None:
    # A float32 running sum of 2^24 ones plus more ones would stand still.
    features = torch.cat([torch.full((1, 1), 2.0**24), torch.ones(999, 1)])
    found = class_centres(training_set(features, torch.zeros(1000, dtype=torch.long), 1, batch=1), 1)
    assert found.item() == pytest.approx((2**24 + 999) / 1000, rel=1e-7)


def test_class_without_images_is_named() -> None:
    data = training_set(common.randn(6, 5), torch.tensor([0, 1, 0, 3, 4, 4]), 6)
    with pytest.raises(ConfigError, match=r"class 2 has none \(2 of 6 classes without\)"):
        class_centres(data, 5)


def test_class_without_direction_is_named() -> None:
    features = common.randn(6, 5)
    features[LABELS == 1] = 0.0
    with pytest.raises(ConfigError, match="is 0 on every image of class 1"):
        class_centres(training_set(features, LABELS, 3), 5)


@pytest.mark.parametrize("label", [-1, 3])
def test_labels_out_of_range_are_named(label: int) -> None:
    labels = torch.tensor([0, label, 1, 2, 0, 1])
    for call in (
        lambda: class_centres(training_set(common.randn(6, 5), labels, 3), 5),
        lambda: nd_loss(*example(), centres=CENTRES, labels=labels),
    ):
        with pytest.raises(ShapeMismatch, match=f"ND: label {label} is not in 0 to 2"):
            call()


@pytest.mark.parametrize("labels", [LABELS[:4], torch.full((6, 3), 1 / 3)])
def test_labels_that_do_not_fit_are_named(labels: Tensor) -> None:
    with pytest.raises(ShapeMismatch, match=r"ND: labels .* do not fit a batch of 6; integer classes"):
        nd_loss(*example(), centres=CENTRES, labels=labels)


def test_embeddings_that_do_not_fit_are_named() -> None:
    student, teacher = example()
    with pytest.raises(ShapeMismatch, match=r"ND: teacher tap \(6, 5\) and student tap \(6, 4\)"):
        loss(student[:, :4], teacher)
    with pytest.raises(ShapeMismatch, match=r"class centres \(3, 4\) do not fit"):
        nd_loss(student, teacher, centres=CENTRES[:, :4], labels=LABELS)


@pytest.mark.parametrize(
    ("teacher", "student"), [((6, 5, 2, 2), (6, 5)), ((6, 5, 2, 2), (6, 5, 2, 2)), ((6, 5), (4, 5))]
)
def test_taps_that_are_no_embeddings_are_named(teacher: tuple[int, ...], student: tuple[int, ...]) -> None:
    with pytest.raises(ShapeMismatch, match=r"ND reads pooled embeddings \(B, D\): teacher tap .* do not fit"):
        ND().connect([teacher], [student])


def test_equal_widths_need_no_projection() -> None:
    link = connected()
    assert not list(link.parameters())
    student, teacher = example()
    terms = link(common.link_inputs(student, teacher, LABELS))
    assert list(terms) == ["nd"]
    torch.testing.assert_close(terms["nd"], loss(student, teacher))


def test_other_widths_get_the_official_projection() -> None:
    link = connected(student=4, teacher=8).train()
    norm_, dropout, linear = link.project  # type: ignore[misc]
    assert isinstance(norm_, nn.BatchNorm1d)
    assert (norm_.weight == 1).all()
    assert (norm_.bias == 0).all()
    assert isinstance(dropout, nn.Dropout)
    assert dropout.p == 0.5
    assert (linear.in_features, linear.out_features) == (4, 8)
    assert (linear.bias == 0).all()
    assert linear.weight.std() > 0
    student, teacher = common.randn(6, 4, seed=0).requires_grad_(), common.randn(6, 8, seed=1)
    link(common.link_inputs(student, teacher, LABELS))["nd"].backward()
    assert student.grad is not None
    assert student.grad.abs().max() > 0
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in (norm_.weight, linear.weight, linear.bias))
    link.eval()
    expected = nd_loss(linear(norm_(student)), teacher, centres=link.centres, labels=LABELS)
    torch.testing.assert_close(link(common.link_inputs(student, teacher, LABELS))["nd"], expected)


def test_projection_refuses_a_batch_of_one_while_training() -> None:
    link = connected(student=4, teacher=8)
    one = common.link_inputs(common.randn(1, 4), common.randn(1, 8), LABELS[:1])
    with pytest.raises(ConfigError, match="needs two samples"):
        link.train()(one)
    assert link.eval()(one)["nd"] > 0


def test_centres_are_saved_for_resume() -> None:
    link = connected()
    state = link.state_dict()
    assert torch.equal(state["centres"], CENTRES)
    again = ND()
    again.connect([(6, 5)], [(6, 5)])
    again.prepare(training_set(torch.ones(3, 5), torch.arange(3), 3))
    again.load_state_dict(state)
    assert torch.equal(again.centres, CENTRES)


def test_without_centres_it_says_so() -> None:
    link = ND()
    link.connect([(6, 5)], [(6, 5)])
    with pytest.raises(ConfigError, match=r"ND has no class centres yet; call prepare\(\)"):
        link(common.link_inputs(*example(), LABELS))


def test_registry_builds_it_and_refuses_typos() -> None:
    common.check_registered("ND", ND, weight=2.0, typo="wieght", meant="weight")
    assert ND().taps == [("global_pool", "global_pool")]
    assert METHODS.make({"type": "ND"}).wants_data
    with pytest.raises(ConfigError, match="ND reads one pair of taps"):
        ND(taps=[("a", "b"), ("c", "d")])


@pytest.mark.parametrize("width", [4, 2])
def test_kd_plus_plus_trains_a_student(width: int) -> None:
    model = Distiller(
        members={
            "teacher": dict(type="frozen", model=CIFARResNet(8, 4), initial_weights=True),
            "student": dict(type="trained", model=CIFARResNet(8, width)),
        },
        links=[dict(type="KD", weight=1.0), dict(type="ND")],
        adapter=dict(type="VisionAdapter"),
    ).train()
    images, labels = common.randn(20, 3, 32, 32), torch.arange(20) % 10
    teacher = model.frozen["teacher"]
    with torch.no_grad():
        pooled = teacher.forward_head(teacher.forward_features(images), pre_logits=True)  # type: ignore[operator]
    model.links[1].prepare(training_set(pooled, labels, 10))  # type: ignore[operator]
    terms = model.loss(Batch(images, labels, torch.arange(20)))
    assert 0 < terms["nd1.loss_nd"] <= 4
    terms["nd1.loss_nd"].backward()
    student = model.members["student"]
    assert student.conv1.weight.grad.abs().max() > 0  # type: ignore[union-attr]
    assert student.fc.weight.grad is None  # the classifier is behind the tap
    assert [name for name in model.state_dict() if name.endswith("centres")] == ["links.1.centres"]
    assert bool([n for n, _ in model.named_parameters() if "project" in n]) is (width != 4)
