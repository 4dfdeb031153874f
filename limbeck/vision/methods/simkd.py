"""SimKD: knowledge distillation with the reused teacher classifier (arXiv 2203.14001)."""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from limbeck.engine.cost import evaluating
from limbeck.engine.method import LinkInputs, Method, Shapes
from limbeck.engine.pixels import input_of
from limbeck.engine.registry import METHODS
from limbeck.engine.taps import tapped
from limbeck.errors import ConfigError, ShapeMismatch
from limbeck.vision._simkd_student import SimKDStudent


def simkd_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared error between the student's projected map and the teacher's last map.

    L = mean over B, C, H, W of (P(F_S) − F_T)². A larger teacher map is average-pooled to the student's size; a larger
    student map is to be pooled before the projector, not here.

    Args:
        student: projected map P(F_S), (B, C, H, W).
        teacher: map F_T after the ReLU, (B, C, H', W'), H' ≥ H and W' ≥ W. Its gradient is stopped.
    Returns: scalar ≥ 0, computed in float32.
    Raises: ShapeMismatch when the two do not fit.

    >>> simkd_loss(torch.ones(2, 3, 4, 4), torch.zeros(2, 3, 8, 8)).item()
    1.0
    """
    _check_maps(tuple(teacher.shape), tuple(student.shape))
    target = teacher.detach().float()
    if target.shape != student.shape:
        target = F.adaptive_avg_pool2d(target, (student.shape[2], student.shape[3]))
    return F.mse_loss(student.float(), target)


def _check_maps(teacher: tuple[int, ...], student: tuple[int, ...]) -> None:
    if len(teacher) != 4 or len(student) != 4 or teacher[0] != student[0]:
        hint = "the teacher's last map (features, layer3, …) and the student's projector, (B, C, H, W) each, would"
    elif teacher[1] != student[1]:
        hint = f"a SimKDStudent with teacher_channels={teacher[1]} would"
    elif student[2] > teacher[2] or student[3] > teacher[3]:
        hint = f"a SimKDStudent with map_size={teacher[2:]} would: the larger map is pooled before the projector"
    else:
        return
    raise ShapeMismatch(f"SimKD: teacher tap {teacher} and student tap {student} do not fit; {hint}")


@METHODS.register_module()
class SimKD(Method):
    """Learns the teacher's last map and classifies by the teacher's own classifier. No modules of its own.

    The student is a `SimKDStudent`: its projector and the teacher's classifier stay at deployment and count in its
    parameters. Building the link copies the teacher's classifier into it and freezes it there. The teacher is tapped
    where its last map has passed the ReLU, right before global pooling, and must end in pooling and one linear layer:
    one forward checks that these give its logits.

    The loss is all there is: set the config's `task_weight=0.0`, and the student in the method's entry,
    `student=dict(type='SimKDStudent', student=…, teacher_channels=…, num_classes=…)`.

    Args:
        classifier: the teacher's classifier by module name; None asks its `get_classifier()`, or takes `fc`.
        weight: factor on the term "feature"; with 0 the classifier is the student's own and trained.
        kwargs: see `Method`.
    """

    default_taps = (("features", "projector"),)

    def __init__(self, *, classifier: str | None = None, weight: float = 1.0, **kwargs: Any) -> None:
        super().__init__(weight=weight, **kwargs)
        if len(self.taps) != 1:
            raise ConfigError(f"SimKD has one pair of taps, of the last maps; got {self.taps}")
        self.classifier = classifier

    def connect(self, teacher_shapes: Shapes, student_shapes: Shapes) -> None:
        student = self.members[self.student]
        if not isinstance(student, SimKDStudent):
            raise ConfigError(
                f"SimKD trains a SimKDStudent, which ends in its teacher's classifier; got {type(student).__name__}: "
                "set student=dict(type='SimKDStudent', student=…, teacher_channels=…) in the method's entry"
            )
        if self.taps[0][1] != "projector":
            raise ConfigError(f"SimKD taps its student at 'projector', which fc reads; got {self.taps[0][1]!r}")
        _check_maps(teacher_shapes[0], student_shapes[0])
        teacher = self.members[self.teachers[0]]
        source = self._classifier_of(teacher, student)
        self._check_ending(teacher, source)
        if self.weight:
            _reuse(student.fc, source)

    def _classifier_of(self, teacher: nn.Module, student: SimKDStudent) -> nn.Linear:
        """The teacher's classifier, a linear layer of the student's widths."""
        get = getattr(teacher, "get_classifier", None)
        if self.classifier is not None:
            found = dict(teacher.named_modules(remove_duplicate=False)).get(self.classifier)
        else:
            found = get() if callable(get) else getattr(teacher, "fc", None)
        name = "its classifier" if self.classifier is None else repr(self.classifier)
        if not isinstance(found, nn.Linear):
            raise ConfigError(
                f"SimKD: {name} in {type(teacher).__name__} is no linear layer ({type(found).__name__}); "
                "name the teacher's classifier in classifier='…'"
            )
        if any(p.requires_grad for p in found.parameters()):
            raise ConfigError("SimKD copies the teacher's classifier once, so the teacher must be a frozen member")
        if found.weight.shape != student.fc.weight.shape:
            classes, width = found.weight.shape
            raise ShapeMismatch(
                f"SimKD: the teacher's classifier ({width} → {classes}) and the student's "
                f"({student.fc.in_features} → {student.fc.out_features}) do not fit; "
                f"a SimKDStudent with teacher_channels={width}, num_classes={classes} would"
            )
        return found

    def _check_ending(self, teacher: nn.Module, classifier: nn.Linear) -> None:
        """Prove on noise that pooling the tap and the classifier are all that the teacher does after the tap."""
        tap = self.taps[0][0]
        noise = torch.randn(2, *input_of(teacher)[1], generator=torch.Generator().manual_seed(0))
        with evaluating(teacher), torch.no_grad(), tapped(teacher, [tap]) as store:
            logits = teacher(noise.to(classifier.weight))
            again = classifier(store[tap].mean((2, 3)))
        if not torch.allclose(again, logits, rtol=1e-3, atol=1e-3 * float(logits.abs().max())):
            raise ConfigError(
                f"SimKD: pooling tap {tap!r} and the classifier do not give the teacher's logits; "
                "tap its last map, after the ReLU and right before global pooling"
            )

    def forward(self, batch: LinkInputs) -> dict[str, Tensor]:
        return {"feature": simkd_loss(batch.student[0], batch.teacher[0])}


@torch.no_grad()
def _reuse(target: nn.Linear, source: nn.Linear) -> None:
    """Give a layer another's weights, and train them no more."""
    target.weight.copy_(source.weight)
    if source.bias is None:
        target.bias.zero_()
    else:
        target.bias.copy_(cast(Tensor, source.bias))
    target.requires_grad_(False)
