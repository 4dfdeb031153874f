"""Halving as a loop of runs: which rounds, what each is taught by, one record of all, and going on after a stop."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

diffusers = pytest.importorskip("diffusers", reason="needs the 'multimodal' extra")

from limbeck.engine.config import RunConfig  # noqa: E402
from limbeck.engine.evaluate import evaluate_weights  # noqa: E402
from limbeck.engine.record import config_hash, read_record, record_path  # noqa: E402
from limbeck.engine.registry import LOOPS, MODELS  # noqa: E402
from limbeck.engine.run import execute  # noqa: E402
from limbeck.engine.saved_predictions import saved_figures  # noqa: E402
from limbeck.engine.weights import hash_state, load_into, read_weights, sha256_file  # noqa: E402
from limbeck.errors import ConfigError  # noqa: E402
from limbeck.multimodal.diffusion import loops  # noqa: E402
from limbeck.multimodal.diffusion.loops import Halving  # noqa: E402
from limbeck.multimodal.diffusion.samplers import noise  # noqa: E402
from tests.multimodal.diffusion.toys import options, toy_config, toy_pair, toy_run  # noqa: E402


def halving(folder: Path, start: int, steps: int, epochs: int = 2) -> RunConfig:
    """The PD run of the toy pair from `start` steps to `steps`."""
    value = toy_pair().model_dump()
    value["methods"]["PD"] |= dict(student=toy_config(2, steps=steps), loop=dict(type="Halving", start=start))
    value["methods"]["PD"]["links"][0]["steps"] = steps
    value["recipe"]["epochs"] = epochs
    return toy_run(folder, "PD", **{key: value[key] for key in ("methods", "recipe")})


@pytest.mark.parametrize(
    ("start", "last", "want"),
    [(64, 1, [32, 16, 8, 4, 2, 1]), (16, 2, [8, 4, 2]), (2, 1, [1]), (12, 3, [6, 3])],
)
def test_rounds_halve_down_to_the_students_steps(tmp_path, start, last, want):
    loop: Any = LOOPS.make(dict(type="Halving", start=start))
    config = halving(tmp_path, 8, 2)
    config.deployed["sampler"]["steps"] = last
    assert loop.rounds(config) == want


@pytest.mark.parametrize(("start", "last"), [(6, 2), (4, 4), (2, 4), (0, 1), (3, 1)])
def test_steps_that_halving_does_not_lead_to_are_refused(tmp_path, start, last):
    loop: Any = LOOPS.make(dict(type="Halving", start=start))
    config = halving(tmp_path, 8, 2)
    config.deployed["sampler"]["steps"] = last
    with pytest.raises(
        ConfigError, match=f"halving {start} steps does not lead to the student's {last}; set loop.start"
    ):
        loop.rounds(config)


def test_fewer_epochs_than_rounds_are_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"1 epochs are fewer than its 2 halvings; set recipe.epochs to 2 or more"):
        execute(halving(tmp_path, 8, 2, epochs=1), options(tmp_path))


@pytest.mark.parametrize(("epochs", "rounds", "want"), [(60, 4, [15] * 4), (5, 4, [1, 1, 1, 2]), (5, 3, [1, 2, 2])])
def test_epochs_are_split_evenly_and_the_last_rounds_get_what_is_left(tmp_path, monkeypatch, epochs, rounds, want):
    ran: list[int] = []
    monkeypatch.setattr(loops, "execute", lambda run, _: ran.append(run.recipe.epochs) or "record")
    config, loop = halving(tmp_path, 8, 2, epochs=epochs), Halving(8)
    for number in range(rounds):
        before = [SimpleNamespace(student_sha256="a" * 64)]
        loop.round(config, options(tmp_path), tmp_path, number, 2, before, rounds)  # type: ignore[arg-type]
    assert ran == want


def inner(folder: Path, config: RunConfig, name: str = "runs") -> list[Any]:
    """The rounds' own records."""
    place = folder / name / config.id / "rounds"
    return [read_record(record_path(p / "records", config.id)) for p in sorted(place.iterdir())]


def student(folder: Path, config: RunConfig, name: str = "runs") -> Path:
    return folder / name / config.id / "student.safetensors"


def test_every_round_learns_from_the_one_before(tmp_path):
    config = halving(tmp_path, 8, 2)
    record = execute(config, options(tmp_path))
    assert record == read_record(record_path(tmp_path / "runs-records", config.id))
    first, second = inner(tmp_path, config)
    links = [r.config["model"]["links"][0] for r in (first, second)]
    assert [(link["steps"], link["guidance"]) for link in links] == [(4, 1.5), (2, 1.0)]
    teachers = [r.config["model"]["members"]["teacher"] for r in (first, second)]
    assert teachers[0] == config.model["members"]["teacher"]
    assert (teachers[1]["sha256"], teachers[1]["model"]["sampler"]["steps"]) == (first.student_sha256, 4)
    assert [r.config["recipe"]["epochs"] for r in (first, second)] == [1, 1]
    assert [r.metrics["calls"] for r in (first, second)] == [4, 2]
    # Each starts as its teacher, and no config names a folder.
    assert str(tmp_path / "runs") not in json.dumps(second.config)
    taught = MODELS.make(toy_config(1))
    load_into(taught, tmp_path / "teacher.safetensors")
    assert first.initial_hash == hash_state(taught.state_dict())
    load_into(taught, tmp_path / "runs" / config.id / "rounds" / "0" / "runs" / config.id / "student.safetensors")
    assert second.initial_hash == hash_state(taught.state_dict())
    assert first.recipe.learning_rate_first == second.recipe.learning_rate_first


def test_record_is_the_last_rounds_with_the_cost_and_teacher_of_all(tmp_path):
    config = halving(tmp_path, 8, 2)
    record = execute(config, options(tmp_path))
    first, second = inner(tmp_path, config)
    assert record.config == config.model_dump(mode="json")
    assert record.config_hash == config_hash(record.config)
    assert record.cost.samples_seen == 2 * 24
    assert record.cost.teacher_forwards == 2 * 2 * 24  # two teacher calls a sample
    assert record.cost.train_seconds == pytest.approx(first.cost.train_seconds + second.cost.train_seconds)
    assert (record.recipe.epochs, record.recipe.steps) == (2, 6)
    assert record.initial_hash == first.initial_hash
    assert record.teacher == first.teacher
    assert record.student_sha256 == second.student_sha256
    assert record.metrics["calls"] == 2
    assert evaluate_weights(record.config, student(tmp_path, config)) == pytest.approx(
        {k: v for k, v in record.metrics.items() if k != "mse_to_teacher"}
    )
    # Beside the run's own teacher, not the student of four steps that taught it.
    taught, last = MODELS.make(toy_config(1, steps=8, guidance=1.5)), MODELS.make(toy_config(2, steps=2))
    load_into(taught, tmp_path / "teacher.safetensors")
    load_into(last, student(tmp_path, config))
    start, labels = noise(10, (1, 4, 4), 2), torch.arange(10)
    images = [model.from_noise(start, labels).images.double() for model in (taught, last)]
    gap = (images[0] - images[1]).square().mean().item()
    assert record.metrics["mse_to_teacher"] == pytest.approx(gap, rel=1e-4)
    assert second.metrics["mse_to_teacher"] != pytest.approx(gap, rel=1e-2)
    predictions_are_saved_once(tmp_path, config, record)
    assert len(list((tmp_path / "runs").rglob("predictions*"))) == 1


def predictions_are_saved_once(folder, config, record):
    """Of the last student, with those of the run's own teacher."""
    file = student(folder, config).with_name("predictions.safetensors")
    assert record.predictions_sha256 == sha256_file(file)
    assert saved_figures(record.config, file)[0] == pytest.approx(record.metrics, rel=1e-12)


def test_one_round_alone_hands_its_predictions_on(tmp_path):
    config = halving(tmp_path, 4, 2, epochs=1)
    record = execute(config, options(tmp_path))
    predictions_are_saved_once(tmp_path, config, record)
    without = execute(config, options(tmp_path, "without", predictions=False))
    assert without.predictions_sha256 is None
    assert without.metrics == record.metrics
    assert not list((tmp_path / "without").rglob("predictions*"))


class Interrupted(Exception):
    pass


def test_interrupted_between_rounds_goes_on_to_the_same_student(tmp_path):
    config = halving(tmp_path, 8, 2)
    straight = execute(config, options(tmp_path, "straight"))

    def stop(stage: str, done: int, total: int) -> None:
        if stage.startswith("round 2"):
            raise Interrupted

    with pytest.raises(Interrupted):
        execute(config, options(tmp_path, "broken", progress=stop))
    said: list[tuple[str, int, int]] = []
    resumed = execute(config, options(tmp_path, "broken", progress=lambda *step: said.append(step)))
    assert {stage.partition(":")[0] for stage, *_ in said} == {"round 2"}  # the first is not repeated
    assert all(done > total // 2 for _, done, total in said)
    assert resumed.student_sha256 == straight.student_sha256
    assert resumed.metrics == straight.metrics
    assert (resumed.cost.samples_seen, resumed.cost.teacher_forwards) == (48, 96)
    a, b = (read_weights(student(tmp_path, config, name))[0] for name in ("straight", "broken"))
    assert all(torch.equal(a[key], b[key]) for key in a)


def test_rounds_of_another_config_are_made_anew(tmp_path):
    execute(halving(tmp_path, 8, 2), options(tmp_path))
    other = halving(tmp_path, 8, 2)
    other.model["links"][0]["loss_weight"] = "constant"
    record = execute(other, options(tmp_path))
    assert {r.config["model"]["links"][0]["loss_weight"] for r in inner(tmp_path, other)} == {"constant"}
    assert record.config_hash == config_hash(other.model_dump(mode="json"))
