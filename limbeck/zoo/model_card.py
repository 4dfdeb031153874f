"""A card as a Hugging Face model card: README.md with model-index, and the hub's newer `.eval_results` file.

The forms are those of huggingface_hub's `ModelCardData` and of the hub's documentation ("Evaluation Results"): a list
of `dataset` (`id`, `task_id`), `value`, `date`, `source` (`url`, `name`) and `notes`. Figures are the card's, which its
record has too.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from limbeck.engine.config import PLAIN, is_teacher
from limbeck.engine.record import RunRecord
from limbeck.errors import ConfigError, CorruptFile
from limbeck.zoo.card import DETECTION, GENERATION, LIDAR, SEGMENTATION, Card
from limbeck.zoo.card_text import facts, input_text, method_text, number, selection, size_lines, summary, use_note
from limbeck.zoo.markdown import code, escaped, one_line
from limbeck.zoo.rerun import rerun_command

if TYPE_CHECKING:
    from huggingface_hub import ModelCard

TEMPLATE = Path(__file__).parent / "templates" / "model_card.md.jinja"
HUB = "https://huggingface.co"
# The hub's pipeline tags; it has none for boxes in LiDAR clouds.
PIPELINES: dict[str, str | None] = {
    "image-classification": "image-classification",
    "vlm-classification": "image-classification",
    SEGMENTATION: "image-segmentation",
    DETECTION: "object-detection",
    LIDAR: None,
    GENERATION: "unconditional-image-generation",
}
# Data sets that the hub has unchanged, by our names.
HUB_DATASETS = {"fashion-mnist": "zalando-datasets/fashion_mnist", "cifar10": "uoft-cs/cifar10"}
# The hub's own metric ids; others keep our names.
HUB_METRICS = {"top1": "accuracy", "mIoU": "mean_iou"}
HUB_LICENCES = {"Apache-2.0": "apache-2.0", "MIT": "mit", "CC-BY-4.0": "cc-by-4.0", "BSD-3-Clause": "bsd-3-clause"}


def render_model_card(
    card: Card,
    record: RunRecord,
    *,
    repo: str | None = None,
    revision: str | None = None,
    dataset: str | None = None,
    teacher_repo: str | None = None,
) -> ModelCard:
    """A card and its record as a model card of huggingface_hub; `str` of it is the README.

    Args:
        repo: 'owner/name' that the student is loaded from; the zoo's own name where not given.
        revision: branch of the repository.
        dataset: the hub's id of the data set; known for some.
        teacher_repo: the hub's id of the teacher, which becomes `base_model`.
    Raises: CorruptFile where card and record are not of one run.
    """
    from huggingface_hub import EvalResult, ModelCard, ModelCardData

    check_record(card, record)
    source: dict[str, Any] = {}
    if repo is not None:
        source = dict(source_name="record", source_url=record_url(record, repo, revision))
    further: dict[str, Any] = _licence(card) | dict(distillation_method=one_line(card.method))
    if card.teacher is not None:
        further["teacher"] = one_line(card.teacher)
    results = [
        EvalResult(
            task_type=PIPELINES[card.task] or card.task,
            task_name=card.task.replace("-", " "),
            dataset_type=dataset or HUB_DATASETS.get(card.dataset.name) or one_line(card.dataset.name),
            dataset_name=one_line(card.dataset.name),
            dataset_split=one_line(record.data.split),
            metric_type=HUB_METRICS.get(name, one_line(name)),
            metric_name=one_line(name),
            metric_value=value,
            **source,
        )
        for name, value in _primary_first(card)
    ]
    hub_dataset = dataset or HUB_DATASETS.get(card.dataset.name)
    data = ModelCardData(
        library_name="limbeck",
        pipeline_tag=PIPELINES[card.task],
        model_name=card.name,
        datasets=[hub_dataset] if hub_dataset else None,
        base_model=teacher_repo,
        tags=_tags(card),
        eval_results=results,
        **further,
    )
    return ModelCard.from_template(data, template_path=str(TEMPLATE), **_texts(card, record, repo, revision))


def eval_results_yaml(
    card: Card,
    record: RunRecord,
    *,
    repo: str | None = None,
    revision: str | None = None,
    dataset: str | None = None,
    task_id: str | None = None,
) -> str | None:
    """The text of `.eval_results/NAME.yaml`: the primary metric; None where the hub has no such data set.

    Args:
        dataset: the hub's id of the data set, as in `render_model_card`.
        task_id: of the benchmark's eval.yaml; the card's task where not given.
    Raises: CorruptFile where card and record are not of one run.
    """
    check_record(card, record)
    hub_dataset = dataset or HUB_DATASETS.get(card.dataset.name)
    if hub_dataset is None:
        return None
    entry: dict[str, Any] = dict(
        dataset=dict(id=hub_dataset, task_id=task_id or card.task), value=card.value, date=one_line(record.finished)
    )
    if repo is not None:
        entry["source"] = dict(url=record_url(record, repo, revision), name="record")
    entry["notes"] = (
        f"{one_line(card.primary_metric)} on the {one_line(record.data.split)} split of "
        f"{one_line(card.dataset.name)}; {one_line(record.id)}"
    )
    return yaml.safe_dump([entry], sort_keys=False, allow_unicode=True)


def check_record(card: Card, record: RunRecord) -> None:
    """Check that a card quotes this record.

    Raises: CorruptFile naming what differs.
    """
    pairs = {
        "id": (card.record, record.id),
        "metrics": (card.metrics, record.metrics),
        "primary metric": (card.primary_metric, record.primary_metric),
        "sha256 of the weights": (card.sha256, record.student_sha256),
        "data set": (card.dataset.name, record.data.name),
        "content hash": (card.dataset.content_hash, record.data.content_hash),
        "parameters": (card.parameters, record.student.parameters),
        "FLOPs": (card.flops, record.student.flops),
    }
    for what, (ours, theirs) in pairs.items():
        if ours != theirs:
            raise CorruptFile(
                f"the card of {card.name} is not that of the record {record.id}: its {what} is {ours}, the record's "
                f"{theirs}; add the student again with: limbeck zoo add"
            )


def record_url(record: RunRecord, repo: str, revision: str | None = None) -> str:
    """Where a pushed repository shows the record."""
    from urllib.parse import quote

    return f"{HUB}/{repo}/blob/{quote(revision or 'main', safe='')}/{quote(record_file(record))}"


def record_file(record: RunRecord) -> str:
    """The record's path in a pushed repository, whose results/ is a folder of records like ours."""
    return f"results/{record.id}.json"


def reference(repo: str, revision: str | None = None) -> str:
    """'hf://owner/name', with '@revision' where one is given.

    Raises: ConfigError for what is no 'owner/name'.
    """
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", repo):
        raise ConfigError(f"{repo!r} is no repository of the hub; name it OWNER/NAME")
    return f"hf://{repo}" + (f"@{revision}" if revision else "")


def _primary_first(card: Card) -> list[tuple[str, float]]:
    return sorted(card.metrics.items(), key=lambda item: item[0] != card.primary_metric)


def _tags(card: Card) -> list[str]:
    kinds = [] if is_teacher(card.method) or card.method == PLAIN else ["knowledge-distillation", "distilled-model"]
    return ["limbeck", *kinds, *(["lidar", "3d-object-detection"] if card.task == LIDAR else [])]


def _licence(card: Card) -> dict[str, Any]:
    known = HUB_LICENCES.get(card.licence)
    if known is not None:
        return dict(license=known)
    return dict(license="other", license_name=one_line(card.licence))


def _texts(card: Card, record: RunRecord, repo: str | None, revision: str | None) -> dict[str, Any]:
    """What the template shows, every text of it escaped."""
    named = card.name if repo is None else reference(repo, revision)
    command = rerun_command(record)
    return dict(
        title=escaped(card.name),
        summary=summary(card),
        facts=facts(card),
        load=f'student = limbeck.load_student("{named}")',
        use_note=use_note(card),
        split=escaped(record.data.split),
        data_name=escaped(card.dataset.name),
        data_size=f" ({record.data.test_samples:,} samples)",
        record=code(record.id),
        metrics=[(escaped(name), number(value)) for name, value in _primary_first(card)],
        selection=selection(record),
        rerun=command or "# no suite has this pair; the record's `config` has every setting of the run",
        data=f"{escaped(card.dataset.name)}: {escaped(card.dataset.source)}",
        data_licence=escaped(card.dataset.licence),
        content_hash=code(card.dataset.content_hash),
        preprocessing=input_text(card),
        classes=", ".join(map(escaped, card.classes)),
        method=method_text(card, record),
        sizes=size_lines(card, record),
        intended_use=escaped(card.intended_use),
        limits=escaped(card.limits),
    )
