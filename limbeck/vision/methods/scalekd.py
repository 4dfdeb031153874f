"""ScaleKD: strong vision transformers as teachers of any architecture (arXiv 2411.06786)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from limbeck.engine.bridges import mismatch, require_same_shape
from limbeck.engine.bridges_tokens import Layout, TapForm, tap_form
from limbeck.engine.method import LinkInputs, Method, Shapes
from limbeck.engine.registry import METHODS
from limbeck.errors import ConfigError, ShapeMismatch
from limbeck.vision.methods._cross_attention import CrossAttentionProjector
from limbeck.vision.methods._last_stage import LastStage


def spatial_view_loss(student: Tensor, teacher: Tensor, *, alpha: float = 0.08) -> Tensor:
    """Squared distance of two maps, normalised over channels at every position.

    L = α / B · Σ_{b,h,w} ‖ S / ‖S‖ − T / ‖T‖ ‖²: summed over positions, averaged over samples; at most 4 · H · W · α.

    Args:
        student, teacher: maps (B, D, H, W), same shape. The teacher's gradient is stopped.
        alpha: α.
    Returns: scalar ≥ 0, computed in float32.
    Raises: ShapeMismatch when the two differ or are no maps.

    >>> import torch
    >>> x = torch.rand(2, 3, 4, 4)
    >>> spatial_view_loss(5.0 * x, x).item() < 1e-9
    True
    """
    if student.dim() != 4:
        raise mismatch("ScaleKD: maps (B, D, H, W) are needed", tuple(teacher.shape), tuple(student.shape))
    require_same_shape(student, teacher, "ScaleKD")
    s, t = (F.normalize(x.float(), dim=1, eps=1e-12) for x in (student, teacher.detach()))
    return alpha * (s - t).square().sum() / len(student)


def frequency_view_loss(student: Tensor, teacher: Tensor, *, alpha: float = 0.06) -> Tensor:
    """`spatial_view_loss` of both maps without their constant component, the DC coefficient of a 2-D DCT."""
    require_same_shape(student, teacher, "ScaleKD")
    return spatial_view_loss(remove_dc(student.float()), remove_dc(teacher.detach().float()), alpha=alpha)


def remove_dc(x: Tensor) -> Tensor:
    """A map (B, C, H, W) with the (0, 0) coefficient of each channel's DCT set to zero: less its spatial mean."""
    return x - x.mean(dim=(2, 3), keepdim=True)


VIEWS = {"spatial": spatial_view_loss, "frequency": frequency_view_loss}


@METHODS.register_module()
class ScaleKD(Method):
    """Cross-attention projectors, dual-view feature mimicking, and reading the student by the teacher's last stage.

    Taps: two pairs, (teacher's final feature, student's last but one stage) and (the same, student's last stage), which
    the paper calls stages 3 and 4. The final feature is the output of the last of `teacher_last`, so past the norm.

    Each view has a projector for both stages. Stage 3 is projected to what enters the teacher's last stage and passes
    through it; the result is compared with the final feature, and is the query, undetached, by which the other
    projector reads stage 4. Where the teacher's last stage takes tokens (ViT, Mixer), stage 4 passes through it too.
    The teacher's weights stay frozen; gradient flows through them. Projectors are dropped with the link.

    The official objective for large teachers is 0.5 · CE + 0.5 · KD at T = 1 beside the four terms: a second link
    dict(type="KD", temperature=1.0, weight=0.5), and `task_weight=0.5`; without KD cross entropy keeps weight 1.

    Teachers: timm ViT and Mixer (final tap "norm", the default), timm Swin (final tap "norm", teacher_layout "nhwc"),
    or any whose last modules run in sequence: a CIFARResNet by teacher_last=["layer3"] and final tap "layer3".

    Args:
        teacher_last: teacher modules run in sequence, as ["blocks.3", "norm"] or Swin's ["layers.3", "norm"]; the
            last of `blocks` or `layers`, and `norm`, where not given.
        alphas: (spatial, frequency) factor of stage 3, then of stage 4; 0 leaves a term out.
        heads: of the projectors of stage 3 and 4; one number for both; about one for 64 channels where not given.
        teacher_layout, student_layout: of taps with four axes: 'nchw', or 'nhwc' as in Swin.
        teacher_prefix, student_prefix: number of class and other prefix tokens; inferred as 0 or 1.
        weight: factor on the terms "spatial3", "frequency3", "spatial4", "frequency4".
        kwargs: see `Method`.
    Raises: ConfigError, UnknownName for values or modules that do not fit; ShapeMismatch.
    """

    default_taps = (("norm", "layer2"), ("norm", "layer3"))
    assumption = (
        "Prefix tokens of the teacher have a query of their own and no loss; the FFN follows mmcv's defaults; heads "
        "are width / 64; queries take the teacher's grid; a student of three stages gives its last two."
    )
    projectors3: nn.ModuleDict
    projectors4: nn.ModuleDict

    def __init__(
        self,
        *,
        teacher_last: Sequence[str] | None = None,
        alphas: Sequence[Sequence[float]] = ((0.08, 0.06), (0.08, 0.06)),
        heads: int | Sequence[int] | None = None,
        teacher_layout: Layout = "nchw",
        student_layout: Layout = "nchw",
        teacher_prefix: int | None = None,
        student_prefix: int | None = None,
        weight: float = 1.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(weight=weight, **kwargs)
        if len(self.taps) != 2:
            raise ConfigError(
                f"ScaleKD needs two taps, (final, last but one stage) and (final, last stage); got {self.taps}"
            )
        if teacher_last is not None and (isinstance(teacher_last, str) or not teacher_last):
            raise ConfigError(f"ScaleKD: teacher_last is a list of module names; got {teacher_last!r}")
        self.teacher_last = teacher_last
        if [len(pair) for pair in alphas] != [2, 2] or min(min(pair) for pair in alphas) < 0:
            raise ConfigError(f"ScaleKD: alphas are ((spatial3, frequency3), (spatial4, frequency4)) ≥ 0; got {alphas}")
        self.alphas = {f"{v}{k}": float(a) for k, pair in zip((3, 4), alphas) for v, a in zip(VIEWS, pair)}
        self.heads: list[int | None] = [*heads] if isinstance(heads, Sequence) else [heads, heads]
        if len(self.heads) != 2:
            raise ConfigError(f"ScaleKD: heads is one number, or one for each of two stages; got {heads}")
        self.teacher_layout, self.teacher_prefix = teacher_layout, teacher_prefix
        self.student_layout, self.student_prefix = student_layout, student_prefix

    def connect(self, teacher_shapes: Shapes, student_shapes: Shapes) -> None:
        options: dict[str, Any] = dict(layout=self.student_layout, prefix=self.student_prefix)
        students = [
            tap_form(shape, what=f"ScaleKD: student tap {name!r}", **options)
            for shape, (_, name) in zip(student_shapes, self.taps)
        ]
        for form, teacher, student in zip(students, teacher_shapes, student_shapes, strict=True):
            if form.kind == "vector" or teacher[0] != student[0]:
                raise mismatch("ScaleKD: student maps or tokens of the same batch are needed", teacher, student)
        teacher = self.members[self.teachers[0]]
        options = dict(layout=self.teacher_layout, prefix=self.teacher_prefix)
        self.last = LastStage(teacher, self.teacher_last, **options)
        self._check_final(teacher_shapes)
        self.rereads = self.last.enters == self.last.leaves and self.last.leaves.kind == "tokens"
        views = [v for v in VIEWS if self.alphas[f"{v}3"] or self.alphas[f"{v}4"]]
        self.projectors3 = nn.ModuleDict({v: self._projector(3, students[0], self.last.enters) for v in views})
        views = [v for v in VIEWS if self.alphas[f"{v}4"]]
        self.projectors4 = nn.ModuleDict({v: self._projector(4, students[1], self.last.leaves) for v in views})

    def _check_final(self, shapes: Shapes) -> None:
        for shape, (name, _) in zip(shapes, self.taps):
            if name != self.last.names[-1] or shape[1:] != self.last.shape:
                raise ShapeMismatch(
                    f"ScaleKD: teacher tap {name!r} {shape} is not what teacher_last gives, "
                    f"{self.last.shape} a sample; tap {self.last.names[-1]!r}"
                )
        frequency = self.alphas["frequency3"] or self.alphas["frequency4"]
        if self.last.leaves.positions == 1 and frequency:
            raise ShapeMismatch(
                "ScaleKD: the teacher's final feature has one position, so its frequency view is zero; "
                "set the second of each alphas pair to 0 or use a larger input"
            )

    def _projector(self, stage: int, student: TapForm, teacher: TapForm) -> CrossAttentionProjector:
        width, heads = teacher.width, self.heads[stage - 3]
        if heads is None:
            heads = next(n for n in range(max(width // 64, 1), 0, -1) if width % n == 0)
        if heads < 1 or width % heads:
            raise ConfigError(f"ScaleKD: heads of stage {stage} must divide the teacher's width {width}; got {heads}")
        tokens = teacher.prefix + teacher.positions
        return CrossAttentionProjector(student, tokens, width, heads, own_queries=stage == 3)

    def forward(self, batch: LinkInputs) -> dict[str, Tensor]:
        final = [self.last.leaves.to_map(t) for t in batch.teacher]
        terms = {}
        for view, projector in self.projectors3.items():
            queries = self.last.read(projector(batch.student[0]))
            found = {f"{view}3": (queries, final[0])}
            if view in self.projectors4:
                read = self.projectors4[view](batch.student[1], queries)
                found[f"{view}4"] = (self.last.read(read) if self.rereads else read, final[1])
            for name, (tokens, target) in found.items():
                if alpha := self.alphas[name]:
                    terms[name] = VIEWS[view](self._as_map(tokens), target, alpha=alpha)
        return terms

    def _as_map(self, tokens: Tensor) -> Tensor:
        """Tokens (B, prefix + h·w, D) that leave the last stage as a map (B, D, h, w)."""
        form = self.last.leaves
        return tokens[:, form.prefix :].transpose(1, 2).unflatten(2, form.size)
