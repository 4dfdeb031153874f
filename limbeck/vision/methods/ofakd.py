"""OFA-KD: one for all, across CNNs, vision transformers and MLPs (arXiv 2310.19444)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from limbeck.engine.bridges_tokens import Layout, TapForm, tap_form
from limbeck.engine.losses import check_logits, check_temperature
from limbeck.engine.method import LinkInputs, Method, Shapes
from limbeck.engine.registry import METHODS
from limbeck.errors import ConfigError, ShapeMismatch
from limbeck.vision.methods._exit_branches import conv_branch, init_branch, token_branch


def ofa_loss(
    student: Tensor, teacher: Tensor, targets: Tensor, *, epsilon: float = 1.0, temperature: float = 1.0
) -> Tensor:
    """Cross entropy with the teacher's distribution, in which the target class is enhanced.

    L = −mean_B Σ_c w_c · log p^S_c with w = (p^T + m)^ε − m, m one-hot of the label and p = σ(z / T). With ε = 1 it is
    KD up to the teacher's entropy; with ε > 1 the target's weight (1 + p_y)^ε − 1 exceeds p_y and all others shrink.
    There is no factor T², and the loss is not zero at equality.

    Args:
        student, teacher: logits (B, C), same shape. The teacher's gradient is stopped.
        targets: labels (B,), or shares (B, C) of mixed images, whose largest entry is the label.
        epsilon: ε > 0, the paper's γ.
        temperature: T > 0.
    Returns: scalar ≥ 0, computed in float32.
    Raises: ShapeMismatch when the two are not (B, C) of one shape.

    >>> z = torch.log(torch.tensor([[0.5, 0.5]]))
    >>> round(ofa_loss(z, z, torch.tensor([0]), epsilon=2.0).item() / 0.6931, 2)  # 1.5² − 1 + 0.5²
    1.5
    """
    check_logits("OFAKD", tuple(teacher.shape), tuple(student.shape))
    labels = targets.argmax(dim=1) if targets.dim() == 2 else targets
    one_hot = F.one_hot(labels, student.shape[1]).float()
    p = F.softmax(teacher.detach().float() / temperature, dim=1)
    log_q = F.log_softmax(student.float() / temperature, dim=1)
    return -(((p + one_hot) ** epsilon - one_hot) * log_q).sum(dim=1).mean()


@METHODS.register_module()
class OFAKD(Method):
    """One-for-all: every student stage gets an exit branch to class logits, which learn from the teacher's logits.

    Taps: ("logits", stage) for each student stage, first to last, and ("logits", "logits"); of the teacher its logits
    alone, so that any two families pair. Stages are maps (B, C, H, W) or tokens (B, N, D):

    - CIFARResNet: layer1 … layer3 (the default);
    - timm ResNet: layer1 … layer4; MobileNet, EfficientNet: blocks.i; ConvNeXt: stages.i;
    - timm ViT or DeiT of 12 blocks: blocks.1, blocks.3, blocks.9 and blocks.11 (the paper's 2-2-6-2 split);
    - timm Mixer: blocks.i, likewise; timm Swin: layers.0 … layers.3 with layout 'nhwc'.

    Branches are trained with the student and dropped with the link; see `conv_branch` and `token_branch`. The paper's
    whole objective is CE + both terms at weight 1, with label smoothing 0.1 in the cross entropy of CNN students; the
    code's default ε is 1, its ImageNet example DeiT-T → ResNet-18 takes 1.5.

    Args:
        epsilon: one value for all, or one for each stage in the order of the taps and last one for the logits.
        temperature: T > 0.
        logits_weight: factor on the term "logits"; 0 leaves it out.
        stages_weight: factor on the term "stages", a sum over stages; 0 leaves it out.
        stages: numbers of the tapped stages, from 1, where not all are tapped.
        stage_count: how many stages the student has; as many as are tapped where not given.
        width: of a CNN branch's last layer; the larger of both members' final widths where not given.
        heads: of the blocks of a token branch.
        layout: of student taps with four axes: 'nchw', or 'nhwc' (tokens on a grid, as in Swin).
        prefix: number of the student's class tokens; inferred as 0 or 1 from the token count.
        weight: factor on both terms.
        kwargs: see `Method`.
    Raises: ConfigError for values out of range, or an epsilon of another length; ShapeMismatch.
    """

    default_taps = (("logits", "layer1"), ("logits", "layer2"), ("logits", "layer3"), ("logits", "logits"))
    assumption = (
        "ε is the code's default 1, which the paper tunes; a student of three stages has branches 2 to 4; a branch "
        "without patch merging projects tokens of another width by a linear layer."
    )
    branches: nn.ModuleList

    def __init__(
        self,
        *,
        epsilon: float | Sequence[float] = 1.0,
        temperature: float = 1.0,
        logits_weight: float = 1.0,
        stages_weight: float = 1.0,
        stages: Sequence[int] | None = None,
        stage_count: int | None = None,
        width: int | None = None,
        heads: int = 4,
        layout: Layout = "nchw",
        prefix: int | None = None,
        weight: float = 1.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(weight=weight, **kwargs)
        self.epsilons = [float(e) for e in (epsilon if isinstance(epsilon, Sequence) else [epsilon])]
        if not self.epsilons or not all(e > 0 for e in self.epsilons):
            raise ConfigError(f"OFAKD needs epsilon > 0; got {epsilon}")
        self.temperature = check_temperature("OFAKD", temperature)
        self.logits_weight, self.stages_weight = float(logits_weight), float(stages_weight)
        self.stages = None if stages is None else [int(k) for k in stages]
        self.stage_count, self.width, self.heads = stage_count, width, heads
        self.layout, self.prefix = layout, prefix

    def connect(self, teacher_shapes: Shapes, student_shapes: Shapes) -> None:
        self.at_logits = [i for i, shape in enumerate(student_shapes) if len(shape) == 2]
        self.at_stages = [i for i in range(len(student_shapes)) if i not in self.at_logits]
        if len(self.at_logits) > 1:
            names = [self.taps[i][1] for i in self.at_logits]
            raise ShapeMismatch(f"OFAKD: student taps {names} are vectors; tap maps or tokens, and the logits once")
        for i, (teacher, student) in enumerate(zip(teacher_shapes, student_shapes, strict=True)):
            # A stage is measured against the logits that its branch will have.
            check_logits("OFAKD", teacher, student if i in self.at_logits else (student[0], *teacher[1:]))
        self._spread_epsilon()
        names = [f"OFAKD: student tap {self.taps[i][1]!r}" for i in self.at_stages]
        options: dict[str, Any] = dict(layout=self.layout, prefix=self.prefix)
        forms = [tap_form(student_shapes[i], what=name, **options) for i, name in zip(self.at_stages, names)]
        numbers, count = self._stage_numbers(len(forms))
        self.branches = nn.ModuleList()
        if self.stages_weight:
            classes = teacher_shapes[0][1]
            self.branches.extend(self._branch(f, count - k, forms[-1], classes) for f, k in zip(forms, numbers))
            self.branches.apply(init_branch)

    def _spread_epsilon(self) -> None:
        """Put the exponents in the order of the taps."""
        order = [*self.at_stages, *self.at_logits]
        values = self.epsilons * len(order) if len(self.epsilons) == 1 else self.epsilons
        if len(values) != len(order):
            raise ConfigError(
                f"OFAKD: epsilon is one value, or one for each of {len(self.at_stages)} stages"
                f"{' and last one for the logits' if self.at_logits else ''}; got {len(values)} values"
            )
        self.epsilon_of = dict(zip(order, values))

    def _stage_numbers(self, tapped: int) -> tuple[list[int], int]:
        """Numbers of the tapped stages, from 1, and how many stages there are."""
        numbers = self.stages if self.stages is not None else list(range(1, tapped + 1))
        count = self.stage_count if self.stage_count is not None else max(numbers, default=0)
        if len(numbers) != tapped or any(not 1 <= k <= count for k in numbers):
            raise ConfigError(
                f"OFAKD: stages {numbers} are to number the {tapped} tapped stages, from 1 to stage_count ({count})"
            )
        return numbers, count

    def _branch(self, form: TapForm, stages_after: int, last: TapForm, classes: int) -> nn.Module:
        """The exit branch of one stage; `last` is the form of the last tapped stage."""
        if form.kind == "map" and form.layout == "nchw":
            members = [self.members.get(name) for name in (self.student, self.teachers[0])]
            finals = [n for m in members if isinstance(n := getattr(m, "num_features", None), int)]
            return conv_branch(form.width, stages_after, self.width or max([last.width, *finals]), classes)
        return token_branch(form, stages_after, last.width, classes, heads=self.heads)

    def forward(self, batch: LinkInputs) -> dict[str, Tensor]:
        def loss(logits: Tensor, i: int) -> Tensor:
            options = dict(epsilon=self.epsilon_of[i], temperature=self.temperature)
            return ofa_loss(logits, batch.teacher[i], batch.targets, **options)

        terms = {}
        if self.logits_weight and self.at_logits:
            i = self.at_logits[0]
            terms["logits"] = self.logits_weight * loss(batch.student[i], i)
        if self.stages_weight and self.at_stages:
            pairs = zip(self.branches, self.at_stages)
            losses = [loss(branch(batch.student[i]), i) for branch, i in pairs]
            terms["stages"] = self.stages_weight * torch.stack(losses).sum()
        return terms
