"""CRD: contrastive representation distillation (arXiv 1910.10699)."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from limbeck.engine.losses import check_temperature
from limbeck.engine.method import LinkInputs, Method, Shapes, TrainingSet
from limbeck.engine.registry import METHODS
from limbeck.errors import ConfigError, ShapeMismatch, UnknownName

EPS = 1e-7  # of the official code
MODES = ("exact", "relax")


def nce_loss(scores: Tensor, *, population: int) -> Tensor:
    """Noise-contrastive estimation of one positive among K noise samples.

    With c = K / N and D(h) = h / (h + c + 1e-7):
    L = −(1/B) Σ_b [ log D(h_b0) + Σ_{k≥1} log(c / (h_bk + c + 1e-7)) ]: summed over negatives, averaged over samples.

    Args:
        scores: h = exp(similarity / τ) / Z > 0, (B, 1 + K), the positive first.
        population: N, from which the negatives are drawn.
    Returns: scalar, computed in float32.

    >>> round(nce_loss(torch.full((3, 5), 4 / 10), population=10).item(), 3)  # (K + 1) log 2
    3.466
    """
    scores = scores.float()
    noise = (scores.shape[1] - 1) / population
    total = scores + (noise + EPS)
    positive = torch.log(scores[:, 0] / total[:, 0])
    negative = torch.log(noise / total[:, 1:]).sum(dim=1)
    return -(positive + negative).mean()


def similarities(embedding: Tensor, memory: Tensor, index: Tensor) -> Tensor:
    """Inner products ⟨g_i, M[index_ik]⟩, (B, 1 + K); the memory's gradient is stopped.

    Args:
        embedding: g (B, D), float32.
        memory: M (N, D).
        index: rows of M, (B, 1 + K).
    """
    if len(memory) <= 32 * index.shape[1]:
        # All N products at once cost less than copying B (1 + K) rows. The copy: the memory changes before backward.
        return (embedding @ memory.detach().clone().T).gather(1, index)
    return torch.einsum("bd,bkd->bk", embedding, memory.detach()[index])


class ContrastSampler(nn.Module):
    """Draws sample ids by class: negatives from all other classes, a positive from the same.

    Its tables are ids sorted by class, and where each class begins: memory O(N), not O(N · classes).

    Args:
        labels: (N,) class of each id.
        classes: how many there are.
        negatives: K wanted; `self.negatives` is that or, where fewer exist, the least that any class has of others.
    Raises: ConfigError where every sample is of one class, or a label is out of range.
    """

    order: Tensor
    start: Tensor
    count: Tensor

    def __init__(self, labels: Tensor, classes: int, negatives: int) -> None:
        super().__init__()
        labels = labels.long()
        if labels.dim() != 1 or len(labels) == 0 or labels.min() < 0 or labels.max() >= classes:
            raise ConfigError(
                f"CRD: the training split's labels are not (N,) classes in [0, {classes}); check its data set"
            )
        count = torch.bincount(labels, minlength=classes)
        self.fewest_others = len(labels) - int(count.max())
        if self.fewest_others == 0:
            raise ConfigError(
                f"CRD: all {len(labels)} training samples are of class {int(labels[0])}, so there are no negatives; "
                "train on two classes or more"
            )
        self.negatives = min(negatives, self.fewest_others)
        self.register_buffer("order", labels.argsort(stable=True), persistent=False)
        self.register_buffer("start", count.cumsum(0) - count, persistent=False)
        self.register_buffer("count", count, persistent=False)

    def draw_negatives(self, labels: Tensor, generator: torch.Generator) -> Tensor:
        """Ids of other classes than `labels` (B,), without replacement in a row: (B, K).

        The rows of one step share one random pattern of places among the other classes' ids, each row shifted by a
        random amount: every such id is as likely as another, at the price of B + K random numbers instead of B · N.
        """
        start, count = self.start[labels, None], self.count[labels, None]
        others = len(self.order) - count
        # Below the least number of others, so that the K places stay distinct modulo every row's own number.
        pattern = torch.randperm(self.fewest_others, generator=generator)[: self.negatives]
        place = pattern.to(labels.device) + self._uniform(others, generator)
        place = torch.where(place >= others, place - others, place)
        return self.order[torch.where(place >= start, place + count, place)]

    def draw_positive(self, labels: Tensor, generator: torch.Generator) -> Tensor:
        """An id of the same class, (B,)."""
        return self.order[self.start[labels] + self._uniform(self.count[labels], generator)]

    @staticmethod
    def _uniform(below: Tensor, generator: torch.Generator) -> Tensor:
        share = torch.rand(below.shape, generator=generator).to(below.device)
        return torch.minimum((share * below).long(), below - 1)  # rounding may reach `below`


@METHODS.register_module()
class CRD(Method):
    """Contrast with memory banks: taps one pooled feature a side, (B, D_S) and (B, D_T).

    Both features are mapped to `dim` numbers by a linear layer each, trained with the student, and divided by their
    norm. Two banks hold such an embedding of every training sample, uniform in ±1/√(dim/3) at the start. The student's
    embedding is contrasted with the teacher's bank and the teacher's with the student's:
    L = NCE(h_S) + NCE(h_T), h = exp(⟨g, M⟩ / τ) / Z; see `nce_loss`. Z is N times the first batch's mean exponential
    and constant afterwards. After the scores, the batch's own rows become normalise(m · M + (1 − m) · g).

    `mode='exact'` takes the sample itself as the positive, 'relax' a random one of its class. Negatives are of other
    classes, without replacement. Where a class has fewer than K others, K is that number for all (`sampler.negatives`),
    instead of the official drawing with replacement: a desk data set has 256 to 1024, ImageNet all 16384.

    Banks, Z and labels are buffers: saved for resume, never with the student. In several processes each has its own.
    The official objective is CE + 0.8 · L; "CRD+KD" adds KD at T = 4 with weight 1.

    Args:
        negatives: K ≥ 1.
        dim: width of the embeddings.
        temperature: τ > 0.
        momentum: m in [0, 1), share of a bank's row that is kept.
        mode: 'exact' or 'relax'.
        weight: factor on the term "nce".
        kwargs: see `Method`.
    Raises: ConfigError for an option out of range; UnknownName for another mode.
    """

    default_taps = (("global_pool", "global_pool"),)
    assumption = "Fewer negatives where a class has fewer others; the rows of a step share one pattern of negatives."
    wants_data = True
    memory_student: Tensor
    memory_teacher: Tensor
    z_student: Tensor
    z_teacher: Tensor
    labels: Tensor

    def __init__(
        self,
        *,
        negatives: int = 16384,
        dim: int = 128,
        temperature: float = 0.07,
        momentum: float = 0.5,
        mode: str = "exact",
        weight: float = 0.8,
        **kwargs: Any,
    ) -> None:
        super().__init__(weight=weight, **kwargs)
        if mode not in MODES:
            raise UnknownName("mode", mode, MODES, "of CRD")
        if negatives < 1 or dim < 1 or not 0.0 <= momentum < 1.0:
            raise ConfigError(
                f"CRD needs negatives >= 1, dim >= 1 and momentum in [0, 1); got {negatives}, {dim} and {momentum}"
            )
        self.negatives, self.dim, self.momentum, self.mode = negatives, dim, float(momentum), mode
        self.temperature = check_temperature("CRD", temperature)

    def connect(self, teacher_shapes: Shapes, student_shapes: Shapes) -> None:
        teacher, student = teacher_shapes[0], student_shapes[0]
        if len(self.taps) != 1 or len(teacher) != 2 or len(student) != 2 or teacher[0] != student[0]:
            raise ShapeMismatch(
                f"CRD: teacher taps {teacher_shapes} and student taps {student_shapes} do not fit; "
                "one pooled feature a side, (B, D_T) and (B, D_S) of one batch, would"
            )
        self.embed_student = nn.Linear(student[1], self.dim)
        self.embed_teacher = nn.Linear(teacher[1], self.dim)

    def prepare(self, data: TrainingSet) -> None:
        device = self.embed_student.weight.device
        bound = (self.dim / 3) ** -0.5
        for side in ("student", "teacher"):
            memory = torch.empty(len(data.labels), self.dim).uniform_(-bound, bound)
            self.register_buffer(f"memory_{side}", memory.to(device))
            self.register_buffer(f"z_{side}", torch.tensor(-1.0, device=device))  # below 0: not set yet
        self.register_buffer("labels", data.labels.long().to(device))
        self.sampler = ContrastSampler(data.labels, data.classes, self.negatives).to(device)

    def forward(self, batch: LinkInputs) -> dict[str, Tensor]:
        student, teacher = batch.student[0], batch.teacher[0]
        ids = self._ids(batch.ids, len(student))
        index = self._contrast(ids, batch.generator())
        with torch.autocast(student.device.type, enabled=False):
            g_s = F.normalize(self.embed_student(student.float()), dim=1)
            g_t = F.normalize(self.embed_teacher(teacher.detach().float()), dim=1)
            loss = self._nce(g_s, self.memory_teacher, self.z_student, index)
            loss = loss + self._nce(g_t, self.memory_student, self.z_teacher, index)
        self._update(self.memory_student, ids, g_s.detach())
        self._update(self.memory_teacher, ids, g_t.detach())
        return {"nce": loss}

    def _ids(self, ids: Tensor | None, size: int) -> Tensor:
        if not hasattr(self, "sampler"):
            raise ConfigError("CRD has no memory banks yet; call prepare(data) with the training split before a step")
        if ids is None:
            raise ConfigError("CRD needs sample ids, which this data set does not give; use one whose samples have ids")
        total = len(self.labels)
        if ids.shape != (size,) or int(ids.min()) < 0 or int(ids.max()) >= total:
            raise ConfigError(
                f"CRD: sample ids {ids.tolist()[:8]} do not name {size} of the {total} training samples; "
                "train on the split that the banks were made for"
            )
        return ids.long()

    def _contrast(self, ids: Tensor, generator: torch.Generator) -> Tensor:
        """Bank rows of a step, (B, 1 + K): the positive, then the negatives."""
        labels = self.labels[ids]
        positive = self.sampler.draw_positive(labels, generator) if self.mode == "relax" else ids
        return torch.cat([positive[:, None], self.sampler.draw_negatives(labels, generator)], dim=1)

    def _nce(self, embedding: Tensor, memory: Tensor, z: Tensor, index: Tensor) -> Tensor:
        powers = torch.exp(similarities(embedding, memory, index) / self.temperature)
        # No branch on z: it would make a GPU wait.
        z.copy_(torch.where(z > 0, z, powers.detach().mean() * len(memory)))
        return nce_loss(powers / z, population=len(memory))

    def _update(self, memory: Tensor, ids: Tensor, embedding: Tensor) -> None:
        mixed = self.momentum * memory[ids] + (1.0 - self.momentum) * embedding
        memory.index_copy_(0, ids, F.normalize(mixed, dim=1))
