"""What the CLIP-KD links of classifiers share (arXiv 2307.12732): projection, class embeddings, scales, labelled rows.

The paper's student is a CLIP. ASSUMPTION, of every link here: the student has no text tower, so the K class embeddings
of the frozen teacher stand for the texts, on both sides, and the images' classes for the pairing; the student's pooled
feature is projected to the teacher's width in every term. Students of two towers: see
`limbeck.multimodal.vlm.clip_pairs`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from limbeck.engine.data import UNLABELLED
from limbeck.engine.losses import check_labels
from limbeck.engine.method import LinkInputs, Method, Shapes
from limbeck.errors import ConfigError, ShapeMismatch, UnknownName

CrossScale = Literal["exp", "raw"]
GDScale = Literal["correct", "official"]
StudentScale = Literal["learned", "teacher"]
LOG_SCALE = math.log(1 / 0.07)  # where CLIP's scales start
LOG_SCALE_MAX = math.log(100.0)
TEXTS = (
    "The teacher's class embeddings stand for the texts, and a learned projection for the student's image embedding."
)


def full(x: Tensor) -> Tensor:
    """In float32, or float64 where it has that."""
    return x if x.dtype == torch.float64 else x.float()


def unit(x: Tensor) -> Tensor:
    """Rows (…, d) of length 1, in float32 or float64."""
    return F.normalize(full(x), dim=-1)


def check_choice(what: str, key: str, value: str, known: Sequence[str]) -> Any:
    """The value, where it is known. Raises: UnknownName."""
    if value not in known:
        raise UnknownName(key, value, known, f"of {what}")
    return value


def check_rows(what: str, student: Tensor, teacher: Tensor) -> None:
    """Raises: ShapeMismatch unless both are of one shape (B, d)."""
    if student.ndim != 2 or student.shape != teacher.shape:
        raise ShapeMismatch(
            f"{what}: student {tuple(student.shape)} and teacher {tuple(teacher.shape)} do not fit; rows of one batch "
            "and one width (B, d) would: project the student's to the teacher's width"
        )


def cross_factor(log_scale: Tensor, cross_scale: CrossScale) -> Tensor:
    """The factor on cosines between the two models, exp(g); g itself with 'raw', as the official code has it."""
    return log_scale.exp() if cross_scale == "exp" else log_scale


def projection(student_dim: int, teacher_dim: int, always: bool = False) -> nn.Module:
    """φ: a linear layer with bias from the student's width to the teacher's; the identity where they agree."""
    if student_dim == teacher_dim and not always:
        return nn.Identity()
    return nn.Linear(student_dim, teacher_dim)


class ClipLink(Method):
    """A link from a zero-shot teacher's image embeddings to a classifier's pooled features; see this module.

    Args:
        project: φ is a linear layer even where both widths agree. The paper has it where they differ, which is enough
            for embeddings; features after a ReLU are never negative, and a teacher's embeddings are.
        kwargs: see `Method`.
    Raises: at the start of a run, ConfigError for a teacher without features, class embeddings or a scale.
    """

    default_taps = (("features", "features"),)
    assumption = TEXTS
    reads_text: ClassVar[bool] = True

    def __init__(self, *, project: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.project = project

    @property
    def what(self) -> str:
        return type(self).__name__

    def connect(self, teacher_shapes: Shapes, student_shapes: Shapes) -> None:
        if len(self.taps) != 1:
            raise ConfigError(f"{self.what} taps one pair of features; got {self.taps}")
        (teacher,), (student,) = teacher_shapes, student_shapes
        if len(teacher) != 2 or len(student) != 2:
            raise ShapeMismatch(
                f"{self.what}: teacher tap {teacher} and student tap {student} do not fit; "
                "one pooled feature a side, (B, d_T) and (B, d), would"
            )
        if self.reads_text:
            self._check_text(teacher[1])
        self.phi = projection(student[1], teacher[1], self.project)

    def _check_text(self, width: int) -> None:
        text = self._of_teacher("text")
        if text.ndim != 2 or len(text) != width:
            raise ConfigError(
                f"{self.what}: class embeddings {tuple(text.shape)} of teacher {self.teachers[0]!r} do not fit its "
                f"features of {width} numbers; tap its 'features'"
            )

    def _of_teacher(self, name: str) -> Tensor:
        """A buffer of the teacher. Raises: ConfigError where it has none."""
        member = self.members.get(self.teachers[0])
        found = getattr(member, name, None)
        if not isinstance(found, Tensor):
            kind = type(member).__name__
            raise ConfigError(
                f"{self.what} reads {name!r} of teacher {self.teachers[0]!r}, which {kind} lacks; "
                "take a vision-language teacher, such as ZeroShot"
            )
        return found.detach()

    def classes(self) -> Tensor:
        """The teacher's class embeddings as rows of length 1, (K, d_T)."""
        return unit(self._of_teacher("text").T)

    def embed(self, features: Tensor) -> Tensor:
        """n(φ v): the student's features (B, d) as rows (B, d_T) of length 1."""
        # autocast would do the product in half precision
        with torch.autocast(features.device.type, enabled=False):
            return unit(self.phi(full(features)))

    def rows(self, batch: LinkInputs) -> tuple[Tensor, Tensor, Tensor]:
        """Of the labelled rows alone: the student's and the teacher's features, and labels (B_l,).

        The student's tap may be of all rows, or of the labelled ones (`labelled_features`).
        Raises: ShapeMismatch where targets are no labels, or labels none of the classes.
        """
        (student,), (teacher,) = batch.student, batch.teacher
        if batch.targets.ndim != 1:
            raise ShapeMismatch(
                f"{self.what} reads labels (B,); got targets {tuple(batch.targets.shape)}: "
                "leave out the link that mixes them"
            )
        known = batch.targets != UNLABELLED
        if len(student) == len(known):
            student = student[known]
        labels, teacher = batch.targets[known].long(), teacher[known]
        check_labels(self.what, labels, batch=len(student), classes=self._of_teacher("text").shape[1])
        return student, teacher, labels


class ScaledLink(ClipLink):
    """A link that compares logits of both sides, s · cosine and s_T · cosine.

    ASSUMPTION: a classifier has no scale of its own, so s is learned with the link, from 1/0.07, and kept in [1, 100]
    as CLIP-KD keeps its student's; or it is the teacher's.

    Args:
        student_scale: 'learned' or 'teacher'.
        teacher_scale: s_T; the teacher's `logit_scale`, which is the factor itself and no logarithm, where not given.
        kwargs: see `ClipLink`.
    Raises: ConfigError for a scale that is not positive; UnknownName.
    """

    def __init__(
        self, *, student_scale: StudentScale = "learned", teacher_scale: float | None = None, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        check_choice(self.what, "student_scale", student_scale, ("learned", "teacher"))
        if teacher_scale is not None and not teacher_scale > 0:
            raise ConfigError(f"{self.what} needs teacher_scale > 0; got {teacher_scale}")
        self.teacher_scale = teacher_scale
        self.log_scale = nn.Parameter(torch.tensor(LOG_SCALE)) if student_scale == "learned" else None

    def connect(self, teacher_shapes: Shapes, student_shapes: Shapes) -> None:
        super().connect(teacher_shapes, student_shapes)
        if self.teacher_scale is None and not float(self._of_teacher("logit_scale")) > 0:
            raise ConfigError(
                f"{self.what}: the logit_scale of teacher {self.teachers[0]!r} is not positive; load the teacher's "
                "weights, or set teacher_scale"
            )

    def scales(self) -> tuple[Tensor, Tensor]:
        """s and s_T, each ()."""
        text = self._of_teacher("text")
        fixed = self.teacher_scale
        teacher = full(self._of_teacher("logit_scale")) if fixed is None else text.new_tensor(fixed)
        if self.log_scale is None:
            return teacher, teacher
        with torch.no_grad():
            self.log_scale.clamp_(0.0, LOG_SCALE_MAX)  # here, for want of a place after the optimiser's step
        return self.log_scale.exp(), teacher
