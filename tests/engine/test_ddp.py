"""Two processes give what one process gives, and no frozen member is wrapped."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from limbeck.engine.config import RunConfig, parse
from limbeck.engine.record import read_record
from limbeck.engine.run import RunOptions, execute
from limbeck.engine.weights import read_weights
from limbeck.errors import ConfigError
from tests.engine.toys import teacher_file, toy_pair, toy_run

ROOT = Path(__file__).parents[2]


def config_file(folder: Path) -> Path:
    pair = toy_pair(recipe=dict(epochs=2, optimizer=dict(type="SGD", lr=0.05, momentum=0.9), save_dtype="float32"))
    lines = ["custom_imports = dict(imports=['tests.engine.toys'])"]
    lines += [f"{key} = {value!r}" for key, value in pair.model_dump(exclude_defaults=True).items()]
    path = folder / "toy.py"
    path.write_text("\n".join(lines))
    return path


def train(folder: Path, out: str, launch: list[str], *extra: str) -> Path:
    command = [*launch, "-m", "limbeck", "train", str(config_file(folder)), "--method", "ToyBridge", "--device", "cpu"]
    command += ["--out", str(folder / out), "--teacher", teacher_file(folder), "--threads", "1", *extra]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=env, cwd=folder, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder / out


def test_two_processes_equal_one_with_the_same_global_batch(tmp_path):
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", "29577"]
    one = train(tmp_path, "one", [sys.executable])
    two = train(tmp_path, "two", torchrun, "--launcher", "pytorch")
    identity = toy_run(tmp_path, "ToyBridge").id
    a, b = (read_weights(f / "runs" / identity / "student.safetensors")[0] for f in (one, two))
    for key in a:
        torch.testing.assert_close(a[key], b[key], rtol=1e-4, atol=1e-6)
    x, y = (read_record(f / "records" / f"{identity}.json") for f in (one, two))
    assert (x.recipe, x.cost.samples_seen, x.cost.teacher_forwards) == (
        y.recipe,
        y.cost.samples_seen,
        y.cost.teacher_forwards,
    )
    assert (x.environment.world_size, y.environment.world_size) == (1, 2)
    assert x.initial_hash == y.initial_hash
    assert x.history is not None
    assert y.history is not None
    assert (x.history.epochs, x.history.learning_rate) == (y.history.epochs, y.history.learning_rate)
    assert (x.history.val_epochs, x.history.val_metrics) == (y.history.val_epochs, y.history.val_metrics)
    assert set(x.history.losses) == set(y.history.losses) >= {"loss", "toybridge.loss_hint"}
    for name, values in x.history.losses.items():  # the mean of both halves of every batch
        assert y.history.losses[name] == pytest.approx(values, rel=1e-4)
    assert len(list((two / "records").rglob("*.json"))) == 1
    start = [json.loads((f / "runs" / identity / "log.jsonl").read_text().splitlines()[0])["epoch"] for f in (one, two)]
    assert start == [1, 1]


def test_ddp_wraps_and_broadcasts_nothing_frozen(tmp_path):
    code = """
import sys
import torch, torch.distributed as dist
from pathlib import Path
from limbeck.engine.distiller import Distiller
from limbeck.engine.runner import DistillRunner
from tests.engine.toys import toy_run
run = toy_run(Path(sys.argv[1]), "ToyBridge")
dist.init_process_group("gloo", init_method="file://" + sys.argv[1] + "/rendezvous", rank=0, world_size=1)
model = Distiller(**{k: v for k, v in run.model.items() if k != "type"})
runner = object.__new__(DistillRunner)
runner._distributed = True
wrapped = runner.wrap_model(None, model)
inside = {id(p) for p in (*wrapped.parameters(), *wrapped.buffers())}
assert not any(id(p) in inside for p in model.frozen["teacher"].parameters())
assert wrapped.broadcast_buffers is False
print("ok")
"""
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, env=env, timeout=120
    )
    assert done.stdout.strip() == "ok", done.stderr[-2000:]


def test_pytorch_launcher_without_torchrun_is_explained(tmp_path, monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(ConfigError, match="torchrun --nproc-per-node"):
        execute(toy_run(tmp_path), RunOptions(out=tmp_path / "runs", launcher="pytorch"))


def test_batch_that_cannot_be_split_is_refused(tmp_path):
    from limbeck.engine.run import train_loader

    run = toy_run(tmp_path)
    odd = parse(RunConfig, {**run.model_dump(), "data": {**run.data.model_dump(), "batch_size": 13}}, "test")
    with pytest.raises(ConfigError, match="cannot be split over 2"):
        train_loader(odd, world=2)
