"""Suites: only what is missing, kill -9 loses nothing finished, Ray gives the same records."""

from __future__ import annotations

import functools
import gc
import os
import signal
import subprocess
import sys
import time
import weakref
from pathlib import Path
from queue import SimpleQueue

import pytest

from limbeck.engine import bench
from limbeck.engine.bench import Paths, run_suite
from limbeck.engine.distiller import Distiller
from limbeck.engine.output import exclusive
from limbeck.engine.record import iter_records, read_record, record_path
from limbeck.engine.runner import DistillRunner
from limbeck.engine.suite import plan
from limbeck.errors import OutputError
from tests.engine.toys import toy_pair, toy_suite

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _importable(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def files(folder: Path) -> dict[str, bytes]:
    return {r.id: p.read_bytes() for p, r in iter_records(folder)}


def test_suite_makes_every_run_once_and_finds_them_again(tmp_path):
    suite = toy_suite(tmp_path)
    seen = []
    first = run_suite(suite, tmp_path / "out", jobs=2, on_event=lambda e: seen.append(e.kind))
    assert sorted(first.made) == sorted(j.id for j in plan(suite))
    assert len(first.made) == 7
    assert seen.count("start") == seen.count("finish") == 7
    assert "step" in seen
    before = files(tmp_path / "out" / "records")
    second = run_suite(suite, tmp_path / "out", jobs=2)
    assert second.made == []
    assert len(second.found) == 7
    assert files(tmp_path / "out" / "records") == before


def test_students_are_linked_to_the_teachers_record(tmp_path):
    run_suite(toy_suite(tmp_path), tmp_path / "out", jobs=1)
    records = {r.id: r for _, r in iter_records(tmp_path / "out" / "records")}
    teacher = records["toy/toy4-toy2/teacher/seed0"]
    for record in records.values():
        if record.method in ("ToyMatch", "ToyBridge"):
            assert record.teacher_record == teacher.id
            assert record.config["model"]["members"]["teacher"]["sha256"] == teacher.student_sha256
            assert records[record.plain_record].initial_hash == record.initial_hash
            assert record.cost.student_latency_ms == records[record.plain_record].cost.student_latency_ms


def test_changed_recipe_makes_stale_records_anew(tmp_path):
    run_suite(toy_suite(tmp_path), tmp_path / "out", jobs=1)
    recipe = dict(toy_pair().recipe.model_dump(), epochs=2)
    outcome = run_suite(toy_suite(tmp_path, recipe=recipe), tmp_path / "out", jobs=1)
    assert len(outcome.made) == 7


def test_missing_record_is_made_again_and_its_teacher_only_if_weights_are_gone(tmp_path):
    suite = toy_suite(tmp_path)
    run_suite(suite, tmp_path / "out", jobs=1)
    paths = Paths(tmp_path / "out")
    record_path(paths.records, "toy/toy4-toy2/toymatch/seed1").unlink()
    assert run_suite(suite, tmp_path / "out", jobs=1).made == ["toy/toy4-toy2/toymatch/seed1"]
    record_path(paths.records, "toy/toy4-toy2/toymatch/seed1").unlink()
    (paths.runs / "toy/toy4-toy2/teacher/seed0/student.safetensors").unlink()
    made = run_suite(suite, tmp_path / "out", jobs=1).made
    assert made == ["toy/toy4-toy2/teacher/seed0", "toy/toy4-toy2/toymatch/seed1"]


def test_failed_run_is_told_and_the_others_go_on(tmp_path):
    methods = dict(
        ToyMatch=dict(links=[dict(type="ToyMatch", mode="blowup")]), ToyBridge=dict(links=[dict(type="ToyBridge")])
    )
    outcome = run_suite(toy_suite(tmp_path, methods=methods), tmp_path / "out", jobs=2)
    assert sorted(outcome.failed) == ["toy/toy4-toy2/toymatch/seed0", "toy/toy4-toy2/toymatch/seed1"]
    assert "toymatch.loss_match" in outcome.failed["toy/toy4-toy2/toymatch/seed0"]
    assert len(outcome.made) == 5


def test_only_and_seeds_choose(tmp_path):
    outcome = run_suite(toy_suite(tmp_path), tmp_path / "out", jobs=1, seeds=1, only=["toybridge"])
    assert sorted(i.split("/")[2] for i in outcome.made) == ["plain", "teacher", "toybridge"]


def test_two_suites_in_one_folder_are_refused(tmp_path):
    suite = toy_suite(tmp_path)
    with exclusive(tmp_path / "out"), pytest.raises(OutputError, match="another run is writing"):
        run_suite(suite, tmp_path / "out")


def test_kill_at_any_moment_loses_no_finished_run_and_tears_no_record(tmp_path):
    recipe = toy_pair().recipe.model_dump()
    suite = toy_suite(tmp_path, recipe=dict(recipe, epochs=40), teacher_recipe=recipe)
    code = "import sys; from limbeck.engine.bench import run_suite; from limbeck.engine.suite import load_suite\n"
    code += "if __name__ == '__main__': run_suite(load_suite(sys.argv[1]), sys.argv[2], jobs=2)\n"
    script = tmp_path / "suite.py"
    script.write_text(code)
    records = tmp_path / "out" / "records"
    kept: dict[str, bytes] = {}
    for wanted in (1, 3):
        process = subprocess.Popen([sys.executable, str(script), str(tmp_path / "toys.toml"), str(tmp_path / "out")])
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and len(list(records.rglob("seed*.json"))) < wanted:
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        process.wait()
        found = files(records)  # every one is whole, or this raises
        assert len(found) >= wanted
        assert all(found[i] == data for i, data in kept.items())
        kept = found
        time.sleep(1.2)  # the workers notice that their parent is gone, and let go of their folders
    outcome = run_suite(suite, tmp_path / "out", jobs=2)
    assert len(outcome.found) + len(outcome.made) == 7
    assert set(kept) <= set(outcome.found)
    straight = run_suite(suite, tmp_path / "straight", jobs=1)
    assert len(straight.made) == 7
    for identity in straight.made:
        a, b = (read_record(record_path(tmp_path / n / "records", identity)) for n in ("out", "straight"))
        assert a.student_sha256 == b.student_sha256


def test_ray_gives_the_same_students(tmp_path):
    pytest.importorskip("ray", reason="needs the bench extra")
    suite = toy_suite(tmp_path)
    run_suite(suite, tmp_path / "local", jobs=1, seeds=1)
    os.environ["RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"] = "0"
    outcome = run_suite(suite, tmp_path / "ray", jobs=2, seeds=1, ray="local")
    assert len(outcome.made) == 4
    for identity in outcome.made:
        a, b = (read_record(record_path(tmp_path / n / "records", identity)) for n in ("local", "ray"))
        assert a.student_sha256 == b.student_sha256


def test_a_suite_that_stops_with_an_error_does_not_wait_for_its_events_to_be_read(tmp_path):
    """The workers' queue is read by the suite's process alone, which is on its way out; a pipe holds less than this."""
    script = tmp_path / "stop.py"
    script.write_text(
        "from limbeck.engine import bench\n"
        "def talk(events):\n"
        "    for _ in range(events):\n"
        "        bench._EVENTS.put('x' * 100)\n"
        "if __name__ == '__main__':\n"
        "    with bench._local_pool(1, 1) as pool:\n"
        "        pool.submit(talk, 5000).result()\n"
        "        raise SystemExit(7)\n"
    )
    assert subprocess.run([sys.executable, str(script)], timeout=240, cwd=ROOT).returncode == 7


def _noting(init, made):
    @functools.wraps(init)
    def noting(self, *args, **options):
        made.append(weakref.ref(self))
        init(self, *args, **options)

    return noting


def test_a_worker_keeps_nothing_of_a_run_that_is_done(tmp_path, monkeypatch):
    """A runner and its model are a cycle, which Python frees when it likes: until then their data fill memory."""
    monkeypatch.setattr(bench, "_EVENTS", SimpleQueue())
    job = next(j for j in plan(toy_suite(tmp_path)) if j.method == "plain")
    paths = Paths(tmp_path / "out")
    made = []
    for one in (Distiller, DistillRunner):
        monkeypatch.setattr(one, "__init__", _noting(one.__init__, made))
    gc.disable()
    try:
        bench.run_job(job.model_dump(), bench._Settings(paths, "cpu", 1, 1))
        assert made
        assert [one for one in (ref() for ref in made) if one is not None] == []
    finally:
        gc.enable()
