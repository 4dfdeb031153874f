"""Few-shot teachers of runs: fitted to the run's labelled images and to nothing else, told apart, and never leaking."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from limbeck.engine.adapter import FitData
from limbeck.engine.config import PairConfig, TrainedTeacher, expand, load_pair
from limbeck.engine.record import RunRecord, read_record, record_path
from limbeck.engine.registry import DATASETS, MODELS
from limbeck.engine.run import execute
from limbeck.engine.single import single_run
from limbeck.engine.weights import read_weights
from limbeck.errors import ConfigError, UnknownName
from limbeck.multimodal.vlm.clap import CLAPSettings, fit_clap
from limbeck.multimodal.vlm.classifier import Support, ZeroShotClassifier
from limbeck.multimodal.vlm.few_shot import fit_few_shot
from limbeck.multimodal.vlm.rounds import Rounds
from limbeck.multimodal.vlm.tip_adapter import TipAdapterSettings, fit_tip_adapter
from tests.multimodal.vlm.test_run import RECIPE, TONES, options, tones_pair
from tests.multimodal.vlm.toy_teachers import toy_teacher

VIEWS = 3
SETTINGS: dict[str, dict[str, Any]] = dict(
    TipAdapterF=dict(epochs=4, lr=0.05, batch_size=4, alphas=[0.5, 1.0, 2.0], betas=[0.5, 2.0]),
    CLAP=dict(passes=40, batch_size=4, lr=0.05),
)
KINDS = sorted(SETTINGS)


@MODELS.register_module()
def ToyVL(pretrained: bool = True) -> ZeroShotClassifier:  # noqa: N802
    """A zero-shot teacher of random weights for Tones."""
    return toy_teacher(classes=3, side=8)


def few_shot_pair(kind: str, *, shots: int = 2, poison: int | None = None, **changes: Any) -> PairConfig:
    of = dict(type="Tones", augment=dict(pad=1), views=VIEWS, **({} if poison is None else dict(poison=poison)))
    train = dict(type="PartlyLabelled", of=of, shots=shots, shots_seed="run")
    teacher = dict(type=kind, zero_shot=dict(type="ToyVL"), support=3 * shots, settings=SETTINGS[kind], pretrained=True)
    value: dict[str, Any] = dict(
        data=dict(TONES, train=train),
        teacher=teacher,
        teacher_recipe=dict(epochs=0, save_dtype="float32"),
        teacher_seeds="run",
    )
    return tones_pair(**(value | changes))


def fitted(folder: Path, pair: PairConfig, seed: int = 0, name: str = "runs") -> tuple[RunRecord, dict[str, Tensor]]:
    record = execute(expand(pair, "teacher", seed), options(folder, name))
    assert record is not None
    return record, read_weights(folder / name / record.id / "student.safetensors")[0]


def given(record: RunRecord) -> dict[str, TrainedTeacher]:
    return {"teacher": TrainedTeacher(f"run://{record.id}", record.student_sha256, record.val_metrics["top1"])}


def by_hand(model: ZeroShotClassifier, pixels: Tensor) -> Tensor:
    """Features of grey images, the normalisation written out."""
    mean, std = (torch.tensor(v).reshape(3, 1, 1) for v in ((0.4, 0.5, 0.6), (0.2, 0.3, 0.4)))
    with torch.no_grad():
        embedding = model.image((pixels.float() / 255 - mean) / std)
    return embedding / embedding.norm(dim=1, keepdim=True)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", [0, 3])
def test_teacher_is_fitted_to_the_runs_labelled_images(tmp_path, kind, seed):
    record, state = fitted(tmp_path, few_shot_pair(kind), seed)
    of = dict(type="Tones", augment=dict(pad=1), views=VIEWS, seed=seed)
    train = DATASETS.make(dict(type="PartlyLabelled", of=of, shots=2, shots_seed=seed))
    ids = train.labelled
    model, views = ToyVL(), []
    for view in range(VIEWS):
        train.set_epoch(view)
        views.append(by_hand(model, train.__getitems__(ids)["inputs"]))
    plain, val = (DATASETS.make(dict(type="Tones", split=split)) for split in ("train", "val"))
    features, labels = torch.stack(views), torch.from_numpy(plain.labels[ids])
    if kind == "CLAP":
        settings = CLAPSettings(**SETTINGS[kind], seed=seed)
        own = by_hand(model, torch.from_numpy(plain.pixels[ids]))
        expected = fit_clap(model, features, labels, plain_features=own, settings=settings)
        names = ["prototypes"]
    else:
        held = dict(val_features=by_hand(model, torch.from_numpy(val.pixels)), val_labels=torch.from_numpy(val.labels))
        settings = TipAdapterSettings(**SETTINGS[kind], seed=seed)
        expected = fit_tip_adapter(model, features, labels, **held, settings=settings)
        names = ["keys", "values", "alpha", "beta"]
    for name in names:
        torch.testing.assert_close(state[name], expected.state_dict()[name], rtol=1e-4, atol=1e-5)
    assert state["support_ids"].tolist() == ids.tolist()
    assert state["support_labels"].tolist() == labels.tolist()
    assert not torch.allclose(features[0], features[1])
    assert (record.recipe.steps, record.student.name) == (0, f"{kind} (ToyVL)")


@pytest.mark.parametrize("kind", KINDS)
def test_same_seed_same_teacher_and_hidden_labels_change_nothing(tmp_path, kind):
    first, _ = fitted(tmp_path, few_shot_pair(kind, shots=1))
    again, _ = fitted(tmp_path, few_shot_pair(kind, shots=1), name="again")
    other, _ = fitted(tmp_path, few_shot_pair(kind, shots=1), seed=1)
    assert first.student_sha256 == again.student_sha256 != other.student_sha256
    explicit = dict(type="PartlyLabelled", of=dict(type="Tones", augment=dict(pad=1), views=VIEWS), labelled=[0, 5, 10])
    poisoned = dict(explicit, of=dict(explicit["of"], poison=1))
    weights = [
        fitted(tmp_path, few_shot_pair(kind, shots=1, data=dict(TONES, train=train)), name=f"explicit{index}")[1]
        for index, train in enumerate((explicit, poisoned))
    ]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


@pytest.mark.parametrize("kind", KINDS)
def test_student_learns_from_the_teacher_of_its_seed_and_records_and_cache_tell_which(tmp_path, kind):
    pair = few_shot_pair(kind, cache=dict(dtype="float32"))
    forwards = []
    for seed in (0, 1):
        teacher, _ = fitted(tmp_path, pair, seed)
        run = expand(pair, "DHO", seed, trained=given(teacher))
        record = execute(run, options(tmp_path, cache=tmp_path / "cache"))
        assert record.teacher_record == teacher.id == f"tones/linear-linear/teacher/seed{seed}"
        assert record.config["model"]["members"]["teacher"]["sha256"] == teacher.student_sha256
        assert record.teacher.name == f"{kind} (ToyVL)"
        forwards.append(record.cost.teacher_forwards)
    folders = [path for path in (tmp_path / "cache").iterdir() if path.is_dir()]
    assert len(folders) == 2  # one teacher's answers are never taken for the other's
    assert min(forwards) > 0


def test_a_teacher_that_knows_labels_which_the_run_hides_is_refused(tmp_path):
    pair = few_shot_pair("CLAP")
    teacher, state = fitted(tmp_path, pair)
    with pytest.raises(ConfigError, match=r"CLAP was fitted on image \d+, whose label is not among this run's"):
        execute(expand(pair, "DHO", 1, trained=given(teacher)), options(tmp_path))
    train = dict(type="PartlyLabelled", of=dict(type="Tones"), labelled=[*state["support_ids"].tolist(), 59])
    more = few_shot_pair("CLAP", data=dict(TONES, train=train))
    assert execute(expand(more, "DHO", 1, trained=given(teacher)), options(tmp_path)) is not None
    with pytest.raises(ConfigError, match="CLAP is not fitted; make it first"):
        execute(expand(pair, "DHO", 0), options(tmp_path))


def test_mistakes_are_one_sentence(tmp_path):
    pair = few_shot_pair("TipAdapterF")
    wrong = pair.teacher | dict(support=5)
    with pytest.raises(ConfigError, match=r"made for support=5 and 6 images are labelled; set support=6"):
        fitted(tmp_path, few_shot_pair("TipAdapterF", teacher=wrong))
    with pytest.raises(ConfigError, match=r"TipAdapterF is fitted at once; set epochs=0 in its recipe, which has 4"):
        fitted(tmp_path, few_shot_pair("TipAdapterF", teacher_recipe=RECIPE))
    for bad, near in (("epoch", "epochs"), ("seed", "")):
        settings = pair.teacher | dict(settings={bad: 3})
        with pytest.raises(UnknownName, match=f"unknown setting '{bad}' of TipAdapterSettings.*{near}"):
            fitted(tmp_path, few_shot_pair("TipAdapterF", teacher=settings))
    model = MODELS.make(pair.teacher)
    unlabelled = DATASETS.make(dict(type="Tones", split="train"))
    unlabelled.labels[:] = -1
    with pytest.raises(ConfigError, match="fitted to labelled images, and tones has none"):
        fit_few_shot(model, FitData(train=unlabelled, plain=unlabelled, val=None))
    support = Support(ids=torch.arange(6), labels=torch.arange(6) % 3, views=torch.eye(6)[None], plain=torch.eye(6))
    with pytest.raises(ConfigError, match="held-out images"):
        model.fit(support)


def test_clap_reads_no_validation_image_and_hidden_labels_of_validation_are_left_out():
    train = DATASETS.make(dict(type="PartlyLabelled", of=dict(type="Tones"), shots=1))
    clap = MODELS.make(dict(few_shot_pair("CLAP").teacher, support=3))
    fit_few_shot(clap, FitData(train=train, plain=train, val=None))
    assert clap.support_ids.tolist() == train.labelled.tolist()
    found = []
    for hidden in (0, 20):
        val = DATASETS.make(dict(type="Tones", split="val", size=40 + hidden))
        val.labels[40:] = -1
        val.pixels[:40] = DATASETS.make(dict(type="Tones", split="val", size=40)).pixels
        tip = MODELS.make(dict(few_shot_pair("TipAdapterF").teacher, support=3))
        fit_few_shot(tip, FitData(train=train, plain=train, val=val))
        found.append(tip.state_dict())
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


def test_fitting_again_forgets_what_was_fitted_before():
    train = [DATASETS.make(dict(type="PartlyLabelled", of=dict(type="Tones"), shots=1, shots_seed=s)) for s in (0, 1)]
    for kind in KINDS:
        val = DATASETS.make(dict(type="Tones", split="val"))
        once, twice = (MODELS.make(dict(few_shot_pair(kind).teacher, support=3)) for _ in range(2))
        fit_few_shot(once, FitData(train=train[1], plain=train[1], val=val))
        for data in train:
            fit_few_shot(twice, FitData(train=data, plain=data, val=val))
        assert all(torch.equal(a, b) for a, b in zip(once.state_dict().values(), twice.state_dict().values()))


def test_single_run_takes_the_teacher_of_its_own_seed(tmp_path):
    pair = few_shot_pair("CLAP")
    with pytest.raises(ConfigError, match="--method teacher --seed 2"):
        single_run(pair, "DHO", 2, tmp_path)
    for seed in (0, 2):
        record, _ = fitted(tmp_path, pair, seed)
        target = record_path(tmp_path / "records", record.id)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(record_path(tmp_path / "runs-records", record.id).read_text())
    run = single_run(pair, "DHO", 2, tmp_path)
    assert run.model["members"]["teacher"]["weights"] == "run://tones/linear-linear/teacher/seed2"


# --- active learning ---

LOOP: dict[str, Any] = dict(type="ActiveLearning", strategy=dict(type="PCoreSet"), rounds=2, budget=4, refit=True)


def active(folder: Path, method: str = "DHO", **loop: Any) -> Any:
    recipe = tones_pair().recipe.model_dump() | dict(epochs=1)
    pair = few_shot_pair("CLAP", loop=LOOP | loop, recipe=recipe)
    return expand(pair, method, 0, trained=given(fitted(folder, pair)[0]))


@pytest.mark.parametrize("lag", [0, 1])
def test_the_teacher_is_fitted_anew_to_the_labels_of_a_round(tmp_path, lag):
    config = active(tmp_path, teacher_lag=lag)
    record = execute(config, options(tmp_path))
    rounds = Rounds(config, options(tmp_path), tmp_path / "runs" / config.id, refit=True, teacher_lag=lag)
    assert [rounds.taught_on(n) for n in range(3)] == ([None, 1, 2] if lag == 0 else [None, None, 1])
    own = read_record(record_path(tmp_path / "runs-records", "tones/linear-linear/teacher/seed0"))
    hashes, seconds = [], 0.0
    for number in range(3):
        member = rounds.record(number).config["model"]["members"]["teacher"]
        source = rounds.taught_on(number)
        if source is None:
            assert member["sha256"] == own.student_sha256
            continue
        teacher = rounds.fitted(source)
        ids, labels = rounds.labels(source)
        weights = rounds.place(source) / "runs" / teacher.id / "student.safetensors"
        state, _ = read_weights(weights)
        order = ids.argsort()
        assert state["support_ids"].tolist() == ids[order].tolist()
        assert state["support_labels"].tolist() == labels[order].tolist()
        assert member["sha256"] == teacher.student_sha256
        assert member["model"]["support"] == len(ids)
        hashes.append(member["sha256"])
        seconds += teacher.cost.train_seconds
    assert len({own.student_sha256, *hashes}) == 1 + len(hashes)
    students = sum(rounds.record(n).cost.train_seconds for n in range(3))
    assert record.cost.train_seconds == pytest.approx(students + seconds)


def test_an_interrupted_loop_fits_the_same_teachers(tmp_path):
    config = active(tmp_path)
    teachers = dict(teachers=tmp_path / "runs")
    straight = execute(config, options(tmp_path, "straight", **teachers))

    class Interrupted(Exception):
        pass

    def stop(stage: str, done: int, total: int) -> None:
        if stage == "round 3: train":
            raise Interrupted

    with pytest.raises(Interrupted):
        execute(config, options(tmp_path, "broken", progress=stop, **teachers))
    fits: list[str] = []
    resumed = execute(config, options(tmp_path, "broken", progress=lambda stage, *_: fits.append(stage), **teachers))
    assert not any("fit" in stage for stage in fits)  # the teacher of the last round was there already
    assert resumed.student_sha256 == straight.student_sha256


def test_refit_is_of_few_shot_teachers_and_plain_students_have_none(tmp_path):
    assert execute(active(tmp_path, "plain"), options(tmp_path)) is not None
    with pytest.raises(ConfigError, match="teacher_lag"):
        execute(active(tmp_path, teacher_lag=-1), options(tmp_path))
    pair = tones_pair(loop=LOOP)
    with pytest.raises(ConfigError, match=r"one few-shot teacher, such as CLAP; there is teacher \(LinearClassifier\)"):
        execute(expand(pair, "DHO", 0, teacher_weights="gone"), options(tmp_path))


def test_a_session_without_a_fitted_teacher_begins_with_one(tmp_path):
    pair = few_shot_pair("CLAP", loop=LOOP)
    rounds = Rounds(expand(pair, "DHO", 0), options(tmp_path), tmp_path, refit=True)
    assert [rounds.taught_on(n) for n in range(3)] == [0, 1, 2]
    lagging = Rounds(expand(pair, "DHO", 0), options(tmp_path), tmp_path, refit=True, teacher_lag=1)
    assert [lagging.taught_on(n) for n in range(3)] == [0, 0, 1]


# --- shipped configs ---


@pytest.mark.parametrize(("name", "shots"), [("tip_adapter_4shot", 4), ("clap_4shot", 4), ("active_clap", 1)])
def test_shipped_configs_fit_their_teacher_to_their_own_labels(name, shots):
    pair = load_pair(f"multimodal/vlm/digits_{name}")
    assert pair.data.train["shots"] == shots
    assert pair.teacher["support"] == 10 * shots
    assert pair.teacher["zero_shot"] == load_pair("multimodal/vlm/digits_4shot").teacher
    assert (pair.teacher_seeds, pair.teacher_recipe.epochs) == ("run", 0)
    assert pair.teacher_of is None


@pytest.mark.parametrize("name", ["tip_adapter_4shot", "clap_4shot"])
def test_shipped_configs_train(tmp_path, name):
    pair = load_pair(f"multimodal/vlm/digits_{name}")
    recipe = pair.recipe.model_copy(update=dict(epochs=1, param_scheduler=[]))
    pair = pair.model_copy(update=dict(recipe=recipe, data=pair.data.model_copy(update=dict(steps=3))))
    teacher, state = fitted(tmp_path, pair, seed=1)
    assert len(state["support_ids"]) == 40
    record = execute(expand(pair, "DHO", 1, trained=given(teacher)), options(tmp_path, cache=tmp_path / "cache"))
    assert record.data.train_hash == teacher.data.train_hash
    assert record.teacher.name.endswith("(ZeroShotTiny)")
