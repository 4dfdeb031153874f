"""ND: knowledge distillation by regularising feature norm and direction, the "++" of KD++ (arXiv 2305.17007)."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from limbeck.engine.bridges import mismatch, require_same_shape
from limbeck.engine.losses import check_labels
from limbeck.engine.method import LinkInputs, Method, Shapes, TrainingSet
from limbeck.engine.registry import METHODS
from limbeck.errors import ConfigError, ShapeMismatch


def nd_loss(student: Tensor, teacher: Tensor, *, centres: Tensor, labels: Tensor) -> Tensor:
    """How far the student's embedding falls short of the teacher's norm along the direction of its class.

    With e_y = c_y / ‖c_y‖: L = mean_B [1 − <s, e_y> / max(‖s‖, ‖t‖)]. Below the teacher's norm the gradient is
    −e_y / (B ‖t‖), along the class and thereby outwards; above, L is 1 − cos(s, e_y) and the norm is left alone. The
    maximum is differentiated. Where both norms are 0 the denominator is taken as 1 (our choice; the paper divides).

    Args:
        student: embeddings s (B, D), projected where the widths differ.
        teacher: embeddings t (B, D), of which the norm counts. Their gradient is stopped.
        centres: c (K, D), mean of the teacher's embeddings over each class.
        labels: classes (B,), integer.
    Returns: scalar in [0, 2], computed in float32.
    Raises: ShapeMismatch when embeddings, centres or labels do not fit.

    >>> c = torch.tensor([[3.0, 4.0]])
    >>> nd_loss(2 * c, c, centres=c, labels=torch.tensor([0])).item()  # long enough and aligned
    0.0
    """
    require_same_shape(student, teacher, "ND")
    check_labels("ND", labels, batch=len(student), classes=len(centres))
    if student.ndim != 2 or centres.shape[1:] != student.shape[1:]:
        raise ShapeMismatch(
            f"ND: embeddings {tuple(student.shape)} and class centres {tuple(centres.shape)} do not fit; "
            "(B, D) and (K, D) would"
        )
    s, t = student.float(), teacher.detach().float()
    directions = F.normalize(centres.detach().float(), dim=1)[labels.long()]
    longer = torch.maximum(torch.linalg.vector_norm(s, dim=1), torch.linalg.vector_norm(t, dim=1))
    longer = torch.where(longer > 0, longer, 1.0)
    return (1.0 - (s * directions).sum(dim=1) / longer).mean()


def class_centres(data: TrainingSet, width: int) -> Tensor:
    """Mean of the teacher's embeddings over the training images of each class, (classes, width), summed in float64.

    Raises: ConfigError naming a class without images, or whose mean is 0 and has no direction; ShapeMismatch for a
        label that is out of range.
    """
    sums = torch.zeros(data.classes, width, dtype=torch.float64)
    counts = torch.zeros(data.classes, dtype=torch.int64)
    for taps, labels, _ in data.teacher_taps():
        check_labels("ND", labels, batch=len(taps[0]), classes=data.classes)
        labels = labels.long().cpu()
        sums.index_add_(0, labels, taps[0].detach().cpu().double())
        counts += torch.bincount(labels, minlength=data.classes)
    if missing := torch.nonzero(counts == 0).flatten().tolist():
        raise ConfigError(
            f"ND needs training images of every class to find the class's centre; class {missing[0]} has none "
            f"({len(missing)} of {data.classes} classes without): raise the split's limit, or name fewer classes"
        )
    centres = (sums / counts.unsqueeze(1)).float()
    if still := torch.nonzero(torch.linalg.vector_norm(centres, dim=1) == 0).flatten().tolist():
        raise ConfigError(
            f"ND: the teacher's embedding is 0 on every image of class {still[0]}, so that the class has no direction; "
            "tap another layer or teacher"
        )
    return centres


@METHODS.register_module()
class ND(Method):
    """Norm and direction: taps one pooled embedding a side, (B, D_T) and (B, D_S), and reads the labels.

    Before the first step the teacher's mean embedding of each class is taken over the training split, without
    augmentation (assumed; the official tables are made ahead, rounded to 4 digits). It is a buffer of the link. Where
    the widths differ a projection, batch norm → drop-out 0.5 → linear (bias 0 at first), brings s to D_T for this term
    alone: the student classifies from what it had, and keeps nothing of it.

    KD++, DKD++, DIST++ and ReviewKD++ are this link beside the other's; only the other warms up:
    `links=[dict(type='KD', weight=1.0, schedule=dict(type='warmup', end=20 / 240)), dict(type='ND', weight=2.0)]`.
    Cross entropy keeps weight 1; SGD with Nesterov, lr 0.1 (0.02 for ShuffleNets). CIFAR-100, weights of KD and ND in
    KD++, then α, β and the weight of ND in DKD++:

    - ResNet-56 → 20: 1, 2; 2.5, 4, 3.5. ResNet-32x4 → 8x4: 3.5, 2; 2, 8, 0.5. WRN-40-2 → 40-1: 1, 1.5; 1, 6, 1.
    - ResNet-50 → MobileNetV2: 3, 0.5; 0.5, 8, 1.
    - ResNet-32x4 → ShuffleNetV1: 2.5, 1.5; 0.5, 8, 4. → ShuffleNetV2: 4, 0.5; 0.5, 6, 0.5.

    Args:
        weight: factor on the term "nd".
        kwargs: see `Method`.
    Raises: ConfigError for more than one pair of taps, or (at the start of the run) for a class without images.
    """

    default_taps = (("global_pool", "global_pool"),)
    wants_data = True
    assumption = "Class centres are taken over the training images without augmentation."
    centres: Tensor | None
    project: nn.Module

    def __init__(self, *, weight: float = 2.0, **kwargs: Any) -> None:
        super().__init__(weight=weight, **kwargs)
        if len(self.taps) != 1:
            raise ConfigError(f"ND reads one pair of taps, the embeddings before the classifiers; got {self.taps}")
        self.register_buffer("centres", None)

    def connect(self, teacher_shapes: Shapes, student_shapes: Shapes) -> None:
        (teacher,), (student,) = teacher_shapes, student_shapes
        if len(teacher) != 2 or len(student) != 2 or teacher[0] != student[0]:
            raise mismatch("ND reads pooled embeddings (B, D)", teacher, student)
        self.width = teacher[1]
        self.project = nn.Identity() if teacher[1] == student[1] else _projection(student[1], teacher[1])

    def prepare(self, data: TrainingSet) -> None:
        self.centres = class_centres(data, self.width)

    def forward(self, batch: LinkInputs) -> dict[str, Tensor]:
        (student,), (teacher,) = batch.student, batch.teacher
        if self.centres is None:
            raise ConfigError(
                "ND has no class centres yet; call prepare() with the training split before the first step"
            )
        if len(student) == 1 and self.training and not isinstance(self.project, nn.Identity):
            raise ConfigError("ND's projection has a batch norm, which needs two samples; raise the batch size from 1")
        centres = self.centres = self.centres.to(teacher.device)
        return {"nd": nd_loss(self.project(student), teacher, centres=centres, labels=batch.targets)}


def _projection(student: int, teacher: int) -> nn.Sequential:
    linear = nn.Linear(student, teacher)
    nn.init.zeros_(linear.bias)
    return nn.Sequential(nn.BatchNorm1d(student), nn.Dropout(0.5), linear)
