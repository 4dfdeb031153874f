"""DIST: knowledge distillation from a stronger teacher (arXiv 2205.10536)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from limbeck.engine.losses import RESIZED, check_logits, check_temperature, fit_logits
from limbeck.engine.method import LinkInputs, Method, Shapes
from limbeck.engine.registry import METHODS
from limbeck.errors import ConfigError, UnknownName
from limbeck.vision.methods.kd import logit_pairs

ACTIVATIONS = ("softmax", "sigmoid")


def dist_loss(
    student: Tensor,
    teacher: Tensor,
    *,
    beta: float = 1.0,
    gamma: float = 1.0,
    temperature: float = 4.0,
    activation: str = "softmax",
) -> Tensor:
    """Distance of correlation between class probabilities, within samples and within classes.

    The sum of `dist_terms`, in [0, 2 T² (β + γ)].

    Args: as for `dist_terms`.
    Returns: scalar, computed in float32.
    Raises: ShapeMismatch when the two do not fit.
    """
    options = {"beta": beta, "gamma": gamma, "temperature": temperature}
    terms = dist_terms(student, teacher, **options, activation=activation)
    return torch.stack(list(terms.values())).sum()


def dist_terms(
    student: Tensor,
    teacher: Tensor,
    *,
    beta: float = 1.0,
    gamma: float = 1.0,
    temperature: float = 4.0,
    activation: str = "softmax",
) -> dict[str, Tensor]:
    """The two relations of DIST: between the classes of a sample, and between the samples of a class.

    With Y = σ(z / T), σ being the soft-max or, of one-stage detectors, the sigmoid, and Pearson's correlation ρ:
    inter = β T² · mean_i (1 − ρ(Y_S[i, :], Y_T[i, :])), intra = γ T² · mean_c (1 − ρ(Y_S[:, c], Y_T[:, c])).
    Of dense logits every pixel of the batch is a row. One row alone leaves intra without meaning (ρ = 0, term 1, no
    gradient), and the term is left out.

    Args:
        student, teacher: logits (B, C), or (B, C, H, W) with the student's resized to the teacher's, `fit_logits`. The
            teacher's gradient is stopped.
        beta, gamma: factors on inter and intra.
        temperature: T > 0.
        activation: 'softmax' or 'sigmoid'.
    Returns: {"inter": scalar, "intra": scalar}; without "intra" for one row.
    Raises: ShapeMismatch when the two do not fit; UnknownName for another activation.

    >>> sorted(dist_terms(torch.eye(3), torch.eye(3)))
    ['inter', 'intra']
    >>> sorted(dist_terms(torch.eye(3)[:1], torch.eye(3)[:1]))
    ['inter']
    """
    check_logits("DIST", tuple(teacher.shape), tuple(student.shape), axes=(2, 4))
    logits = fit_logits(student, teacher), teacher.detach()
    if activation not in ACTIVATIONS:
        raise UnknownName("activation", activation, ACTIVATIONS, "of DIST")
    scaled = (z.float() / temperature for z in logits)
    y_s, y_t = (_rows(z.softmax(dim=1) if activation == "softmax" else z.sigmoid()) for z in scaled)
    terms = {"inter": beta * temperature**2 * inter_distance(y_s, y_t)}
    if len(y_s) > 1:
        terms["intra"] = gamma * temperature**2 * intra_distance(y_s, y_t)
    return terms


def inter_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean over rows of 1 − ρ, for probabilities (N, C)."""
    return _pearson_distance(student, teacher, dim=1)


def intra_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean over columns of 1 − ρ, for probabilities (N, C)."""
    return _pearson_distance(student, teacher, dim=0)


def _pearson_distance(a: Tensor, b: Tensor, *, dim: int) -> Tensor:
    """Mean of 1 − <a, b> / (‖a‖ ‖b‖ + 1e-8) along `dim`, a and b centred; the 1e-8 is the official code's."""
    a, b = a - a.mean(dim, keepdim=True), b - b.mean(dim, keepdim=True)
    norms = torch.linalg.vector_norm(a, dim=dim) * torch.linalg.vector_norm(b, dim=dim)
    return (1.0 - (a * b).sum(dim) / (norms + 1e-8)).mean()


def _rows(y: Tensor) -> Tensor:
    """(B, C) as it is, (B, C, H, W) to (B·H·W, C)."""
    return y if y.ndim == 2 else y.movedim(1, -1).flatten(0, -2)


@METHODS.register_module()
class DIST(Method):
    """Correlation of predictions: taps the logits of both sides, (B, C) or (B, C, H, W) with the same C.

    The official code has β = γ = 1 inside and 2 outside, which the paper writes as β = γ = 2. T is 4 on CIFAR-100 and 1
    on ImageNet and for segmentation. Cross entropy keeps weight 1. The last batch of an epoch may hold one sample: its
    step has no "intra" term (our choice; the official code adds a constant there).

    Dense logits are those before up-sampling; the student's are resized where sizes differ. Officially `weight=1.0` at
    T = 1, and where both sides have an auxiliary head a second link on `aux_logits` with `weight=0.4`.

    One-stage detectors: `activation='sigmoid'`, `temperature=1.0`, `weight=1.0` and one pair of taps a level,
    'cls_logits[0]', …; the A · K outputs of a cell are its classes, all anchors together, as in the official code.

    Args:
        beta, gamma: factors on the terms "inter" and "intra".
        temperature: T > 0.
        activation: what makes probabilities of logits, 'softmax' or 'sigmoid'.
        standardise: bring the logits of each sample or pixel, of both sides, to mean 0 and deviation 1 first (arXiv
            2403.01427; that paper does not combine it with DIST).
        weight: factor on both.
        kwargs: see `Method`.
    Raises: ConfigError for a temperature that is not positive, or standardised logits with sigmoids, whose values say
        how sure of an object the network is; UnknownName for another activation.
    """

    default_taps = (("logits", "logits"),)

    def __init__(
        self,
        *,
        beta: float = 1.0,
        gamma: float = 1.0,
        temperature: float = 4.0,
        activation: str = "softmax",
        standardise: bool = False,
        weight: float = 2.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(weight=weight, **kwargs)
        self.beta, self.gamma = float(beta), float(gamma)
        self.temperature = check_temperature("DIST", temperature)
        if activation not in ACTIVATIONS:
            raise UnknownName("activation", activation, ACTIVATIONS, "of DIST")
        if standardise and activation == "sigmoid":
            raise ConfigError(
                "DIST cannot standardise logits of sigmoids, whose size is their meaning; drop standardise"
            )
        self.activation, self.standardise = activation, standardise

    def connect(self, teacher_shapes: Shapes, student_shapes: Shapes) -> None:
        for teacher, student in zip(teacher_shapes, student_shapes, strict=True):
            check_logits("DIST", teacher, student, axes=(2, 4))
            if teacher[2:] != student[2:]:
                self.assumption = RESIZED  # type: ignore[misc]  # of this pair alone

    def forward(self, batch: LinkInputs) -> dict[str, Tensor]:
        options = {"beta": self.beta, "gamma": self.gamma, "temperature": self.temperature}
        pairs = logit_pairs(batch, standardise=self.standardise)
        found = [dist_terms(s, t, **options, activation=self.activation) for s, t in pairs]
        names = {name: None for terms in found for name in terms}
        return {name: torch.stack([terms[name] for terms in found if name in terms]).sum() for name in names}
