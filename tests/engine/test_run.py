"""Whole runs: records as they were, exact resume, guards that stop, one run a folder, cached ≡ uncached."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from limbeck.engine.config import RunConfig, parse
from limbeck.engine.evaluate import evaluate_weights
from limbeck.engine.hooks import last_checkpoint
from limbeck.engine.output import exclusive
from limbeck.engine.record import config_hash, failure_path, read_record, record_path
from limbeck.engine.run import RunOptions, execute
from limbeck.engine.weights import hash_state, read_weights, sha256_file
from limbeck.errors import ConfigError, CorruptFile, NonFiniteLoss, OutputError, TeacherOff
from tests.engine.toys import ToyNet, teacher_file, toy_run

DROPOUT = dict(student=dict(type="ToyNet", width=2, dropout=0.3, norm=True))
KILLED = """
import os, signal, sys
from pathlib import Path
from limbeck.engine.run import RunOptions, execute
from tests.engine.toys import toy_run
folder, at = Path(sys.argv[1]), int(sys.argv[2])
def progress(stage, done, total):
    if done >= at:
        os.kill(os.getpid(), signal.SIGKILL)
import limbeck.engine.hooks as hooks
hooks.time.perf_counter.__call__  # the clock is real: report every step
run = toy_run(folder, "ToyBridge", recipe=dict(RECIPE), student=STUDENT)
options = RunOptions(out=folder / "killed", records=folder / "records", threads=1, progress=progress)
execute(run, options)
"""
RECIPE = dict(
    epochs=4,
    optimizer=dict(type="SGD", lr=0.05, momentum=0.9, weight_decay=1e-3),
    param_scheduler=[dict(type="CosineAnnealingLR")],
    val_interval=1,
)


def options(folder: Path, name: str = "runs", **kwargs) -> RunOptions:
    return RunOptions(out=folder / name, records=folder / f"{name}-records", threads=1, **kwargs)


def losses(folder: Path) -> list[dict]:
    lines = [json.loads(line) for line in folder.read_text().splitlines()]
    return [line for line in lines if "val" not in line]


def test_record_says_what_happened(tmp_path):
    run = toy_run(tmp_path, "ToyBridge", data=dict(toy_run(tmp_path).data.model_dump(), batch_size=20))
    record = execute(run, options(tmp_path))
    assert record == read_record(record_path(tmp_path / "runs-records", run.id))
    assert (record.recipe.batch_size, record.recipe.steps, record.cost.samples_seen) == (20, 8, 160)
    assert record.cost.teacher_forwards == 160
    assert record.recipe.learning_rate_first == record.recipe.learning_rate_max == 0.05
    assert 0 < record.recipe.learning_rate_last < 0.05
    assert record.config_hash == config_hash(record.config)
    assert record.plain_record == "toy/toy4-toy2/plain/seed0"
    assert record.recipe.selection == "last"
    saved = tmp_path / "runs" / run.id / "student.safetensors"
    assert record.student_sha256 == sha256_file(saved)


def test_metrics_are_those_of_the_saved_file(tmp_path):
    run = toy_run(tmp_path)
    record = execute(run, options(tmp_path))
    again = evaluate_weights(record.config, tmp_path / "runs" / run.id / "student.safetensors")
    assert again["top1"] == record.metrics["top1"]


def test_saved_student_holds_the_deployed_member_alone(tmp_path):
    run = toy_run(tmp_path, "ToyBridge")
    execute(run, options(tmp_path))
    state, metadata = read_weights(tmp_path / "runs" / run.id / "student.safetensors")
    assert set(state) == {f"{m}.{p}" for m in ("layer1", "layer2", "fc") for p in ("weight", "bias")}
    assert json.loads(metadata["limbeck"])["id"] == run.id
    raw = (tmp_path / "runs" / run.id / "student.safetensors").read_bytes()
    assert b'"dtype":"F16"' in raw


def test_every_method_starts_from_the_same_student_per_seed(tmp_path):
    hashes = {
        m: execute(toy_run(tmp_path, m), options(tmp_path)).initial_hash for m in ("plain", "ToyMatch", "ToyBridge")
    }
    assert len(set(hashes.values())) == 1
    assert execute(toy_run(tmp_path, "plain", seed=1), options(tmp_path)).initial_hash not in hashes.values()


def test_initial_weights_are_loaded_once_and_not_initialised_again(tmp_path, monkeypatch):
    calls: list[str] = []
    monkeypatch.setattr(ToyNet, "init_weights", lambda self: calls.append("again"), raising=False)
    record = execute(toy_run(tmp_path, "plain"), options(tmp_path))
    monkeypatch.undo()
    assert calls == []  # mmengine's runner would call it, and undo pretrained weights
    assert record.initial_hash == execute(toy_run(tmp_path, "plain"), options(tmp_path, "b")).initial_hash


def test_initial_hash_is_of_the_weights_that_the_config_names(tmp_path):
    from limbeck.engine.distiller import Distiller
    from limbeck.engine.weights import hash_state

    weights = teacher_file(tmp_path, width=2)
    members = {"student": dict(type="trained", model=dict(type="ToyNet", width=2), weights=weights)}
    model = Distiller(members=members, adapter=dict(type="ToyAdapter"))
    assert model.initial_hash == hash_state(read_weights(weights)[0])


def test_weight_zero_run_is_the_plain_run_bit_for_bit(tmp_path):
    states = []
    for method in ("plain", "Zero"):
        run = toy_run(tmp_path, method, **DROPOUT)
        execute(run, options(tmp_path))
        states.append(read_weights(tmp_path / "runs" / run.id / "student.safetensors")[0])
    assert all(torch.equal(states[0][k], states[1][k]) for k in states[0])


def test_same_seed_gives_the_same_file_and_another_seed_does_not(tmp_path):
    a = execute(toy_run(tmp_path, **DROPOUT), options(tmp_path, "a"))
    b = execute(toy_run(tmp_path, **DROPOUT), options(tmp_path, "b"))
    c = execute(toy_run(tmp_path, seed=1, **DROPOUT), options(tmp_path, "c"))
    assert a.student_sha256 == b.student_sha256 != c.student_sha256


@pytest.mark.parametrize("step", [9, 11])
def test_resume_after_kill_equals_a_straight_run(tmp_path, step):
    run = toy_run(tmp_path, "ToyBridge", recipe=RECIPE, **DROPOUT)
    straight = execute(run, options(tmp_path, "straight"))
    code = KILLED.replace("RECIPE", repr(RECIPE)).replace("STUDENT", repr(DROPOUT["student"]))
    code = code.replace("hooks.time.perf_counter.__call__", "hooks.REPORT_SECONDS = 0.0")
    killed = subprocess.run([sys.executable, "-c", code, str(tmp_path), str(step)], capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    folder = tmp_path / "killed" / run.id
    assert last_checkpoint(folder, straight.config_hash) is not None
    assert not record_path(tmp_path / "records", run.id).exists()
    resumed = execute(run, options(tmp_path, "killed"))
    assert resumed.student_sha256 == straight.student_sha256
    assert losses(folder / "log.jsonl") == losses(tmp_path / "straight" / run.id / "log.jsonl")
    assert (resumed.recipe, resumed.metrics) == (straight.recipe, straight.metrics)
    assert resumed.history == straight.history is not None
    assert resumed.cost.samples_seen == straight.cost.samples_seen
    assert resumed.cost.teacher_forwards == straight.cost.teacher_forwards
    assert not list(folder.glob("*.pth"))


def test_checkpoint_holds_bridges_and_no_teacher(tmp_path):
    run = toy_run(tmp_path, "ToyBridge", recipe=RECIPE)
    found = {}

    def progress(stage: str, done: int, total: int) -> None:
        path = last_checkpoint(tmp_path / "runs" / run.id, config_hash(run.model_dump(mode="json")))
        if path is not None and not found:
            found.update(torch.load(path, weights_only=False)["state_dict"])

    execute(run, options(tmp_path, progress=progress))
    assert {"links.0.bridge.weight", "links.0.bank", "members.student.fc.weight"} <= set(found)
    assert not any("teacher" in key for key in found)


def test_damaged_checkpoint_is_named_with_both_hashes(tmp_path):
    run = toy_run(tmp_path, recipe=RECIPE)
    folder = tmp_path / "runs" / run.id
    folder.mkdir(parents=True)
    (folder / "epoch1.pth").write_bytes(b"half a checkpoint")
    digest = config_hash(run.model_dump(mode="json"))
    (folder / "last.json").write_text(json.dumps(dict(file="epoch1.pth", sha256="a" * 64, epoch=1, config_hash=digest)))
    with pytest.raises(CorruptFile, match=r"epoch1.pth: sha256 is \w{12}…, expected aaaaaaaaaaaa"):
        execute(run, options(tmp_path))


@pytest.mark.parametrize("again", [dict(resume=False), dict(drop_other=True)])
def test_unfinished_run_of_another_config_is_not_continued(tmp_path, again):
    run = toy_run(tmp_path, recipe=RECIPE)
    folder = tmp_path / "runs" / run.id
    folder.mkdir(parents=True)
    (folder / "last.json").write_text(
        json.dumps(dict(file="epoch1.pth", sha256="a" * 64, epoch=1, config_hash="b" * 64))
    )
    with pytest.raises(ConfigError, match="another config"):
        execute(run, options(tmp_path))
    assert execute(run, options(tmp_path, **again)) is not None


def test_non_finite_loss_leaves_a_failure_record_and_no_record(tmp_path):
    run = toy_run(tmp_path, "Blow", methods=dict(Blow=dict(links=[dict(type="ToyMatch", mode="blowup")])))
    with pytest.raises(NonFiniteLoss, match=r"iteration 8: toymatch\.loss_match"):
        execute(run, options(tmp_path))
    assert not record_path(tmp_path / "runs-records", run.id).exists()
    failure = json.loads(failure_path(tmp_path / "runs-records", run.id).read_text())
    assert failure["status"] == "failed"
    assert failure["error"] == "NonFiniteLoss"
    assert "sample ids" in failure["message"]


def test_success_removes_an_older_failure_record(tmp_path):
    run = toy_run(tmp_path)
    path = failure_path(tmp_path / "runs-records", run.id)
    path.parent.mkdir(parents=True)
    path.write_text("{}")
    execute(run, options(tmp_path))
    assert not path.exists()


def test_teacher_that_is_off_its_card_stops_the_run(tmp_path):
    run = toy_run(tmp_path)
    run.model["members"]["teacher"]["expected"] = {"top1": 99.0}
    with pytest.raises(TeacherOff, match=r"'teacher' has top1 \d+\.\d\d on validation, its card says 99.00"):
        execute(run, options(tmp_path))
    assert failure_path(tmp_path / "runs-records", run.id).exists()


def test_teacher_with_another_sha256_is_refused_before_training(tmp_path):
    run = toy_run(tmp_path)
    run.model["members"]["teacher"]["sha256"] = "c" * 64
    with pytest.raises(CorruptFile, match="expected cccccccccccc"):
        execute(run, options(tmp_path))


def test_second_run_in_one_folder_is_refused(tmp_path):
    run = toy_run(tmp_path)
    with exclusive(tmp_path / "runs" / run.id), pytest.raises(OutputError, match="another run is writing"):
        execute(run, options(tmp_path))


def test_output_below_a_file_is_refused_before_training(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot write"):
        execute(toy_run(tmp_path), RunOptions(out=tmp_path / "file" / "runs"))


def test_best_val_keeps_the_best_epoch_and_says_so(tmp_path):
    recipe = dict(RECIPE, selection="best_val", epochs=6)
    run = toy_run(tmp_path, recipe=recipe)
    record = execute(run, options(tmp_path))
    assert record.recipe.selection == "best_val"
    lines = (tmp_path / "runs" / run.id / "log.jsonl").read_text().splitlines()
    values = [json.loads(line)["val"]["top1"] for line in lines if "val" in json.loads(line)]
    assert len(values) == 6
    assert record.val_metrics["top1"] == pytest.approx(max(values), abs=100 / 48)  # half precision may flip one sample


def test_cached_run_equals_the_uncached_run(tmp_path):
    data = dict(toy_run(tmp_path).data.model_dump(), train=dict(type="ToyData", split="train", views=2))
    plain = toy_run(tmp_path, "ToyBridge", data=data)
    cached = toy_run(tmp_path, "ToyBridge", data=data, cache=dict(dtype="float32"))
    a = execute(plain, options(tmp_path, "a"))
    cold = execute(cached, options(tmp_path, "b", cache=tmp_path / "cache"))
    warm = execute(cached, options(tmp_path, "c", cache=tmp_path / "cache"))
    tensors = [read_weights(tmp_path / n / plain.id / "student.safetensors")[0] for n in "abc"]
    for key in tensors[0]:
        assert torch.equal(tensors[0][key], tensors[1][key])
        assert torch.equal(tensors[1][key], tensors[2][key])
    assert (a.cost.teacher_forwards, cold.cost.teacher_forwards, warm.cost.teacher_forwards) == (192, 96, 0)


def test_cache_in_half_precision_is_the_same_cold_and_warm(tmp_path):
    data = dict(toy_run(tmp_path).data.model_dump(), train=dict(type="ToyData", split="train", views=1))
    run = toy_run(tmp_path, data=data, cache=dict(dtype="float16"))
    cold = execute(run, options(tmp_path, "a", cache=tmp_path / "cache"))
    warm = execute(run, options(tmp_path, "b", cache=tmp_path / "cache"))
    assert cold.student_sha256 == warm.student_sha256


def test_cache_with_another_teacher_is_not_read(tmp_path):
    data = dict(toy_run(tmp_path).data.model_dump(), train=dict(type="ToyData", split="train", views=1))
    run = toy_run(tmp_path, data=data, cache=dict(dtype="float16"))
    execute(run, options(tmp_path, "a", cache=tmp_path / "cache"))
    path = Path(run.model["members"]["teacher"]["weights"])
    from limbeck.engine.weights import save_weights

    state, _ = read_weights(path)
    state["fc.bias"] += 1.0
    save_weights(path, state, metadata={})
    again = execute(run, options(tmp_path, "b", cache=tmp_path / "cache"))
    assert again.cost.teacher_forwards == 48
    kept = list((tmp_path / "cache").iterdir())  # of each teacher its taps, and its predictions on the test split
    assert sorted(path.is_dir() for path in kept) == [False, False, True, True]


def test_cache_without_a_fixed_pool_of_views_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="views=N"):
        execute(toy_run(tmp_path, cache=dict(dtype="float16")), options(tmp_path, cache=tmp_path / "cache"))


def test_record_config_runs_again_as_it_stands(tmp_path):
    record = execute(toy_run(tmp_path), options(tmp_path, "a"))
    again = execute(parse(RunConfig, record.config, "record"), options(tmp_path, "b"))
    assert again.student_sha256 == record.student_sha256


def test_a_run_of_no_epochs_evaluates_what_is_there(tmp_path):
    recipe = dict(RECIPE, epochs=0, save_dtype="float32")
    run = toy_run(tmp_path, "teacher", recipe=recipe)
    record = execute(run, options(tmp_path))
    assert (record.recipe.epochs, record.recipe.steps, record.recipe.batch_size) == (0, 0, 0)
    assert (record.cost.samples_seen, record.recipe.learning_rate_max) == (0, 0.0)
    state, _ = read_weights(tmp_path / "runs" / run.id / "student.safetensors")
    assert hash_state(state) == record.initial_hash
    again = evaluate_weights(record.config, tmp_path / "runs" / run.id / "student.safetensors")
    assert again["top1"] == record.metrics["top1"]


def test_links_without_epochs_are_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"ToyMatch has links, and recipe\.epochs=0 trains nothing"):
        execute(toy_run(tmp_path, recipe=dict(RECIPE, epochs=0)), options(tmp_path))
