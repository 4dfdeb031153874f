"""Pairs with several teachers, end to end: who trains whom, whose weights, which caches, and what fails with what."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from limbeck.engine.bench import Outcome, Paths, run_suite
from limbeck.engine.config import PairConfig, RunConfig, load_pair
from limbeck.engine.record import RunRecord, iter_records, read_record, record_path
from limbeck.engine.run import RunOptions, execute
from limbeck.engine.single import single_run
from limbeck.engine.suite import Suite, load_suite, plan, resolve, state, trainer
from limbeck.engine.weights import read_weights
from limbeck.errors import ConfigError, UnknownName
from tests.engine.toys import teacher_file, toy_pair

ROOT = Path(__file__).parents[2]
ALL = ["teacher", "wide", "odd"]
ONLINE = dict(
    cache=False,
    members=dict(teacher=dict(type="trained")),
    links=[dict(type="ToyMatch"), dict(type="ToyMatch", teacher="student", student="teacher")],
)
METHODS = dict(
    Mean=dict(links=[dict(type="ToyMean", teacher=ALL)]),
    Wide=dict(links=[dict(type="ToyMatch", teacher="wide")]),
    Online=ONLINE,
)
RECIPE = toy_pair().recipe.model_dump()


def net(width: int, **kwargs: Any) -> dict[str, Any]:
    return dict(type="ToyNet", width=width, **kwargs)


def many(**changes: Any) -> dict[str, Any]:
    """A pair of three teachers, of which one has a recipe and data of its own."""
    data = toy_pair().data.model_dump()
    return dict(
        data=dict(data, train=dict(type="ToyData", split="train", views=1)),
        cache=dict(dtype="float32"),
        teacher_recipe=dict(RECIPE, epochs=2),
        teacher_data=dict(train=dict(type="ToyData", split="train", size=36)),
        teachers=dict(
            wide=dict(model=net(6)),
            odd=dict(model=net(3), recipe=dict(RECIPE, epochs=1), data=dict(batch_size=18)),
        ),
        methods=METHODS,
        **changes,
    )


def write(folder: Path, name: str = "toy", **changes: Any) -> str:
    lines = ["custom_imports = dict(imports=['tests.engine.toys'])"]
    values = toy_pair(**changes).model_dump(exclude_defaults=True)
    (folder / f"{name}.py").write_text("\n".join([*lines, *(f"{k} = {v!r}" for k, v in values.items())]))
    return str(folder / f"{name}.py")


def suite_of(*configs: str, **changes: Any) -> Suite:
    value = dict(name="toys", title="Toys", seeds=[0], groups=[dict(config=c) for c in configs])
    return Suite.model_validate(value | changes)


def records_of(out: Path) -> dict[str, RunRecord]:
    return {record.method: record for _, record in iter_records(out / "records")}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Suite, Path, Outcome]:
    """The suite of three teachers and three methods, run once."""
    folder = tmp_path_factory.mktemp("many")
    suite = suite_of(write(folder, **many()))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(ROOT))
        patch.setenv("OMP_NUM_THREADS", "1")
        outcome = run_suite(suite, folder / "out", jobs=1)
    return suite, folder / "out", outcome


@pytest.fixture(autouse=True)
def _importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


# --- what a suite makes ---


def test_teachers_come_first_and_each_is_made_once(made):
    suite, _, outcome = made
    methods = ["teacher", "teacher-wide", "teacher-odd", "plain", "Mean", "Wide", "Online"]
    assert [job.method for job in plan(suite)] == methods
    assert not outcome.failed
    assert [identity.split("/")[2] for identity in outcome.made] == [m.lower() for m in methods]


def test_second_go_finds_everything(made):
    suite, out, _ = made
    again = run_suite(suite, out, jobs=1)
    assert (again.made, len(again.found)) == ([], 7)


def test_each_teacher_has_its_model_recipe_and_data(made):
    _, out, _ = made
    records = records_of(out)
    for method, width, epochs, batch, seen in (
        ("teacher", 4, 2, 12, 72),
        ("teacher-wide", 6, 2, 12, 72),
        ("teacher-odd", 3, 1, 18, 36),
    ):
        record = records[method]
        assert record.config["model"]["members"]["student"]["model"] == net(width)
        assert (record.recipe.epochs, record.recipe.batch_size, record.cost.samples_seen) == (epochs, batch, seen)
        assert record.data.train_samples == 36
        assert (record.teacher_record, record.plain_record, record.teacher) == (None, None, None)
    assert records["plain"].recipe.epochs == 4
    assert records["plain"].data.train_samples == 48


def test_student_of_all_is_linked_to_every_teacher(made):
    _, out, _ = made
    records = records_of(out)
    mean = records["Mean"]
    members = mean.config["model"]["members"]
    assert list(members) == [*ALL, "student"]
    for name, method in zip(ALL, ("teacher", "teacher-wide", "teacher-odd")):
        trained = records[method]
        assert members[name]["weights"] == f"run://{trained.id}"
        assert members[name]["sha256"] == trained.student_sha256
        assert members[name]["expected"] == {"top1": trained.val_metrics["top1"]}
    assert mean.teacher_record == records["teacher"].id  # the first
    assert mean.assumption == "The mean is ours."
    assert records["Wide"].teacher_record == records["teacher-wide"].id
    assert records["Wide"].assumption is None


def test_students_start_alike_and_latency_is_of_what_is_deployed(made):
    _, out, _ = made
    records = records_of(out)
    students, teachers = ("plain", "Mean", "Wide", "Online"), ("teacher", "teacher-wide", "teacher-odd")
    assert len({records[m].initial_hash for m in students}) == 1
    assert len({records[m].cost.student_latency_ms for m in students}) == 1
    assert len({records[m].cost.student_latency_ms for m in (*teachers, "plain")}) > 1
    assert all(records[m].plain_record == records["plain"].id for m in students[1:])


# --- caches ---


def test_caches_are_one_a_teacher_and_shared_between_methods(made):
    _, out, _ = made
    records = records_of(out)
    folders = [p for p in Paths(out).cache.iterdir() if p.is_dir()]
    assert len(folders) == 3
    assert records["Mean"].cost.teacher_forwards == 3 * 48
    assert records["Wide"].cost.teacher_forwards == 0  # Mean had asked it for every sample


def test_cached_ensemble_is_the_uncached_one(made, tmp_path):
    suite, out, _ = made
    (job,) = [j for j in plan(suite) if j.method == "Mean"]
    config = resolve(job, Paths(out).records)
    for name in ALL:
        config.model["members"][name]["weights"] = str(Paths(out).runs / job.trainers[name].id / "student.safetensors")
    config.cache = None
    exact = execute(config, RunOptions(out=tmp_path, threads=1))
    assert exact is not None
    assert exact.cost.teacher_forwards == 4 * 3 * 48
    mine, theirs = (read_weights(runs / job.id / "student.safetensors")[0] for runs in (tmp_path, Paths(out).runs))
    assert all(torch.equal(mine[key], theirs[key]) for key in theirs)


# --- the online form ---


def test_online_teacher_is_trained_from_scratch_and_not_saved(made):
    _, out, _ = made
    record = records_of(out)["Online"]
    assert record.config["model"]["members"]["teacher"] == dict(model=net(4), type="trained")
    assert (record.teacher, record.teacher_record, record.config["cache"]) == (None, None, None)
    assert record.cost.teacher_forwards == 0
    log = (Paths(out).runs / record.id / "log.jsonl").read_text()
    for term in ("teacher.loss_ce", "student.loss_ce", "toymatch.loss_match", "toymatch1.loss_match"):
        assert f'"{term}"' in log
    state, _ = read_weights(Paths(out).runs / record.id / "student.safetensors")
    assert state["fc.weight"].shape == (3, 2)
    assert not any("teacher" in key for key in state)


# --- states and failures ---


def test_lost_teacher_makes_its_own_students_stale(made, tmp_path):
    suite, out, _ = made
    records = tmp_path / "records"
    for path, _ in iter_records(out / "records"):
        copy = records / path.relative_to(out / "records")
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(path.read_bytes())
    jobs = {job.method: job for job in plan(suite)}
    assert {state(job, records)[0] for job in jobs.values()} == {"done"}
    record_path(records, jobs["teacher-wide"].id).unlink()
    found = {method: state(job, records)[0] for method, job in jobs.items()}
    assert {m for m, s in found.items() if s == "missing"} == {"teacher-wide"}
    assert {m for m, s in found.items() if s == "stale"} == {"Mean", "Wide"}
    with pytest.raises(ConfigError, match=r"mean/seed0 needs the teacher's record .*teacher-wide/seed0\.json"):
        resolve(jobs["Mean"], records)


def test_teacher_that_fails_takes_its_students_and_no_others_with_it(tmp_path):
    broken = dict(wide=dict(model=net(6), data=dict(train=dict(type="ToyData", split="train", nan_at=3))))
    methods = dict(
        Pair=dict(links=[dict(type="ToyMean", teacher=["teacher", "wide"])]),
        Alone=dict(links=[dict(type="ToyMatch")]),
    )
    suite = suite_of(write(tmp_path, teachers=broken, methods=methods, recipe=dict(RECIPE, epochs=1)))
    outcome = run_suite(suite, tmp_path / "out", jobs=1)
    assert {i.split("/")[2] for i in outcome.made} == {"teacher", "plain", "alone"}
    failed = {i.split("/")[2]: text for i, text in outcome.failed.items()}
    assert "non-finite loss" in failed.pop("teacher-wide")
    assert failed == {"pair": "its teacher failed"}


# --- another pair's teacher ---


def test_teacher_of_another_pair_is_trained_there_and_taken_here(tmp_path):
    first = write(tmp_path, "first", pair="first", teacher_recipe=dict(RECIPE, epochs=2), methods={})
    second = write(
        tmp_path,
        "second",
        pair="second",
        teacher_of=first,
        recipe=dict(RECIPE, epochs=1),
        methods=dict(ToyMatch=dict(links=[dict(type="ToyMatch")])),
    )
    jobs = plan(suite_of(second))
    assert [(j.pair, j.method) for j in jobs] == [("first", "teacher"), ("second", "plain"), ("second", "ToyMatch")]
    assert jobs[0].config == first
    assert jobs == [j for j in plan(suite_of(first, second)) if j.method == "teacher" or j.pair == "second"]
    outcome = run_suite(suite_of(second), tmp_path / "out", jobs=1)
    assert outcome.made == [job.id for job in jobs]
    records = records_of(tmp_path / "out")
    assert records["teacher"].recipe.epochs == 2
    assert records["ToyMatch"].recipe.epochs == 1
    assert records["ToyMatch"].teacher_record == records["teacher"].id == "toy/first/teacher/seed0"
    run = single_run(load_pair(second), "ToyMatch", 5, tmp_path / "out")
    assert run.model["members"]["teacher"]["weights"] == "run://toy/first/teacher/seed0"


def assistant(tmp_path: Path, **changes: Any) -> tuple[str, str]:
    """Two configs: the first pair's student by ToyMatch is the teacher of the second."""
    match = dict(ToyMatch=dict(links=[dict(type="ToyMatch")]))
    first = write(tmp_path, "first", pair="first", student=net(3), methods=match)
    own = dict(dict(pair="second", teacher_of=f"{first}:toymatch", teacher=net(3), methods=match), **changes)
    return first, write(tmp_path, "second", **own)


def test_student_of_another_pair_is_trained_there_and_teaches_here(tmp_path):
    first, second = assistant(tmp_path)
    jobs = plan(suite_of(second))
    names = [(j.pair, j.method) for j in jobs]
    assert names == [("first", "teacher"), ("first", "ToyMatch"), ("second", "plain"), ("second", "ToyMatch")]
    assert jobs[3].trainers == {"teacher": jobs[1]}
    assert jobs[1].trainers == {"teacher": jobs[0]}
    assert {j.id for j in plan(suite_of(second, first))} == {j.id for j in [*jobs, *plan(suite_of(first))]}
    out = tmp_path / "out"
    assert run_suite(suite_of(second), out, jobs=1).made == [job.id for job in jobs]
    record = read_record(record_path(out / "records", jobs[3].id))
    assert record.teacher_record == jobs[1].id == "toy/first/toymatch/seed0"
    assert run_suite(suite_of(second), out, jobs=1).found == [job.id for job in jobs]
    # what taught the assistant is made again only where the assistant is
    (out / "runs" / jobs[0].id / "student.safetensors").unlink()
    record_path(out / "records", jobs[3].id).unlink()
    assert run_suite(suite_of(second), out, jobs=1).made == [jobs[3].id]
    (out / "runs" / jobs[1].id / "student.safetensors").unlink()
    record_path(out / "records", jobs[3].id).unlink()
    assert run_suite(suite_of(second), out, jobs=1).made == [jobs[0].id, jobs[1].id, jobs[3].id]


def test_a_plain_student_may_teach_too(tmp_path):
    first, second = assistant(tmp_path)
    second = write(tmp_path, "third", pair="third", teacher_of=f"{first}:plain", teacher=net(3))
    assert [(j.pair, j.method) for j in plan(suite_of(second))][:1] == [("first", "plain")]


def test_assistant_of_another_network_or_without_a_method_of_that_name_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"takes the student by ToyMatch of .*first\.py, but its own teacher config"):
        plan(suite_of(assistant(tmp_path, teacher=net(5))[1]))
    with pytest.raises(UnknownName, match="'ToyMatch'"):
        plan(suite_of(assistant(tmp_path, teacher_of=f"{tmp_path / 'first.py'}:ToyMach")[1]))


def test_pairs_that_teach_each_other_are_refused(tmp_path):
    match = dict(ToyMatch=dict(links=[dict(type="ToyMatch")]))
    pairs = dict(student=net(3), teacher=net(3), methods=match)
    for name, other in (("first", "second"), ("second", "first")):
        write(tmp_path, name, pair=name, teacher_of=f"{tmp_path / other}.py:ToyMatch", **pairs)
    said = r"second\.py takes its teacher from .*first\.py takes its teacher from .*second\.py; one of them must train"
    with pytest.raises(ConfigError, match=said):
        plan(suite_of(str(tmp_path / "first.py")))


def test_pair_whose_own_teacher_differs_is_refused(tmp_path):
    first = write(tmp_path, "first", pair="first")
    second = write(tmp_path, "second", pair="second", teacher_of=first, teacher=net(5))
    said = r"pair toy/second takes the teacher of .*first\.py, but its own teacher config differs; make the two equal"
    with pytest.raises(ConfigError, match=said):
        plan(suite_of(second))


def test_further_teachers_are_always_the_pairs_own(tmp_path):
    first = write(tmp_path, "first", pair="first")
    pair = toy_pair(pair="second", teacher_of=first, teachers=dict(wide=dict(model=net(6))))
    assert trainer("second", pair, "wide", 3).id == "toy/second/teacher-wide/seed3"
    assert trainer("second", pair, "teacher", 3).id == "toy/first/teacher/seed3"


# --- one run from the command line ---


def found(run: RunConfig) -> dict[str, str | None]:
    return {name: member.get("weights") for name, member in run.model["members"].items() if name != "student"}


def test_single_run_finds_every_teacher_below_the_output(made):
    suite, out, _ = made
    (job,) = [j for j in plan(suite) if j.method == "Mean"]
    pair = load_pair(suite.groups[0].config)
    assert single_run(pair, "Mean", 0, out) == resolve(job, Paths(out).records)
    weights = found(single_run(pair, "Mean", 0, out, teacher="own.safetensors"))
    assert weights["teacher"] == "own.safetensors"
    assert weights["wide"] == "run://toy/toy4-toy2/teacher-wide/seed0"


@pytest.mark.parametrize(
    ("method", "teacher", "said"),
    [
        ("Mean", None, r"method 'Mean' needs a teacher .*\(--method teacher\) or pass --teacher FILE$"),
        ("Mean", "own.safetensors", r"method 'Mean' needs a teacher .*\(--method teacher-wide\)$"),
        ("Wide", None, r"\(--method teacher-wide\)$"),
    ],
)
def test_single_run_names_the_teacher_that_is_not_there(tmp_path, method, teacher, said):
    with pytest.raises(ConfigError, match=said):
        single_run(toy_pair(**many()), method, 0, tmp_path, teacher)


def test_single_run_names_the_config_that_trains_another_pairs_teacher(tmp_path):
    pair = toy_pair(pair="second", teacher_of=write(tmp_path, "first", pair="first"))
    with pytest.raises(ConfigError, match=r"toy/first/teacher has none; .*--method teacher of .*first\.py\)"):
        single_run(pair, "ToyMatch", 0, tmp_path)


def test_online_form_needs_no_teacher_on_disk(tmp_path):
    assert found(single_run(toy_pair(**many()), "Online", 0, tmp_path)) == {"teacher": None}


def pretrained() -> PairConfig:
    """Only expanded, never built: the toy has no weights of its own."""
    return toy_pair(
        teacher=net(4, pretrained=True),
        methods=dict(ToyMatch=METHODS["Wide"] | dict(links=[dict(type="ToyMatch")]), Online=ONLINE),
    )


def test_pretrained_teacher_needs_no_record_and_takes_one_that_is_there(made, tmp_path):
    _, out, _ = made
    member = single_run(pretrained(), "ToyMatch", 0, tmp_path).model["members"]["teacher"]
    assert member["model"]["pretrained"] is True
    assert (member["weights"], member["initial_weights"]) == (None, True)
    member = single_run(pretrained(), "ToyMatch", 0, out).model["members"]["teacher"]
    assert member["model"]["pretrained"] is False
    assert member["weights"] == "run://toy/toy4-toy2/teacher/seed0"
    assert member["sha256"] == records_of(out)["teacher"].student_sha256
    assert "initial_weights" not in member


@pytest.mark.parametrize("teacher", [None, "own.safetensors"])
def test_pretrained_teacher_that_is_trained_too_starts_from_its_weights(tmp_path, teacher):
    run = single_run(pretrained(), "Online", 0, tmp_path, teacher)
    assert run.model["members"]["teacher"] == dict(model=net(4, pretrained=True), type="trained")


def test_teacher_file_of_the_command_line_is_taken_as_it_is(tmp_path):
    weights = teacher_file(tmp_path)
    run = single_run(toy_pair(), "ToyMatch", 2, tmp_path, weights)
    assert found(run) == {"teacher": weights}
    assert execute(run, RunOptions(out=tmp_path / "runs", threads=1)) is not None


def test_suite_file_may_vary_the_teachers(tmp_path):
    config = write(tmp_path, **many())
    (tmp_path / "s.toml").write_text(
        f'name = "s"\ntitle = "S"\nseeds = [0]\n[[groups]]\nconfig = "{config}"\nmethods = ["Wide"]\n'
        '[[groups.vary]]\nmethod = "Mean"\noption = "teacher"\nvalues = [["odd"], ["wide", "odd"]]\n'
    )
    jobs = {job.method: list(job.trainers) for job in plan(load_suite(str(tmp_path / "s.toml")))}
    assert list(jobs)[:3] == ["teacher", "teacher-wide", "teacher-odd"]
    assert jobs["Mean@teacher=['odd']"] == ["odd"]
    assert jobs["Mean@teacher=['wide', 'odd']"] == ["wide", "odd"]
