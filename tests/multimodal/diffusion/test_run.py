"""Whole runs of step distillation: records of every method, weight 0, resuming, and training without an image."""

from __future__ import annotations

import json
from typing import Any, cast

import pytest
import torch

diffusers = pytest.importorskip("diffusers", reason="needs the 'multimodal' extra")

from limbeck.engine.adapter import Batch  # noqa: E402
from limbeck.engine.config import PairConfig, RecipeConfig, expand, load_pair, parse  # noqa: E402
from limbeck.engine.distiller import Distiller  # noqa: E402
from limbeck.engine.evaluate import evaluate_weights  # noqa: E402
from limbeck.engine.record import RunRecord, read_record, record_path  # noqa: E402
from limbeck.engine.registry import DATASETS, LOOPS, METHODS, MODELS  # noqa: E402
from limbeck.engine.run import execute  # noqa: E402
from limbeck.engine.runner import build_optim_wrapper  # noqa: E402
from limbeck.engine.weights import read_weights  # noqa: E402
from limbeck.errors import ConfigError  # noqa: E402
from limbeck.multimodal.diffusion.evaluation import reference  # noqa: E402
from limbeck.multimodal.diffusion.loops import Halving  # noqa: E402
from limbeck.vision.data.digits import Digits  # noqa: E402
from tests.multimodal.diffusion.toys import Stop, options, toy_config, toy_pair, toy_run  # noqa: E402

ONE_STEP = ["FromTeacher", "PD", "CD", "BOOT", "DMD", "Regression"]


# --- the shipped config, with everything made small ---


def small(value: Any) -> Any:
    """A config with fewer channels, images and steps."""
    if isinstance(value, (list, tuple)):
        return [small(v) for v in value]
    if not isinstance(value, dict):
        return value
    changes = {
        "UNet2DModel": dict(block_out_channels=(8, 8)),
        "Digits": dict(limit=64),
        "SampleRequests": dict(count=70 if value.get("split") == "train" else 20),
        "Regression": dict(pairs=32, teacher_steps=4),
        "DMD": dict(ratio=2),
        "Halving": dict(start=4),
    }
    found = {key: small(v) for key, v in value.items()} | changes.get(str(value.get("type")), {})
    return found | (dict(steps=4) if found.get("steps") == 50 else {})


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory):
    """A record of the teacher, of the plain student and of every method, and where they lie."""
    folder = tmp_path_factory.mktemp("digits")
    value = small(load_pair("multimodal/diffusion/digits_1step").model_dump())
    value["recipe"] |= dict(epochs=2)
    value["teacher_recipe"] |= dict(epochs=2)
    value["data"] |= dict(batch_size=32)
    pair = parse(PairConfig, value, "small")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LIMBECK_CACHE", str(folder / "cache"))
        patch.setattr(reference, "_KEPT", {})
        teacher = execute(expand(pair, "teacher", 0), options(folder))
        assert teacher is not None
        given = dict(teacher_weights=f"run://{teacher.id}", teacher_metric=teacher.val_metrics["FD-digits"])
        found = {"teacher": teacher, "plain": execute(expand(pair, "plain", 0), options(folder))}
        for name in ONE_STEP:
            found[name] = execute(expand(pair, name, 0, **given), options(folder, cache=folder / "teachers"))
        again = evaluate_weights(found["BOOT"].config, folder / "runs" / found["BOOT"].id / "student.safetensors")
        yield folder, found, again


def test_shipped_config_has_these_methods():
    assert load_pair("multimodal/diffusion/digits_1step").method_names() == ["plain", *ONE_STEP]


@pytest.mark.parametrize("data", ["digits", "fashion_mnist"])
@pytest.mark.parametrize("steps", [1, 2, 4])
def test_every_shipped_pair_gives_its_methods_the_same_updates(data, steps):
    pair = load_pair(f"multimodal/diffusion/{data}_{steps}step")
    images = pair.data.train.get("limit") or len(DATASETS.make(dict(pair.data.train)))
    for name in pair.method_names():
        run = expand(pair, name, 1)
        train, size = run.data.train, run.data.batch_size
        reads = [METHODS.lookup(link["type"]).reads_images for link in run.model["links"]]
        assert (train["type"] == "SampleRequests") == (reads == [False])
        assert train.get("count", images) // size == images // size
        assert run.deployed["sampler"]["steps"] == steps
        if run.loop:
            rounds = cast(Halving, LOOPS.make(run.loop)).rounds(run)
            assert len(rounds) <= run.recipe.epochs
            assert run.model["links"][0]["steps"] == steps


def test_records_have_the_figures_of_generated_images(records):
    folder, found, again = records
    names = {"FD-digits", "FD-digits_floor", "MMD2-digits", "precision", "recall", "density", "coverage", "calls"}
    names |= {"diversity", "label_agreement", "memorisation"}
    for name, record in found.items():
        assert record == read_record(record_path(folder / "runs-records", record.id))
        assert names <= set(record.metrics), sorted(names - set(record.metrics))
        assert ("mse_to_teacher" in record.metrics) == (name in ONE_STEP)
        assert record.metrics["calls"] == (8 if name == "teacher" else 1)  # 4 guided steps; 1
        assert (record.primary_metric, record.higher_is_better) == ("FD-digits", False)
        train = 70 if name in ("BOOT", "DMD", "Regression") else 64
        assert (record.data.name, record.data.train_samples, record.data.test_samples) == ("digits", train, 20)
        assert (record.recipe.epochs, record.recipe.steps, record.cost.samples_seen) == (2, 4, 128)
        assert len(record.per_class["label_agreement"]) == 10
    boot = found["BOOT"].metrics
    assert again == pytest.approx({k: v for k, v in boot.items() if k != "mse_to_teacher"}, rel=1e-4)


def test_teachers_are_asked_as_often_as_the_methods_say(records):
    _, found, _ = records
    asked = {name: record.cost.teacher_forwards for name, record in found.items()}
    assert asked == {
        "teacher": 0,
        "plain": 0,
        "FromTeacher": 0,
        "PD": 2 * 128,
        "CD": 128,
        "BOOT": 4 * (32 + 32 + 8),
        "DMD": 32,  # one turn of the generator after the first twentieth
        "Regression": 4 * 32,
    }


def test_students_that_start_as_the_teacher_start_alike(records):
    _, found, _ = records
    assert len({found[name].initial_hash for name in ONE_STEP}) == 1
    assert found["plain"].initial_hash != found["PD"].initial_hash
    assert {found[name].teacher_record for name in ONE_STEP} == {found["teacher"].id}
    assert {name: bool(found[name].assumption) for name in ONE_STEP} == {
        name: name not in ("FromTeacher", "PD") for name in ONE_STEP
    }


# --- exactness ---


@pytest.mark.parametrize("method", ["FromTeacher", "CD", "BOOT", "DMD", "Regression"])
def test_resume_equals_a_straight_run(tmp_path, method):
    run = toy_run(tmp_path, method)
    straight = execute(run, options(tmp_path, "straight"))
    with pytest.raises(KeyboardInterrupt):
        execute(run, options(tmp_path, "killed", hooks=[Stop(5)]))
    resumed = execute(run, options(tmp_path, "killed"))
    assert isinstance(straight, RunRecord)
    assert isinstance(resumed, RunRecord)
    assert resumed.student_sha256 == straight.student_sha256
    assert (resumed.recipe, resumed.metrics) == (straight.recipe, straight.metrics)
    assert resumed.cost.samples_seen == straight.cost.samples_seen == 48
    assert resumed.cost.teacher_forwards == straight.cost.teacher_forwards
    logs = [(tmp_path / name / run.id / "log.jsonl").read_text().splitlines() for name in ("straight", "killed")]
    first, second = ([line for line in log if "val" not in json.loads(line)] for log in logs)
    assert first == second
    assert len(first) == 2


def trained(model: Distiller) -> dict[str, torch.Tensor]:
    """The student after three updates, on the same batches and random numbers for every model."""
    wrapper = build_optim_wrapper(model, model.links, RecipeConfig(epochs=1, optimizer=dict(type="AdamW", lr=0.05)))
    torch.manual_seed(11)
    data: Any = DATASETS.make(dict(type="Digits", split="train", limit=24))
    model.train()
    for iteration in range(3):
        model.iteration = iteration
        ready = model.data_preprocessor(data.__getitems__(range(8 * iteration, 8 * iteration + 8)), True)
        batch: Batch = model.adapter.batch(ready["inputs"], ready["data_samples"])
        wrapper.update_params(torch.stack(list(model.loss(batch).values())).sum())
        model.update_shadows()
    return model.deploy.state_dict()


@pytest.mark.parametrize("method", ONE_STEP)
def test_weight_zero_is_plain_training_bit_for_bit(tmp_path, method):
    model = toy_run(tmp_path, method).model
    model.pop("type")
    plain = dict(model, links=[], task_weight=1.0, members=dict(student=model["members"]["student"]))
    zero = dict(model, links=[dict(link, weight=0.0) for link in model["links"]], task_weight=1.0)
    one, two = (trained(Distiller(**parts)) for parts in (plain, zero))
    assert one.keys() == two.keys()
    assert all(torch.equal(one[key], two[key]) for key in one)
    start = MODELS.make(model["members"]["student"]["model"]).state_dict()
    assert any(not torch.equal(start[key], one[key]) for key in one)


def test_seeds_differ_and_one_seed_repeats(tmp_path):
    found = [
        execute(toy_run(tmp_path, "DMD", seed), options(tmp_path, name)).student_sha256  # type: ignore[union-attr]
        for seed, name in ((0, "a"), (0, "b"), (1, "a"))
    ]
    weights = [
        read_weights(tmp_path / name / f"toy-diffusion/toy-toy/dmd/seed{seed}" / "student.safetensors")[0]
        for seed, name in ((0, "a"), (0, "b"), (1, "a"))
    ]
    assert found[0] == found[1]
    assert not all(torch.equal(weights[0][key], weights[2][key]) for key in weights[0])


# --- without images ---


@pytest.fixture
def no_digits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading a training digit raises."""

    def refuse(self: Digits, ids: Any) -> Any:
        raise AssertionError("an image was read")

    monkeypatch.setattr(Digits, "batch", refuse)


def without_images(method: str) -> dict[str, Any]:
    """The toy pair's methods, one of them on requests instead of images."""
    classes = [str(k) for k in range(10)]
    value = toy_pair().model_dump()["methods"]
    value[method]["train"] = dict(type="SampleRequests", classes=classes, count=30, split="train", name="digits")
    return value


@pytest.mark.parametrize("method", ["BOOT", "DMD", "Regression"])
def test_methods_of_noise_alone_read_no_image(tmp_path, method, no_digits):
    record = execute(toy_run(tmp_path, method, methods=without_images(method)), options(tmp_path))
    assert isinstance(record, RunRecord)
    assert (record.data.train_samples, record.recipe.steps) == (30, 6)
    assert record.data.name == "digits"
    with pytest.raises(AssertionError, match="an image was read"):  # the fixture does what it says
        execute(toy_run(tmp_path, method), options(tmp_path, "images"))


@pytest.mark.parametrize("method", ["FromTeacher", "CD"])
def test_methods_of_images_say_that_there_are_none(tmp_path, method):
    with pytest.raises(ConfigError, match=r"reads images, and the training data has none|needs images, and this"):
        execute(toy_run(tmp_path, method, methods=without_images(method)), options(tmp_path))


def test_a_student_that_does_not_fit_the_method_or_the_data_is_refused(tmp_path):
    methods = dict(BOOT=dict(task_weight=0.0, links=[dict(type="BOOT")]))
    with pytest.raises(ConfigError, match="build it with boot_t_min"):
        execute(toy_run(tmp_path, "BOOT", methods=methods), options(tmp_path))
    with pytest.raises(ConfigError, match="has 4 classes and data set digits has 10"):
        execute(toy_run(tmp_path, "plain", student=dict(toy_config(2), num_classes=4)), options(tmp_path))
    data = toy_pair().data.model_dump() | dict(test=dict(type="Digits", split="test", limit=4))
    with pytest.raises(ConfigError, match="tested on SampleRequests"):
        execute(toy_run(tmp_path, "plain", data=data), options(tmp_path))
