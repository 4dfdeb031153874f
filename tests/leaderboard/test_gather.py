"""Records of somebody else: cloned from a Git repository on the disk, validated like ours, bad ones named by file."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from limbeck.errors import ConfigError, CorruptFile
from limbeck.leaderboard.checks import DuplicateRecord
from limbeck.leaderboard.gather import GatherError, Repository, parse_repository, resolve_results
from limbeck.leaderboard.store import load_results
from tests.leaderboard.fabricate import damage, fabricate, suite, write_all

AUTHOR = {f"GIT_{who}_{what}": "a@b" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}


def git(folder: Path, *args: str) -> str:
    done = subprocess.run(
        ["git", *args], cwd=folder, env={**os.environ, **AUTHOR}, check=True, capture_output=True, text=True
    )
    return done.stdout.strip()


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIMBECK_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def theirs(tmp_path: Path) -> Path:
    """A repository of somebody's runs, with two branches and a tag."""
    folder = tmp_path / "their@runs"
    folder.mkdir()
    git(folder, "init", "--quiet", "--initial-branch=main")
    write_all(folder / "results", suite(("KD",), range(2), benchmark="theirs"))
    commit(folder)
    git(folder, "tag", "v1")
    git(folder, "switch", "--quiet", "--create", "more/seeds")
    write_all(folder / "results", [fabricate(m, 2, benchmark="theirs") for m in ("plain", "KD")])
    commit(folder)
    git(folder, "switch", "--quiet", "main")
    return folder


def commit(folder: Path) -> str:
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--message", "runs")
    return git(folder, "rev-parse", "HEAD")


def seeds(place: str) -> list[int]:
    (group,) = load_results(resolve_results(place))
    assert group.name == "theirs/big-small"  # their benchmark keeps its name
    return sorted(group.method("KD"))


def test_a_folder_stays_a_folder(tmp_path: Path) -> None:
    assert resolve_results(tmp_path) == tmp_path
    assert resolve_results("results") == Path("results")


def test_branch_tag_and_commit_of_a_repository(theirs: Path) -> None:
    url = f"git+file://{theirs}"
    assert seeds(url) == [0, 1]
    assert seeds(f"{url}@v1") == [0, 1]
    assert seeds(f"{url}@more/seeds") == [0, 1, 2]
    assert seeds(f"{url}@{git(theirs, 'rev-parse', 'more/seeds')}#results") == [0, 1, 2]
    assert seeds(f"{url}@{git(theirs, 'rev-parse', '--short', 'main')}") == [0, 1]
    assert seeds(str(Path(url))) == [0, 1]  # as a command line's Path leaves it


def test_a_branch_is_fetched_again_and_a_commit_is_not(theirs: Path) -> None:
    url, first = f"git+file://{theirs}", git(theirs, "rev-parse", "HEAD")
    assert seeds(f"{url}@{first}") == [0, 1]
    write_all(theirs / "results", [fabricate(m, 2, benchmark="theirs") for m in ("plain", "KD")])
    commit(theirs)
    assert seeds(url) == [0, 1, 2]
    theirs.rename(theirs.with_name("gone"))
    assert seeds(f"{url}@{first}") == [0, 1]
    with pytest.raises(GatherError, match=r"their@runs: .*; check URL, ref and network"):
        resolve_results(url)


def test_history_is_not_fetched(theirs: Path, tmp_path: Path) -> None:
    commit(write_all(theirs, [fabricate("KD", 5, benchmark="theirs")]))
    resolve_results(f"git+file://{theirs}")
    (bare,) = (tmp_path / "cache" / "results").glob("*/git")
    assert git(bare, "rev-list", "--count", "FETCH_HEAD") == "1"


def test_what_does_not_exist_is_said(theirs: Path) -> None:
    with pytest.raises(GatherError, match=r"@nowhere: .*nowhere"):
        resolve_results(f"git+file://{theirs}@nowhere")
    with pytest.raises(GatherError, match=r"no folder 'out'; its folders are: .*results"):
        resolve_results(f"git+file://{theirs}#out")


@pytest.mark.parametrize(
    ("place", "said"),
    [
        ("git+ext::sh -c touch% /tmp/x", "no Git URL"),
        ("git+rsync://example.org/x", "no Git URL"),
        ("git+https://", "no Git URL|names no repository"),
        ("git+https://example.org/x@--upload-pack=touch", "no branch, tag or commit"),
        ("git+https://-oProxyCommand=touch/x", "names no repository"),
        ("git+https://example.org/x@a..b", "no branch, tag or commit"),
        ("git+https://example.org/x@", "no branch, tag or commit"),
        ("git+https://example.org/x#../../etc", "leads out of the repository"),
        ("git+https://me:secret@example.org/x", "password"),
    ],
)
def test_places_that_mean_no_repository_are_refused_before_git_is_asked(
    place: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subprocess, "run", lambda *a, **k: pytest.fail("git was asked"))
    with pytest.raises(ConfigError, match=said) as refused:
        resolve_results(place)
    assert "secret" not in str(refused.value)


def test_urls_are_taken_apart() -> None:
    whole = parse_repository("git+https://h.org/a/b.git@v1#runs/x")
    assert whole == Repository("https://h.org/a/b.git", "v1", "runs/x")
    assert parse_repository("git+https:/h.org/a/b") == Repository("https://h.org/a/b")
    assert parse_repository("git+ssh://git@h.org/a/b@x/y") == Repository("ssh://git@h.org/a/b", "x/y")
    assert parse_repository("file:///srv/b.git") == Repository("file:///srv/b.git")


@pytest.mark.parametrize("ref", ["", "@v1"])
def test_no_git_is_said(theirs: Path, monkeypatch: pytest.MonkeyPatch, ref: str) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(GatherError, match="needs git, which is not installed"):
        resolve_results(f"git+file://{theirs}{ref}")


def test_symbolic_links_lead_nowhere(theirs: Path, tmp_path: Path) -> None:
    secret = write_all(tmp_path / "secret", [fabricate("KD", 9, benchmark="theirs")])
    link = theirs / "results" / "theirs" / "big-small" / "kd" / "seed9.json"
    link.symlink_to(secret / "theirs" / "big-small" / "kd" / "seed9.json")
    (theirs / "out").symlink_to(secret)
    commit(theirs)
    with pytest.raises(CorruptFile, match=r"kd/seed9\.json: not a whole JSON record"):
        load_results(resolve_results(f"git+file://{theirs}"))
    with pytest.raises(GatherError, match="no folder 'out'"):
        resolve_results(f"git+file://{theirs}#out")


def changed(raw: dict[str, Any], **fields: Any) -> str:
    return json.dumps(raw | fields)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        (dict(extra="x"), r"extra: Extra inputs are not permitted"),
        (dict(metrics=dict(top1=float("nan"))), r"metrics\.top1: .*finite"),
        (dict(record_version=0), r"record_version: .*1"),
        (dict(config=dict(other=True)), r"the config's sha256 is"),
        (dict(assumption="\x1b[2J"), r"control character"),
        (dict(pair="a\u202eb"), r"control character"),
    ],
)
def test_a_bad_record_is_named_with_its_file(theirs: Path, fields: dict[str, Any], said: str) -> None:
    path = theirs / "results" / "theirs" / "big-small" / "kd" / "seed1.json"
    damage(path, lambda text: changed(json.loads(text), **fields))
    commit(theirs)
    with pytest.raises(CorruptFile, match=rf"kd/seed1\.json: .*{said}"):
        load_results(resolve_results(f"git+file://{theirs}"))


def test_two_records_of_one_run_are_refused(theirs: Path) -> None:
    kd = theirs / "results" / "theirs" / "big-small" / "kd"
    (kd / "seed7.json").write_bytes((kd / "seed1.json").read_bytes())
    commit(theirs)
    with pytest.raises(DuplicateRecord, match=r"seed1\.json and .*seed7\.json hold the same run"):
        load_results(resolve_results(f"git+file://{theirs}"))
