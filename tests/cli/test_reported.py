"""`leaderboard reported`, `compare-reported`, `submit`, `bench reproduce`, and --results of a repository, as typed."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
from typer.testing import CliRunner

from limbeck.cli.app import app
from limbeck.engine import bench
from limbeck.errors import ConfigError, CorruptFile, UnknownName
from limbeck.leaderboard.gather import GatherError
from tests.leaderboard.fabricate import damage, fabricate, suite, with_values, write_all
from tests.leaderboard.toy_runs import run_toys

ROOT = Path(__file__).parents[2]
EVIL = "[red]KD[/red]<script>alert(1)</script>"


def call(*args: object, status: int = 0) -> str:
    done = CliRunner().invoke(app, [str(a) for a in args])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == status, done.output
    return done.output


@pytest.fixture
def results(tmp_path: Path) -> Path:
    return write_all(tmp_path / "results", suite(("KD", "DKD"), range(3)))


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LIMBECK_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "theirs"
    write_all(folder / "results", suite(("KD",), range(2), benchmark="theirs"))
    own = ("-c", "user.name=a", "-c", "user.email=a@b")
    for args in (("init", "--quiet"), ("add", "--all"), ("commit", "--quiet", "--message", "runs")):
        subprocess.run(["git", *own, *args], cwd=folder, check=True)
    return folder


def test_reported_prints_groups_and_json() -> None:
    text = call("leaderboard", "reported", "image-classification", "--method", "DKD", "--dataset", "CIFAR-100")
    assert "image-classification on CIFAR-100 (test)" in text
    rows = json.loads(call("leaderboard", "reported", "--method", "DKD", "--json"))
    assert {row["origin"] for row in rows} == {"reported"}
    with pytest.raises(UnknownName, match="did you mean"):
        call("leaderboard", "reported", "--method", "DKDD")


def test_compare_reported_shows_both_columns(results: Path) -> None:
    text = call("leaderboard", "compare-reported", "toy", "--results", results)
    assert "REPORTED gain" in text
    assert "MEASURED gain" in text
    found = json.loads(call("leaderboard", "compare-reported", "toy", "--results", results, "--json"))
    assert [one["method"] for one in found] == ["DKD", "KD"]


def test_results_may_be_a_repository(repository: Path, results: Path) -> None:
    place = f"git+file://{repository}"
    assert "theirs/big-small" in call("leaderboard", "show", "--results", place)
    found = call("leaderboard", "reproduce", repository / "results", f"{place}#results")
    assert "identical" in found
    with pytest.raises(GatherError, match="nowhere"):
        call("leaderboard", "show", "--results", f"{place}@nowhere")


def test_text_of_a_record_is_never_read_as_markup_or_control(tmp_path: Path) -> None:
    folder = write_all(tmp_path / "r", [*with_values("plain", [1.0, 2.0]), *with_values(EVIL, [1.5, 2.5])])
    assert EVIL in "".join(call("leaderboard", "show", "--results", folder).split("\n"))
    found = json.loads(call("leaderboard", "show", "--results", folder, "--json"))
    assert EVIL in {row["method"] for row in found[0]["rows"]}
    path = next(folder.rglob("plain/seed0.json"))
    damage(path, lambda text: text.replace('"platform": "fixture"', '"platform": "\\u001b[2J"'))
    with pytest.raises(CorruptFile, match=r"seed0\.json: holds the control character"):
        call("leaderboard", "show", "--results", folder)


def test_submit_prints_what_to_commit(tmp_path: Path) -> None:
    (tmp_path / "results").mkdir()
    text = call("leaderboard", "submit", ROOT / "results" / "search", "--to", tmp_path)
    assert "wrote results/search/resnet20-depthresnet/kd/seed0.json" in text
    assert "git add results/search/resnet20-depthresnet" in text
    assert "nothing to commit" in call("leaderboard", "submit", ROOT / "results" / "search", "--to", tmp_path)


def test_verify_names_a_changed_record_and_goes_on(results: Path, tmp_path: Path) -> None:
    damage(next(results.rglob("kd/seed1.json")), lambda text: text.replace('"fixture": true', '"fixture": false'))
    text = call("leaderboard", "verify", "--results", results, status=1)
    assert "kd/seed1.json: changed: record: " in text
    assert "9 no weights, 1 changed" in text
    assert "1 no weights" in call("leaderboard", "verify", "toy/big-small/dkd/seed0", "--results", results)


def test_reproduce_runs_one_cell_and_what_it_needs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    toys = run_toys(tmp_path)
    command = ["bench", "reproduce", toys.suite, "--cells", "ToyMatch/1", "--results", toys.records]
    command += ["--out", tmp_path / "again"]
    dry = call(*command, "--dry-run")
    assert "toy/toy4-toy2/teacher/seed0  (needed by the others)" in dry
    assert not (tmp_path / "again").exists()
    with monkeypatch.context() as patched:
        asked: dict[str, object] = {}
        patched.setattr(bench, "run_jobs", lambda todo, out, **options: asked.update(options) or bench.Outcome())
        call(*command, "--ray", "local", "-j", "3", status=1)  # nothing was made
    assert (asked["ray"], asked["jobs"], asked["threads"]) == ("local", 3, 1)
    text = call(*command, "--jobs", "1")
    assert "1 identical" in text
    assert len(list((tmp_path / "again" / "records").rglob("*.json"))) == 3


def test_reproduce_of_what_is_not_there_is_one_sentence() -> None:
    with pytest.raises(ConfigError, match="no table is named"):
        call("bench", "reproduce")
    with pytest.raises(UnknownName, match="did you mean 'repdistiller'"):
        call("bench", "reproduce", "reported:repdistilller")
    assert "reported:repdistiller" in call("bench", "reproduce", "--list")


def test_a_published_table_without_its_data_says_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LIMBECK_DATA", str(tmp_path))
    monkeypatch.setenv("LIMBECK_CACHE", str(tmp_path))
    text = call("bench", "reproduce", "reported:mmrazor-mmdet-pkd", "--results", tmp_path)
    assert "missing here: COCO 2017" in text
    assert "$LIMBECK_DATA/coco" in text
    cells = json.loads(call("bench", "reproduce", "reported:mmrazor-mmdet-pkd", "--results", tmp_path, "--json"))
    assert {c["state"] for c in cells} <= {"data missing", "extra missing", "no counterpart"}


@pytest.mark.parametrize("command", [["bench", "reproduce"], ["leaderboard", "reported"], ["leaderboard", "submit"]])
def test_help_has_an_example(command: list[str]) -> None:
    assert "Example: limbeck" in " ".join(call(*command, "--help").split())


def test_missing_baseline_is_one_sentence(tmp_path: Path) -> None:
    folder = write_all(tmp_path / "r", [fabricate("KD", s) for s in range(2)])
    with pytest.raises(Exception, match="has no plain student on any seed"):
        call("leaderboard", "compare-reported", "toy", "--results", folder)
