"""DisWOT: student architecture search for distillation without training (arXiv 2303.15678), as a score and a search.

A candidate student is good where, both it and the teacher drawn at random, it relates the samples of one batch and the
classes of its classifier as the teacher does. `limbeck search` runs it; nothing is trained.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, cast, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

from limbeck.engine.distiller import isolated_rng
from limbeck.errors import ConfigError, ShapeMismatch, UnknownName
from limbeck.vision.methods.spkd import similarity

Form = Literal["class", "channel"]


def relation_similarity(teacher_map: Tensor, student_map: Tensor) -> Tensor:
    """How alike two networks relate the samples of a batch: S_r = −‖G_T − G_S‖²_F / B², SPKD's loss negated.

    G (B, B) are the rows of A Aᵀ over their L2 norm, A the map flattened to (B, C·H·W). In [−4 / B, 0]; a positive
    factor on either map changes nothing.

    Args:
        teacher_map, student_map: features (B, …) of one batch; the other axes may differ.
    Returns: scalar, computed in float32.
    Raises: ShapeMismatch when the batches differ.

    >>> x = torch.rand(4, 3, 2, 2)
    >>> relation_similarity(x, 2.0 * x).item() > -1e-9
    True
    """
    teacher, student = tuple(teacher_map.shape), tuple(student_map.shape)
    if len(teacher) < 2 or len(student) < 2 or teacher[0] != student[0]:
        raise ShapeMismatch(
            f"relation similarity: teacher map {teacher} and student map {student} do not fit; "
            "features (B, …) of one batch would, whatever their other axes"
        )
    return -F.mse_loss(_relations(student_map), _relations(teacher_map))


def _relations(x: Tensor) -> Tensor:
    x = x.float()
    # Maps of networks without normalisation reach 1e30 under unit normal weights, and their squares overflow.
    return similarity(x / x.abs().amax().clamp_min(torch.finfo(x.dtype).tiny))


def semantic_similarity(teacher_grad: Tensor, student_grad: Tensor, form: Form = "class") -> Tensor:
    """How alike the gradients of cross entropy with respect to the classifiers' weights W (K, D) are, class by class.

    'channel' (eq. 4 of the paper): E_k (D, D) is w_k w_kᵀ with L2-normalised rows, w_k row k of the gradient;
    S_s = −Σ_k ‖E_k^T − E_k^S‖²_F / (K D). In [−4, 0]; any non-zero factor on a row changes nothing. The widths must be
    equal. Row i of E_k is sign(w_ki) w_k / ‖w_k‖, so that no D × D matrix is built.
    'class' (own extension, ASSUMPTION, for unequal widths): E (K, K) is W Wᵀ with L2-normalised rows;
    S_s = −‖E^T − E^S‖²_F / K². In [−4 / K, 0]; any non-zero factor on all of W changes nothing.

    Args:
        teacher_grad, student_grad: (K, D) and (K, D').
    Returns: scalar, computed in float64 on the CPU: rows of classes far from the batch's are tiny.
    Raises: ShapeMismatch for other than K classes on both sides, or unequal widths in the 'channel' form; UnknownName
        for another form.
    """
    teacher, student = tuple(teacher_grad.shape), tuple(student_grad.shape)
    _check_form(form)
    if len(teacher) != 2 or len(student) != 2 or teacher[0] != student[0]:
        raise ShapeMismatch(
            f"semantic similarity: teacher gradient {teacher} and student gradient {student} do not fit; "
            "(K, D) with the same K classes on both sides would"
        )
    if form == "channel" and teacher != student:
        raise ShapeMismatch(
            f"semantic similarity: teacher gradient {teacher} and student gradient {student} differ in width; "
            "form 'class' compares them"
        )
    t, s = _scaled(teacher_grad), _scaled(student_grad)
    if form == "channel":
        return -_channel_distance(t, s) / t.numel()
    return -F.mse_loss(_unit(s @ s.T), _unit(t @ t.T))


def _check_form(form: str) -> None:
    if form not in get_args(Form):
        raise UnknownName("form of semantic similarity", form, get_args(Form))


def _scaled(grad: Tensor) -> Tensor:
    x = grad.detach().cpu().double()
    return x / x.abs().amax().clamp_min(torch.finfo(x.dtype).tiny)


def _unit(x: Tensor) -> Tensor:
    return F.normalize(x, dim=1, eps=1e-300)


def _channel_distance(t: Tensor, s: Tensor) -> Tensor:
    """Σ_k ‖E_k^T − E_k^S‖²_F of gradients (K, D)."""
    rows = torch.count_nonzero(t, dim=1) + torch.count_nonzero(s, dim=1)  # rows of norm 1; the others are 0
    # The largest entry first: squares of 1e-200 would underflow.
    t_unit, s_unit = (_unit(x / x.abs().amax(1, keepdim=True).clamp_min(1e-300)) for x in (t, s))
    agreeing = (t.sign() * s.sign()).sum(1)
    return (rows - 2 * agreeing * (t_unit * s_unit).sum(1)).clamp_min(0).sum()


@dataclass(frozen=True)
class Score:
    """DisWOT's score of a candidate: both terms ≤ 0, and 0 at best."""

    relation: float
    semantic: float

    @property
    def total(self) -> float:
        """S_r + S_s, equal weights."""
        return self.relation + self.semantic


class Statistics(NamedTuple):
    """What the score compares, of one network on one batch: relations (B, B) and classifier gradient (K, D)."""

    relations: Tensor
    gradient: Tensor


def statistics(
    model: nn.Module, images: Tensor, labels: Tensor, *, seed: int = 0, name: str = "", initialise: bool = True
) -> Statistics:
    """One forward in train mode, and the gradient of cross entropy with respect to the classifier's weight.

    Weights, buffers, modes, `.grad` and the global random state stay as they are: the network runs on tensors of its
    own. No gradient goes below the classifier, since none is read there.

    Args:
        model: has `forward_features`, `forward_head`, and a linear classifier at `get_classifier()` or `fc`.
        images: (B, C, H, W), normalised. labels: int64 (B,).
        seed, name: decide the drawn weights and dropout.
        initialise: False takes the network's own weights instead of drawn ones.
    Raises: ConfigError for a network without these parts.
    """
    weight_name = _classifier_weight(model)
    with isolated_rng(seed, name), _training(model), torch.enable_grad():
        state = random_state(model) if initialise else _own_state(model)
        weight = state[weight_name].detach().clone().requires_grad_()
        state[weight_name] = weight
        prefixed = {f"model.{key}": value for key, value in state.items()}
        relations, logits = functional_call(_Probe(model), prefixed, (images,))
        (gradient,) = torch.autograd.grad(F.cross_entropy(logits.float(), labels), weight)
    return Statistics(relations, gradient.flatten(1))


class _Probe(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        net: Any = self.model
        with torch.no_grad():
            features = net.forward_features(images)
            if not isinstance(features, Tensor) or features.ndim < 2:
                raise ConfigError(f"forward_features of {type(net).__name__} gives no (B, …) tensor; DisWOT needs one")
            relations = _relations(features)  # before the head, which may work in place
        return relations, net.forward_head(features)


def _classifier_weight(model: nn.Module) -> str:
    """The name of the classifier's weight."""
    net: Any = model
    found = net.get_classifier() if hasattr(net, "get_classifier") else getattr(net, "fc", None)
    parts = hasattr(net, "forward_features") and hasattr(net, "forward_head")
    if parts and isinstance(found, (nn.Linear, _ConvNd)):
        for name, parameter in model.named_parameters():
            if parameter is found.weight:
                return name
    raise ConfigError(
        f"DisWOT cannot score {type(model).__name__}: it needs forward_features, forward_head and one linear "
        "classifier at get_classifier() or fc"
    )


@contextmanager
def _training(model: nn.Module) -> Iterator[None]:
    modes = [(module, module.training) for module in model.modules()]
    model.train()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def _own_state(model: nn.Module) -> dict[str, Tensor]:
    """Parameters as they are, and copies of the buffers, which a forward in train mode would change."""
    state = {name: p.detach() for name, p in model.named_parameters()}
    return state | {name: b.clone() for name, b in model.named_buffers()}


def random_state(model: nn.Module) -> dict[str, Tensor]:
    """Convolutions and linear layers from N(0, 1) with bias 0, normalisations at 1 and 0, drawn from torch's generator.

    As the official code has it. Other parameters (position embeddings, class tokens, layer scales) keep the values that
    the model was built with: ASSUMPTION, the paper has none.
    """
    state = _own_state(model)
    names = {id(p): name for name, p in model.named_parameters()}
    for module in model.modules():
        drawn = isinstance(module, (_ConvNd, nn.Linear))
        if not drawn and not isinstance(module, (_NormBase, nn.GroupNorm, nn.LayerNorm)):
            continue
        weight, bias = cast(Tensor | None, module.weight), cast(Tensor | None, module.bias)
        if weight is not None:
            # On the CPU, so that every device has the same weights.
            fresh = torch.empty(weight.shape, dtype=weight.dtype)
            state[names[id(weight)]] = (fresh.normal_() if drawn else fresh.fill_(1.0)).to(weight.device)
        if bias is not None:
            state[names[id(bias)]] = torch.zeros_like(bias)
    return state


class Scorer:
    """DisWOT's score of many candidates against one teacher on one batch; the teacher runs once a repeat, here.

    Teacher and candidates draw from streams of their own; all candidates share theirs, so that two of the same
    architecture score the same.

    Args:
        teacher: a network as `statistics` takes.
        images: (B, C, H, W), normalised for the teacher. labels: int64 (B,).
        seed: of the drawn weights.
        repeats: initialisations that the score is averaged over.
        form: of the semantic similarity.
        initialise: False scores the networks with the weights that they have.
    Raises: ConfigError, UnknownName.
    """

    def __init__(
        self,
        teacher: nn.Module,
        images: Tensor,
        labels: Tensor,
        *,
        seed: int = 0,
        repeats: int = 1,
        form: Form = "class",
        initialise: bool = True,
    ) -> None:
        if repeats < 1:
            raise ConfigError(f"repeats is 1 or more; got {repeats}")
        _check_form(form)
        self.images, self.labels = images, labels
        self.seed, self.repeats, self.initialise = seed, repeats, initialise
        self.form: Form = form
        self._teacher = [self._statistics(teacher, images, f"teacher {i}") for i in range(repeats)]

    def _statistics(self, model: nn.Module, images: Tensor, name: str) -> Statistics:
        return statistics(model, images, self.labels, seed=self.seed, name=name, initialise=self.initialise)

    def __call__(self, student: nn.Module, images: Tensor | None = None) -> Score:
        """Score one candidate.

        Args:
            images: the same batch as this candidate wants it, where that differs from what the teacher wants.
        Raises: ConfigError where the score is not finite; ShapeMismatch.
        """
        given = self.images if images is None else images
        relation, semantic = [], []
        for index, teacher in enumerate(self._teacher):
            found = self._statistics(student, given, f"student {index}")
            relation.append(-F.mse_loss(found.relations, teacher.relations).item())
            semantic.append(semantic_similarity(teacher.gradient, found.gradient, self.form).item())
        score = Score(math.fsum(relation) / self.repeats, math.fsum(semantic) / self.repeats)
        if not math.isfinite(score.total):
            raise ConfigError(f"the score of {type(student).__name__} is not finite under random weights")
        return score


def score(
    teacher: nn.Module,
    student: nn.Module,
    images: Tensor,
    labels: Tensor,
    seed: int = 0,
    repeats: int = 1,
    form: Form = "class",
) -> Score:
    """DisWOT's score of one candidate; `Scorer` is for many.

    Args and Raises: as of `Scorer`.
    """
    return Scorer(teacher, images, labels, seed=seed, repeats=repeats, form=form)(student)
