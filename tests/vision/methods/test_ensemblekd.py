"""EnsembleKD against a naive reference, and what the two averages are."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from limbeck.engine.adapter import Batch
from limbeck.engine.distiller import Distiller
from limbeck.engine.method import LinkInputs
from limbeck.errors import ConfigError, ShapeMismatch, UnknownName
from limbeck.vision.methods.ensemblekd import EnsembleKD, ensemble_kd_loss, log_mean
from limbeck.vision.methods.kd import kd_loss
from tests.vision.methods import conftest as common

STUDENT = common.randn(5, 7, seed=0, scale=3)
TEACHERS = [common.randn(5, 7, seed=1 + k, scale=3) for k in range(3)]


def reference(student: np.ndarray, teachers: list[np.ndarray], temperature: float, average: str) -> float:
    total = 0.0
    for i in range(len(student)):
        rows = [t[i] / temperature for t in teachers]
        if average == "logits":
            p = common.softmax(np.array([sum(r[c] for r in rows) / len(rows) for c in range(len(rows[0]))]))
        else:
            p = [sum(column) / len(rows) for column in zip(*(common.softmax(r) for r in rows))]
        q = common.softmax(student[i] / temperature)
        total += sum(a * math.log(a / b) for a, b in zip(p, q))
    return temperature**2 * total / len(student)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
@pytest.mark.parametrize("average", ["logits", "probabilities"])
def test_value_and_gradient_match_naive_reference(temperature: float, average: str) -> None:
    common.check_reference(
        lambda s, t: ensemble_kd_loss(s, [t, *TEACHERS], temperature=temperature, average=average),
        lambda s, t: reference(s, [t, *map(common.array, TEACHERS)], temperature, average),
        STUDENT,
        common.randn(5, 7, seed=9, scale=3),
    )


@pytest.mark.parametrize("average", ["logits", "probabilities"])
def test_one_teacher_or_copies_of_it_make_plain_kd_and_order_does_not_count(average: str) -> None:
    expected = kd_loss(STUDENT, TEACHERS[0])
    for teachers in (TEACHERS[:1], TEACHERS[:1] * 3):
        torch.testing.assert_close(ensemble_kd_loss(STUDENT, teachers, average=average), expected)
    torch.testing.assert_close(
        ensemble_kd_loss(STUDENT, TEACHERS[::-1], average=average), ensemble_kd_loss(STUDENT, TEACHERS, average=average)
    )


def test_the_averages_differ_and_a_sure_teacher_moves_the_logits_further() -> None:
    sure, unsure = torch.tensor([[30.0, 0.0]]), torch.tensor([[0.0, 1.0]])
    student = torch.zeros(1, 2)
    # Arithmetic: (1 + 0.269) / 2; geometric: all but 1.
    by_probability = ensemble_kd_loss(student, [sure, unsure], temperature=1.0, average="probabilities").item()
    p = (1 + 1 / (1 + math.e)) / 2
    assert by_probability == pytest.approx(p * math.log(2 * p) + (1 - p) * math.log(2 * (1 - p)), rel=1e-5)
    by_logit = ensemble_kd_loss(student, [sure, unsure], temperature=1.0, average="logits").item()
    assert by_logit == pytest.approx(math.log(2), rel=1e-4)


def test_log_mean_is_a_distribution_and_stays_finite() -> None:
    found = log_mean(torch.stack([torch.tensor([[1000.0, 0.0]]), torch.tensor([[0.0, 1000.0]])]))
    torch.testing.assert_close(found.exp(), torch.tensor([[0.5, 0.5]]))


@pytest.mark.parametrize("average", ["logits", "probabilities"])
def test_gradient_reaches_student_only(average: str) -> None:
    common.check_one_sided(lambda s, t: ensemble_kd_loss(s, [t, t], average=average), STUDENT, TEACHERS[0])


@pytest.mark.parametrize("dtype", common.HALVES)
@pytest.mark.parametrize("average", ["logits", "probabilities"])
def test_half_precision_is_computed_in_float32(average: str, dtype: torch.dtype) -> None:
    def loss(student: Tensor, teacher: Tensor) -> Tensor:
        return ensemble_kd_loss(student, [teacher, teacher.flip(0)], average=average)

    common.check_half(loss, STUDENT, TEACHERS[0], dtype)


def test_link_reads_every_teacher_and_falls_back_to_one() -> None:
    link = EnsembleKD(teacher=["a", "b", "c"], temperature=2.0)
    batch = LinkInputs(student=[STUDENT], teacher=[TEACHERS[0]], teachers=[[t] for t in TEACHERS])
    torch.testing.assert_close(link(batch)["kl"], ensemble_kd_loss(STUDENT, TEACHERS, temperature=2.0))
    one = EnsembleKD()(common.link_inputs(STUDENT, TEACHERS[0]))
    torch.testing.assert_close(one["kl"], kd_loss(STUDENT, TEACHERS[0]))


def test_teacher_that_does_not_fit_is_named() -> None:
    link = EnsembleKD(teacher=["a", "b"])
    link.shapes = {"a": [(2, 10)], "b": [(2, 12)]}
    with pytest.raises(ShapeMismatch, match=r"teacher logits \(2, 12\).*\(teacher 'b'\)"):
        link.connect([(2, 10)], [(2, 10)])
    with pytest.raises(ShapeMismatch, match="EnsembleKD: teacher logits"):
        ensemble_kd_loss(torch.zeros(2, 10), [torch.zeros(2, 10), torch.zeros(2, 9)])


def test_registry_builds_it_and_refuses_typos() -> None:
    common.check_registered("EnsembleKD", EnsembleKD, weight=0.9, typo="averge", meant="average", average="logits")
    with pytest.raises(UnknownName, match="unknown average 'logit' of EnsembleKD; did you mean 'logits'"):
        EnsembleKD(average="logit")
    with pytest.raises(ConfigError, match=r"EnsembleKD needs temperature > 0; got 0\.0"):
        EnsembleKD(temperature=0.0)


def test_distiller_gives_it_every_teacher() -> None:
    net = dict(type="CIFARResNet", depth=8, in_chans=1, num_classes=3, input_size=(1, 8, 8))
    members = {
        n: dict(type="frozen", model={**net, "width": w}, initial_weights=True) for n, w in dict(a=4, b=3).items()
    }
    members["student"] = dict(type="trained", model={**net, "width": 2})
    link = dict(type="EnsembleKD", teacher=["a", "b"], weight=1.0, average="probabilities")
    model = Distiller(members=members, links=[link], adapter=dict(type="VisionAdapter")).eval()
    images = common.randn(6, 1, 8, 8)
    terms = model.loss(Batch(images, targets=torch.arange(6) % 3, ids=torch.arange(6)))
    a, b, student = (model.member(name)(images).detach() for name in ("a", "b", "student"))
    expected = reference(common.array(student), [common.array(a), common.array(b)], 4.0, "probabilities")
    assert terms["ensemblekd.loss_kl"].item() == pytest.approx(expected, rel=1e-4)
