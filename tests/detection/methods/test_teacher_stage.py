"""Learning masks on the teacher alone: its own loss on other maps, the batches of a split, and what learns."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import islice
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from limbeck.detection.methods._teacher_stage import learn_on_teacher, map_batches, task_loss, training_form
from limbeck.detection.targets import DetectionTargets, mmdet_samples
from limbeck.engine.losses import IGNORE
from limbeck.errors import ConfigError, NonFiniteLoss
from tests.detection.methods.pyramids import detector_pair, toy_batch, toy_targets
from tests.vision.methods import conftest as common


@pytest.mark.parametrize("head", ["gfl", "retinanet", "faster_rcnn"])
def test_task_loss_on_the_teachers_own_maps_is_the_teachers_loss(head: str) -> None:
    teacher, _ = detector_pair(head)
    batch = toy_batch()
    state = {name: value.clone() for name, value in teacher.state_dict().items()}
    maps = [m.detach().requires_grad_() for m in teacher.extract_feat(batch.inputs)]
    torch.manual_seed(0)  # two stages sample regions
    found = task_loss(teacher, maps, batch.targets)
    assert not any(module.training for module in teacher.modules())
    samples = mmdet_samples(batch.targets.shapes, batch.targets.input_shape, batch.targets)
    torch.manual_seed(0)
    with training_form(teacher):
        losses = teacher.loss(batch.inputs, samples)
    expected = sum(float(torch.stack(x).sum() if isinstance(x, list) else x) for k, x in losses.items() if "loss" in k)
    assert found.item() == pytest.approx(expected, rel=1e-5)
    assert found.item() > 0
    gradients = torch.autograd.grad(found, maps)
    assert all(g.any() for g in gradients)
    assert all(p.grad is None for p in teacher.parameters())
    assert all(torch.equal(value, state[name]) for name, value in teacher.state_dict().items())


def test_task_loss_on_label_maps_is_the_cross_entropy_of_pixels_with_a_class() -> None:
    logits, labels = common.randn(2, 3, 4, 5), torch.randint(0, 3, (2, 8, 10))
    labels[:, :2] = IGNORE
    large = F.interpolate(logits, (8, 10), mode="bilinear", align_corners=False).log_softmax(1)
    values = [-large[i, labels[i, y, x], y, x].item() for i in range(2) for y in range(2, 8) for x in range(10)]
    assert task_loss(nn.Identity(), [logits], labels).item() == pytest.approx(sum(values) / len(values), rel=1e-5)
    assert task_loss(nn.Identity(), [logits], torch.full_like(labels, IGNORE)).item() == 0.0


def test_teachers_and_targets_that_do_not_fit_are_named() -> None:
    teacher, _ = detector_pair()
    maps = [common.randn(4, 8, 2, 3)]
    with pytest.raises(ConfigError, match=r"all 2 levels that the teacher's head reads, from neck\[0\] on; got 1 taps"):
        task_loss(teacher, maps, toy_targets())
    with pytest.raises(ConfigError, match="got Identity and targets DetectionTargets"):
        task_loss(nn.Identity(), maps, toy_targets())
    with pytest.raises(ConfigError, match="targets NoneType"):
        task_loss(teacher, maps, None)


def test_training_form_leaves_batch_norm_in_evaluation_and_restores_what_was() -> None:
    model = nn.Sequential(nn.BatchNorm2d(2), nn.Dropout(), nn.Conv2d(2, 2, 1)).eval()
    model[2].train()
    with training_form(model):
        assert [m.training for m in model] == [False, True, True]
    assert [m.training for m in (model, *model)] == [False, False, False, True]


def test_parameters_learn_by_adam_and_a_half_cosine() -> None:
    start, data = common.randn(3), [([common.randn(2, 3, 1, 1, seed=i)], torch.zeros(2)) for i in range(3)]
    parameter = start.clone()

    def value(p: Tensor, maps: list[Tensor]) -> Tensor:
        return (p - maps[0].mean((0, 2, 3))).square().sum()

    losses = learn_on_teacher([parameter], lambda m, _: value(parameter, m), data, iterations=3, lr=0.1)
    expected, first, second = start.clone(), torch.zeros(3), torch.zeros(3)
    for step, (maps, _) in enumerate(data):
        expected.requires_grad_()
        loss = value(expected, maps)
        assert losses[step].item() == pytest.approx(loss.item(), rel=1e-5)
        gradient = torch.autograd.grad(loss, expected)[0] + 1e-3 * expected.detach()
        first, second = 0.9 * first + 0.1 * gradient, 0.999 * second + 0.001 * gradient**2
        rate = 1e-6 + (0.1 - 1e-6) * 0.5 * (1 + math.cos(math.pi * step / 3))
        moved = first / (1 - 0.9 ** (step + 1)) / ((second / (1 - 0.999 ** (step + 1))).sqrt() + 1e-8)
        expected = expected.detach() - rate * moved
    torch.testing.assert_close(parameter, expected)
    assert not parameter.requires_grad
    with pytest.raises(NonFiniteLoss, match=r"within 1 iterations at learning rate 0\.01; lower stage1_lr"):
        learn_on_teacher([parameter], lambda m, _: parameter.sum() * math.inf, data, iterations=1)


# --- batches ---


def split(sizes: tuple[tuple[int, int], ...] = ((2, 3), (2, 3))) -> list[tuple[list[Tensor], DetectionTargets, Tensor]]:
    """Batches of 4 and 2 whose maps and labels say which sample they are; the second has fewer boxes."""
    found = []
    for (start, count, most), size in zip(((0, 4, 3), (4, 2, 1)), sizes):
        ids = torch.arange(start, start + count)
        labels = ids[:, None].repeat(1, most)
        boxes = ids[:, None, None].float().expand(count, most, 4).clone()
        targets = DetectionTargets(boxes, labels, torch.tensor([size] * count), size)
        found.append(([ids.float().view(-1, 1, 1, 1).expand(-1, 1, *size)], targets, ids))
    return found


def names(sample: tuple[list[Tensor], Any]) -> list[int]:
    maps, targets = sample
    ids = maps[0][:, 0, 0, 0].long()
    assert maps[0].dtype == torch.float16
    for row, name in enumerate(ids.tolist()):
        boxes, labels = targets.of(row)
        assert set(labels.tolist()) == {name}
        assert len(labels) == (3 if name < 4 else 1)
        assert bool((boxes == name).all())
    return ids.tolist()


def test_split_in_memory_is_read_once_and_drawn_in_another_order_every_pass() -> None:
    passes: list[int] = []

    def read() -> Iterator[Any]:
        passes.append(1)
        yield from split()

    torch.manual_seed(0)
    drawn = [names(sample) for sample in islice(map_batches(read, size=3, max_megabytes=1), 8)]
    rounds = [[*drawn[i], *drawn[i + 1]] for i in range(0, 8, 2)]
    assert all(sorted(r) == list(range(6)) for r in rounds)
    assert len({tuple(r) for r in rounds}) > 1
    assert len(passes) == 1


def test_split_too_large_for_memory_is_read_again_and_other_sizes_stay_in_their_batches() -> None:
    again = [names(s) for s in islice(map_batches(split, size=3, max_megabytes=0), 6)]
    assert again == 3 * [[0, 1, 2, 3], [4, 5]]
    torch.manual_seed(0)
    mixed = [names(s) for s in islice(map_batches(lambda: split(((2, 3), (4, 3))), size=3, max_megabytes=1), 10)]
    assert sorted(mixed) == 5 * [[0, 1, 2, 3]] + 5 * [[4, 5]]
    with pytest.raises(ConfigError, match="has no samples"):
        next(map_batches(list, size=3, max_megabytes=1))
