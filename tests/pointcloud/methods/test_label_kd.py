"""Label KD: which boxes join, in which order; plain at threshold 1; suppression; what the student learns from."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from limbeck.engine.method import LinkInputs
from limbeck.engine.registry import METHODS
from limbeck.errors import ConfigError, ShapeMismatch
from limbeck.pointcloud.methods.label_kd import LabelKD, joined_boxes
from tests.pointcloud.methods.clouds import targets, voxels
from tests.vision.methods import conftest as common

TRUE = common.randn(3, 7, seed=1)
LABELS = torch.tensor([0, 2, 2])


def join(scores: list[float], labels: list[int], **options: Any) -> tuple[Tensor, Tensor]:
    options = dict(thresholds=torch.tensor([0.6, 0.6, 0.6])) | options
    found = torch.arange(7.0 * len(scores)).view(-1, 7) + 100
    return joined_boxes(TRUE, LABELS, found, torch.tensor(labels), torch.tensor(scores), **options)


def test_sure_boxes_follow_ground_truth_best_first() -> None:
    boxes, labels = join([0.7, 0.2, 0.9, 0.6, 0.65, 0.99], [1, 1, 0, 2, 2, -1])
    torch.testing.assert_close(boxes[:3], TRUE, rtol=0, atol=0)
    assert ((boxes[3:, 0] - 100) / 7).tolist() == [2, 0, 4]  # a score of 0.6 is not above it, and −1 is padding
    assert labels.tolist() == [0, 2, 2, 0, 1, 2]


def test_thresholds_are_by_class() -> None:
    boxes, labels = join([0.7, 0.7, 0.7], [0, 1, 2], thresholds=torch.tensor([0.9, 0.6, 0.5]))
    assert labels.tolist() == [0, 2, 2, 1, 2]
    assert len(boxes) == 5


def test_higher_thresholds_never_add_boxes_and_one_is_plain() -> None:
    scores, labels = torch.rand(40, generator=torch.Generator().manual_seed(0)).tolist(), [0, 1, 2, 1] * 10
    counts = [len(join(scores, labels, thresholds=torch.full((3,), t))[0]) for t in (0.0, 0.3, 0.6, 0.9, 1.0)]
    assert counts == sorted(counts, reverse=True)
    boxes, kept = join(scores, labels, thresholds=torch.ones(3))
    assert boxes is TRUE
    assert kept is LABELS


def test_ground_truth_survives_the_limit() -> None:
    assert join([0.7, 0.9], [1, 0], limit=4)[1].tolist() == [0, 2, 2, 0]
    assert join([0.7, 0.9], [1, 0], limit=2)[1].tolist() == [0, 2, 2]
    assert len(join([0.7, 0.9], [1, 0], limit=None)[0]) == 5


def test_suppression_keeps_the_best_of_a_class() -> None:
    pytest.importorskip("mmcv")
    car = [10.0, 0.0, -1.6, 4.0, 1.6, 1.5, 0.4]
    found = torch.tensor([car, [10.1, *car[1:]], car, [20.0, *car[1:]], [*car[:6], -0.4]])
    labels, scores = torch.tensor([2, 2, 1, 2, 2]), torch.tensor([0.7, 0.9, 0.8, 0.75, 0.65])
    options: Any = dict(thresholds=torch.full((3,), 0.6))
    boxes, kept = joined_boxes(TRUE, LABELS, found, labels, scores, nms=0.7, **options)
    torch.testing.assert_close(boxes[3:], found[[1, 2, 3, 4]], rtol=0, atol=0)
    assert kept.tolist() == [*LABELS.tolist(), 2, 1, 2, 2]
    assert len(joined_boxes(TRUE, LABELS, found, labels, scores, **options)[0]) == 8


# --- the link ---


@pytest.fixture
def link() -> LabelKD:
    found = LabelKD()
    student = nn.ReLU()
    student.num_classes = 3  # type: ignore[assignment]
    found.members = dict(teacher=nn.Tanh(), student=student)
    return found


def seen() -> LinkInputs:
    """A batch of two clouds, of which the second has no ground truth, as the link gets it before the student runs."""
    decoded = torch.full((2, 2, 9), 3.0)
    decoded[..., 7] = torch.tensor([[0.9, 0.5], [0.7, 0.8]])
    decoded[..., 8] = torch.tensor([[1, 1], [2, -1]])
    truth = targets(*voxels((5, 5)), [TRUE, TRUE[:0]], [LABELS, LABELS[:0]])
    return LinkInputs(teacher=[decoded], student=[], targets=truth)


def test_student_learns_from_the_joined_boxes(link: LabelKD) -> None:
    batch = seen()
    changed = link.retarget(batch)
    assert [len(b) for b in changed.boxes] == [4, 1]
    assert [n.tolist() for n in changed.labels] == [[0, 2, 2, 1], [2]]
    assert changed.coors is batch.targets.coors
    assert [len(b) for b in batch.targets.boxes] == [3, 0]  # the loader's own stay
    assert link(batch) == {}
    assert link.taps == [("decoded_boxes", "cls_logits")]
    assert link.alters_targets
    assert not link.alters_batch


def test_threshold_of_one_is_plain_training(link: LabelKD) -> None:
    link.thresholds = [1.0]
    assert link.retarget(seen()).boxes[0] is TRUE


def test_other_taps_are_refused(link: LabelKD) -> None:
    link.connect([(2, 256, 9)], [(2, 18, 4, 4)])
    with pytest.raises(ShapeMismatch, match=r"tap 'decoded_boxes' gives \(2, 18, 4, 4\), not boxes \(B, P, 9\)"):
        link.connect([(2, 18, 4, 4)], [(2, 18, 4, 4)])


def test_options_are_checked(link: LabelKD) -> None:
    assert isinstance(METHODS.make(dict(type="LabelKD", threshold=[0.6, 0.5, 0.5], nms=0.7)), LabelKD)
    link.thresholds = [0.6, 0.5]
    with pytest.raises(ConfigError, match="2 thresholds for 3 classes"):
        link.retarget(seen())
    for options in (dict(threshold=1.5), dict(threshold=[]), dict(limit=0), dict(nms=1.0), dict(nms=0.0)):
        with pytest.raises(ConfigError, match="LabelKD"):
            LabelKD(**options)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="schedule"):
        LabelKD(schedule=dict(type="decay"))
