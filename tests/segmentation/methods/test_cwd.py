"""CWD against loops over channels in float64, what it cannot see, its bridges, and a run of the engine."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from mmengine.model import BaseDataPreprocessor
from torch import Tensor, nn

from limbeck.engine.adapter import Batch, Forward, TaskAdapter
from limbeck.engine.distiller import Distiller
from limbeck.engine.losses import IGNORE, RESIZED
from limbeck.engine.registry import METHODS
from limbeck.errors import ConfigError, ShapeMismatch
from limbeck.segmentation.methods.cwd import CWD, cwd_loss
from tests.vision.methods import conftest as common


def example(*shape: int, scale: float = 3.0) -> tuple[Tensor, Tensor]:
    return common.randn(*shape, seed=0, scale=scale), common.randn(*shape, seed=1, scale=scale)


def reference(student: np.ndarray, teacher: np.ndarray, temperature: float = 4.0) -> float:
    batch, channels = student.shape[:2]
    total = 0.0
    for b in range(batch):
        for c in range(channels):
            q = common.softmax(student[b, c].ravel() / temperature)
            p = common.softmax(teacher[b, c].ravel() / temperature)
            total += sum(x * (math.log(x) - math.log(y)) for x, y in zip(p, q))
    return temperature**2 * total / (batch * channels)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_value_and_gradient_match_loops_over_channels(temperature: float) -> None:
    common.check_reference(
        lambda s, t: cwd_loss(s, t, temperature=temperature),
        lambda s, t: reference(s, t, temperature),
        *example(2, 3, 3, 4),
    )


def test_value_is_mmrazors() -> None:
    # Its rows are channels; it divides the summed divergence by C and by B.
    student, teacher = example(4, 5, 6, 7)
    rows = [x.reshape(-1, 42) for x in (student, teacher)]
    p = (rows[1] / 2.0).softmax(1)
    entries = p * ((rows[1] / 2.0).log_softmax(1) - (rows[0] / 2.0).log_softmax(1))
    expected = entries.sum() * 2.0**2 / 5 / 4
    assert cwd_loss(student, teacher, temperature=2.0).item() == pytest.approx(expected.item(), rel=1e-6)


def test_gradient_is_the_difference_of_distributions_and_sums_to_zero_in_each_channel() -> None:
    student, teacher = example(2, 3, 4, 5)
    found = common.gradient_of(lambda s, t: 7.0 * cwd_loss(s, t, temperature=2.0), student, teacher).flatten(2)
    for b in range(2):
        for c in range(3):
            q, p = (common.softmax(common.array(x)[b, c].ravel() / 2.0) for x in (student, teacher))
            expected = [7.0 * 2.0 / (2 * 3) * (x - y) for x, y in zip(q, p)]
            np.testing.assert_allclose(found[b, c].numpy(), expected, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(found.sum(2), torch.zeros(2, 3), rtol=0, atol=1e-6)


@pytest.mark.parametrize("side", [0, 1])
def test_a_constant_on_any_channel_changes_nothing(side: int) -> None:
    maps = list(example(2, 3, 4, 5))
    expected = cwd_loss(*maps)
    maps[side] = maps[side] + common.randn(2, 3, 1, 1, seed=5, scale=20)
    torch.testing.assert_close(cwd_loss(*maps), expected, rtol=1e-4, atol=1e-5)


def test_equal_maps_and_maps_of_one_position_cost_nothing_and_nothing_costs_less() -> None:
    teacher = common.randn(2, 3, 4, 5, seed=99)
    assert abs(cwd_loss(teacher.clone(), teacher).item()) < 1e-6
    assert cwd_loss(*example(4, 3, 1, 1)).item() == 0.0
    for seed in range(20):
        assert cwd_loss(common.randn(2, 3, 4, 5, seed=seed), teacher, temperature=0.5).item() > 0


def test_joint_order_of_positions_or_channels_and_repetition_change_nothing() -> None:
    student, teacher = example(2, 3, 4, 5)
    expected = cwd_loss(student, teacher)
    positions = torch.randperm(20, generator=torch.Generator().manual_seed(0))
    mixed = [x.flatten(2)[:, :, positions].view_as(x) for x in (student, teacher)]
    torch.testing.assert_close(cwd_loss(*mixed), expected)
    assert not torch.isclose(cwd_loss(mixed[0], teacher), expected)
    channels = torch.tensor([2, 0, 1])
    torch.testing.assert_close(cwd_loss(student[:, channels], teacher[:, channels]), expected)
    assert not torch.isclose(cwd_loss(student[:, channels], teacher), expected)
    torch.testing.assert_close(cwd_loss(student.repeat(2, 1, 1, 1), teacher.repeat(2, 1, 1, 1)), expected)
    apart = [cwd_loss(student[b : b + 1], teacher[b : b + 1]) for b in range(2)]
    torch.testing.assert_close((apart[0] + apart[1]) / 2, expected)


def test_nearest_up_sampling_of_both_changes_nothing() -> None:
    student, teacher = example(2, 3, 4, 5)
    large = [F.interpolate(x, scale_factor=2, mode="nearest") for x in (student, teacher)]
    torch.testing.assert_close(cwd_loss(*large), cwd_loss(student, teacher))


def test_high_temperature_limit_is_half_the_variance_of_the_difference() -> None:
    student, teacher = example(2, 3, 4, 5)
    variances = (common.array(teacher) - common.array(student)).reshape(6, -1).var(axis=1)
    limit = variances.mean() / 2
    assert cwd_loss(student, teacher, temperature=100.0).item() == pytest.approx(limit, rel=0.05)
    assert reference(common.array(student), common.array(teacher), 1e3) == pytest.approx(limit, rel=0.01)


def test_certain_channels_stay_finite() -> None:
    student, teacher = torch.tensor([[[[1000.0, 0.0]]]]), torch.tensor([[[[0.0, 1000.0]]]])
    # The divergence of two opposite certainties is their log ratio; the log of a soft-max would give infinity.
    assert cwd_loss(student, teacher, temperature=1.0).item() == pytest.approx(1000.0)


@pytest.mark.parametrize("size", [(3, 4), (2, 5)])
@pytest.mark.parametrize("dtype", common.HALVES)
def test_computed_in_float32_and_reaches_the_student_only(size: tuple[int, int], dtype: torch.dtype) -> None:
    student, teacher = common.randn(2, 3, *size, scale=5), common.randn(2, 3, 3, 4, seed=1, scale=5)
    common.check_half(cwd_loss, student, teacher, dtype)
    common.check_one_sided(cwd_loss, student, teacher)


# --- the link ---


def test_bridge_only_where_widths_differ_and_its_gradient() -> None:
    torch.manual_seed(0)
    link = CWD(taps=[("a", "a"), ("b", "b")])
    link.connect([(2, 6, 3, 4), (2, 5, 2, 2)], [(2, 4, 3, 4), (2, 5, 2, 2)])
    assert {name: tuple(p.shape) for name, p in link.named_parameters()} == {"bridges.0.weight": (6, 4, 1, 1)}
    students = [common.randn(2, 4, 3, 4).requires_grad_(), common.randn(2, 5, 2, 2, seed=1)]
    teachers = [common.randn(2, 6, 3, 4, seed=2), common.randn(2, 5, 2, 2, seed=3)]
    loss = link(common.link_inputs(students, teachers))["channel"]
    weight = link.bridges[0].weight.detach()[:, :, 0, 0]
    bridged = torch.einsum("tc,bchw->bthw", weight, students[0].detach())
    expected = [reference(common.array(s), common.array(t)) for s, t in zip((bridged, students[1]), teachers)]
    assert loss.item() == pytest.approx(sum(expected), rel=1e-4)  # levels are added
    loss.backward()
    assert students[0].grad.abs().max() > 0
    assert link.bridges[0].weight.grad.abs().max() > 0


def test_students_map_is_resized_to_the_teachers() -> None:
    student, teacher = common.randn(2, 3, 2, 3), common.randn(2, 3, 4, 5, seed=1)
    resized = F.interpolate(student, (4, 5), mode="bilinear", align_corners=False)
    torch.testing.assert_close(cwd_loss(student, teacher), cwd_loss(resized, teacher))
    link = CWD()
    link.connect([(2, 3, 4, 5)], [(2, 3, 2, 3)])
    torch.testing.assert_close(link(common.link_inputs(student, teacher))["channel"], cwd_loss(resized, teacher))
    assert (link.assumption, CWD.assumption) == (RESIZED, "")


def test_link_gives_the_pure_loss_with_its_temperature_and_weight_is_linear() -> None:
    student, teacher = example(2, 3, 4, 5)
    link = METHODS.make({"type": "CWD", "temperature": 2.0, "weight": 5.0})
    link.connect([(2, 3, 4, 5)], [(2, 3, 4, 5)])
    terms = link(common.link_inputs(student, teacher))
    assert list(terms) == ["channel"]
    torch.testing.assert_close(terms["channel"], cwd_loss(student, teacher, temperature=2.0))
    assert link.factor(0.5) == 5.0
    assert not list(link.parameters())


def test_registry_builds_it_and_refuses_typos() -> None:
    common.check_registered("CWD", CWD, weight=3.0, typo="temprature", meant="temperature", temperature=1.0)
    assert (CWD().temperature, CWD().taps) == (4.0, [("logits", "logits")])
    with pytest.raises(ConfigError, match="CWD needs temperature > 0; got 0"):
        CWD(temperature=0.0)


@pytest.mark.parametrize(
    ("teacher", "student", "hint"),
    [
        ((2, 5, 4, 4), (3, 5, 4, 4), "both sides must see the same batch"),
        ((2, 5, 4, 4), (2, 5), "tap layers of the same kind"),
        ((2, 9, 5), (2, 9, 5), "a LinearBridge"),
    ],
)
def test_taps_that_do_not_fit_are_named(teacher: tuple[int, ...], student: tuple[int, ...], hint: str) -> None:
    pattern = rf"CWD: teacher tap \({', '.join(map(str, teacher))}\) and student tap .* do not fit; .*{hint}"
    with pytest.raises(ShapeMismatch, match=pattern):
        cwd_loss(torch.zeros(student), torch.zeros(teacher))
    with pytest.raises(ShapeMismatch, match=pattern):
        CWD().connect([teacher], [student])


# --- the engine; the other dense peers' tests use these toys too ---

CLASSES = 3


class Net(nn.Module):
    """Maps of half the image's size before a 1×1 classifier."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, width, 3, stride=2, padding=1), nn.BatchNorm2d(width), nn.Tanh())
        self.classifier = nn.Conv2d(width, CLASSES, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x))


class Adapter(TaskAdapter):
    def preprocessor(self, deploy: nn.Module) -> nn.Module:
        return BaseDataPreprocessor()

    def batch(self, inputs: Any, data_samples: Any) -> Batch:
        return Batch(inputs, data_samples)

    def member_inputs(self, batch: Batch, deploy: nn.Module, member: nn.Module) -> Any:
        return batch.inputs

    def forward(self, model: nn.Module, inputs: Any, batch: Batch, *, with_loss: bool) -> Forward:
        logits = model(inputs)
        full = F.interpolate(logits, scale_factor=2)
        losses = {"loss_ce": F.cross_entropy(full, batch.targets, ignore_index=IGNORE)} if with_loss else {}
        return Forward(losses, {"logits": logits})

    def predict(self, model: nn.Module, inputs: Any, batch: Batch) -> list[Any]:
        return [model(inputs).argmax(1)]

    def example(self, deploy: nn.Module) -> Batch:
        return Batch(torch.zeros(2, 3, 16, 16), torch.zeros(2, 16, 16, dtype=torch.int64))


def toy_distiller(*links: dict[str, Any]) -> Distiller:
    torch.manual_seed(0)
    return Distiller(
        members={
            "teacher": dict(type="frozen", model=Net(6), initial_weights=True),
            "student": dict(type="trained", model=Net(4)),
        },
        links=links,
        adapter=Adapter(),
    ).train()


def toy_batch() -> Batch:
    """Four images of 16×16, label maps with a strip of ignored pixels."""
    labels = torch.randint(0, CLASSES, (4, 16, 16), generator=torch.Generator().manual_seed(1))
    labels[:, :4] = IGNORE
    return Batch(common.randn(4, 3, 16, 16), labels, ids=torch.arange(4))


def check_learns(term: str, *links: dict[str, Any]) -> Distiller:
    """A term of a real run falls to less than 0.7 of its first value in 25 steps, and the student stays plain."""
    model, batch = toy_distiller(*links), toy_batch()
    plain = set(model.deploy.state_dict())
    optimizer, history = torch.optim.Adam(model.parameters(), lr=0.02), []
    for _ in range(25):
        terms = model.loss(batch)
        history.append(terms[term].item())
        optimizer.zero_grad()
        torch.stack(list(terms.values())).sum().backward()
        optimizer.step()
        model.iteration += 1
    assert 0 < history[-1] < 0.7 * history[0]
    assert set(model.deploy.state_dict()) == plain
    return model


def test_distiller_trains_features_and_logits_and_keeps_the_bridge_out_of_the_student() -> None:
    links = [dict(type="CWD", taps=[("features", "features")], weight=50.0), dict(type="CWD", weight=3.0)]
    model = check_learns("cwd.loss_channel", *links)
    assert "links.0.bridges.0.weight" in model.state_dict()
    assert "cwd1.loss_channel" in model.loss(toy_batch())


def test_weight_zero_is_plain_training() -> None:
    batch = toy_batch()
    silent, plain = toy_distiller(dict(type="CWD", weight=0.0)), toy_distiller()
    assert silent.loss(batch) == plain.loss(batch)
