"""Figures of a classifier with two heads: of its answer, of each head alone, of fixed mixes, and the mix itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from limbeck.engine.classification import ClassificationMetric, classification_metrics
from limbeck.engine.data import UNLABELLED
from limbeck.engine.registry import METRICS
from limbeck.errors import ConfigError
from limbeck.multimodal.vlm.knobs import mix_log_probs


@METRICS.register_module()
class DualHeadMetric(ClassificationMetric):
    """`ClassificationMetric`, and of two heads more; samples of label -1 do not count.

    Of two heads: `alpha` and `beta` that the model answers with, to a thousandth, which half-precision weights keep;
    `top1_ce_head` (α = 1) and `top1_kd_head` (α = 0), `ece_ce_head` and `ece_kd_head`; `top1_mix` (α = 0.5, β = 1),
    `top1_mix_half` (α = β = 0.5), and `top1_logit_average`, of the mean of both heads' logits. A prediction has
    ce_logits, kd_logits (B, K), alpha and beta (B,) for them.
    """

    keys = (*ClassificationMetric.keys, "ce_logits", "kd_logits", "alpha", "beta")

    def merged(self, results: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """Without the samples of label -1. Raises: ConfigError where nothing is left."""
        found = super().merged(results)
        known = found["labels"] != UNLABELLED
        if not bool(known.any()):
            raise ConfigError(
                "no sample of the split has a label, so there is nothing to measure; name a labelled split"
            )
        return {name: value[known] for name, value in found.items()}

    def figures(self, merged: Mapping[str, Tensor]) -> dict[str, float]:
        """See the class."""
        values = super().figures(merged)
        if "ce_logits" not in merged or "kd_logits" not in merged:
            return values
        labels, heads = merged["labels"], {name: merged[f"{name}_logits"].double() for name in ("ce", "kd")}
        for name, logits in heads.items():
            alone = classification_metrics(logits, labels, num_bins=self.num_bins)
            values |= {f"{figure}_{name}_head": alone[figure] for figure in ("top1", "ece")}
        for name, beta in (("top1_mix", 1.0), ("top1_mix_half", 0.5)):
            mixed = mix_log_probs(heads["ce"], heads["kd"], 0.5, beta)
            values[name] = float(100.0 * (mixed.argmax(1) == labels).double().mean())
        average = (heads["ce"] + heads["kd"]).argmax(1)
        values["top1_logit_average"] = float(100.0 * (average == labels).double().mean())
        return values | {name: round(float(merged[name][0]), 3) for name in ("alpha", "beta") if name in merged}
