"""Figures made again from the predictions that a run saved: no weights, no model and no data set are needed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from limbeck.engine.record import RunRecord
from limbeck.engine.weights import check_sha256
from limbeck.errors import ConfigError, CorruptFile, DataMissing, ExtraMissing
from limbeck.leaderboard.verify import TOLERANCES, Tolerance, Verification, compared

OTHERS = Tolerance(absolute=1e-3, relative=1e-2)  # of figures that are not judged where weights are evaluated again
SAVED, WEIGHTS = "predictions", "weights"


def predictions_file(record: RunRecord, runs: str | Path | None) -> Path | None:
    """The predictions that a record names, '<record id>/predictions.safetensors' below a folder of runs; or None."""
    if runs is None or record.predictions_sha256 is None:
        return None
    from limbeck.engine.saved_predictions import PREDICTIONS_FILE

    path = Path(runs) / record.id / PREDICTIONS_FILE
    return path if path.is_file() else None


def verify_predictions(
    record: RunRecord, path: Path, *, tolerances: Mapping[str, Tolerance] = TOLERANCES
) -> Verification:
    """Hash a file of predictions, make the figures of the test split again from it, and compare them all.

    What has a tolerance, and the primary metric, is judged as where weights are evaluated again. The other figures of
    the test split, agreement with the teacher and those of classes among them, are judged too, by `OTHERS`: nothing is
    computed again but the figures, and what differs was written by hand. Left out are figures that are of no test
    prediction of this student: of further test sets, and of the earlier rounds of a loop.

    The file carries its own ground truth. So this says that the figures are those of these predictions, and not that
    the weights make these predictions: that the weights say.
    """
    from limbeck.engine.saved_predictions import saved_figures

    try:
        check_sha256(path, str(record.predictions_sha256))
        found, by_class = saved_figures(record.config, path)
    except CorruptFile as error:
        return Verification(record.id, "changed", changed=f"{SAVED}: {error}")
    except (DataMissing, ExtraMissing, ConfigError) as error:
        return Verification(record.id, "not here", changed=str(error))
    judged = compared(record, found, tolerances, others=OTHERS)
    wrong = dict(_off_by_class(record, by_class))
    off = (*judged.off, *wrong)
    differences = judged.differences | {name: by for name, by in wrong.items() if by is not None}
    return replace(judged, verdict="off" if off else "holds", off=off, differences=differences, checked=(SAVED,))


def _off_by_class(record: RunRecord, found: Mapping[str, list[float]]) -> Iterator[tuple[str, float | None]]:
    """The recorded figures by class that differ, 'IoU of car', and by how much; None for a class that is none."""
    for metric, recorded in record.per_class.items():
        now = dict(zip(record.data.classes, found.get(metric, ())))
        for name, value in recorded.items() if now else ():
            if name not in now:
                yield f"{metric} of {name}", None
            elif not OTHERS.allows(value, now[name]):
                yield f"{metric} of {name}", now[name] - value


def both(weights: Verification, saved: Verification | None) -> Verification:
    """What weights and predictions say together: the first fault, and of what holds by which of the two it does."""
    if saved is None or weights.verdict in ("changed", "off"):
        return weights
    if saved.verdict in ("changed", "off"):
        return saved
    if weights.verdict == "holds":
        return replace(weights, checked=(WEIGHTS, SAVED)) if saved.verdict == "holds" else weights
    return saved if saved.verdict == "holds" else weights
