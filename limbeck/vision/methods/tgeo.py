"""TGeoKD: a fusion ratio for every sample, learned from trilateral geometry (arXiv 2312.15112)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from limbeck.engine.losses import check_labels, check_temperature
from limbeck.engine.method import LinkInputs, Method, Shapes, TrainingSet
from limbeck.engine.registry import METHODS
from limbeck.errors import ConfigError, ShapeMismatch, UnknownName
from limbeck.vision.methods.ensemblekd import check_ensemble, log_mean, logits_of

MODES = ("bilevel", "code", "constant")
FEATURES = ("official", "norms", "angles")


def fused_losses(
    student: Tensor, teachers: Sequence[Tensor], labels: Tensor, alpha: Tensor, *, temperature: float
) -> Tensor:
    """Each sample's mix of distillation and cross entropy, (B,) in float32.

    L_i = α_i · T² · KL(σ(z_T / T) ‖ σ(z_S / T)) + (1 − α_i) · CE(z_S, y_i)

    Args:
        student: logits (B, C).
        teachers: logits (B, C) of one or several, whose mean distribution at T is the target. Gradients are stopped.
        labels: classes (B,).
        alpha: fusion ratios (B,).
        temperature: T > 0.
    """
    log_p = log_mean(torch.stack([teacher.detach().float() for teacher in teachers]) / temperature)
    log_q = F.log_softmax(student.float() / temperature, dim=1)
    kl = temperature**2 * F.kl_div(log_q, log_p, log_target=True, reduction="none").sum(dim=1)
    return alpha * kl + (1.0 - alpha) * F.cross_entropy(student.float(), labels, reduction="none")


def look_ahead_loss(
    feature: Tensor,
    classifier: nn.Linear,
    teachers: Sequence[Tensor],
    labels: Tensor,
    alpha: Tensor,
    held: Tensor,
    *,
    rate: float,
    temperature: float,
) -> Tensor:
    """Cross entropy of the held-out rows after one step of the classifier on the others.

    W' = W − η ∂/∂W mean_inner L_i(W e_i, α_i); the loss is mean_held CE(W' e_i, y_i). Feature e and classifier W are
    constants here, so the gradient goes through α alone.

    Args:
        feature: what enters the classifier, (B, D).
        held: (B,) bool, rows of the outer loss; the others are the inner's.
        rate: η > 0.
    Returns: scalar; 0 where no row is held out, or all are.
    """
    feature = feature.detach().float()
    tensors = [classifier.weight, *([] if classifier.bias is None else [classifier.bias])]
    now = [x.detach().float().requires_grad_() for x in tensors]
    inner = fused_losses(F.linear(feature, *now), teachers, labels, alpha, temperature=temperature)
    slopes = torch.autograd.grad(masked_mean(inner, ~held), now, create_graph=True)
    then = [x.detach() - rate * slope for x, slope in zip(now, slopes)]
    return masked_mean(F.cross_entropy(F.linear(feature, *then), labels, reduction="none"), held)


def masked_mean(x: Tensor, mask: Tensor) -> Tensor:
    """Mean of x (B,) over the rows of a mask (B,); 0 where it has none. No indexing, which makes a GPU wait."""
    return (x * mask).sum() / mask.sum().clamp(min=1)


def geometry(student: Tensor, teacher: Tensor, truth: Tensor, average: Tensor, *, features: str) -> Tensor:
    """The state of each sample from four points of probability space: S, T, G (one-hot) and T̄ (its class's mean T).

    'official': S, T, G, T̄ and the element-wise (T̄−S)², (G−S)², (T−S)², (T−G)², (T̄−G)²; 9 C numbers.
    'norms': sums of those five squares over classes, and each point's probability of the true class; 9 numbers.
    'angles': lengths of those five edges, and cosines at S of the angles between T̄ and G and between T and G; 7.

    Args:
        student, teacher, truth, average: (B, C) each.
    Returns: (B, F).
    """
    edges = [average - student, truth - student, teacher - student, teacher - truth, average - truth]
    if features == "official":
        return torch.cat([student, teacher, truth, average, *(edge.square() for edge in edges)], dim=1)
    if features == "norms":
        shares = [(point * truth).sum(dim=1) for point in (student, teacher, truth, average)]
        return torch.stack([*(edge.square().sum(dim=1) for edge in edges), *shares], dim=1)
    cosines = [F.cosine_similarity(edges[i], edges[1], dim=1, eps=1e-12) for i in (0, 2)]
    return torch.stack([*(edge.norm(dim=1) for edge in edges), *cosines], dim=1)


def held_out_rows(ids: Tensor, share: float) -> Tensor:
    """Which samples are held out, (B,) bool: by a hash of the id, the same in every epoch, run and process."""
    x = ids.long()
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):  # a well-mixed 32-bit hash, kept in int64
        x = ((x ^ (x >> shift)) * factor) & 0xFFFFFFFF
    return (x ^ (x >> 16)) < share * 2**32


@METHODS.register_module()
class TGeoKD(Method):
    """A learned ratio α_i of KD and cross entropy: taps both sides' logits, and what enters the student's classifier.

    α = sigmoid(MLP(`geometry`)), MLP F → 32 → 16 → 1 with LeakyReLU. The link holds the whole objective: set the
    config's `task_weight=0.0`. Terms: "fused" trains the student with α as a constant, "outer" trains the MLP alone.

    `mode='bilevel'` trains it as the paper says: a share `held_out` of the training ids never enters "fused"; "outer"
    is their cross entropy after one step of the student's classifier on the other rows of the batch. Unrolling the
    classifier alone is our choice, and the step's rate too: the paper does not say how it approximates. (The held-out
    images do pass the student's batch norm.) `mode='code'` is the released code, in which no gradient reaches the MLP:
    it stays as it was drawn, on the same split. `mode='constant'` mixes all rows by `alpha`.

    T̄ is the teacher's mean distribution over each class of the training split. With several teachers, which is our
    extension, T and T̄ are the means of theirs.

    Args:
        temperature: T > 0 of the KD part; the geometry is at 1. The released toy has 1.5, the CIFAR recipe 4.
        mode: 'bilevel', 'code' or 'constant'.
        features: 'official', 'norms' or 'angles' of `geometry`; None takes 'official' up to 10 classes, else 'norms'.
        held_out: share of the training ids, in (0, 1).
        rate: η of the look-ahead step.
        unroll: what the look-ahead step moves; 'head' is the student's classifier.
        classifier: name of that nn.Linear in the student; None asks `get_classifier()`, else takes `fc`.
        alpha: the ratio of mode 'constant', in [0, 1].
        weight: factor on every term.
        kwargs: see `Method`; `teacher=['a', 'b']` names several.
    Raises: ConfigError, UnknownName for options that do not exist or are out of range.
    """

    default_taps = (("logits", "logits"), ("logits", "global_pool"))
    optimizer = dict(type="Adam", lr=1e-3)
    wants_data = True
    many_teachers = True
    own_terms = frozenset({"outer"})
    assumption = "The bilevel step looks ahead by one step of the student's classifier, held-out ids come from train."
    average: Tensor

    def __init__(
        self,
        *,
        temperature: float = 4.0,
        mode: str = "bilevel",
        features: str | None = None,
        held_out: float = 0.1,
        rate: float = 0.05,
        unroll: str = "head",
        classifier: str | None = None,
        alpha: float = 0.5,
        weight: float = 1.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(weight=weight, **kwargs)
        for kind, name, known in (
            ("mode", mode, MODES),
            ("features", features, FEATURES),
            ("unroll", unroll, ("head",)),
        ):
            if name is not None and name not in known:
                raise UnknownName(kind, name, known, "of TGeoKD")
        if not 0.0 < held_out < 1.0 or not rate > 0.0 or not 0.0 <= alpha <= 1.0:
            raise ConfigError(
                f"TGeoKD needs held_out in (0, 1), rate > 0 and alpha in [0, 1]; got {held_out}, {rate} and {alpha}"
            )
        self.temperature = check_temperature("TGeoKD", temperature)
        self.mode, self.features, self.held_out, self.rate = mode, features, held_out, rate
        self.classifier, self.alpha = classifier, float(alpha)
        self.declared_zero, self.checked = self.may_be_zero, False
        if mode != "bilevel":
            self.optimizer = None  # type: ignore[misc]  # nothing of this link is trained

    def connect(self, teacher_shapes: Shapes, student_shapes: Shapes) -> None:
        check_ensemble("TGeoKD", self.shapes, teacher_shapes, student_shapes[0])
        classes = student_shapes[0][1]
        if self.mode == "bilevel":
            if len(student_shapes) != 2 or len(student_shapes[1]) != 2:
                raise ShapeMismatch(
                    f"TGeoKD: student taps {student_shapes} do not fit; the logits (B, C), then the feature (B, D) "
                    "that enters the student's classifier, would"
                )
            weight = tuple(self._head().weight.shape)
            if weight != (classes, student_shapes[1][1]):
                raise ShapeMismatch(
                    f"TGeoKD: the student's classifier {weight} does not take its tap {student_shapes[1]} to logits "
                    f"{student_shapes[0]}; tap what enters the classifier, or name it with classifier=…"
                )
        if self.mode != "constant":
            self.features = self.features or ("official" if classes <= 10 else "norms")
            width = {"official": 9 * classes, "norms": 9, "angles": 7}[self.features]
            layers = [nn.Linear(width, 32), nn.LeakyReLU(0.01), nn.Linear(32, 16), nn.LeakyReLU(0.01), nn.Linear(16, 1)]
            self.ratio = nn.Sequential(*layers).requires_grad_(self.mode == "bilevel")

    def prepare(self, data: TrainingSet) -> None:
        if self.mode == "constant":
            return
        total, count = torch.zeros(data.classes, data.classes), torch.zeros(data.classes)
        for taps, labels, _ in (batch for name in self.teachers for batch in data.teacher_taps(name)):
            p = taps[0].detach().float().softmax(dim=1).cpu()
            if p.shape[1] != data.classes:
                raise ShapeMismatch(
                    f"TGeoKD: teacher logits {tuple(p.shape)} do not fit a data set of {data.classes} classes; "
                    "a teacher with that many would"
                )
            check_labels("TGeoKD", labels, batch=len(p), classes=data.classes)
            total.index_add_(0, labels.cpu(), p)
            count += torch.bincount(labels.cpu(), minlength=data.classes)
        device = next(self.ratio.parameters()).device
        self.register_buffer("average", (total / count.clamp(min=1)[:, None]).to(device))

    def forward(self, batch: LinkInputs) -> dict[str, Tensor]:
        student, teachers, labels = batch.student[0].float(), logits_of(batch), batch.targets
        check_labels("TGeoKD", labels, batch=len(student), classes=student.shape[1])
        if self.mode == "constant":
            alpha = student.new_full((len(student),), self.alpha)
            return {"fused": fused_losses(student, teachers, labels, alpha, temperature=self.temperature).mean()}
        held = self._held_out(batch.ids, len(student))
        with torch.autocast(student.device.type, enabled=False):
            alpha = self.ratios(student, teachers, labels)
            fused = fused_losses(student, teachers, labels, alpha.detach(), temperature=self.temperature)
            terms = {"fused": masked_mean(fused, ~held)}
            if self.mode == "bilevel":
                terms["outer"] = self._outer(batch, teachers, labels, alpha, held)
        # A small batch may lie wholly on one side of the split, which says nothing of a mistake.
        self.may_be_zero = self.declared_zero or bool(held.all()) or not bool(held.any())
        return terms

    def ratios(self, student: Tensor, teachers: Sequence[Tensor], labels: Tensor) -> Tensor:
        """α in (0, 1), (B,), from logits (B, C) and labels (B,); no gradient into the student."""
        if not hasattr(self, "average"):
            raise ConfigError("TGeoKD has no class means yet; call prepare(data) with the training split before a step")
        p_s = student.detach().float().softmax(dim=1)
        p_t = log_mean(torch.stack([teacher.detach().float() for teacher in teachers])).exp()
        truth = F.one_hot(labels.long(), p_s.shape[1]).float()
        state = geometry(p_s, p_t, truth, self.average[labels], features=self.features or "norms")
        return self.ratio(state).squeeze(1).sigmoid()

    def _outer(
        self, batch: LinkInputs, teachers: Sequence[Tensor], labels: Tensor, alpha: Tensor, held: Tensor
    ) -> Tensor:
        head, feature = self._head(), batch.student[1]
        if not self.checked:
            self._check_head(head, feature, batch.student[0])
        options = {"rate": self.rate, "temperature": self.temperature}
        return look_ahead_loss(feature, head, teachers, labels, alpha, held, **options)

    def _held_out(self, ids: Tensor | None, size: int) -> Tensor:
        if ids is None or ids.shape != (size,):
            raise ConfigError(
                "TGeoKD needs the id of every sample to hold some out, which this data set does not give; "
                "use one whose samples have ids, or mode='constant'"
            )
        return held_out_rows(ids, self.held_out)

    def _head(self) -> nn.Linear:
        model = self.members[self.student]
        get = getattr(model, "get_classifier", None)
        if self.classifier is not None:
            found = dict(model.named_modules()).get(self.classifier)
        else:
            found = get() if callable(get) else getattr(model, "fc", None)
        if not isinstance(found, nn.Linear):
            raise ConfigError(
                f"TGeoKD: {self.classifier or 'get_classifier() or fc'} of {self.student!r} is no nn.Linear; "
                "name the student's last linear layer with classifier=…"
            )
        return found

    @torch.no_grad()
    def _check_head(self, head: nn.Linear, feature: Tensor, logits: Tensor) -> None:
        """In the first step: the classifier takes the tapped feature to the logits (half precision allowed for)."""
        found, logits = F.linear(feature.float(), head.weight.float(), head.bias), logits.float()
        if bool((found - logits).abs().max() > 0.05 * logits.abs().max()):
            raise ConfigError(
                "TGeoKD: the student's classifier of the tapped feature is not its logits; tap what enters the "
                "classifier, after any dropout or norm"
            )
        self.checked = True
