"""LD: localisation distillation for dense object detection (arXiv 2102.12252)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from limbeck.detection.methods._assignment import Anchors, assign_anchors, check_targets, mean_of_processes
from limbeck.detection.methods._dense_heads import check_priors, dense_head, rows
from limbeck.detection.methods._valuable_region import batch_region
from limbeck.engine.bridges import mismatch, require_same_shape
from limbeck.engine.losses import check_temperature
from limbeck.engine.method import LinkInputs, Method, Shapes
from limbeck.engine.registry import METHODS
from limbeck.errors import ConfigError, ShapeMismatch

SIDES = 4
LEVELS = 5
TOPK = 9  # candidates a level of ATSS, where the student's assigner does not say


def mean_divergence(student: Tensor, teacher: Tensor, *, temperature: float) -> Tensor:
    """T² / K · Σ_k p_k (log p_k − log q_k) of each row, p = σ(z_T / T), q = σ(z_S / T): the mean over K entries.

    A textbook divergence is the sum, K times this; the official weights belong to the mean.

    Args:
        student, teacher: logits (…, K), same shape. The teacher's gradient is stopped.
        temperature: T > 0.
    Returns: (…), ≥ 0, computed in float32.
    Raises: ShapeMismatch when the two differ.
    """
    require_same_shape(student, teacher, "LD")
    with torch.autocast(student.device.type, enabled=False):
        log_q, log_p = ((z / temperature).log_softmax(-1) for z in (student.float(), teacher.detach().float()))
        return temperature**2 * (log_p.exp() * (log_p - log_q)).mean(-1)


def localisation_loss(student: Tensor, teacher: Tensor, weights: Tensor, *, temperature: float = 10.0) -> Tensor:
    """Σ_i w_i · Σ_{4 sides} `mean_divergence` / 4 over anchors; a sum that grows with their number (equation 3).

    Args:
        student, teacher: logits of a box's sides (N, 4 · bins), side by side. The teacher's gradient is stopped.
        weights: w (N,). Gradient stopped.
        temperature: T > 0.
    Returns: scalar ≥ 0; 0, with a graph, for no anchors.
    Raises: ShapeMismatch when the two differ or have no four sides.
    """
    if student.dim() != 2 or student.shape[1] % SIDES:
        raise ShapeMismatch(f"LD: box logits {tuple(student.shape)} have no four sides; (N, 4 · bins) would fit")
    require_same_shape(student, teacher, "LD")
    shape = (len(student), SIDES, student.shape[1] // SIDES)
    sides = mean_divergence(student.reshape(shape), teacher.reshape(shape), temperature=temperature)
    return (weights.detach().float() * sides.sum(1)).sum() / SIDES


def class_loss(student: Tensor, teacher: Tensor, *, temperature: float = 2.0) -> Tensor:
    """Mean over anchors of `mean_divergence` of their class logits (N, K), a soft-max although the head has sigmoids.

    Returns: scalar ≥ 0; 0, with a graph, for no anchors.
    """
    return mean_divergence(student, teacher, temperature=temperature).sum() / max(len(student), 1)


@METHODS.register_module()
class LD(Method):
    """Box distributions of GFL heads: taps class logits of all levels, then box outputs of all levels, on both sides.

    With the student's own assignment (ATSS) on the anchors that both share, and the levels added:

    - "ld": ld · Σ_{positives} w_i Σ_{sides} KL / 4, w_i = max_c σ(student's logits), as a constant;
    - "vlr": vlr · Σ_{region} v_i Σ_{sides} KL / 16, with `valuable_region`'s v_i;
    - "kd": kd · mean_{positives} KL of the class logits, the mean on each level.

    KL is `mean_divergence`, at `temperature` and for "kd" at `class_temperature`. The sums grow with the boxes of a
    device's batch; the official code has 2 or 3 images a device. `normalise` divides "ld" and "vlr" by
    max(Σ_levels Σ w_i, 1), as the head divides its own box losses.

    Official factors are the defaults, for GFL R101 → R50, R34, R18 (1x) and R101-DCN → R101 (2x), from the first step
    to the last. The official code may imitate features beside it, which is left out here; its "VLR KD" has factor 0.
    mmdetection 3's `LDHead` has "ld" alone.

    Args:
        ld, vlr, kd: factors ≥ 0; a term of factor 0 is left out.
        temperature, class_temperature: T > 0 of boxes and classes.
        gamma: γ of the region, in [0, 1).
        normalise: see above; ours.
        weight: on all terms.
        kwargs: see `Method`; taps are pairs of 'cls_logits[i]' for every level, then as many of 'box_outputs[i]'.
    Raises: ConfigError for options out of range.
    """

    default_taps = tuple(
        (f"{name}[{level}]", f"{name}[{level}]") for name in ("cls_logits", "box_outputs") for level in range(LEVELS)
    )

    def __init__(
        self,
        *,
        ld: float = 0.25,
        vlr: float = 0.25,
        kd: float = 10.0,
        temperature: float = 10.0,
        class_temperature: float = 2.0,
        gamma: float = 0.25,
        normalise: bool = False,
        weight: float = 1.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(weight=weight, **kwargs)
        self.factors = {"ld": float(ld), "vlr": float(vlr), "kd": float(kd)}
        if not all(f >= 0 for f in self.factors.values()) or not any(self.factors.values()) or not 0 <= gamma < 1:
            raise ConfigError(
                f"LD needs ld, vlr and kd >= 0, one of them > 0, and gamma in [0, 1); got {ld}, {vlr}, {kd} and {gamma}"
            )
        self.temperature = check_temperature("LD", temperature)
        self.class_temperature = check_temperature("LD", class_temperature)
        self.gamma, self.normalise = float(gamma), normalise
        if normalise:
            self.assumption = "LD's sums are divided by the positives' total weight, at least 1."  # type: ignore[misc]
        if len(self.taps) % 2:
            raise ConfigError(f"LD needs a box output for each class logit; got {len(self.taps)} pairs of taps")
        self.levels = len(self.taps) // 2

    def connect(self, teacher_shapes: Shapes, student_shapes: Shapes) -> None:
        heads = [dense_head("LD", name, self.members[name]) for name in (self.teachers[0], self.student)]
        for name, head in zip((self.teachers[0], self.student), heads):
            if not hasattr(head, "reg_max"):
                raise ConfigError(
                    f"LD: the {type(head).__name__} of member {name!r} predicts no distribution of a box's sides; "
                    "use GFL detectors"
                )
        check_priors("LD", *heads)
        count = heads[1].prior_generator.num_levels
        if self.levels != count:
            raise ConfigError(
                f"LD: {self.levels} levels are tapped and the student's head has {count}; "
                "tap cls_logits[i] of every level, then box_outputs[i] of every level"
            )
        for teacher, student in zip(teacher_shapes, student_shapes, strict=True):
            if teacher != student:
                raise mismatch("LD", teacher, student)
        widths = [shape[1] for shape in student_shapes]
        wanted = [heads[1].cls_out_channels] * self.levels + [SIDES * (heads[1].reg_max + 1)] * self.levels
        if widths != wanted:
            raise ShapeMismatch(
                f"LD: taps of {widths} channels are not class logits, then box outputs ({wanted}); "
                "tap cls_logits[i] of every level, then box_outputs[i] of every level"
            )

    def forward(self, batch: LinkInputs) -> dict[str, Tensor]:
        targets = check_targets("LD", batch.targets)
        head: Any = self.members[self.student].bbox_head
        given = assign_anchors(head, [(x.shape[2], x.shape[3]) for x in batch.student[: self.levels]], targets)
        regions = [torch.zeros_like(weights) for weights in given.weights]
        if self.factors["vlr"]:
            regions = batch_region(given, targets, topk=getattr(head.assigner, "topk", TOPK), gamma=self.gamma)
        found, totals = zip(*(self._level(batch, i, given, regions[i], head) for i in range(self.levels)))
        terms = {name: torch.stack([level[name] for level in found]).sum() for name in self.factors}
        if self.normalise:
            divisor = mean_of_processes(torch.stack(totals).sum()).clamp(min=1.0)
            terms = {name: term if name == "kd" else term / divisor for name, term in terms.items()}
        return {name: factor * terms[name] for name, factor in self.factors.items() if factor}

    def _level(
        self, batch: LinkInputs, level: int, given: Anchors, region: Tensor, head: Any
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Terms of one level without their factors, and Σ w_i of its positives."""
        labels, v = given.labels[level].flatten(), region.flatten()
        positive, near = (labels >= 0) & (labels < head.num_classes), v > 0
        s_cls, t_cls = (rows(taps[level], head.cls_out_channels) for taps in (batch.student, batch.teacher))
        sides = SIDES * (head.reg_max + 1)
        s_box, t_box = (rows(taps[self.levels + level], sides) for taps in (batch.student, batch.teacher))
        w, at = s_cls.detach().float().sigmoid().amax(1)[positive], self.temperature
        terms = {
            "ld": localisation_loss(s_box[positive], t_box[positive], w, temperature=at),
            "vlr": localisation_loss(s_box[near], t_box[near], v[near], temperature=at) / SIDES,
            "kd": class_loss(s_cls[positive], t_cls[positive], temperature=self.class_temperature),
        }
        return terms, w.sum()
