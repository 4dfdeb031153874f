"""CLAP: prototypes that start as the text classifier and are held to it (arXiv 2312.12730); PCoreSet's teacher."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from limbeck.errors import UnknownName
from limbeck.multimodal.vlm._few_shot import Report, checked_features
from limbeck.multimodal.vlm.classifier import AdaptedClassifier, Support, ZeroShotClassifier


@dataclass(frozen=True)
class CLAPSettings:
    """How CLAP is fitted; the defaults are those of PCoreSet's code (arXiv 2506.00910).

    Attributes:
        passes: over the support set, drawn with replacement: floor(passes · n / batch_size) steps, at least one.
        batch_size: the student's.
        lr, momentum: of SGD.
        schedule: 'linear' decays to 0 after the warm-up. The code's command line names 'cosine' and the code ignores
            it; here it does what it says.
        warmup: share of the steps, over which lr rises from 0: the first step changes nothing.
        constraint_scale: of the zero-shot probabilities that give the constraint's weights; None takes the teacher's
            own logit scale. The code writes 100 there, and elsewhere uses the model's.
        views: of the training set that are encoded, or as many as it has.
        seed: of the draws.
    """

    passes: int = 300
    batch_size: int = 64
    lr: float = 0.01
    momentum: float = 0.9
    schedule: Literal["linear", "cosine"] = "linear"
    warmup: float = 0.1
    constraint_scale: float | None = None
    views: int = 10
    seed: int = 0


class CLAP(AdaptedClassifier):
    """t = s n(v) n_col(P): prototypes P in the place of the text matrix; only they are trained.

    P starts as P⁰, the class embeddings before their last normalisation.

    Args:
        zero_shot: the teacher whose image tower it shares. support: n.
        settings: of `fit`.

    Attributes:
        prototypes: P (d, K).
    """

    def __init__(self, zero_shot: ZeroShotClassifier, support: int, settings: CLAPSettings | None = None) -> None:
        super().__init__(zero_shot, support)
        self.settings = settings or CLAPSettings()
        self.prototypes = nn.Parameter(initial_prototypes(zero_shot))

    def classify(self, features: Tensor) -> Tensor:
        return self.logit_scale * features @ F.normalize(self.prototypes, dim=0)

    def fitted(self, zero_shot: ZeroShotClassifier, support: Support) -> CLAP:
        """See `fit_clap`."""
        return fit_clap(
            zero_shot,
            support.views,
            support.labels,
            plain_features=support.plain,
            settings=replace(self.settings, seed=support.seed),
            report=support.report,
        )


def initial_prototypes(zero_shot: ZeroShotClassifier) -> Tensor:
    """P⁰ (d, K): the text matrix with the lengths that its columns had."""
    return (zero_shot.text * zero_shot.text_norms).detach().clone()


def constraint_weights(logits: Tensor, labels: Tensor) -> Tensor:
    """a_c (K,), each in [0, 1]: the mean zero-shot probability of class c over its images; 0 for a class without any.

    Args:
        logits: zero-shot, of the support images without augmentation, (n, K). labels: (n,).
    """
    right = logits.softmax(1).gather(1, labels[:, None])[:, 0]
    sums = torch.zeros(logits.shape[1]).index_add(0, labels, right)
    return sums / torch.bincount(labels, minlength=logits.shape[1]).clamp(min=1)


def clap_loss(logits: Tensor, labels: Tensor, prototypes: Tensor, initial: Tensor, weights: Tensor) -> Tensor:
    """mean_B CE(t, y) + mean_c a_c ‖p_c − p_c⁰‖².

    Args:
        logits: t (B, K). labels: (B,). prototypes, initial: P and P⁰ (d, K). weights: a (K,).
    """
    return F.cross_entropy(logits, labels) + (weights * (prototypes - initial).square().sum(0)).mean()


def lr_factor(step: int, steps: int, warmup: float, schedule: str) -> float:
    """The share of the peak learning rate in a step, counted from 0: linear from 0 over warmup · steps, then decay."""
    rise = warmup * steps
    if step < rise:
        return step / max(1.0, rise)
    done = (step - rise) / max(1.0, steps - rise)
    return max(0.0, 1.0 - done) if schedule == "linear" else 0.5 * (1.0 + math.cos(math.pi * min(1.0, done)))


def fit_clap(
    zero_shot: ZeroShotClassifier,
    features: Tensor,
    labels: Tensor,
    *,
    plain_features: Tensor | None = None,
    settings: CLAPSettings | None = None,
    report: Report | None = None,
) -> CLAP:
    """Fit prototypes to cached image features; the zero-shot teacher is left as it is.

    Args:
        features: of the support images (n, d), or (V, n, d) of V augmented views, of which every draw takes one. The
            code augments anew: RandomResizedCrop(224, scale 0.08 to 1, bicubic) and a flip.
        labels: int64 (n,).
        plain_features: (n, d) without augmentation, for the constraint's weights; the first view where not given.
        report: called with a stage, steps done and their number.
    Raises: ConfigError, ShapeMismatch, UnknownName.
    """
    given = settings or CLAPSettings()
    if given.schedule not in ("linear", "cosine"):
        raise UnknownName("schedule", given.schedule, ("linear", "cosine"))
    views = checked_features("the support set", zero_shot, features, labels)
    plain = checked_features(
        "the support set without augmentation",
        zero_shot,
        views[0] if plain_features is None else plain_features,
        labels,
    )[0]
    made = CLAP(zero_shot, len(labels))
    initial = initial_prototypes(zero_shot)
    scale = float(zero_shot.logit_scale) if given.constraint_scale is None else given.constraint_scale
    with torch.no_grad():
        weights = constraint_weights(scale * plain @ zero_shot.text, labels)
    steps = max(1, given.passes * len(labels) // given.batch_size)
    rng = np.random.default_rng(given.seed)
    optimizer = torch.optim.SGD([made.prototypes], lr=given.lr, momentum=given.momentum)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: lr_factor(step, steps, given.warmup, given.schedule)
    )
    for step in range(steps):
        chosen = torch.from_numpy(rng.integers(0, len(labels), given.batch_size))
        view = torch.from_numpy(rng.integers(0, len(views), given.batch_size))
        with torch.enable_grad():
            logits = made.classify(views[view, chosen])
            loss = clap_loss(logits, labels[chosen], made.prototypes, initial, weights)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if report is not None and (step + 1 == steps or not (step + 1) % 100):
            report("fit", step + 1, steps)
    optimizer.zero_grad()
    return made
