"""Figures of two heads against numpy, and unlabelled samples that never count."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from limbeck.engine.registry import METRICS
from limbeck.errors import ConfigError
from limbeck.multimodal.vlm.knobs import mix_log_probs
from limbeck.vision.metrics import ClassificationMetric
from tests.multimodal.vlm.toys import softmax


def batches(hidden: float = 0.3) -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    found = []
    for start in (0, 40):
        ce, kd = 2 * torch.randn(2, 40, 4, generator=generator)
        labels = torch.randint(4, (40,), generator=generator)
        labels[torch.rand(40, generator=generator) < hidden] = -1
        found.append(
            dict(
                logits=mix_log_probs(ce, kd, 0.35, 2.0),
                ce_logits=ce,
                kd_logits=kd,
                labels=labels,
                ids=torch.arange(start, start + 40),
                alpha=torch.full((40,), 0.35).half().float(),
                beta=torch.full((40,), 2.0),
            )
        )
    return found


def metric(predictions, teacher=None):
    found = METRICS.make({"type": "DualHeadMetric"})
    found.update(predictions, teacher)
    return found


def test_figures_of_both_heads_and_mixes_equal_numpy():
    data = batches()
    values = metric(data).values()
    merged = {k: torch.cat([b[k] for b in data]).double().numpy() for k in data[0]}
    known = merged["labels"] >= 0
    assert 0 < known.sum() < 80
    labels, ce, kd = (merged[k][known] for k in ("labels", "ce_logits", "kd_logits"))
    mixes = dict(
        top1=0.35 * softmax(ce) + 0.65 * softmax(kd / 2),
        top1_ce_head=softmax(ce),
        top1_kd_head=softmax(kd),
        top1_mix=softmax(ce) + softmax(kd),
        top1_mix_half=softmax(ce) + softmax(kd / 0.5),
        top1_logit_average=(ce + kd) / 2,
    )
    for name, p in mixes.items():
        assert values[name] == pytest.approx(100 * np.mean(p.argmax(1) == labels))
    p = mixes["top1"]
    assert values["nll"] == pytest.approx(-np.mean(np.log(p[np.arange(len(p)), labels.astype(int)])), rel=1e-5)
    assert (values["alpha"], values["beta"]) == (0.35, 2.0)


def test_calibration_of_a_head_is_that_of_a_classifier_of_its_own():
    data = batches(hidden=0.0)
    values = metric(data).values()
    for head in ("ce", "kd"):
        alone = ClassificationMetric()
        alone.update([dict(logits=b[f"{head}_logits"], labels=b["labels"], ids=b["ids"]) for b in data])
        assert values[f"ece_{head}_head"] == pytest.approx(alone.values()["ece"])


def test_one_head_has_the_figures_of_classification_alone():
    data = [{k: b[k] for k in ("logits", "labels", "ids")} for b in batches(hidden=0.0)]
    teacher = [dict(logits=-b["logits"]) for b in data]
    plain = ClassificationMetric()
    plain.update(data, teacher)
    found = metric(data, teacher)
    assert found.values() == plain.values()
    assert set(found.values()) == {"top1", "nll", "ece", "agreement"}
    assert found.per_class() == plain.per_class()


def test_unlabelled_samples_change_nothing():
    data = batches()
    kept = [{k: v[b["labels"] >= 0] for k, v in b.items()} for b in data]
    assert metric(data).values() == metric(kept).values()
    assert metric(data).per_class() == metric(kept).per_class()
    with pytest.raises(ConfigError, match="no sample of the split has a label"):
        metric(batches(hidden=1.1)).values()
