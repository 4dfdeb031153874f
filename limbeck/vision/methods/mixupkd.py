"""MixupKD: understanding the role of mixup in knowledge distillation (arXiv 2211.03946)."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from limbeck.engine.adapter import Batch
from limbeck.engine.losses import check_labels, check_logits, check_temperature
from limbeck.engine.method import LinkInputs, Method, Shapes
from limbeck.engine.registry import METHODS
from limbeck.errors import ConfigError, ShapeMismatch
from limbeck.vision.methods._standardise import standardise
from limbeck.vision.methods.kd import kd_loss

Temperature = float | Literal["std"]


def mixup_terms(
    student: Tensor, teacher: Tensor, *, targets: Tensor, temperature: Temperature = "std"
) -> dict[str, Tensor]:
    """Cross entropy with mixed labels, and divergence from the teacher's answer to the mixed images.

    With 'std' each sample's logits are divided by their own deviation over the classes, on both sides and in both
    terms: ce = −mean_B Σ_c ỹ_c log σ(z_S / s_S)_c, kl = mean_B KL(σ(z_T / s_T) ‖ σ(z_S / s_S)). Neither sees a·z_S + b,
    a > 0, and no T² is needed. The mean is taken off as well, which σ does not see; see `standardise`. With a number
    T, ce is that of the logits as they are and kl is KD's, with T².

    Args:
        student, teacher: logits (B, C), same shape. The teacher's gradient is stopped.
        targets: shares ỹ (B, C), or labels (B,).
        temperature: 'std', or T > 0.
    Returns: {"ce": scalar, "kl": scalar}, computed in float32.
    Raises: ShapeMismatch when logits or targets do not fit.
    """
    check_logits("MixupKD", tuple(teacher.shape), tuple(student.shape))
    if targets.ndim != 2:
        check_labels("MixupKD", targets, batch=len(student), classes=student.shape[1])
    elif targets.shape != student.shape:
        raise ShapeMismatch(
            f"MixupKD: targets {tuple(targets.shape)} and logits {tuple(student.shape)} do not fit; "
            "shares (B, C) of the logits' shape or labels (B,) would"
        )
    if temperature == "std":
        student, teacher, temperature = standardise(student), standardise(teacher), 1.0
    cross_entropy = F.cross_entropy(student.float(), targets.float() if targets.ndim == 2 else targets.long())
    return {"ce": cross_entropy, "kl": kd_loss(student, teacher, temperature=float(temperature))}


def mixed_rows(batch: int, fraction: float, generator: torch.Generator, *, with_replacement: bool = False) -> Tensor:
    """The rows of a batch that are mixed, int64, in rising order.

    n = ⌊B · (1 − fraction)⌋ rows stay as they are: n different ones, or n draws of which some are the same, as in the
    official code. The latter mixes (1 − 1/B)^n of the batch on average: about 37 % even at fraction 0.
    """
    keep = math.floor(batch * (1.0 - fraction) + 1e-6)  # 10 · (1 − 0.9) is a little less than 1
    mixed = torch.ones(batch, dtype=torch.bool)
    if with_replacement:
        kept = torch.randint(batch, (keep,), generator=generator)
    else:
        kept = torch.randperm(batch, generator=generator)[:keep]
    mixed[kept] = False
    return mixed.nonzero().flatten()


def draw_beta(count: int, alpha: float, generator: torch.Generator) -> Tensor:
    """`count` numbers from Beta(α, α), float32; torch's own sampler takes no generator."""
    seed = torch.randint(2**63 - 1, (1,), generator=generator).item()
    return torch.from_numpy(np.random.default_rng(int(seed)).beta(alpha, alpha, size=count)).float()


def mix(inputs: Tensor, targets: Tensor, rows: Tensor, partners: Tensor, shares: Tensor) -> tuple[Tensor, Tensor]:
    """x̃_i = a x_i + (1 − a) x_j and ỹ_i likewise for the given rows; the others are copied.

    Args:
        inputs: (B, …). targets: shares (B, C).
        rows, partners: i and j (M,). shares: a (M,).
    """
    result = []
    for values in (inputs, targets):
        a = shares.to(values).reshape(-1, *(1,) * (values.ndim - 1))
        mixed = values.clone()
        mixed[rows] = a * values[rows] + (1.0 - a) * values[partners]
        result.append(mixed)
    return result[0], result[1]


@METHODS.register_module()
class MixupKD(Method):
    """Mixup for both sides: taps the logits, (B, C) with the same C; teacher and student see the same mixed images.

    The objective is γ · ce + α · kl. The task's own cross entropy has to be off: `task_weight=0.0`. Each mixed row has
    a share of its own from Beta(mixup_alpha, mixup_alpha) and a partner from a permutation of the whole batch. The
    official code permutes the first image of each pair too, which changes the order of the batch alone; here an image
    that is not mixed stays in its row, byte for byte. Other links of the config see the mixed batch too, without ids.

    The paper's advice: a teacher trained without mixup, little of it for the student, and no high temperature on top.
    Its code keeps ⌊0.9 B⌋ rows drawn with replacement, which mixes 41 % of the batch rather than 10 %:
    `fraction=0.1, with_replacement=True`. Its plain-KD branch (`temperature=4.0` here) pairs mixed images with the
    labels of the unmixed order; we use ỹ. That "x % partial mixup" means the mixed share is our assumption.

    Args:
        fraction: share of the batch that is mixed, in [0, 1]; 0 is KD, bit for bit, 1 is full mixup.
        with_replacement: draw the rows that stay as the official code does; see `mixed_rows`.
        mixup_alpha: of the Beta distribution, > 0; 1 is uniform.
        temperature: 'std', or T > 0.
        gamma, alpha: factors on the terms "ce" and "kl"; a term of factor 0 is left out.
        weight: factor on both.
        kwargs: see `Method`.
    Raises: ConfigError for options out of range or more than one pair of taps.
    """

    default_taps = (("logits", "logits"),)
    alters_batch = True
    assumption = "The fraction counts exactly the rows that are mixed; mixing keeps the order of the batch."

    def __init__(
        self,
        *,
        fraction: float = 0.1,
        with_replacement: bool = False,
        mixup_alpha: float = 1.0,
        temperature: Temperature = "std",
        gamma: float = 0.1,
        alpha: float = 0.9,
        weight: float = 1.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(weight=weight, **kwargs)
        if len(self.taps) != 1:
            raise ConfigError(f"MixupKD reads one pair of taps, the logits; got {self.taps}")
        if not 0.0 <= fraction <= 1.0:
            raise ConfigError(f"fraction of MixupKD is in [0, 1]; got {fraction}")
        if not mixup_alpha > 0:
            raise ConfigError(f"MixupKD needs mixup_alpha > 0; got {mixup_alpha}")
        if not (gamma or alpha):
            raise ConfigError("gamma and alpha of MixupKD are both 0; set the weight to 0 to leave the link out")
        if isinstance(temperature, str) and temperature != "std":
            raise ConfigError(f"temperature of MixupKD is 'std' or a number; got {temperature!r}")
        self.fraction, self.with_replacement, self.mixup_alpha = float(fraction), with_replacement, float(mixup_alpha)
        self.temperature: Temperature = "std" if temperature == "std" else check_temperature("MixupKD", temperature)
        self.factors = {"ce": float(gamma), "kl": float(alpha)}

    def connect(self, teacher_shapes: Shapes, student_shapes: Shapes) -> None:
        for teacher, student in zip(teacher_shapes, student_shapes, strict=True):
            check_logits("MixupKD", teacher, student)
        self.classes = teacher_shapes[0][1]

    def alter(self, batch: Batch, generator: torch.Generator) -> Batch:
        """The batch with some rows mixed and targets (B, C); the same object where no row is."""
        inputs, labels = batch.inputs, batch.targets
        if not isinstance(inputs, Tensor) or not inputs.is_floating_point():
            kind = str(inputs.dtype) if isinstance(inputs, Tensor) else type(inputs).__name__
            raise ConfigError(f"MixupKD mixes float images (B, C, H, W); the batch holds {kind}")
        count = len(inputs)
        check_labels("MixupKD", labels, batch=count, classes=self.classes)
        rows = mixed_rows(count, self.fraction, generator, with_replacement=self.with_replacement)
        partners = torch.randperm(count, generator=generator)[rows]
        shares = draw_beta(len(rows), self.mixup_alpha, generator)
        if not len(rows):
            return batch
        targets = F.one_hot(labels.long(), self.classes).float()
        rows, partners, shares = (x.to(inputs.device) for x in (rows, partners, shares))
        inputs, targets = mix(inputs, targets, rows, partners, shares)
        # A mixed image is no sample of the data set: its id would find another image's taps in the teacher cache.
        return replace(batch, inputs=inputs, targets=targets, ids=None, views=None)

    def forward(self, batch: LinkInputs) -> dict[str, Tensor]:
        (student,), (teacher,) = batch.student, batch.teacher
        terms = mixup_terms(student, teacher, targets=batch.targets, temperature=self.temperature)
        return {name: self.factors[name] * value for name, value in terms.items() if self.factors[name]}
