"""Tip-Adapter-F: a cache of few labelled images beside the text classifier (arXiv 2207.09519); a teacher of DHO's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from limbeck.errors import ConfigError, UnknownName
from limbeck.multimodal.vlm._few_shot import Report, checked_features
from limbeck.multimodal.vlm.classifier import AdaptedClassifier, Support, ZeroShotClassifier


def search_grid(highest: float, steps: int) -> list[float]:
    """The official grid: `steps` equal steps from 0.1 up to, and without, `highest`."""
    return [i * (highest - 0.1) / steps + 0.1 for i in range(steps)]


@dataclass(frozen=True)
class TipAdapterSettings:
    """How Tip-Adapter-F is fitted; the defaults are those of its ImageNet config, other sets change some.

    In DHO's configs, as (alpha, highest of betas, highest of alphas): Caltech101 (3, 12, 5), Cars (3, 20, 10), DTD
    (2, 13, 13), EuroSAT (2, 12, 10), FGVC (5, 30, 30), Flowers (10, 50, 50), Food101 (1.17, 10, 10), ImageNet and Pets
    (1.17, 7, 3), SUN397 (1.17, 12, 10), UCF101 (3, 7, 3); all but ImageNet have 200 epochs.

    Attributes:
        alpha, beta: during training.
        epochs, lr, batch_size: AdamW with eps 1e-4, cosine to 0 over all steps.
        alphas, betas: searched on validation after training.
        select: the epoch that is kept: 'best_val', or 'last'. The official code takes the best on test, which is not
            offered.
        scale: of the text logits; None takes the teacher's own. The official codes write 100.
        views: of the training set that are encoded, or as many as it has.
        seed: of the batches.
    """

    alpha: float = 1.17
    beta: float = 1.0
    epochs: int = 20
    lr: float = 1e-3
    batch_size: int = 256
    alphas: Sequence[float] = field(default_factory=lambda: search_grid(3.0, 20))
    betas: Sequence[float] = field(default_factory=lambda: search_grid(7.0, 200))
    select: Literal["best_val", "last"] = "best_val"
    scale: float | None = None
    views: int = 10
    seed: int = 0


def cache_logits(features: Tensor, keys: Tensor, values: Tensor, beta: float | Tensor) -> Tensor:
    """exp(−b (1 − v Gᵀ)) Y, what the cache says of each image.

    Args:
        features: v (B, d), normalised. keys: G (n, d). values: Y (n, K), one-hot rows.
    Returns: (B, K), at least 0.
    """
    return torch.exp(-beta * (1.0 - features @ keys.T)) @ values


class TipAdapterF(AdaptedClassifier):
    """t = s n(v) W + a · exp(−b (1 − n(v) Gᵀ)) Y: the zero-shot logits and those of a cache of n labelled images.

    Only the keys G are trained. Until it is fitted or a state dict is loaded, a is 0 and it is the zero-shot teacher.

    Args:
        zero_shot: the teacher whose image tower it shares. support: n.
        settings: of `fit`.

    Attributes:
        keys: G (n, d). values: Y (n, K). alpha, beta: a and b, ().
    """

    needs_val = True
    values: Tensor
    alpha: Tensor
    beta: Tensor

    def __init__(self, zero_shot: ZeroShotClassifier, support: int, settings: TipAdapterSettings | None = None) -> None:
        super().__init__(zero_shot, support)
        self.settings = settings or TipAdapterSettings()
        dim, classes = zero_shot.text.shape
        self.keys = nn.Parameter(torch.zeros(support, dim))
        self.register_buffer("values", torch.zeros(support, classes))
        self.register_buffer("alpha", torch.zeros(()))
        self.register_buffer("beta", torch.ones(()))

    def classify(self, features: Tensor) -> Tensor:
        return super().classify(features) + self.alpha * cache_logits(features, self.keys, self.values, self.beta)

    def fitted(self, zero_shot: ZeroShotClassifier, support: Support) -> TipAdapterF:
        """See `fit_tip_adapter`."""
        if support.val_features is None or support.val_labels is None:
            raise ConfigError("Tip-Adapter-F chooses epoch, alpha and beta on held-out images; give their features")
        return fit_tip_adapter(
            zero_shot,
            support.views,
            support.labels,
            val_features=support.val_features,
            val_labels=support.val_labels,
            settings=replace(self.settings, seed=support.seed),
            report=support.report,
        )


def initial_keys(views: Tensor) -> Tensor:
    """Keys at the start (n, d): the support images' features, averaged over views (V, n, d), of length 1."""
    return F.normalize(views.mean(0), dim=-1)


def search_alpha_beta(
    text_logits: Tensor,
    features: Tensor,
    labels: Tensor,
    *,
    keys: Tensor,
    values: Tensor,
    alphas: Sequence[float],
    betas: Sequence[float],
) -> tuple[float, float, float]:
    """The (alpha, beta) with the highest accuracy: beta outside, alpha inside, and the first of equals.

    Args:
        text_logits: (N, K) of the zero-shot part. features: (N, d). labels: (N,).
    Returns: alpha, beta and the accuracy in [0, 1].
    Raises: ConfigError for an empty grid.
    """
    if not len(alphas) or not len(betas):
        raise ConfigError("the search of alpha and beta needs at least one value of each")
    best = (float(alphas[0]), float(betas[0]), -1.0)
    affinity = features @ keys.T
    for beta in betas:
        cached = torch.exp(-beta * (1.0 - affinity)) @ values
        for alpha in alphas:
            right = _accuracy(text_logits + alpha * cached, labels)
            if right > best[2]:
                best = (float(alpha), float(beta), right)
    return best


def fit_tip_adapter(
    zero_shot: ZeroShotClassifier,
    features: Tensor,
    labels: Tensor,
    *,
    val_features: Tensor,
    val_labels: Tensor,
    settings: TipAdapterSettings | None = None,
    report: Report | None = None,
) -> TipAdapterF:
    """Fit a cache to cached image features; the zero-shot teacher is left as it is.

    Args:
        features: of the support images (n, d), or (V, n, d) of V augmented views: the keys start from their mean, and
            epoch e trains on view e mod V. The official code makes 10 views for the keys and new ones every epoch.
        labels: int64 (n,).
        val_features, val_labels: (N, d), (N,); choose the epoch, alpha and beta.
        report: called with a stage, epochs done and their number.
    Raises: ConfigError, ShapeMismatch.
    """
    given = settings or TipAdapterSettings()
    if given.select not in ("best_val", "last"):
        raise UnknownName("select", given.select, ("best_val", "last"))
    views = checked_features("the support set", zero_shot, features, labels)
    val = checked_features("the validation set", zero_shot, val_features, val_labels)[0]
    made = TipAdapterF(zero_shot, len(labels))
    if given.scale is not None:
        made.logit_scale.fill_(given.scale)
    made.values.copy_(F.one_hot(labels, zero_shot.text.shape[1]))
    made.alpha.fill_(given.alpha)
    made.beta.fill_(given.beta)
    with torch.no_grad():
        made.keys.copy_(initial_keys(views))
    _train_keys(made, views, labels, val, val_labels, given, report)
    with torch.no_grad():
        text_logits = ZeroShotClassifier.classify(made, val)
        alpha, beta, _ = search_alpha_beta(
            text_logits,
            val,
            val_labels,
            keys=made.keys,
            values=made.values,
            alphas=given.alphas,
            betas=given.betas,
        )
        made.alpha.fill_(alpha)
        made.beta.fill_(beta)
    return made


def _train_keys(
    made: TipAdapterF,
    views: Tensor,
    labels: Tensor,
    val: Tensor,
    val_labels: Tensor,
    given: TipAdapterSettings,
    report: Report | None,
) -> None:
    rng = np.random.default_rng(given.seed)
    count = len(labels)
    steps = given.epochs * -(-count // given.batch_size)
    optimizer = torch.optim.AdamW([made.keys], lr=given.lr, eps=1e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(steps, 1))
    best, kept = -1.0, made.keys.detach().clone()
    for epoch in range(given.epochs):
        view = views[epoch % len(views)]
        for chosen in np.split(rng.permutation(count), range(given.batch_size, count, given.batch_size)):
            with torch.enable_grad():
                loss = F.cross_entropy(made.classify(view[chosen]), labels[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        with torch.no_grad():
            right = _accuracy(made.classify(val), val_labels)
        if right > best or given.select == "last":
            best, kept = right, made.keys.detach().clone()
        if report is not None:
            report("fit", epoch + 1, given.epochs)
    optimizer.zero_grad()
    with torch.no_grad():
        made.keys.copy_(kept)


def _accuracy(logits: Tensor, labels: Tensor) -> float:
    return (logits.argmax(1) == labels).double().mean().item()
