"""What a model card says of a student, as Markdown whose every text is escaped."""

from __future__ import annotations

from limbeck.engine.config import PLAIN, is_teacher
from limbeck.engine.record import RunRecord
from limbeck.zoo.card import Card
from limbeck.zoo.markdown import code, escaped
from limbeck.zoo.rerun import MethodPaper, method_papers


def summary(card: Card) -> str:
    """What the student is, in one sentence."""
    task = escaped(card.task.replace("-", " "))
    if is_teacher(card.method):
        return f"A teacher of Limbeck's zoo: {task}, trained on {escaped(card.dataset.name)}."
    if card.method == PLAIN:
        return f"A plain student of Limbeck's zoo, trained without a teacher: {task} on {escaped(card.dataset.name)}."
    taught = f" from {escaped(card.teacher)}" if card.teacher else ""
    return (
        f"A distilled student of Limbeck's zoo: {task} on {escaped(card.dataset.name)}, taught with "
        f"{escaped(card.method)}{taught}."
    )


def facts(card: Card) -> list[tuple[str, str]]:
    """Rows of the table at the top: a key and its value."""
    teacher = "none" if card.teacher is None else code(card.teacher)
    return [
        ("Task", escaped(card.task)),
        ("Benchmark, pair, seed", f"{escaped(card.benchmark)}, {escaped(card.pair)}, {card.seed}"),
        ("Method", escaped(card.method)),
        ("Teacher", teacher),
        ("Licence of the weights", escaped(card.licence)),
        ("Weights", f"{code('weights/' + card.file)}, {card.file_bytes:,} bytes, sha256 {code(card.sha256)}"),
        ("Code", escaped(card.code_version)),
    ]


def use_note(card: Card) -> str:
    """What the loaded student does."""
    if card.generates:
        return "`student.generate([0, 1, 2], seed=0).images` makes images of these classes, in [−1, 1]."
    if card.detects_3d:
        return '`student.detect("000008.bin").boxes` finds boxes in a cloud of 4 float32 a point.'
    return (
        '`student(student.preprocess("image.png"))` gives its raw outputs; `limbeck.Predictor(…)` takes the same name '
        "and gives labels, maps or boxes."
    )


def selection(record: RunRecord) -> str:
    """Which weights gave the figures."""
    which = {"last": "the last epoch's weights", "best_val": "the weights that did best on the validation split"}
    return f"The figures are those of {which.get(record.recipe.selection, escaped(record.recipe.selection))}."


def method_text(card: Card, record: RunRecord) -> str:
    """The methods with their papers; that there is none, of teachers and plain students."""
    if is_teacher(card.method) or card.method == PLAIN:
        return "Trained with labels alone."
    lines = [f"- {_paper(paper)}" for paper in method_papers(record)] or [f"- {escaped(card.method)}"]
    if record.assumption:
        lines.append(f"- What of it is ours, not the paper's: {escaped(record.assumption)}")
    return "\n".join(lines)


def _paper(paper: MethodPaper) -> str:
    link = f", [arXiv {paper.arxiv}](https://arxiv.org/abs/{paper.arxiv})" if paper.arxiv else ""
    title = f": {escaped(paper.title)}" if paper.title else ""
    return f"{escaped(paper.name)}{title}{link}"


def size_lines(card: Card, record: RunRecord) -> list[str]:
    """Parameters, FLOPs, file, and the latency that the run measured on its machine."""
    lines = [f"Parameters: {card.parameters:,}"]
    flops = "not counted" if card.flops is None else f"{card.flops:,}, two a multiply-add, of one sample"
    lines.append(f"FLOPs: {flops}")
    lines.append(f"File: {card.file_bytes:,} bytes, half precision where the values allow it")
    latency, place = record.cost.student_latency_ms, record.environment
    if latency is not None:
        threads = f", {place.threads} thread{'s' if place.threads != 1 else ''}" if place.device == "cpu" else ""
        lines.append(
            f"Latency: {number(latency)} ms, median of one sample's forward on {escaped(place.machine + threads)}"
        )
    return lines


def input_text(card: Card) -> str:
    """What the network reads, and how an image or a cloud becomes it."""
    if (spec := card.voxels) is not None:
        low, high = spec.point_cloud_range[:3], spec.point_cloud_range[3:]
        spans = ", ".join(f"{axis} {a:g} to {b:g}" for axis, a, b in zip("xyz", low, high))
        size = " × ".join(f"{side:g}" for side in spec.voxel_size)
        return f"points of x, y, z and reflectance in {spans} m, voxels of {size} m; {escaped(spec.note)}"
    image = card.preprocessing
    if image is None:
        return "none"
    shape = " × ".join(map(str, image.input_size))
    crop = "the whole image" if image.crop_pct is None else f"centre crop of {image.crop_pct:g}"
    mean, std = (", ".join(f"{v:g}" for v in values) for values in (image.mean, image.std))
    said = (
        f"{shape} (channels, height, width), {crop}, {image.interpolation}, mean {mean} and std {std} on a 0 to 1 scale"
    )
    sampler = card.sampler
    if sampler is not None:
        steps = f"{sampler.steps} steps, guidance {sampler.guidance:g}, {sampler.calls} network calls an image"
        said += f"; it makes such images of noise: {sampler.kind}, {steps}"
    return f"{said}; {escaped(image.note)}" if image.note else said


def number(value: float) -> str:
    """A figure with as few digits as tell it to five places."""
    return f"{value:.5g}"
