"""TRG: knowledge distillation via token-level relationship graphs (arXiv 2306.12442)."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from limbeck.engine.bridges import tap_form
from limbeck.engine.bridges_tokens import Layout
from limbeck.engine.method import LinkInputs, Method, Shapes
from limbeck.engine.registry import METHODS
from limbeck.errors import ConfigError, ShapeMismatch, UnknownName

DIRECTIONS = ("teacher", "student")
EPS = 1e-12


def affinity(tokens: Tensor, neighbours: int) -> Tensor:
    """Adjacency of the k-nearest-neighbour graph of M tokens, (M, M).

    A_ij = exp(−‖x_i − x_j‖² / 2σ) if x_i is among the k nearest of x_j, itself excluded, else 0; σ is the mean squared
    distance over the graph's edges. The graph is a constant, its weights have a gradient.

    Args:
        tokens: (M, D).
        neighbours: k ≥ 1; at most M − 1 are there.
    Returns: k non-zeros in every column, a diagonal of zeros; float32.
    """
    with torch.autocast(tokens.device.type, enabled=False):
        x = tokens.float()
        x = x - x.mean(dim=0)  # the distances stay, and lose less to rounding
        squares = x.square().sum(dim=1)
        distance = (squares[:, None] + squares - 2.0 * x @ x.T).clamp(min=0.0)
        others = distance.detach().clone().fill_diagonal_(math.inf)
        nearest = others.topk(min(neighbours, len(x) - 1), dim=0, largest=False).indices
        edges = torch.zeros_like(distance).scatter_(0, nearest, 1.0)
        sigma = (distance * edges).sum() / edges.sum().clamp(min=1.0)
        return edges * torch.exp(-distance / (2.0 * sigma.clamp(min=EPS)))


def local_loss(student: Tensor, teacher: Tensor, *, neighbours: int = 16, direction: str = "teacher") -> Tensor:
    """Divergence between the rows of the two graphs: mean_i KL(softmax_j A^T_ij ‖ softmax_j A^S_ij).

    Args:
        student, teacher: the same M tokens, (M, D_S) and (M, D_T). The teacher's gradient is stopped.
        neighbours: k; each side has its own graph.
        direction: 'teacher' as above, 'student' for KL(S ‖ T).
    Returns: scalar ≥ 0, computed in float32.

    >>> x = torch.randn(20, 6)
    >>> abs(local_loss(x.flip(1) + 3.0, x).item()) < 1e-6  # neither rotation nor translation counts
    True
    """
    log_q = F.log_softmax(affinity(student, neighbours), dim=1)
    log_p = F.log_softmax(affinity(teacher.detach(), neighbours), dim=1)
    first, second = (log_q, log_p) if direction == "teacher" else (log_p, log_q)
    return F.kl_div(first, second, log_target=True, reduction="batchmean")


def global_loss(student: Tensor, teacher: Tensor, *, temperature: float) -> Tensor:
    """InfoNCE over tokens: the positive of a student token is the teacher's token of that place.

    L = −mean_i log [ exp(cos(s_i, t_i) / τ) / Σ_j exp(cos(s_i, t_j) / τ) ]

    Args:
        student, teacher: projected tokens (M, P). Gradients reach both: the teacher's projector is trained.
        temperature: τ > 0.
    Returns: scalar ≥ 0, computed in float32.
    """
    with torch.autocast(student.device.type, enabled=False):
        s, t = F.normalize(student.float(), dim=1), F.normalize(teacher.float(), dim=1)
        return F.cross_entropy(s @ t.T / temperature, torch.arange(len(s), device=s.device))


def context(tokens: Tensor) -> Tensor:
    """Each image's relations between its own tokens, softmax(F Fᵀ / √D): (B, N, D) to (B, N, N), rows sum to 1."""
    with torch.autocast(tokens.device.type, enabled=False):
        x = tokens.float()
        return F.softmax(x @ x.transpose(1, 2) / math.sqrt(x.shape[2]), dim=2)


def inner_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared difference of the contexts, over B · N · N; at most 2 / N.

    Args:
        student, teacher: tokens (B, N, D_S) and (B, N, D_T). The teacher's gradient is stopped.
    Returns: scalar ≥ 0, computed in float32.
    """
    return F.mse_loss(context(student), context(teacher.detach()))


def falling_temperature(progress: float, *, start: float = 0.5, end: float = 0.07) -> float:
    """Half a cosine from `start` at progress 0 to `end` at progress 1."""
    share = min(max(progress, 0.0), 1.0)
    return end + (start - end) * 0.5 * (1.0 + math.cos(math.pi * share))


@METHODS.register_module()
class TRG(Method):
    """Relations between tokens of all images of a batch: taps one map (B, C, H, W) or tokens (B, N, D) a side.

    Each side becomes a grid × grid map of tokens by average pooling, without class and other prefix tokens; a smaller
    grid where a side has less. `tokens` places of each image, the same on both sides, make the nodes of the graphs.
    Terms: "inner" = α · `inner_loss` over all tokens, "local" = β · `local_loss` and "global" = γ · `global_loss` over
    the nodes. Only "global" has projectors, a linear layer to `dim` a side. A factor of 0 drops its term.

    The paper adds CE and KD at T = 4: put a KD link beside this one. No official code is known. The formulas follow a
    summary of the paper; every default here is our choice, and so are: σ over the edges, gradient through it, unit
    length before the graphs, the mean over nodes instead of a sum, KL(T ‖ S) (the summary prints 'student'), and the
    cosine of τ.

    Args:
        grid: side of the token grid, ≥ 2: 4 for 32-pixel images, 7 for 224.
        tokens: nodes from each image, ≥ 2; all where an image has fewer. Cost grows with (B · tokens)².
        neighbours: k ≥ 1.
        normalise: bring the nodes of the local graphs to unit length first.
        direction: of the local divergence, 'teacher' or 'student'.
        dim: width of the projections.
        tau: the global temperature at the start and at the end of the run, both > 0.
        alpha, beta, gamma: factors on the contextual, the local and the global term, ≥ 0.
        teacher_prefix, student_prefix: prefix tokens of a tap (B, N, D); None infers 0 or 1 from a square grid.
        teacher_layout, student_layout: 'nhwc' for maps (B, H, W, C), as timm's Swin has them.
        weight: factor on every term.
        kwargs: see `Method`.
    Raises: ConfigError, UnknownName for options that do not exist or are out of range.
    """

    default_taps = (("layer3", "layer3"),)
    assumption = "No official code is known; formulas follow a summary of the paper, and every default is ours."

    def __init__(
        self,
        *,
        grid: int = 4,
        tokens: int = 8,
        neighbours: int = 16,
        normalise: bool = True,
        direction: str = "teacher",
        dim: int = 128,
        tau: tuple[float, float] = (0.5, 0.07),
        alpha: float = 1.0,
        beta: float = 1.0,
        gamma: float = 0.5,
        teacher_prefix: int | None = None,
        student_prefix: int | None = None,
        teacher_layout: Layout = "nchw",
        student_layout: Layout = "nchw",
        weight: float = 1.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(weight=weight, **kwargs)
        if direction not in DIRECTIONS:
            raise UnknownName("direction", direction, DIRECTIONS, "of TRG")
        if grid < 2 or tokens < 2 or neighbours < 1 or dim < 1:
            raise ConfigError(
                "TRG needs grid >= 2, tokens >= 2, neighbours >= 1 and dim >= 1; "
                f"got {grid}, {tokens}, {neighbours} and {dim}"
            )
        if not min(tau) > 0 or len(tau) != 2 or min(alpha, beta, gamma) < 0 or not max(alpha, beta, gamma) > 0:
            raise ConfigError(
                "TRG needs tau=(start, end) > 0 and factors alpha, beta, gamma >= 0, not all 0; "
                f"got {tuple(tau)} and {alpha}, {beta}, {gamma}"
            )
        self.grid, self.tokens, self.neighbours, self.dim = grid, tokens, neighbours, dim
        self.normalise, self.direction, self.tau = normalise, direction, (float(tau[0]), float(tau[1]))
        self.alpha, self.beta, self.gamma = float(alpha), float(beta), float(gamma)
        self.prefixes = (teacher_prefix, student_prefix)
        self.layouts: tuple[Layout, Layout] = (teacher_layout, student_layout)

    def connect(self, teacher_shapes: Shapes, student_shapes: Shapes) -> None:
        shapes = (teacher_shapes[0], student_shapes[0])
        if len(self.taps) != 1 or any(len(s) not in (3, 4) for s in shapes) or shapes[0][0] != shapes[1][0]:
            raise ShapeMismatch(
                f"TRG: teacher taps {teacher_shapes} and student taps {student_shapes} do not fit; one map "
                "(B, C, H, W) or tokens (B, N, D) a side, of one batch, would"
            )
        self.forms = [
            tap_form(shape, what=f"TRG: {side} tap", layout=layout, prefix=prefix)
            for side, shape, layout, prefix in zip(("teacher", "student"), shapes, self.layouts, self.prefixes)
        ]
        height, width = (min(self.grid, *(form.size[axis] for form in self.forms)) for axis in (0, 1))
        self.size = (height, width)
        if height * width < 2:
            raise ShapeMismatch(
                f"TRG: teacher tap {shapes[0]} and student tap {shapes[1]} have one common token an image, which has "
                "no relations; tap an earlier layer, with two positions or more"
            )
        if self.gamma:
            self.project_teacher = nn.Linear(self.forms[0].width, self.dim)
            self.project_student = nn.Linear(self.forms[1].width, self.dim)

    def forward(self, batch: LinkInputs) -> dict[str, Tensor]:
        teacher, student = self._grid(0, batch.teacher[0].detach()), self._grid(1, batch.student[0])
        t, s = sample_tokens(teacher, student, self.tokens, batch.generator())
        terms: dict[str, Tensor] = {}
        if self.alpha:
            terms["inner"] = self.alpha * inner_loss(student, teacher)
        if self.beta:
            nodes = (F.normalize(s, dim=1), F.normalize(t, dim=1)) if self.normalise else (s, t)
            terms["local"] = self.beta * local_loss(*nodes, neighbours=self.neighbours, direction=self.direction)
        if self.gamma:
            tau = falling_temperature(batch.progress, start=self.tau[0], end=self.tau[1])
            with torch.autocast(s.device.type, enabled=False):
                projected = self.project_student(s), self.project_teacher(t)
            terms["global"] = self.gamma * global_loss(*projected, temperature=tau)
        return terms

    def _grid(self, side: int, x: Tensor) -> Tensor:
        """A tap as tokens (B, N, D) of the common grid, in float32."""
        form = self.forms[side]
        return F.adaptive_avg_pool2d(form.to_map(x.float()), self.size).flatten(2).transpose(1, 2)


def sample_tokens(teacher: Tensor, student: Tensor, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """`count` random places of each image, the same on both sides: (B, N, D) to (B · count, D); all where N is less."""
    size, places = student.shape[:2]
    if count < places:
        chosen = torch.rand(size, places, generator=generator).argsort(dim=1)[:, :count].to(student.device)
        teacher, student = (x.gather(1, chosen[..., None].expand(-1, -1, x.shape[2])) for x in (teacher, student))
    return teacher.flatten(0, 1), student.flatten(0, 1)
