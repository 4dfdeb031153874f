"""The zoo as an OpenMMLab metafile: the model-index.yml that `mim search` reads.

The form is that of the `model-index` package, which openmim uses: `Collections` with `Name`, `Metadata` and `Paper`;
`Models` with `Name`, `In Collection`, `Metadata`, `Results` (each `Task`, `Dataset`, `Metrics`), `Config` and
`Weights`. openmim joins lists by commas and takes the first element's keys, so that lists hold text and are never
empty; and it goes through the results of every model, so that each has some.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from limbeck.engine.config import PLAIN, is_teacher
from limbeck.engine.record import RunRecord
from limbeck.engine.weights import atomic_path
from limbeck.zoo.card import Card
from limbeck.zoo.index import CARDS, WEIGHTS
from limbeck.zoo.markdown import one_line
from limbeck.zoo.rerun import method_papers

TASKS = {
    "image-classification": "Image Classification",
    "vlm-classification": "Image Classification",
    "semantic-segmentation": "Semantic Segmentation",
    "object-detection": "Object Detection",
    "3d-object-detection": "3D Object Detection",
    "image-generation": "Image Generation",
}
METRICS = {"top1": "Top 1 Accuracy", "mAP": "box AP"}  # OpenMMLab's words; others keep ours


def render_metafile(
    cards: Sequence[Card], *, records: dict[str, RunRecord] | None = None, repo: str | None = None, revision: str = ""
) -> str:
    """The text of a model-index.yml of these students, one collection a method.

    Args:
        records: by id; where a student's is there, its recipe and its method's paper are told too.
        repo: 'owner/name' of the hub that the students are pushed to, whose addresses `Weights` then are; the places
            in the installed package where not given.
        revision: of that repository.
    """
    known = records or {}
    collections: dict[str, dict[str, Any]] = {}
    for card in cards:
        collections.setdefault(card.method.lower(), _collection(card, known.get(card.record)))
    models = [_model(card, known.get(card.record), repo, revision, collections) for card in cards]
    index = dict(Collections=list(collections.values()), Models=models)
    return yaml.safe_dump(index, sort_keys=False, allow_unicode=True, width=120)


def write_metafile(path: str | Path, text: str) -> None:
    """Write a metafile, whole or not at all."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _collection(card: Card, record: RunRecord | None) -> dict[str, Any]:
    kind = "none" if card.method == PLAIN or is_teacher(card.method) else "knowledge distillation"
    found: dict[str, Any] = dict(Name=one_line(card.method), Metadata={"Training Techniques": [kind]})
    papers = [] if record is None else [p for p in method_papers(record) if p.arxiv]
    if papers:
        found["Paper"] = f"https://arxiv.org/abs/{papers[0].arxiv}"
    return found


def _model(
    card: Card, record: RunRecord | None, repo: str | None, revision: str, collections: dict[str, dict[str, Any]]
) -> dict[str, Any]:
    metadata: dict[str, Any] = {"Training Data": one_line(card.dataset.name), "Parameters": card.parameters}
    if card.flops is not None:
        metadata["FLOPs"] = card.flops
    if record is not None:
        metadata |= {"Epochs": record.recipe.epochs, "Batch Size": record.recipe.batch_size}
    if card.teacher is not None:
        metadata["Teacher"] = one_line(card.teacher)
    metadata |= {
        "Seed": card.seed,
        "Record": one_line(card.record),
        "SHA256": card.sha256,
        "License": one_line(card.licence),
        "Training Data License": one_line(card.dataset.licence),
    }
    metrics = {METRICS.get(name, one_line(name)): value for name, value in card.metrics.items()}
    return {
        "Name": card.name,
        "In Collection": collections[card.method.lower()]["Name"],
        "Metadata": metadata,
        "Results": [dict(Task=TASKS[card.task], Dataset=one_line(card.dataset.name), Metrics=metrics)],
        "Config": f"{'' if repo else 'zoo/'}{CARDS}/{card.name}.json",
        "Weights": weights_url(card, repo, revision) if repo else f"zoo/{WEIGHTS}/{card.file}",
    }


def weights_url(card: Card, repo: str, revision: str = "") -> str:
    """Where a pushed repository gives the weights."""
    from urllib.parse import quote

    from limbeck.zoo.model_card import HUB

    return f"{HUB}/{repo}/resolve/{quote(revision or 'main', safe='')}/{WEIGHTS}/{quote(card.file)}"
