"""Teachers of a suite that the zoo has already, so that none is trained twice."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from limbeck.engine.bench import Paths
from limbeck.engine.record import record_path
from limbeck.engine.run import STUDENT_FILE
from limbeck.engine.suite import Job, state
from limbeck.engine.weights import check_sha256, copy_file
from limbeck.zoo.index import weight_files


def take_teachers(
    planned: Iterable[Job], out: str | Path, results: str | Path, *, zoo_dir: str | Path | None = None
) -> list[str]:
    """Put the teachers that a suite's runs need into its output: records from `results`, weights from the zoo.

    Taken is what has a record that the suite's config would write today, and a card with that record's weights, bit for
    bit; a teacher that is in the output already stays.

    Args:
        planned: the jobs of the suite.
        out: its output folder.
        results: a folder of records.
        zoo_dir: as for `limbeck.zoo.list_students`.
    Returns: ids of the records that were taken.
    Raises: CorruptFile for damaged records, cards or weights; OutputError.
    """
    paths, files = Paths(Path(out)), weight_files(zoo_dir=zoo_dir)
    found = []
    for job in _teachers(planned):
        weights = paths.runs / job.id / STUDENT_FILE
        if state(job, paths.records)[0] == "done" and weights.is_file():
            continue
        now, record = state(job, Path(results))
        if now != "done" or record is None or record.student_sha256 not in files:
            continue
        check_sha256(files[record.student_sha256], record.student_sha256)
        copy_file(files[record.student_sha256], weights)
        copy_file(record_path(results, job.id), record_path(paths.records, job.id))
        found.append(job.id)
    return found


def _teachers(planned: Iterable[Job]) -> Iterator[Job]:
    """Each teacher once, after its own teachers."""
    seen: set[str] = set()

    def below(job: Job) -> Iterator[Job]:
        for teacher in job.trainers.values():
            if teacher.id not in seen:
                seen.add(teacher.id)
                yield from below(teacher)
                yield teacher

    for job in planned:
        yield from below(job)
