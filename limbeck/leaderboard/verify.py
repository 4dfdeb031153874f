"""Verification: evaluates published weights again and says whether their records hold."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from limbeck.engine.record import RunRecord, read_record, record_path
from limbeck.engine.weights import check_sha256
from limbeck.errors import ConfigError

Evaluate = Callable[[dict[str, Any], Path], Mapping[str, float]]


@dataclass(frozen=True)
class Tolerance:
    """How far a metric may be off: `absolute`, or `relative` to the recorded value, whichever is wider."""

    absolute: float = 0.0
    relative: float = 0.0

    def allows(self, recorded: float, found: float) -> bool:
        """Whether a value is near enough; a NaN never is."""
        return abs(found - recorded) <= max(self.absolute, self.relative * abs(recorded)) + 1e-12


TOLERANCES: Mapping[str, Tolerance] = {"top1": Tolerance(absolute=0.05), "nll": Tolerance(relative=1e-3)}
OTHERWISE = Tolerance(absolute=0.05)
OTHERWISE_LOWER = Tolerance(relative=1e-3)  # of a primary metric that is lower where better: its scale is its own


@dataclass(frozen=True)
class Verification:
    """One record and what its weights or predictions give today; differences are found − recorded, of judged metrics.

    changed: with the verdicts 'changed' and 'not here', what was tampered with or is missing, in a sentence.
    checked: by what it was judged, where saved predictions took part: 'weights', 'predictions'.
    """

    id: str
    verdict: Literal["holds", "off", "no weights", "no predictions", "changed", "not here"]
    recorded: dict[str, float] = field(default_factory=dict)
    found: dict[str, float] = field(default_factory=dict)
    differences: dict[str, float] = field(default_factory=dict)
    off: tuple[str, ...] = ()
    changed: str = ""
    checked: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        """'holds', 'no weights', 'off by +0.28 top1', or 'changed: weights: …'.

        With saved predictions 'holds (weights, predictions)' or 'off by +0.28 top1 (predictions)'.
        """
        by = f" ({', '.join(self.checked)})" if self.checked else ""
        if self.verdict != "off":
            return f"{self.verdict}: {self.changed}" if self.changed else self.verdict + by
        return self._off + by

    @property
    def _off(self) -> str:
        gone = [f"no {m}" for m in self.off if m not in self.differences]
        by = [f"{self.differences[m]:+.4g} {m}" for m in self.off if m in self.differences]
        return (
            "off by " + ", ".join(by) + (f" ({', '.join(gone)})" if gone else "") if by else "off: " + ", ".join(gone)
        )


def verify_record(
    record: RunRecord,
    evaluate: Evaluate,
    weights: Mapping[str, Path],
    *,
    tolerances: Mapping[str, Tolerance] = TOLERANCES,
) -> Verification:
    """Evaluate a record's weights again and compare the metrics that have a tolerance, and always the primary one.

    Args:
        evaluate: gives the metrics of a config's student with the weights of a file.
        weights: the files on offer, by sha256.
    Raises: CorruptFile when a file is not what its hash says; whatever `evaluate` raises.
    """
    path = weights.get(record.student_sha256)
    if path is None:
        return Verification(record.id, "no weights")
    check_sha256(path, record.student_sha256)
    return compared(record, dict(evaluate(record.config, path)), tolerances)


def compared(
    record: RunRecord,
    found: dict[str, float],
    tolerances: Mapping[str, Tolerance] = TOLERANCES,
    *,
    others: Tolerance | None = None,
) -> Verification:
    """Found figures beside the recorded ones: those with a tolerance, the primary one and, by `others`, the rest."""
    primary = OTHERWISE if record.higher_is_better else OTHERWISE_LOWER
    judged = {m: tolerances.get(m, primary) for m in record.metrics if m in tolerances or m == record.primary_metric}
    if others is not None:
        judged |= {m: others for m in record.metrics if m in found and m not in judged}
    differences = {m: found[m] - record.metrics[m] for m in judged if m in found}
    off = tuple(m for m, t in judged.items() if m not in found or not t.allows(record.metrics[m], found[m]))
    return Verification(record.id, "off" if off else "holds", dict(record.metrics), found, differences, off)


def card_judge(results: str | Path) -> Callable[[Any, Path], tuple[bool, str]]:
    """What `zoo verify --evaluate` asks: whether a card is its record's copy and the record holds, and in words.

    Args:
        results: the folder with the records of the cards.
    """

    def judge(card: Any, weights: Path) -> tuple[bool, str]:
        from limbeck.engine.evaluate import evaluate_weights

        path = record_path(results, card.record)
        if not path.is_file():
            raise ConfigError(f"the record {card.record} is not in {results}; name the folder of records by --results")
        record = read_record(path)
        if (record.student_sha256, record.metrics) != (card.sha256, card.metrics):
            return False, f"off: the card's sha256 or figures are not those of its record {card.record}"
        done = verify_record(record, evaluate_weights, {card.sha256: weights})
        metric, value = card.primary_metric, done.found.get(card.primary_metric)
        return done.verdict == "holds", f"{done.text}: {metric} {card.value:.4g} on the card, {value} found"

    return judge


def with_runs(weights: Mapping[str, Path], records: Iterable[RunRecord], runs: str | Path | None) -> dict[str, Path]:
    """The files on offer and, for records that these lack, those of a folder of runs; each is checked when it is read.

    Args:
        weights: files by sha256, such as the zoo's.
        runs: '<record id>/student.safetensors' lies below it; None adds nothing.
    Raises: ConfigError when `runs` is no folder.
    """
    found = dict(weights)
    if runs is None:
        return found
    if not Path(runs).is_dir():
        raise ConfigError(f"{runs} is not a folder; name a suite's runs, such as out/bccd/runs, with --runs")
    for record in records:
        path = Path(runs) / record.id / "student.safetensors"
        if record.student_sha256 and record.student_sha256 not in found and path.is_file():
            found[record.student_sha256] = path
    return found


def verification_json(found: Verification) -> dict[str, Any]:
    """A verification as JSON values, with its text."""
    return {**asdict(found), "text": found.text}
