"""Contributions: what is written where, what is refused, and that nothing is ever replaced."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from limbeck.engine.record import RunRecord, record_path
from limbeck.errors import ConfigError, CorruptFile, UserError
from limbeck.leaderboard.checks import DuplicateRecord, MissingBaseline, MixedRecords
from limbeck.leaderboard.store import load_results
from limbeck.leaderboard.submit import SubmitError, record_files, submit
from tests.leaderboard.toy_runs import edit, run_toys

ROOT = Path(__file__).parents[2]
PLACE = "alice.toy/toy4-toy2"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    return run_toys(tmp_path_factory.mktemp("toys"), benchmark="alice.toy")


@pytest.fixture
def toys(trained: SimpleNamespace, tmp_path: Path) -> SimpleNamespace:
    """A copy of Alice's records, and an empty checkout."""
    shutil.copytree(trained.records, tmp_path / "records")
    (tmp_path / "checkout" / "results").mkdir(parents=True)
    known = dict(config=str(trained.config), licences={"toy": "CC0"}, checkout=tmp_path / "checkout")
    return SimpleNamespace(records=tmp_path / "records", runs=trained.runs, known=known, out=known["checkout"])


def path(toys: SimpleNamespace, run: str) -> Path:
    return record_path(toys.records, f"{PLACE}/{run}")


def written(toys: SimpleNamespace) -> list[str]:
    return sorted(p.relative_to(toys.out).as_posix() for p in toys.out.rglob("*") if p.is_file())


def refused(toys: SimpleNamespace, kind: type[UserError], said: str, files: list[Path] | None = None) -> None:
    """A submission is refused with this sentence, and nothing at all is written."""
    before = written(toys)
    with pytest.raises(kind, match=said):
        submit(files or record_files([toys.records]), **toys.known)
    assert written(toys) == before


def test_records_go_to_their_places_and_are_what_they_were(toys: SimpleNamespace) -> None:
    found = submit(record_files([toys.records]), **toys.known)
    assert len(found.written) == 7
    assert load_results(toys.out / "results").groups[0].name == PLACE
    for new in found.written:
        old = toys.records / new.relative_to(toys.out / "results")
        assert RunRecord.model_validate_json(new.read_text()) == RunRecord.model_validate_json(old.read_text())
    assert f"  git add results/{PLACE}" in found.lines


def test_the_same_records_again_are_nothing_to_commit(toys: SimpleNamespace) -> None:
    submit(record_files([toys.records]), **toys.known)
    again = submit(record_files([toys.records]), **toys.known)
    assert (again.written, len(again.present)) == ((), 7)
    assert again.lines[-1] == "every record is there already; nothing to commit"


def test_another_record_of_one_run_is_never_replaced(toys: SimpleNamespace) -> None:
    submit(record_files([toys.records]), **toys.known)
    edit(path(toys, "toymatch/seed0"), cost__train_seconds=1e6)
    refused(toys, DuplicateRecord, "already holds the run .*; it is not replaced: .*leaderboard reproduce")


def test_a_later_seed_joins_what_is_there(toys: SimpleNamespace) -> None:
    first = [path(toys, r) for r in ("teacher/seed0", "plain/seed0", "plain/seed1", "toymatch/seed0", "toymatch/seed1")]
    submit(first, **toys.known)
    found = submit([path(toys, f"toybridge/seed{s}") for s in (0, 1)], **toys.known)
    assert len(found.written) == 2


def test_a_benchmark_of_ones_own_carries_its_contributors_name(
    toys: SimpleNamespace, tmp_path: Path, trained: SimpleNamespace
) -> None:
    (tmp_path / "unnamed").mkdir()
    toys.records = run_toys(tmp_path / "unnamed").records
    refused(toys, SubmitError, r"no pair toy/toy4-toy2; name the benchmark of your own config 'YOU\.toy'")


def test_a_record_that_nobody_could_run_again_is_refused(toys: SimpleNamespace) -> None:
    toys.known["config"] = None
    refused(toys, SubmitError, "no config of alice.toy/toy4-toy2 is known.*--config")


def test_a_config_that_has_changed_since_is_refused(toys: SimpleNamespace, tmp_path: Path) -> None:
    text = Path(toys.known["config"]).read_text()
    (tmp_path / "toy.py").write_text(text.replace("'epochs': 4", "'epochs': 5"))
    assert (tmp_path / "toy.py").read_text() != text
    toys.known["config"] = str(tmp_path / "toy.py")
    refused(toys, SubmitError, "was made with another config than .* has today")


@pytest.mark.parametrize(
    ("fields", "kind", "said"),
    [
        (dict(metrics__top1=float("nan")), CorruptFile, r"seed1\.json: metrics\.top1: .*finite"),
        (dict(mood="good"), CorruptFile, r"seed1\.json: mood: Extra inputs"),
        (dict(record_version=0), CorruptFile, r"seed1\.json: record_version"),
        (dict(config__seed=7), CorruptFile, r"seed1\.json: the config's sha256"),
        (dict(assumption="\x1b[31m"), CorruptFile, r"seed1\.json: holds the control character"),
        (dict(status="unreliable"), SubmitError, "status is 'unreliable'"),
        (dict(recipe__selection="best_test"), SubmitError, "selected on the test split"),
        (dict(recipe__selection="best_val"), MixedRecords, "differ in selection"),
        (dict(data__content_hash="0" * 64), MixedRecords, "differ in data hash"),
        (dict(data__name="secret"), SubmitError, "no licence is known of data set 'secret'"),
        (dict(initial_hash="0" * 64), MixedRecords, "started from different weights"),
    ],
)
def test_bad_records_are_refused_by_name(
    toys: SimpleNamespace, fields: dict[str, object], kind: type[UserError], said: str
) -> None:
    edit(path(toys, "toymatch/seed1"), **fields)
    refused(toys, kind, said)


def test_a_method_needs_its_plain_student_and_two_seeds(toys: SimpleNamespace) -> None:
    methods = [path(toys, f"toymatch/seed{s}") for s in (0, 1)]
    refused(toys, MissingBaseline, "no plain student of its seed.*plain/seed0", methods)
    one = [path(toys, r) for r in ("teacher/seed0", "plain/seed0", "toymatch/seed0")]
    refused(toys, SubmitError, "the only seed of ToyMatch", one)


def test_two_files_of_one_run_are_refused(toys: SimpleNamespace) -> None:
    shutil.copy(path(toys, "toymatch/seed1"), toys.records / "copy.json")
    refused(toys, DuplicateRecord, r"copy\.json.*hold the same run")


def test_weights_are_checked_and_stay_out_of_results(toys: SimpleNamespace, tmp_path: Path) -> None:
    toys.known["weights"] = toys.runs / PLACE / "toymatch" / "seed1" / "student.safetensors"
    found = submit(record_files([toys.records]), **toys.known)
    assert f"is the student of {PLACE}/toymatch/seed1" in found.notes[-1]
    assert all(p.suffix == ".json" for p in found.written)
    toys.known["weights"] = tmp_path / "other.safetensors"
    refused(toys, ConfigError, "no such file")
    toys.known["weights"].write_bytes(b"x")
    refused(toys, CorruptFile, "is of none of the records")


def test_a_folder_that_is_no_checkout_and_no_records_are_refused(toys: SimpleNamespace, tmp_path: Path) -> None:
    toys.known["checkout"] = tmp_path
    with pytest.raises(ConfigError, match="no folder results/; name a checkout"):
        submit(record_files([toys.records]), **toys.known)
    with pytest.raises(ConfigError, match="no record is named"):
        submit([], checkout=toys.out)


def test_committed_records_are_what_a_contribution_may_be(tmp_path: Path) -> None:
    """Ours pass the rules that others are held to: config of today, licence, baseline, seeds."""
    from limbeck.zoo.terms import DATA_TERMS

    licences = {name: terms.licence for name, terms in DATA_TERMS.items()}
    (tmp_path / "results").mkdir()
    files = record_files([ROOT / "results" / "flowers5"])
    assert len(submit(files, checkout=tmp_path, licences=licences).written) == len(files) > 20
