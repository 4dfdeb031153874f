"""What a link learns before the first step: plain images in order of ids, once, by its own random numbers."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import limbeck.engine.hooks as hooks
from limbeck.engine.config import RunConfig
from limbeck.engine.distiller import Distiller
from limbeck.engine.method import LinkInputs, TrainingSet
from limbeck.engine.prepare import prepare_links
from limbeck.engine.registry import METHODS
from limbeck.engine.run import RunOptions, execute
from limbeck.engine.weights import read_weights
from limbeck.errors import ConfigError, UnknownName
from tests.engine.toys import ToyAdapter, ToyData, ToyMatch, teacher_file, toy_pair, toy_run

AUGMENTED = dict(type="ToyData", split="train", augment=dict(add=0.5))


@METHODS.register_module()
class ToyLook(ToyMatch):
    """Looks at the training split, draws, and makes a factor of its own."""

    many_teachers = True
    wants_data = True
    looked: list[tuple[ToyLook, TrainingSet]] = []
    draws: list[tuple[int, Tensor]] = []

    def prepare(self, data: TrainingSet) -> None:
        self.looked.append((self, data))
        centre = torch.zeros(3)
        for taps, _, _ in data.teacher_taps():
            centre += taps[0].sum(0)
        self.register_buffer("centre", centre)
        self.register_buffer("drawn", torch.rand(4))
        self.factor_of = nn.Parameter(torch.ones(3))

    def forward(self, batch: LinkInputs) -> dict[str, Tensor]:
        noise = torch.rand(3, generator=batch.generator())
        self.draws.append((round(256 * batch.progress), noise))
        self.drawn[0] += 1.0
        return {"look": ((batch.student[0] * self.factor_of - batch.teacher[0] + 0.01 * noise) ** 2).mean()}


@pytest.fixture(autouse=True)
def _forget() -> None:
    ToyLook.looked.clear()
    ToyLook.draws.clear()


def config_of(folder: Path, *links: dict[str, Any], seed: int = 0, **changes: Any) -> RunConfig:
    links = links or (dict(type="ToyLook"),)
    data = dict(toy_pair().data.model_dump(), train=AUGMENTED, eval_batch_size=20)
    return toy_run(folder, "Look", seed, **{"methods": dict(Look=dict(links=list(links))), "data": data, **changes})


def prepared(config: RunConfig) -> Distiller:
    model = Distiller(**{k: v for k, v in config.model.items() if k != "type"}, seed=config.seed)
    prepare_links(model, config)
    return model


def names(state: dict[str, Tensor]) -> list[str]:
    return [key for key in state if "links." in key]


# --- what is read ---


def test_teacher_reads_the_plain_split_in_order_of_ids(tmp_path):
    model = prepared(config_of(tmp_path))
    ((_, data),) = ToyLook.looked
    plain = ToyData("train")
    assert torch.equal(data.labels, plain.labels)
    assert (data.labels.dtype, data.classes) == (torch.int64, 3)
    batches = list(data.teacher_taps())
    assert torch.cat([ids for _, _, ids in batches]).tolist() == list(range(48))
    assert [len(ids) for _, _, ids in batches] == [20, 20, 8]
    for taps, labels, ids in batches:
        assert torch.equal(labels, plain.labels[ids])
        with torch.no_grad():
            assert torch.equal(taps[0], model.frozen["teacher"](plain.images[ids]))
        assert not taps[0].requires_grad


def test_config_of_the_run_keeps_its_augmentation(tmp_path):
    config = config_of(tmp_path)
    before = config.model_dump()
    prepared(config)
    assert config.model_dump() == before


def test_teacher_gets_images_in_its_own_normalisation(tmp_path):
    config = config_of(tmp_path, teacher=dict(type="ToyNet", width=4, shift=1.5))
    model = prepared(config)
    ((_, data),) = ToyLook.looked
    taps, _, ids = next(data.teacher_taps())
    with torch.no_grad():
        assert torch.equal(taps[0], model.frozen["teacher"](ToyData("train").images[ids] + 1.5))


def test_taps_are_those_of_the_link_in_its_order(tmp_path):
    pairs = [("logits", "logits"), ("layer2", "layer2"), ("layer2", "layer2"), ("logits", "logits")]
    prepared(config_of(tmp_path, dict(type="ToyLook", taps=pairs)))
    ((_, data),) = ToyLook.looked
    taps, _, _ = next(data.teacher_taps())
    assert [tuple(t.shape) for t in taps] == [(20, 3), (20, 4, 3, 3), (20, 4, 3, 3), (20, 3)]
    assert torch.equal(taps[0], taps[3])


def test_each_teacher_is_read_by_name_and_the_first_by_none(tmp_path):
    config = config_of(tmp_path, dict(type="ToyLook", teacher=["teacher", "wide"]), teachers=wide())
    config.model["members"]["wide"]["weights"] = teacher_file(tmp_path, width=8)
    model = prepared(config)
    ((_, data),) = ToyLook.looked
    images = ToyData("train").images[:20]
    for name, member in ((None, "teacher"), ("teacher", "teacher"), ("wide", "wide")):
        with torch.no_grad():
            assert torch.equal(next(data.teacher_taps(name))[0][0], model.frozen[member](images))
    with pytest.raises(UnknownName, match="unknown teacher 'wid' of toylook; did you mean 'wide'"):
        next(data.teacher_taps("wid"))


def wide() -> dict[str, Any]:
    return dict(wide=dict(model=dict(type="ToyNet", width=8)))


def test_trained_teacher_is_read_in_eval_mode_and_goes_on_training(tmp_path):
    net = dict(type="ToyNet", width=4, norm=True, dropout=0.5)
    online = dict(Look=dict(links=[dict(type="ToyLook")], members=dict(teacher=dict(type="trained"))))
    config = config_of(tmp_path, teacher=net, methods=online)
    model = prepared(config)
    ((_, data),) = ToyLook.looked
    model.train()
    mean = model.members["teacher"].norm.running_mean.clone()
    first, again = (torch.cat([t[0] for t, _, _ in data.teacher_taps()]) for _ in range(2))
    assert torch.equal(first, again)  # no drop-out
    assert torch.equal(model.members["teacher"].norm.running_mean, mean)
    assert model.members["teacher"].training


def test_link_of_weight_zero_reads_nothing_and_leaves_plain_training_alone(tmp_path):
    config = config_of(tmp_path, dict(type="ToyLook", weight=0.0))
    model = prepared(config)
    assert ToyLook.looked == []
    assert (model.teacher_forwards, names(model.state_dict())) == (0, [])
    plain = toy_run(tmp_path, "plain", data=config.data.model_dump())
    students = []
    for run in (config, plain):
        execute(run, RunOptions(out=tmp_path / "runs", threads=1))
        students.append(read_weights(tmp_path / "runs" / run.id / "student.safetensors")[0])
    assert all(torch.equal(students[0][k], students[1][k]) for k in students[1])


def test_data_set_without_ids_is_refused(tmp_path, monkeypatch):
    original = ToyAdapter.batch

    def nameless(self: ToyAdapter, inputs: Any, samples: Any) -> Any:
        batch = original(self, inputs, samples)
        batch.ids = None
        return batch

    monkeypatch.setattr(ToyAdapter, "batch", nameless)
    with pytest.raises(ConfigError, match=r"toylook needs the id of every.*ToyData does not"):
        prepared(config_of(tmp_path))


def test_labels_are_empty_where_samples_have_no_label_each(tmp_path, monkeypatch):
    plain = ToyData.__init__

    def unlabelled(self: ToyData, **kwargs: Any) -> None:
        plain(self, **kwargs)
        del self.labels

    monkeypatch.setattr(ToyData, "__init__", unlabelled)
    seen: list[Any] = []
    monkeypatch.setattr(ToyLook, "prepare", lambda self, data: seen.append(data.labels))
    prepared(config_of(tmp_path))
    assert [tuple(labels.shape) for labels in seen] == [(0,)]


# --- random numbers, parameters, resume ---


def test_draws_depend_on_seed_and_link_and_touch_no_other_generator(tmp_path):
    two = [dict(type="ToyLook"), dict(type="ToyLook")]
    drawn = []
    for config in (config_of(tmp_path, *two), config_of(tmp_path, *two), config_of(tmp_path, *two, seed=1)):
        torch.manual_seed(3)
        model = prepared(config)
        assert torch.equal(torch.rand(2), torch.rand(2, generator=torch.Generator().manual_seed(3)))
        drawn.append([link.drawn for link in model.links])
    assert all(torch.equal(a, b) for a, b in zip(drawn[0], drawn[1]))
    rows = [*drawn[0], *drawn[2]]
    assert len({tuple(row.tolist()) for row in rows}) == 4


def test_parameters_that_are_made_here_are_trained(tmp_path):
    execute(config_of(tmp_path), RunOptions(out=tmp_path / "runs", threads=1))
    ((link, _),) = ToyLook.looked
    assert not torch.equal(link.factor_of, torch.ones(3))


def test_resumed_run_draws_the_same_counts_once_and_takes_the_saved_buffers(tmp_path, monkeypatch):
    class Stopped(Exception):
        pass

    def stop(stage: str, done: int, total: int) -> None:
        if done == 7:  # in the second of four epochs
            raise Stopped

    monkeypatch.setattr(hooks, "REPORT_SECONDS", 0.0)
    config = config_of(tmp_path)
    straight = execute(config, RunOptions(out=tmp_path / "straight", threads=1))
    (link, _), expected = ToyLook.looked.pop(), list(ToyLook.draws)
    ToyLook.draws.clear()
    with suppress(Stopped):
        execute(config, RunOptions(out=tmp_path / "cut", threads=1, progress=stop))
    assert [step for step, _ in ToyLook.draws] == [step for step, _ in expected[:7]]
    resumed = execute(config, RunOptions(out=tmp_path / "cut", threads=1))
    assert straight is not None
    assert resumed is not None
    assert resumed.student_sha256 == straight.student_sha256
    assert resumed.cost.teacher_forwards == straight.cost.teacher_forwards == 48 + 4 * 48
    again = ToyLook.looked[-1][0]
    assert torch.equal(again.drawn, link.drawn)
    assert torch.equal(again.centre, link.centre)
    assert [step for step, _ in ToyLook.draws[7:]] == [step for step, _ in expected[4:]]
    assert all(torch.equal(a, b) for (_, a), (_, b) in zip(ToyLook.draws[7:], expected[4:]))
