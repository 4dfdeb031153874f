"""ACAM-KD: adaptive student–teacher cooperative attention masking (Lan and Tian, ICCV 2025, arXiv 2503.06307)."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from limbeck.detection.methods._cooperative_masks import KINDS, QUERIES, SOURCES, CooperativeMasks
from limbeck.detection.methods._receptive_tokens import token_dice
from limbeck.detection.methods._teacher_stage import learn_on_teacher, map_batches, task_loss
from limbeck.engine.bridges import mismatch, require_same_shape
from limbeck.engine.losses import RESIZED, resize_bilinear
from limbeck.engine.method import LinkInputs, Method, Shapes, TrainingSet
from limbeck.engine.registry import METHODS
from limbeck.errors import ConfigError, ShapeMismatch, UnknownName

EPS = 1e-6
COUNT = 6  # masks a level in detection
SMALL = 0.05  # a mean of the masks below it is worth a warning: the loss falls with a shrinking mask
MASKS = {"both": KINDS, "channel": ("channel",), "spatial": ("spatial",), "none": ()}
CHOICES: dict[str, Sequence[str]] = {
    "form": ("detection", "segmentation"),
    "masks": tuple(MASKS),
    "source": SOURCES,
    "query": QUERIES,
    "normalise": ("mass", "square"),
    "diversity": ("pairwise", "ratio"),
    "mask_objective": ("joint", "diversity"),
}


def masked_losses(
    student: Tensor, teacher: Tensor, masks: Mapping[str, Tensor], *, normalise: str = "mass"
) -> dict[str, Tensor]:
    """Squared error inside each mask, by the mask's mass, mean over masks and images.

    L^c = 1 / M · Σ_m ‖M^c_m ⊙ Δ‖² / (H W · Σ_k M^c_{m,k} + ε), a mask's row spread over positions, and
    L^s = 1 / M · Σ_m ‖M^s_m ⊙ Δ‖² / (C · Σ_p M^s_{m,p} + ε), spread over channels; Δ = T − S, ε = 1e-6. Masks of ½
    everywhere give half the mean squared error. ASSUMPTION: the mass divides, as in MasKD; as printed it multiplies,
    which at the size of detection would make the loss a million times the detector's.

    Args:
        student, teacher: S, T (B, C, H, W), same shape. The teacher's gradient is stopped.
        masks: "channel" (B, M, C), "spatial" (B, M, H, W) in (0, 1), one of them or both. Gradient is not stopped.
        normalise: 'mass', or 'square' for Σ M² in its place, which the scale of a mask does not change (ours).
    Returns: one scalar ≥ 0 for each mask given, computed in float32; for no masks "feature", the mean squared error.
    Raises: ShapeMismatch when the maps differ.

    >>> masked_losses(torch.ones(1, 3, 4, 5), torch.zeros(1, 3, 4, 5), {"channel": torch.full((1, 6, 3), 0.5)})
    {'channel': tensor(0.5000)}
    """
    require_same_shape(student, teacher, "ACAM-KD")
    _, channels, height, width = student.shape
    with torch.autocast(student.device.type, enabled=False):
        error = (teacher.detach().float() - student.float()).square()
        if not masks:
            return {"feature": error.mean()}
        # Sums first: the M × C × H × W products are never made.
        sums = {"channel": (error.sum((2, 3)), height * width), "spatial": (error.sum(1).flatten(1), channels)}
        found = {}
        for kind, mask in masks.items():
            (each, spread), mask = sums[kind], mask.float().flatten(2)
            square = mask.square()
            mass = (square if normalise == "square" else mask).sum(2)
            found[kind] = (torch.einsum("bmi,bi->bm", square, each) / (spread * mass + EPS)).mean()
    return found


def diversity_loss(masks: Tensor, *, form: str = "pairwise") -> Tensor:
    """How much the masks of an image overlap (Dice), mean over images.

    'pairwise', as MasKD: mean over i ≠ j of 2⟨M_i, M_j⟩ / (‖M_i‖² + ‖M_j‖²), in [0, 1]. 'ratio', as printed:
    2 Σ_{i≠j} ⟨M_i, M_j⟩ / (Σ_i ‖M_i‖² + Σ_j ‖M_j‖²), in [0, M − 1], M − 1 times the former for masks of equal norms.

    Args:
        masks: (B, M, C) or (B, M, H, W), M ≥ 2.
    Returns: scalar, computed in float32.
    """
    if form == "pairwise":
        return token_dice(masks)
    with torch.autocast(masks.device.type, enabled=False):
        flat = masks.float().flatten(2)
        squares = flat.square().sum((1, 2))
        together = flat.sum(1).square().sum(1)  # Σ_ij ⟨M_i, M_j⟩
        return ((together - squares) / squares.clamp(min=torch.finfo(torch.float32).tiny)).mean()


def _check_choices(**options: str) -> None:
    for option, value in options.items():
        if value not in CHOICES[option]:
            raise UnknownName(option, value, CHOICES[option], "of ACAM-KD")


@METHODS.register_module()
class ACAMKD(Method):
    """Masks that student and teacher make together, in channels and positions; taps maps (B, C, H, W), one a level.

    A level's student map is aligned, φ(S). Cross-attention of teacher and student gives F, learnable selectors turn F
    into M channel masks and M spatial masks (`CooperativeMasks`), and L = Σ_levels L^c + L^s + λ L_div, which are
    `masked_losses` and the mean of `diversity_loss` over the kinds of masks. All but the student is dropped with the
    link.

    `form='detection'`: all maps of the pyramids, 'neck[0]' … 'neck[4]' (the default taps), φ a 1×1 convolution with a
    bias at equal widths too, M = 6. `form='segmentation'`: the logits (default), without φ, M = classes; taps of
    auxiliary heads may follow, by `aux_weight`. A student's map of another size is resized to the teacher's, bilinear.
    No code was published. α = λ = 1 in the paper for both tasks, from the first step to the last.

    The paper's ablations are options: `masks`; `source='teacher'` for masks of the teacher alone without fusion, or
    `query='teacher_only'` with self-attention; `source='fixed'` for masks of the teacher alone whose selectors are
    learned before the first step and never after; `query='student'`; `diversity_weight=0`; `count`. What the paper's
    fixed masks are learned by is not known; ours learn as MasKD's tokens do: by the teacher's task loss on maps
    T' = mean_m M_m ⊙ T, once for each kind of mask, plus L_div, as `learn_on_teacher` does.

    `logged` holds what is worth watching after a step: the mean of each level's masks, "channel" and "spatial",
    (levels,) each. As the loss falls with a shrinking mask, a mean below 0.05 is warned of once; `normalise='square'`
    does not depend on it.

    Args:
        form: 'detection' or 'segmentation'.
        masks: 'both', 'spatial', 'channel', or 'none' for the plain mean squared error.
        count: M ≥ 2; None is 6 in detection and the number of classes in segmentation.
        source: 'fusion', 'teacher' or 'fixed'; see `CooperativeMasks`.
        query: 'teacher', 'student' or 'teacher_only'; see `CooperativeMasks`.
        max_tokens: pool the map of keys and values to at most as many positions; None is exact.
        align: whether there is φ; None takes True in detection, False in segmentation.
        normalise: 'mass' or 'square'; see `masked_losses`.
        diversity: 'pairwise' or 'ratio'; see `diversity_loss`.
        diversity_weight: λ ≥ 0; 0 leaves the term out.
        mask_objective: what masks learn by, 'joint' (all terms) or 'diversity' (L_div alone).
        detach_mask_inputs: make masks from φ(S) without gradient, so that the student cannot lower the loss by moving
            them.
        aux_weight: factor on auxiliary heads in segmentation.
        stage1_iterations, stage1_batch_size, stage1_lr, max_megabytes: of source='fixed'; see `MasKD`.
        weight: α, on the terms "channel", "spatial" and "diversity", of 'none' "feature".
        kwargs: see `Method`.
    Raises: ConfigError, UnknownName for options out of range.
    """

    default_taps = tuple((f"neck[{i}]", f"neck[{i}]") for i in range(5))
    own_terms = frozenset({"diversity"})
    assumption = (
        "The mass of a mask divides its error, where the paper as reported multiplies; levels have selectors of their "
        "own and are added; Dice is the mean over pairs; masks are made from the student's map without gradient; the "
        "map of keys and values is pooled to 4,096 positions."
    )
    bridges: nn.ModuleList
    levels: nn.ModuleList
    _warned = False

    def __init__(
        self,
        *,
        form: str = "detection",
        masks: str = "both",
        count: int | None = None,
        source: str = "fusion",
        query: str = "teacher",
        max_tokens: int | None = 4096,
        align: bool | None = None,
        normalise: str = "mass",
        diversity: str = "pairwise",
        diversity_weight: float = 1.0,
        mask_objective: str = "joint",
        detach_mask_inputs: bool = True,
        aux_weight: float = 0.0,
        stage1_iterations: int = 2000,
        stage1_batch_size: int = 16,
        stage1_lr: float = 0.01,
        max_megabytes: float = 1000.0,
        weight: float = 1.0,
        taps: Sequence[Sequence[str]] | None = None,
        **kwargs: Any,
    ) -> None:
        chosen = dict(form=form, masks=masks, source=source, query=query, normalise=normalise, diversity=diversity)
        _check_choices(**chosen, mask_objective=mask_objective)
        self.dense = form == "segmentation"
        super().__init__(weight=weight, taps=[("logits", "logits")] if taps is None and self.dense else taps, **kwargs)
        self.kinds, self.count, self.source, self.query = MASKS[masks], count, source, query
        self.max_tokens, self.align = max_tokens, not self.dense if align is None else align
        self.normalise, self.diversity, self.mask_objective = normalise, diversity, mask_objective
        self.diversity_weight, self.aux_weight = float(diversity_weight), float(aux_weight)
        self.detach_mask_inputs = detach_mask_inputs
        self.stage1_iterations, self.stage1_batch_size = stage1_iterations, stage1_batch_size
        self.stage1_lr, self.max_megabytes = float(stage1_lr), float(max_megabytes)
        self.wants_data = source == "fixed" and bool(self.kinds)  # type: ignore[misc]  # else the split is not read
        self.ready = not self.wants_data
        self.logged: dict[str, Tensor] = {}
        self._check_options()

    def _check_options(self) -> None:
        count, most = self.count, self.max_tokens
        if (count is not None and count < 2) or (most is not None and most < 1) or not self.diversity_weight >= 0:
            raise ConfigError(
                "ACAM-KD needs count >= 2, max_tokens >= 1 and diversity_weight >= 0; "
                f"got {count}, {most} and {self.diversity_weight}"
            )
        if self.mask_objective == "diversity" and not self.diversity_weight:
            raise ConfigError(
                "ACAM-KD's masks would learn by nothing with mask_objective='diversity' and diversity_weight=0; "
                "raise the weight, or use source='fixed' for masks that do not learn in the run"
            )
        if len(self.taps) > 1 and self.dense and not self.aux_weight > 0:
            raise ConfigError(
                f"ACAM-KD has {len(self.taps)} pairs of taps in segmentation, but aux_weight={self.aux_weight} for "
                "those after the first; set aux_weight > 0, or tap the main head's logits alone"
            )
        if self.stage1_iterations < 1 or self.stage1_batch_size < 1 or not self.stage1_lr > 0:
            raise ConfigError(
                "ACAM-KD needs stage1_iterations >= 1, stage1_batch_size >= 1 and stage1_lr > 0; "
                f"got {self.stage1_iterations}, {self.stage1_batch_size} and {self.stage1_lr}"
            )

    def connect(self, teacher_shapes: Shapes, student_shapes: Shapes) -> None:
        self.bridges, self.levels = nn.ModuleList(), nn.ModuleList()
        for teacher, student in zip(teacher_shapes, student_shapes, strict=True):
            if len(teacher) != 4 or len(student) != 4 or teacher[0] != student[0]:
                raise mismatch("ACAM-KD", teacher, student)
            width = teacher[1]
            if not self.align and student[1] != width:
                raise ShapeMismatch(
                    f"ACAM-KD: teacher map {teacher} and student map {student} differ in width; set align=True for a "
                    "1×1 convolution between them"
                )
            if teacher[2:] != student[2:]:
                self.assumption = f"{type(self).assumption} {RESIZED}"  # type: ignore[misc]  # of this pair alone
            self.bridges.append(nn.Conv2d(student[1], width, 1) if self.align else nn.Identity())
            count = (width if self.dense else COUNT) if self.count is None else self.count
            options = dict(kinds=self.kinds, source=self.source, query=self.query, max_tokens=self.max_tokens)
            self.levels.append(CooperativeMasks(width, max(count, 2), **cast(Any, options)))

    def prepare(self, data: TrainingSet) -> None:
        """Learn the selectors of source='fixed' on the teacher's maps of the training split."""
        levels = [cast(CooperativeMasks, level) for level in self.levels]
        teacher = self.members[self.teachers[0]]

        def loss(maps: list[Tensor], targets: Any) -> Tensor:
            masks = [level(t, t) for level, t in zip(levels, maps)]
            terms = []
            for kind in self.kinds:
                soft = [
                    m[kind].mean(1)[:, None] if kind == "spatial" else m[kind].mean(1)[..., None, None] for m in masks
                ]
                terms.append(task_loss(teacher, [t * s for t, s in zip(maps, soft)], targets))
            terms += [diversity_loss(m[kind], form=self.diversity) / len(self.kinds) for m in masks for kind in m]
            return torch.stack(terms).sum()

        batches = map_batches(data.teacher_taps, size=self.stage1_batch_size, max_megabytes=self.max_megabytes)
        selectors = [buffer for level in levels for buffer in (level.channel, level.spatial) if buffer is not None]
        learn_on_teacher(selectors, loss, batches, iterations=self.stage1_iterations, lr=self.stage1_lr)
        self.ready = True

    @torch.no_grad()
    def masks(self, teachers: Sequence[Tensor], students: Sequence[Tensor]) -> list[dict[str, Tensor]]:
        """The masks of every level as they are now, without gradient: "channel" (B, M, C) and "spatial" (B, M, H, W).

        Args:
            teachers, students: the tapped maps, as `LinkInputs` has them.
        """
        pairs = zip(teachers, students, strict=True)
        return [self.levels[i](t.float(), self._aligned(i, s, t)) for i, (t, s) in enumerate(pairs)]

    def forward(self, batch: LinkInputs) -> dict[str, Tensor]:
        if not self.ready:
            raise ConfigError(
                "ACAM-KD has not learned its fixed masks yet; call prepare(data) with the training split before a step"
            )
        pairs = zip(batch.student, batch.teacher, strict=True)
        self.logged = {}
        found = [self._level(i, s, t) for i, (s, t) in enumerate(pairs)]
        self._warn_of_small_masks()
        return {name: torch.stack([level[name] for level in found]).sum() for name in found[0]}

    def _warn_of_small_masks(self) -> None:
        if self._warned or self.normalise == "square":
            return
        small = {kind: float(means.min()) for kind, means in self.logged.items() if bool(means.min() < SMALL)}
        if small:
            self._warned = True
            found = " and ".join(f"{kind} masks {mean:.3f}" for kind, mean in small.items())
            warnings.warn(
                f"ACAM-KD: the smallest mean of a level's masks is now {found}, so that its loss fades; "
                "normalise='square' does not depend on their scale",
                stacklevel=2,
            )

    def _aligned(self, index: int, student: Tensor, teacher: Tensor) -> Tensor:
        with torch.autocast(student.device.type, enabled=False):
            return resize_bilinear(self.bridges[index](student.float()), (teacher.shape[2], teacher.shape[3]))

    def _level(self, index: int, student: Tensor, teacher: Tensor) -> dict[str, Tensor]:
        teacher = teacher.detach().float()
        student = self._aligned(index, student, teacher)
        masks = self.levels[index](teacher, student.detach() if self.detach_mask_inputs else student)
        for kind, mask in masks.items():
            mean = mask.detach().mean()[None]
            self.logged[kind] = torch.cat([self.logged[kind], mean]) if index else mean
        seen = masks if self.mask_objective == "joint" else {kind: m.detach() for kind, m in masks.items()}
        terms = masked_losses(student, teacher, seen, normalise=self.normalise)
        if masks and self.diversity_weight and self.source != "fixed":
            overlaps = [diversity_loss(mask, form=self.diversity) for mask in masks.values()]
            terms["diversity"] = self.diversity_weight * torch.stack(overlaps).mean()
        factor = self.aux_weight if self.dense and index else 1.0
        return {name: factor * value for name, value in terms.items()} if factor != 1.0 else terms
