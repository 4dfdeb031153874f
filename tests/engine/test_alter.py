"""Links that change the images: one batch for every member and loss, by random numbers of link, step and seed alone."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import limbeck.engine.hooks as hooks
from limbeck.engine.adapter import Batch
from limbeck.engine.distiller import Distiller
from limbeck.engine.method import LinkInputs
from limbeck.engine.registry import METHODS
from limbeck.engine.run import RunOptions, execute
from limbeck.engine.weights import read_weights
from limbeck.errors import ConfigError
from tests.engine.test_distiller import batch, make
from tests.engine.toys import ToyMix, toy_pair, toy_run

DROPOUT = dict(type="ToyNet", width=2, dropout=0.5, norm=True)
MIX = dict(methods=dict(Mix=dict(links=[dict(type="ToyMix")])))


@METHODS.register_module()
class ToyNoise(ToyMix):
    """ToyMix that says what it drew and saw."""

    altered: list[Tensor] = []
    seen: list[LinkInputs] = []

    def alter(self, batch: Batch, generator: torch.Generator) -> Batch:
        self.altered.append(torch.rand(4, generator=torch.Generator().set_state(generator.get_state())))
        return super().alter(batch, generator)

    def forward(self, batch: LinkInputs) -> dict[str, Tensor]:
        self.seen.append(batch)
        return super().forward(batch)


@pytest.fixture(autouse=True)
def _forget() -> None:
    ToyNoise.altered.clear()
    ToyNoise.seen.clear()


def mixed(model: Distiller, data: Batch, index: int = 0) -> Batch:
    """What link `index` makes of a batch in the step at which the model is."""
    return ToyMix().alter(data, torch.Generator().manual_seed(model._draw(index)))


# --- who sees it ---


def test_altered_batch_is_what_teacher_student_and_task_loss_see(tmp_path):
    model, data = make(tmp_path, [dict(type="ToyNoise")]), batch()
    pixels, labels = data.inputs.clone(), data.targets.clone()
    expected = mixed(model, batch())
    assert not torch.equal(expected.inputs, pixels)
    terms = model.loss(data)
    student, teacher = model.deploy(expected.inputs), model.frozen["teacher"](expected.inputs)
    (seen,) = ToyNoise.seen
    torch.testing.assert_close(seen.student[0], student)
    torch.testing.assert_close(seen.teacher[0], teacher)
    assert torch.equal(seen.targets, expected.targets)
    assert seen.ids is None
    naive = -(expected.targets * student.log_softmax(1)).sum(1).mean()
    torch.testing.assert_close(terms["student.loss_ce"], naive)
    torch.testing.assert_close(terms["toynoise.loss_match"], ((student - teacher) ** 2).mean())
    assert torch.equal(data.inputs, pixels)  # the loader's own batch stays
    assert torch.equal(data.targets, labels)


def test_teacher_of_another_normalisation_sees_the_same_images(tmp_path):
    weights = make(tmp_path).specs["teacher"].weights
    model = make(
        tmp_path, [dict(type="ToyNoise")], teacher=dict(model=dict(type="ToyNet", width=4, shift=1.5), weights=weights)
    )
    expected = mixed(model, batch())
    model.loss(batch())
    torch.testing.assert_close(ToyNoise.seen[0].teacher[0], model.frozen["teacher"](expected.inputs + 1.5))


def test_other_links_see_it_too_and_two_of_them_alter_in_turn(tmp_path):
    model = make(tmp_path, [dict(type="ToyNoise"), dict(type="ToyNoise"), dict(type="ToyMatch")])
    first = mixed(model, batch())
    order = torch.randperm(12, generator=torch.Generator().manual_seed(model._draw(1)))
    inputs = 0.6 * first.inputs + 0.4 * first.inputs[order]

    def labels_too(self: ToyMix, data: Batch, generator: torch.Generator) -> Batch:
        order = torch.randperm(len(data.inputs), generator=generator)
        targets = F.one_hot(data.targets, 3).float() if data.targets.ndim == 1 else data.targets
        return Batch(*(0.6 * x + 0.4 * x[order] for x in (data.inputs, targets)))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ToyNoise, "alter", labels_too)
        terms = model.loss(batch())
    student, teacher = model.deploy(inputs), model.frozen["teacher"](inputs)
    torch.testing.assert_close(terms["toymatch2.loss_match"], ((student - teacher) ** 2).mean())
    torch.testing.assert_close(ToyNoise.seen[0].student[0], ToyNoise.seen[1].student[0])


def test_link_that_its_schedule_leaves_out_alters_nothing(tmp_path):
    model = make(tmp_path, [dict(type="ToyNoise", schedule=dict(type="warmup", end=0.5))])
    plain = make(tmp_path, [])
    assert torch.equal(model.loss(batch())["student.loss_ce"], plain.loss(batch())["student.loss_ce"])
    model.progress = 0.25
    assert not torch.equal(model.loss(batch())["student.loss_ce"], plain.loss(batch())["student.loss_ce"])


def test_weight_zero_is_the_plain_run_bit_for_bit(tmp_path):
    methods = dict(Zero=dict(links=[dict(type="ToyNoise", weight=0.0)]), Mix=dict(links=[dict(type="ToyNoise")]))
    states = {}
    for name in ("plain", "Zero", "Mix"):
        run = toy_run(tmp_path, name, student=DROPOUT, methods=methods)
        execute(run, RunOptions(out=tmp_path / "runs", threads=1))
        states[name] = read_weights(tmp_path / "runs" / run.id / "student.safetensors")[0]
        assert bool(ToyNoise.altered) == (name == "Mix")
    assert all(torch.equal(states["plain"][k], states["Zero"][k]) for k in states["plain"])
    assert not all(torch.equal(states["plain"][k], states["Mix"][k]) for k in states["plain"])


# --- random numbers ---


def test_draws_differ_between_links_steps_and_seeds_and_are_the_same_again(tmp_path):
    def drawn() -> dict[tuple[int, int, int], tuple[float, ...]]:
        found = {}
        for seed in (0, 1):
            model = make(tmp_path, [dict(type="ToyNoise"), dict(type="ToyMatch")], seed=seed)
            for step in (0, 1, 11):
                model.iteration = step
                for index, link in enumerate(model.methods()):
                    inputs = model._link_inputs(
                        index, link, {n: {"logits": torch.zeros(1)} for n in model.specs}, batch()
                    )
                    found[seed, index, step] = tuple(torch.rand(4, generator=inputs.generator()).tolist())
                    again = torch.rand(4, generator=inputs.generator())
                    assert tuple(again.tolist()) == found[seed, index, step]
        return found

    first = drawn()
    assert len(set(first.values())) == len(first) == 12
    assert drawn() == first


def test_draws_leave_the_global_generator_alone(tmp_path):
    model = make(tmp_path, [dict(type="ToyNoise")])
    torch.manual_seed(3)
    model.loss(batch())
    assert torch.equal(torch.rand(2), torch.rand(2, generator=torch.Generator().manual_seed(3)))


def test_resumed_run_alters_as_a_straight_one(tmp_path, monkeypatch):
    class Stopped(Exception):
        pass

    def stop(stage: str, done: int, total: int) -> None:
        if done == 6:
            raise Stopped

    monkeypatch.setattr(hooks, "REPORT_SECONDS", 0.0)
    run = toy_run(tmp_path, "Mix", student=DROPOUT, methods=dict(Mix=dict(links=[dict(type="ToyNoise")])))
    straight = execute(run, RunOptions(out=tmp_path / "a", threads=1))
    expected = torch.stack(ToyNoise.altered)
    assert len({tuple(row.tolist()) for row in expected}) == 16  # each step its own
    ToyNoise.altered.clear()
    with suppress(Stopped):
        execute(run, RunOptions(out=tmp_path / "b", threads=1, progress=stop))
    assert torch.equal(torch.stack(ToyNoise.altered), expected[:6])
    ToyNoise.altered.clear()
    resumed = execute(run, RunOptions(out=tmp_path / "b", threads=1))
    assert torch.equal(torch.stack(ToyNoise.altered), expected[4:])
    assert straight is not None
    assert resumed is not None
    assert resumed.student_sha256 == straight.student_sha256


# --- the teacher cache ---


def cached(folder: Path, **method: Any) -> Any:
    data = dict(toy_pair().data.model_dump(), train=dict(type="ToyData", split="train", views=1))
    methods = dict(Mix=dict(links=[dict(type="ToyMix")], **method))
    return toy_run(folder, "Mix", data=data, cache=dict(dtype="float32"), methods=methods)


def test_cache_is_refused_with_what_to_do(tmp_path):
    said = "toymix alters the images every step, .* cannot be cached; set cache=False for method Mix"
    with pytest.raises(ConfigError, match=said):
        execute(cached(tmp_path), RunOptions(out=tmp_path / "runs", cache=tmp_path / "cache", threads=1))
    assert not (tmp_path / "cache").exists()


def test_what_the_sentence_says_helps(tmp_path):
    run = cached(tmp_path, cache=False)
    assert run.cache is None
    record = execute(run, RunOptions(out=tmp_path / "runs", cache=tmp_path / "cache", threads=1))
    assert record is not None
    assert record.cost.teacher_forwards == 4 * 48
