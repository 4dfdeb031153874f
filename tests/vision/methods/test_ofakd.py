"""OFA-KD: the loss against a naive reference and its closed forms, the link, and pairs of two families."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from limbeck.engine.adapter import Batch
from limbeck.engine.distiller import Distiller
from limbeck.engine.method import LinkInputs
from limbeck.engine.registry import METHODS, MODELS
from limbeck.errors import ConfigError, ShapeMismatch
from limbeck.vision.methods._exit_branches import SepConv
from limbeck.vision.methods.ofakd import OFAKD, ofa_loss
from tests.vision.methods import conftest as common

LABELS = torch.tensor([3, 0, 6, 1, 1])
VIT = dict(
    type="timm",
    model="vit_tiny_patch16_224",
    img_size=32,
    patch_size=4,
    depth=4,
    embed_dim=96,
    num_heads=3,
)
CNN = dict(type="CIFARResNet", depth=8, width=8)
MIXER = dict(type="MLPMixer", img_size=32, patch_size=4, num_blocks=2, embed_dim=64)


def reference(
    student: np.ndarray, teacher: np.ndarray, epsilon: float, temperature: float = 1.0, labels: Tensor = LABELS
) -> float:
    total = 0.0
    for z_s, z_t, y in zip(student, teacher, labels.tolist()):
        q, p = common.softmax(z_s / temperature), common.softmax(z_t / temperature)
        for c in range(len(q)):
            weight = (p[c] + 1) ** epsilon - 1 if c == y else p[c] ** epsilon
            total -= weight * math.log(q[c])
    return total / len(student)


# --- the loss ---


@pytest.mark.parametrize(("epsilon", "temperature"), [(1.0, 1.0), (1.5, 1.0), (1.2, 4.0), (0.7, 1.0)])
def test_value_and_gradient_match_naive_reference(epsilon: float, temperature: float) -> None:
    common.check_reference(
        lambda s, t: ofa_loss(s, t, LABELS, epsilon=epsilon, temperature=temperature),
        lambda s, t: reference(s, t, epsilon, temperature),
        common.randn(5, 7, seed=0, scale=3),
        common.randn(5, 7, seed=1, scale=3),
    )


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_exponent_one_is_cross_entropy_with_soft_labels(temperature: float) -> None:
    student, teacher = common.randn(5, 7, seed=0), common.randn(5, 7, seed=1)
    found = common.gradient_of(lambda s, t: ofa_loss(s, t, LABELS, temperature=temperature), student, teacher)
    for i in range(5):
        q, p = (common.softmax(z[i] / temperature) for z in (common.array(student), common.array(teacher)))
        expected = [(a - b) / (temperature * 5) for a, b in zip(q, p)]
        np.testing.assert_allclose(found[i].numpy(), expected, rtol=1e-4, atol=1e-6)
    entropy = -(teacher.softmax(1) * teacher.log_softmax(1)).sum(1).mean()
    torch.testing.assert_close(ofa_loss(teacher, teacher, LABELS), entropy)


@pytest.mark.parametrize("epsilon", [1.0, 1.2, 1.5, 3.0])
def test_larger_exponents_enhance_the_target_alone(epsilon: float) -> None:
    teacher = common.randn(5, 7, seed=1, scale=2)
    # At uniform student logits the gradient is (Σw / C − w) / B: it holds the weights.
    gradient = common.gradient_of(lambda s, t: ofa_loss(s, t, LABELS, epsilon=epsilon), torch.zeros(5, 7), teacher)
    total = ofa_loss(torch.zeros(5, 7), teacher, LABELS, epsilon=epsilon).item() * 5 / math.log(7)
    p, target = teacher.softmax(1), torch.eye(7)[LABELS].bool()
    sums = ((p + target.float()) ** epsilon - target.float()).sum(1, keepdim=True)
    assert sums.sum().item() == pytest.approx(total, rel=1e-5)
    weights = sums / 7 - 5 * gradient
    assert (weights >= -1e-6).all()
    assert (weights[target] >= p[target] - 1e-6).all()
    assert (weights[~target] <= p[~target] + 1e-6).all()
    torch.testing.assert_close(weights[target], (1 + p[target]) ** epsilon - 1, rtol=1e-4, atol=1e-5)


def test_certain_teacher_weighs_its_class_by_two_to_the_exponent_less_one() -> None:
    teacher = 1000.0 * torch.eye(7)[LABELS]
    student = common.randn(5, 7)
    cross_entropy = nn.functional.cross_entropy(student, LABELS)
    torch.testing.assert_close(ofa_loss(student, teacher, LABELS, epsilon=1.5), (2**1.5 - 1) * cross_entropy)


def test_shift_of_either_side_and_a_repeated_or_permuted_batch_change_nothing() -> None:
    student, teacher = common.randn(5, 7, seed=0), common.randn(5, 7, seed=1)
    shift = common.randn(5, 1, seed=2, scale=9)
    order = torch.tensor([2, 0, 4, 1, 3])

    def loss(s: Tensor, t: Tensor, y: Tensor = LABELS) -> Tensor:
        return ofa_loss(s, t, y, epsilon=1.5)

    expected = loss(student, teacher)
    torch.testing.assert_close(loss(student + shift, teacher), expected)
    torch.testing.assert_close(loss(student, teacher + shift), expected)
    torch.testing.assert_close(loss(student.repeat(2, 1), teacher.repeat(2, 1), LABELS.repeat(2)), expected)
    torch.testing.assert_close(loss(student[order], teacher[order], LABELS[order]), expected)
    assert not torch.isclose(loss(student, teacher, LABELS[order]), expected)


def test_mixed_labels_count_as_their_largest_share() -> None:
    student, teacher = common.randn(5, 7, seed=0), common.randn(5, 7, seed=1)
    shares = 0.6 * torch.eye(7)[LABELS] + 0.4 * torch.eye(7)[(LABELS + 1) % 7]
    expected = ofa_loss(student, teacher, LABELS, epsilon=1.5)
    torch.testing.assert_close(ofa_loss(student, teacher, shares, epsilon=1.5), expected)


def test_gradient_reaches_student_only_and_half_is_not_used_inside() -> None:
    student, teacher = common.randn(5, 7, seed=0, scale=5), common.randn(5, 7, seed=1, scale=5)
    common.check_one_sided(lambda s, t: ofa_loss(s, t, LABELS, epsilon=1.5), student, teacher)
    for dtype in common.HALVES:
        common.check_half(lambda s, t: ofa_loss(s, t, LABELS, epsilon=1.5), student, teacher, dtype)


def test_unequal_logits_are_named() -> None:
    with pytest.raises(ShapeMismatch, match=r"OFAKD: teacher logits \(4, 100\) and student logits \(4, 10\)"):
        ofa_loss(torch.zeros(4, 10), torch.zeros(4, 100), torch.zeros(4, dtype=torch.long))


# --- the link ---

CLASSES = (5, 7)
MAPS = [(5, 4, 8, 8), (5, 8, 4, 4), (5, 16, 2, 2)]


def connected(
    students: list[tuple[int, ...]] | None = None, teacher: tuple[int, ...] = CLASSES, **options: Any
) -> OFAKD:
    torch.manual_seed(0)
    students = [*MAPS, CLASSES] if students is None else students
    options.setdefault("taps", [("logits", f"tap{i}") for i in range(len(students))])
    link = METHODS.make({"type": "OFAKD", **options})
    link.connect([teacher] * len(students), students)
    return link


def inputs(students: list[tuple[int, ...]]) -> LinkInputs:
    taps = [common.randn(*shape, seed=i) for i, shape in enumerate(students)]
    return LinkInputs(taps and [common.randn(*CLASSES, seed=9)] * len(taps), taps, targets=LABELS)


def test_terms_are_the_pure_loss_with_each_taps_exponent_and_the_weights() -> None:
    link = connected(epsilon=[1.0, 1.2, 1.4, 1.6], temperature=2.0, logits_weight=0.5, stages_weight=3.0).eval()
    data = inputs([*MAPS, CLASSES])
    terms = link(data)
    teacher = common.array(data.teacher[0])
    logits = [common.array(b(x)) for b, x in zip(link.branches, data.student)]
    stages = sum(reference(z, teacher, e, 2.0) for z, e in zip(logits, (1.0, 1.2, 1.4)))
    assert terms["stages"].item() == pytest.approx(3.0 * stages, rel=1e-4)
    assert terms["logits"].item() == pytest.approx(0.5 * reference(common.array(data.student[3]), teacher, 1.6, 2.0))


def test_order_of_the_taps_does_not_matter_to_the_exponents() -> None:
    first = connected([CLASSES, *MAPS], epsilon=[1.0, 1.2, 1.4, 1.6])
    assert first.epsilon_of == {1: 1.0, 2: 1.2, 3: 1.4, 0: 1.6}
    assert list(first(inputs([CLASSES, *MAPS]))) == ["logits", "stages"]


def test_zero_weights_leave_terms_out() -> None:
    data = inputs([*MAPS, CLASSES])
    link = connected(stages_weight=0.0)
    assert list(link(data)) == ["logits"]
    assert not list(link.parameters())
    assert list(connected(logits_weight=0.0)(data)) == ["stages"]
    assert connected(logits_weight=0.0, stages_weight=0.0)(data) == {}
    assert OFAKD(weight=0.0).factor(0.5) == 0.0


def test_stages_are_counted_from_the_students_last() -> None:
    def convs(**options: Any) -> list[int]:
        return [sum(isinstance(m, SepConv) for m in b) for b in connected(**options).branches]

    assert convs() == [2, 1, 0]
    assert convs(stage_count=4) == [3, 2, 1]
    assert convs(stages=[1, 2, 4]) == [3, 2, 0]


def test_width_is_the_larger_final_width_unless_given() -> None:
    assert connected(width=24).branches[0][-1].in_features == 24
    assert connected().branches[0][-1].in_features == 16  # of the last tapped stage
    link = OFAKD()
    link.members = {"teacher": MODELS.make(MIXER), "student": nn.Identity()}
    link.connect([CLASSES] * 4, [*MAPS, CLASSES])
    assert link.branches[0][-1].in_features == 64


@pytest.mark.parametrize("epsilon", [[1.0, 1.2], [1.0] * 5])
def test_wrong_number_of_exponents_is_named(epsilon: list[float]) -> None:
    message = rf"one value, or one for each of 3 stages and last one for the logits; got {len(epsilon)} values"
    with pytest.raises(ConfigError, match=message):
        connected(epsilon=epsilon)
    with pytest.raises(ConfigError, match=r"one for each of 3 stages; got 4 values"):
        connected(MAPS, epsilon=[1.0] * 4)


@pytest.mark.parametrize("epsilon", [0.0, -1.0, float("nan"), [1.0, 0.0], []])
def test_exponents_must_be_positive(epsilon: Any) -> None:
    with pytest.raises(ConfigError, match="OFAKD needs epsilon > 0; got"):
        OFAKD(epsilon=epsilon)


@pytest.mark.parametrize(
    ("students", "options", "message"),
    [
        ([(5, 6, 8), CLASSES], {}, r"OFAKD: student tap 'tap0': 6 tokens \(5, 6, 8\) make no square grid"),
        ([(5, 16, 8), (5, 16), CLASSES], {}, r"student taps \['tap1', 'tap2'\] are vectors; tap maps or tokens"),
        ([(5, 8, 2, 2, 2), CLASSES], {}, "neither a vector"),
        ([(5, 16, 8), (5, 9)], {}, r"teacher logits \(5, 7\) and student logits \(5, 9\)"),
        ([(4, 16, 8), CLASSES], {}, "both sides must see the same batch"),
        ([(5, 16, 6), CLASSES], {}, "heads must divide the student's final width 6; got 4"),
        ([(5, 16, 8), CLASSES], {"stages": [1, 2]}, r"stages \[1, 2\] are to number the 1 tapped stages"),
        ([(5, 16, 8), CLASSES], {"stages": [5], "stage_count": 4}, r"from 1 to stage_count \(4\)"),
        ([(5, 197, 8), (5, 49, 16), CLASSES], {}, "class tokens of width 8 cannot join patches merged to .* 16"),
        ([(5, 8, 8, 4), CLASSES], {"layout": "hwc"}, "layout is 'nchw' or 'nhwc'; got 'hwc'"),
        ([(5, 8, 8, 4), CLASSES], {"teacher": (5, 7, 2)}, r"tap logits \(B, C\) on both sides"),
    ],
)
def test_bad_taps_are_said_in_one_sentence(students: list[tuple[int, ...]], options: dict, message: str) -> None:
    shape = options.pop("teacher", CLASSES)
    with pytest.raises((ConfigError, ShapeMismatch), match=message):
        connected(students, shape, **options)


def test_registry_builds_it_and_refuses_typos() -> None:
    common.check_registered("OFAKD", OFAKD, weight=1.0, typo="epsilom", meant="epsilon", temperature=2.0)
    assert OFAKD().taps == [("logits", "layer1"), ("logits", "layer2"), ("logits", "layer3"), ("logits", "logits")]
    assert OFAKD().epsilons == [1.0]


# --- pairs of two families ---


def distiller(teacher: Any, student: Any, **link: Any) -> Distiller:
    return Distiller(
        members=dict(
            teacher=dict(type="frozen", model=teacher, initial_weights=True),
            student=dict(type="trained", model=student),
        ),
        links=[{"type": "OFAKD", **link}],
        adapter=dict(type="VisionAdapter"),
    ).train()


def step(model: Distiller) -> dict[str, Tensor]:
    labels = torch.arange(4)
    return model.loss(Batch(common.randn(4, 3, 32, 32), targets=labels, ids=labels, views=torch.zeros(4)))


def reached(model: Distiller, term: Tensor) -> set[str]:
    names, params = zip(*model.members["student"].named_parameters())
    grads = torch.autograd.grad(term, params, retain_graph=True, allow_unused=True)
    return {".".join(n.split(".")[:2]) for n, g in zip(names, grads) if g is not None and g.count_nonzero()}


def test_vit_teaches_a_cnn_and_leaves_it_plain() -> None:
    model = distiller(VIT, CNN, epsilon=1.5)
    terms = step(model)
    assert set(terms) == {"student.loss_ce", "ofakd.loss_logits", "ofakd.loss_stages"}
    sum(terms.values()).backward()
    assert all(p.grad is not None and p.grad.count_nonzero() for p in model.links.parameters() if p.dim() > 1)
    assert all(p.grad is None for p in model.frozen["teacher"].parameters())
    assert not any("branches" in key for key in model.deploy.state_dict())


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_a_stages_branch_reaches_no_later_layer(stage: int) -> None:
    model = distiller(VIT, CNN, taps=[("logits", f"layer{stage}")], stages=[stage], stage_count=3)
    found = reached(model, step(model)["ofakd.loss_stages"])
    assert {n.split(".")[0] for n in found} == {"conv1", "bn1", *(f"layer{i}" for i in range(1, stage + 1))}


@pytest.mark.parametrize(("student", "blocks"), [(VIT, (0, 1, 3)), (MIXER, (0, 1))], ids=["vit", "mixer"])
def test_cnn_teaches_tokens(student: Any, blocks: tuple[int, ...]) -> None:
    taps = [("logits", f"blocks.{i}") for i in blocks]
    model = distiller(CNN, student, taps=[*taps, ("logits", "logits")])
    terms = step(model)
    assert {f"blocks.{i}" for i in range(blocks[-1] + 1)} <= reached(model, terms["ofakd.loss_stages"])
    sum(terms.values()).backward()
    assert all(p.grad is not None for p in model.links.parameters())
    assert [len(b.merge) for b in model.links[0].branches] == [0] * len(blocks)  # a grid of 8 is left alone
    assert terms["ofakd.loss_stages"].item() == pytest.approx(len(blocks) * math.log(10), rel=0.1)
