"""Active learning as a loop of runs: its rounds, its record, resuming, and labels that stay hidden."""

from __future__ import annotations

import json
from contextlib import nullcontext
from functools import wraps
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from limbeck.engine.config import PairConfig, RunConfig, parse
from limbeck.engine.evaluate import evaluate_weights
from limbeck.engine.record import read_record, record_path
from limbeck.engine.registry import STRATEGIES
from limbeck.engine.run import RunOptions, execute
from limbeck.engine.saved_predictions import saved_figures
from limbeck.engine.selection import Pool, Strategy
from limbeck.engine.weights import read_weights, sha256_file
from limbeck.errors import ConfigError, UnknownName
from limbeck.multimodal.vlm import loops
from limbeck.multimodal.vlm.loops import whole
from limbeck.multimodal.vlm.rounds import Rounds
from tests.multimodal.vlm.test_run import TONES, options, tones_pair, tones_run
from tests.multimodal.vlm.toys import KNOWN, Tones

LOOP: dict[str, Any] = dict(type="ActiveLearning", strategy=dict(type="PCoreSet"), rounds=2, budget=4)


def active(folder: Path, method: str = "DHO", seed: int = 0, loop: dict[str, Any] = LOOP, **data: Any) -> RunConfig:
    train = TONES["train"] | data
    recipe = tones_pair().recipe.model_dump() | dict(epochs=1)
    return tones_run(folder, method, seed, loop=loop, data=TONES | dict(train=train), recipe=recipe)


def chosen(folder: Path, config: RunConfig, number: int, name: str = "runs") -> list[int]:
    path = folder / name / config.id / "rounds" / str(number) / "asked.json"
    return json.loads(path.read_text())["ids"]


def test_loop_chooses_reveals_and_trains_anew(tmp_path):
    config = active(tmp_path)
    record = execute(config, options(tmp_path))
    assert record == read_record(record_path(tmp_path / "runs-records", config.id))
    picks = [chosen(tmp_path, config, n) for n in (1, 2)]
    assert [len(p) for p in picks] == [4, 4]
    assert len({*KNOWN, *picks[0], *picks[1]}) == len(KNOWN) + 8
    rounds = Rounds(config, options(tmp_path), tmp_path / "runs" / config.id)
    truth = np.arange(60) % 3
    for number, count in enumerate((6, 10, 14)):
        ids, labels = rounds.labels(number) or ((), ())
        assert len(ids) == count
        assert np.array_equal(labels, truth[ids])
    inner = [rounds.record(n) for n in range(3)]
    assert len({r.initial_hash for r in inner if r}) == 1
    assert [r.value for r in inner if r] == [record.metrics[f"top1@{n}"] for n in (6, 10, 14)]
    assert record.student_sha256 == inner[2].student_sha256


def test_record_of_a_loop_adds_up_its_rounds(tmp_path):
    config = active(tmp_path)
    record = execute(config, options(tmp_path))
    rounds = Rounds(config, options(tmp_path), tmp_path / "runs" / config.id)
    inner = [rounds.record(n) for n in range(3)]
    accuracy = [r.metrics["top1"] for r in inner]
    assert record.metrics["top1"] == accuracy[2]
    assert record.metrics["aulc"] == pytest.approx((accuracy[0] + 2 * accuracy[1] + accuracy[2]) / 4)
    assert record.metrics["covered@6"] == 3
    assert record.cost.samples_seen == sum(r.cost.samples_seen for r in inner)
    assert record.cost.teacher_forwards == sum(r.cost.teacher_forwards for r in inner)
    assert record.config["loop"] == LOOP
    assert record.data == inner[0].data
    assert record.history == inner[2].history is not None
    found = evaluate_weights(record.config, tmp_path / "runs" / config.id / "student.safetensors")
    assert found["top1"] == record.metrics["top1"]
    file = tmp_path / "runs" / config.id / "predictions.safetensors"
    assert record.predictions_sha256 == sha256_file(file)
    again = saved_figures(record.config, file)[0]
    assert again == {name: record.metrics[name] for name in inner[2].metrics}
    assert len(list((tmp_path / "runs").rglob("predictions*"))) == 2  # the last round's, and its copy
    unequal = whole(config, inner, [6, 8, 14], [3.0, 3.0, 3.0]).metrics["aulc"]  # a trapezoid is as wide as its labels
    assert unequal == pytest.approx((2 * (accuracy[0] + accuracy[1]) + 6 * (accuracy[1] + accuracy[2])) / 16)


def test_rounds_share_what_they_decoded_and_no_figure_changes(tmp_path, monkeypatch):
    built: list[tuple[str, str]] = []
    whole_init = Tones.__init__

    @wraps(whole_init)
    def counted(self: Tones, split: str, *args: Any, **options: Any) -> None:
        built.append((split, json.dumps(options, sort_keys=True)))
        whole_init(self, split, *args, **options)

    monkeypatch.setattr(Tones, "__init__", counted)
    config = active(tmp_path, of=dict(type="Tones", augment=dict(pad=1, flip=True), views=0))
    shared = execute(config, options(tmp_path))
    assert len(built) == len(set(built)) == 4  # train, train without augmentation, val, test
    built.clear()
    with monkeypatch.context() as patched:
        patched.setattr(loops, "shared_data", nullcontext)
        anew = execute(config, options(tmp_path, "anew"))
    assert len(built) > 4
    assert [chosen(tmp_path, config, n) for n in (1, 2)] == [chosen(tmp_path, config, n, "anew") for n in (1, 2)]
    for field in ("metrics", "val_metrics", "per_class", "data", "student_sha256", "initial_hash", "config_hash"):
        assert getattr(shared, field) == getattr(anew, field), field


class Interrupted(Exception):
    pass


def test_interrupted_loop_goes_on_with_the_same_choices(tmp_path):
    config = active(tmp_path)
    straight = execute(config, options(tmp_path, "straight"))

    def stop(stage: str, done: int, total: int) -> None:
        if stage.startswith("round 3"):
            raise Interrupted

    with pytest.raises(Interrupted):
        execute(config, options(tmp_path, "broken", progress=stop))
    trained: list[str] = []
    resumed = execute(config, options(tmp_path, "broken", progress=lambda stage, *_: trained.append(stage)))
    assert {stage.partition(":")[0] for stage in trained} == {"round 3"}  # the first two are not repeated
    for number in (1, 2):
        assert chosen(tmp_path, config, number, "straight") == chosen(tmp_path, config, number, "broken")
    assert resumed.student_sha256 == straight.student_sha256


def test_progress_says_how_far_a_choice_is(tmp_path):
    config = active(tmp_path, loop=LOOP | dict(rounds=1))
    said: list[tuple[str, int, int]] = []
    execute(config, options(tmp_path, progress=lambda *step: said.append(step)))
    picks = [step for step in said if step[0] == "round 2: choosing, picks"]
    assert picks == [("round 2: choosing, picks", n, 4) for n in (1, 2, 3, 4)]
    images = [step for step in said if step[0] == "round 2: choosing, images"]
    assert images[-1] == ("round 2: choosing, images", 54, 54)


def test_poisoned_labels_reach_the_training_when_they_are_revealed_and_not_before(tmp_path):
    loop = LOOP | dict(rounds=1)
    configs = [active(tmp_path, loop=loop, of=dict(type="Tones", poison=poison)) for poison in (None, 3)]
    found = []
    for config, name in zip(configs, ("clean", "poisoned")):
        record = execute(config, options(tmp_path, name))
        rounds = Rounds(config, options(tmp_path, name), tmp_path / name / config.id)
        student, _ = read_weights(rounds.weights(0))
        found.append((record, rounds.labels(1), student, chosen(tmp_path, config, 1, name)))
    (one, clean, first, ids), (two, poisoned, second, others) = found
    assert ids == others
    assert set(first) == set(second)
    assert all(first[key].equal(second[key]) for key in first)
    assert np.array_equal(clean[0], poisoned[0])
    assert (clean[1] != poisoned[1]).any()  # the poison is real
    assert one.metrics["top1@6"] == two.metrics["top1@6"]
    last = [
        read_weights(tmp_path / name / c.id / "student.safetensors")[0]
        for c, name in zip(configs, ("clean", "poisoned"))
    ]
    assert not all(last[0][key].equal(last[1][key]) for key in last[0])


def test_plain_student_can_choose_too_and_its_strategy_may_differ_by_method(tmp_path):
    pair = tones_pair(loop=LOOP).model_dump()
    pair["methods"]["Entropy"] = dict(loop=dict(strategy=dict(type="Entropy")))
    parsed = parse(PairConfig, pair, "test")
    from limbeck.engine.config import expand

    run = expand(parsed, "Entropy", 0)
    assert run.loop == LOOP | dict(strategy=dict(type="Entropy"))
    assert run.model["links"] == []
    assert expand(parsed, "plain", 0).loop == LOOP
    assert expand(parsed, "teacher", 0).loop == {}
    small = run.model_copy(update=dict(recipe=run.recipe.model_copy(update=dict(epochs=1))))
    record = execute(small, options(tmp_path))
    assert "aulc" in record.metrics
    assert record.teacher_record is None


def test_passes_make_updates_grow_with_the_labels(tmp_path):
    config = active(tmp_path, loop=LOOP | dict(passes=8))
    execute(config, options(tmp_path))
    rounds = Rounds(config, options(tmp_path), tmp_path / "runs" / config.id, passes=8)
    assert [rounds.record(n).recipe.steps for n in range(3)] == [8 * n // 4 for n in (6, 10, 14)]


def test_bad_loops_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="2 rounds of 40 images are more than the 54 unlabelled ones"):
        execute(active(tmp_path, loop=LOOP | dict(budget=40)), options(tmp_path))
    with pytest.raises(ConfigError, match="rounds of 1 or more"):
        execute(active(tmp_path, loop=LOOP | dict(rounds=0)), options(tmp_path))
    with pytest.raises(UnknownName, match="PCoreSet"):
        execute(active(tmp_path, loop=LOOP | dict(strategy=dict(type="PCoreset"))), options(tmp_path))
    plain = active(tmp_path)
    data = plain.data.model_copy(update=dict(train=dict(type="Tones", split="train"), unlabelled_batch_size=0, steps=0))
    with pytest.raises(ConfigError, match="PartlyLabelled"):
        execute(plain.model_copy(update=dict(data=data)), options(tmp_path))


@STRATEGIES.register_module(force=True)
class _Lowest(Strategy):
    """The lowest ids, whatever the student says."""

    def pick(self, pool: Pool, budget: int, rng: Any, progress: Any) -> np.ndarray:
        return pool.unlabelled[:budget]


def test_strategy_without_needs_never_asks_the_student(tmp_path, monkeypatch):
    from limbeck.multimodal.vlm import rounds as module

    monkeypatch.setattr(module, "tables_of", None)  # calling it would fail
    config = active(tmp_path, loop=LOOP | dict(strategy=dict(type="_Lowest")))
    execute(config, options(tmp_path))
    assert chosen(tmp_path, config, 1) == [1, 2, 3, 4]
    assert chosen(tmp_path, config, 2) == [6, 7, 8, 9]


def test_large_tables_go_to_a_file_in_half_precision(tmp_path, monkeypatch):
    from limbeck.multimodal.vlm import _tables as module

    config = active(tmp_path, loop=LOOP | dict(rounds=1))
    execute(config, options(tmp_path))
    rounds = Rounds(config, options(tmp_path), tmp_path / "runs" / config.id)
    needs = frozenset({"probabilities", "features"})
    memory = rounds.pool(0, needs)
    monkeypatch.setattr(module, "IN_MEMORY", 100)
    file = rounds.pool(0, needs)
    for name in needs:
        kept, stored = getattr(memory, name), getattr(file, name)
        assert isinstance(stored, np.memmap)
        assert stored.dtype == np.float16
        assert np.allclose(kept, stored, atol=2e-3 * np.abs(kept).max())
    assert np.allclose(memory.probabilities.sum(1), 1, atol=1e-5)


def test_options_of_a_run_find_the_teacher_elsewhere(tmp_path):
    run = active(tmp_path)
    assert RunOptions(out=tmp_path).teachers is None
    assert execute(run, options(tmp_path, teachers=tmp_path / "teachers")) is not None
