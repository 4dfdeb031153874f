"""DHO: semi-supervised distillation from vision-language models by dual-head optimisation (arXiv 2505.07675)."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor

from limbeck.engine.data import UNLABELLED
from limbeck.engine.losses import check_logits, check_temperature
from limbeck.engine.method import LinkInputs, Method, Shapes
from limbeck.engine.registry import METHODS
from limbeck.errors import ConfigError, ShapeMismatch


def dho_loss(student: Tensor, teacher: Tensor, *, temperature: float = 2.0) -> Tensor:
    """T² · mean KL( σ(t / T) ‖ σ(z / T) ): summed over classes, averaged over the B rows that it is given.

    Args:
        student, teacher: logits (B, K). The teacher's gradient is stopped.
        temperature: T > 0.
    Returns: scalar ≥ 0, computed in float32; 0, with a graph, of no rows.
    Raises: ShapeMismatch.

    >>> import torch
    >>> dho_loss(torch.tensor([[0.0, 1.0]]), torch.tensor([[5.0, 6.0]])).item()
    0.0
    """
    check_logits("DHO", tuple(teacher.shape), tuple(student.shape))
    log_q = F.log_softmax(student.float() / temperature, dim=1)
    log_p = F.log_softmax(teacher.detach().float() / temperature, dim=1)
    divergence = F.kl_div(log_q, log_p, log_target=True, reduction="sum")
    return temperature**2 * divergence / max(len(student), 1)


@METHODS.register_module()
class DHO(Method):
    """Distils the teacher's logits into the KD head, over labelled and unlabelled images apart.

        L = λ · mean CE(z_ce, y) + (1 − λ) · (L_l + L_u),    L_l, L_u = `dho_loss` of the labelled, unlabelled rows

    so that the balance does not depend on the two batch sizes. λ is the config's `task_weight`, 1 − λ this link's
    `weight`. With a `DualHead` student of two heads this is DHO: cross entropy never reaches the KD head, nor the
    distillation the CE head. With one head it is KD (task_weight 0) or CE + KD on one head.

    Few-shot scripts: λ = 0.5. ImageNet with 1 % or 10 % of the labels: task_weight 1 and weight 1. T = 2 throughout.
    Labels of unlabelled images are not there to be read; images of label -1 are the unlabelled ones.

    Args:
        temperature: T > 0.
        labelled, unlabelled: distil on these rows; False for baselines. Without the unlabelled ones the student never
            sees them.
        weight: factor on the terms "labelled" and "unlabelled".
        kwargs: see `Method`. A batch in which a term's rows are missing gives 0; in the first step that stops the run
            unless `may_be_zero`.
    Raises: ConfigError for a temperature that is not positive, or a link that distils nothing.
    """

    unused_parameters = True  # of the KD head where the weight is 0

    def __init__(
        self,
        *,
        temperature: float = 2.0,
        labelled: bool = True,
        unlabelled: bool = True,
        weight: float = 0.5,
        **kwargs: Any,
    ) -> None:
        if not (labelled or unlabelled):
            raise ConfigError(
                "DHO with labelled=False and unlabelled=False distils nothing; set one of them, or leave it out"
            )
        if kwargs.get("taps") is None:
            kwargs["taps"] = [("logits", "kd_logits" if unlabelled else "labelled_kd_logits")]
        super().__init__(weight=weight, **kwargs)
        self.temperature = check_temperature("DHO", temperature)
        self.labelled, self.unlabelled = labelled, unlabelled

    def connect(self, teacher_shapes: Shapes, student_shapes: Shapes) -> None:
        if len(self.taps) != 1:
            raise ConfigError(f"DHO taps one pair of logits; got {self.taps}")
        (teacher,), (student,) = teacher_shapes, student_shapes
        # With the labelled rows alone, the student's are fewer.
        check_logits("DHO", (*student[:1], *teacher[1:]), student)

    def forward(self, batch: LinkInputs) -> dict[str, Tensor]:
        (student,), (teacher,) = batch.student, batch.teacher
        known = batch.targets != UNLABELLED
        if known.ndim != 1:
            raise ShapeMismatch(
                f"DHO tells labelled from unlabelled images by labels (B,); got targets {tuple(known.shape)}: "
                "leave out the link that mixes them"
            )
        if not self.unlabelled:
            return {"labelled": dho_loss(student, teacher[known], temperature=self.temperature)}
        terms = {}
        for name, rows in (("labelled", known), ("unlabelled", ~known)):
            if getattr(self, name):
                terms[name] = dho_loss(student[rows], teacher[rows], temperature=self.temperature)
        return terms
