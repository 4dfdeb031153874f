"""What loops of runs share: where a round goes, what it says of its progress, and one record of all rounds."""

from __future__ import annotations

from typing import Any

import pytest

from limbeck.engine.loop import options_of_round, record_of_rounds
from limbeck.engine.record import config_hash
from limbeck.engine.run import RunOptions, execute
from tests.engine.toys import toy_run


def test_rounds_lie_in_their_place_and_the_last_alone_measures_a_latency(tmp_path):
    said: list[tuple[str, int, int]] = []
    whole = RunOptions(out=tmp_path / "runs", records=tmp_path / "records", progress=lambda *step: said.append(step))
    found = [options_of_round(whole, tmp_path / str(n), n, 3) for n in range(3)]
    assert [o.out for o in found] == [tmp_path / str(n) / "runs" for n in range(3)]
    assert [o.records for o in found] == [tmp_path / str(n) / "records" for n in range(3)]
    assert [o.latency_ms for o in found] == [0.0, 0.0, None]
    assert {o.teachers for o in found} == {tmp_path / "runs"}
    assert all(o.drop_other for o in found)
    for options in found:
        assert options.progress is not None
        options.progress("train", 5, 10)
    assert said == [("round 1: train", 5, 30), ("round 2: train", 15, 30), ("round 3: train", 25, 30)]
    elsewhere = RunOptions(out=tmp_path, teachers=tmp_path / "taught", latency_ms=2.5)
    last = options_of_round(elsewhere, tmp_path, 1, 2)
    assert (last.teachers, last.latency_ms) == (tmp_path / "taught", 2.5)
    assert last.progress is not None
    last.progress("train", 1, 2)  # nobody listens


def test_record_of_rounds_is_the_last_with_all_that_they_cost(tmp_path):
    def made(seed: int) -> Any:
        config = toy_run(tmp_path, "ToyMatch", seed, recipe=dict(epochs=1))
        return execute(config, RunOptions(out=tmp_path / str(seed), threads=1, latency_ms=1.0))

    first, last = made(0), made(1)
    whole = toy_run(tmp_path, "ToyMatch", 1, recipe=dict(epochs=2))
    found = record_of_rounds(
        whole, [first, last], initial_hash=first.initial_hash, metrics=last.metrics | {"more": 1.0}
    )
    assert found.config == whole.model_dump(mode="json")
    assert found.config_hash == config_hash(found.config)
    for field in ("train_seconds", "samples_seen", "teacher_forwards"):
        assert getattr(found.cost, field) == pytest.approx(getattr(first.cost, field) + getattr(last.cost, field))
    assert found.cost.peak_memory_mb == max(first.cost.peak_memory_mb, last.cost.peak_memory_mb)
    assert found.cost.student_latency_ms == last.cost.student_latency_ms
    assert (found.initial_hash, found.metrics["more"]) == (first.initial_hash, 1.0)
    assert found.history == last.history != first.history
    assert (found.student_sha256, found.seed, found.recipe) == (last.student_sha256, 1, last.recipe)
