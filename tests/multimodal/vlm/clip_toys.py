"""A small zero-shot teacher, links of it, and CLIP-KD's equations in float64 numpy, row by row."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from limbeck.engine.distiller import Distiller
from limbeck.engine.inputs import describe
from limbeck.engine.method import LinkInputs, Method
from limbeck.engine.registry import METHODS, MODELS
from tests.multimodal.vlm.toys import softmax, student

WIDTH, CLASSES, SCALE = 5, 3, 8.0


@MODELS.register_module()
class ToyZeroShot(nn.Module):
    """A linear image tower, class embeddings and a scale, with the attributes of the real zero-shot teachers."""

    text: Tensor
    logit_scale: Tensor

    def __init__(self, width: int = WIDTH, num_classes: int = CLASSES, scale: float = SCALE) -> None:
        super().__init__()
        self.fc = nn.Linear(64, width)
        text = torch.randn(width, num_classes, generator=torch.Generator().manual_seed(7))
        self.register_buffer("text", F.normalize(text, dim=0))
        self.register_buffer("logit_scale", torch.tensor(scale))
        self.calls: list[int] = []
        describe(self, 0.4, 0.3, (1, 8, 8))

    def features(self, x: Tensor) -> Tensor:
        self.calls.append(len(x))
        return F.normalize(self.fc(x.flatten(1)), dim=-1)

    def classify(self, features: Tensor) -> Tensor:
        return self.logit_scale * features @ self.text

    def forward(self, x: Tensor) -> Tensor:
        return self.classify(self.features(x))


def zero_shot(**options: Any) -> ToyZeroShot:
    torch.manual_seed(3)
    return ToyZeroShot(**options)


def clip_distiller(link: dict[str, Any], teacher: str = "ToyZeroShot") -> Distiller:
    """A one-head student of 6 features that a link ties to the teacher of 5."""
    frozen = dict(type="frozen", model=dict(type=teacher), initial_weights=True)
    return Distiller(
        members=dict(student=dict(type="trained", model=student(None)), teacher=frozen),
        links=[link],
        adapter=dict(type="VLMAdapter"),
        task_weight=0.5,
    )


def connected(name: str, width: int = 6, teacher: nn.Module | None = None, **options: Any) -> Method:
    """A link of a student of that width, to the toy teacher."""
    torch.manual_seed(1)
    link = METHODS.make({"type": name, **options})
    link.members = dict(teacher=teacher or zero_shot())
    link.connect([(2, WIDTH)], [(2, width)])
    return link


def inputs(
    targets: list[int] | Tensor, width: int = 6, seed: int = 0, rows: Tensor | None = None, requires_grad: bool = False
) -> LinkInputs:
    """Features of both sides of one batch; of the student's the given rows alone."""
    generator = torch.Generator().manual_seed(seed)
    v = torch.randn(len(targets), width, generator=generator)
    big = F.normalize(torch.randn(len(targets), WIDTH, generator=generator), dim=1)
    v = v if rows is None else v[rows]
    return LinkInputs(
        student=[v.requires_grad_(requires_grad)], teacher=[big], targets=torch.as_tensor(targets, dtype=torch.int64)
    )


def permuted(batch: LinkInputs, order: Tensor) -> LinkInputs:
    return LinkInputs(
        student=[batch.student[0][order]], teacher=[batch.teacher[0][order]], targets=batch.targets[order]
    )


def embedded(link: Any, batch: LinkInputs) -> np.ndarray:
    """n(φ v) in float64 numpy."""
    weight, bias = (array(p) for p in (link.phi.weight, link.phi.bias))
    return np_unit(array(batch.student[0]) @ weight.T + bias)


# --- the equations ---


def array(x: Tensor) -> np.ndarray:
    return x.detach().double().numpy()


def np_unit(x: np.ndarray) -> np.ndarray:
    return x / np.sqrt((x**2).sum(1, keepdims=True))


def np_fd(student: np.ndarray, teacher: np.ndarray) -> float:
    return sum((a - b) ** 2 for a, b in zip(student.ravel(), teacher.ravel())) / student.size


def np_kl(student: np.ndarray, teacher: np.ndarray) -> float:
    total = 0.0
    for z, t in zip(student, teacher):
        q, p = softmax(z), softmax(t)
        total += sum(a * (np.log(a) - np.log(b)) for a, b in zip(p, q))
    return total / len(student)


def np_ce(logits: np.ndarray, labels: Any) -> float:
    return -sum(float(np.log(softmax(z)[y])) for z, y in zip(logits, labels)) / len(logits)


def np_gradients(query: np.ndarray, keys: np.ndarray, labels: Any, tau: float) -> tuple[np.ndarray, np.ndarray]:
    by_query, by_key = np.zeros_like(query), np.zeros_like(keys)
    for i, (p, y) in enumerate(zip(query, labels)):
        share = softmax(keys @ p / tau)
        for j, k in enumerate(keys):
            off = (share[j] - (j == y)) / (tau * len(query))
            by_query[i] += off * k
            by_key[j] += off * p
    return by_query, by_key
