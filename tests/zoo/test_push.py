"""Pushing to the hub, against a stand-in on this machine: one commit, the layout that loads, faults in one sentence."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard, constants
from typer.testing import CliRunner

from limbeck.cli.app import app
from limbeck.engine.record import read_record, write_record
from limbeck.engine.weights import sha256_file
from limbeck.errors import ConfigError, CorruptFile, UnknownName
from limbeck.zoo import load_student, push_student
from limbeck.zoo.hub_errors import HubError
from limbeck.zoo.index import find, weights_path
from limbeck.zoo.push import push_files
from tests.zoo.fabricate import NAME, fabricate, flip_bit, make_zoo
from tests.zoo.hub_stub import GOOD, READ_ONLY, Hub, hub_stub

REPO = "me/digits-student"


@pytest.fixture
def place(tmp_path) -> dict[str, Path]:
    """A zoo with one student, and the folder of its record."""
    zoo, card = make_zoo(tmp_path)
    write_record(tmp_path / "records", fabricate(card.sha256))
    return dict(zoo_dir=zoo, results=tmp_path / "records")


@pytest.fixture
def hub(monkeypatch):
    with hub_stub() as found:
        monkeypatch.setattr(constants, "ENDPOINT", found.url)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True, raising=False)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setenv("HF_TOKEN", GOOD)
        yield found


def test_one_commit_has_all_files_and_loads(place, hub: Hub, tmp_path):
    done = push_student(NAME, REPO, **place)
    (commit,) = hub.commits
    assert commit["repo"] == REPO
    assert commit["branch"] == "main"
    assert commit["header"]["summary"] == f"{NAME}, by limbeck"
    assert done.url.startswith(f"{hub.url}/{REPO}/commit/")
    assert done.reference == f"hf://{REPO}"
    files = hub.repos[REPO]["main"]
    card = find(NAME, zoo_dir=place["zoo_dir"])
    record = f"results/{card.record}.json"
    assert files.keys() - {".gitattributes"} == {
        "README.md", f"cards/{NAME}.json", f"weights/{card.file}", "model-index.yml", record,
    }  # fmt: skip
    assert commit["keys"].count("lfsFile") == 1
    assert not hub.private[REPO]
    there = tmp_path / "downloaded"
    for path, content in files.items():
        (there / path).parent.mkdir(parents=True, exist_ok=True)
        (there / path).write_bytes(content)
    assert find(NAME, zoo_dir=there) == card
    assert sha256_file(there / "weights" / card.file) == card.sha256
    assert load_student(NAME, zoo_dir=there).card == card
    assert read_record(there / record) == fabricate(card.sha256)
    loaded = ModelCard.load(there / "README.md")
    assert {r.metric_name: r.metric_value for r in loaded.data.eval_results} == card.metrics
    assert f'limbeck.load_student("hf://{REPO}")' in loaded.text
    (model,) = yaml.safe_load(files["model-index.yml"])["Models"]
    assert model["Weights"].endswith(f"{REPO}/resolve/main/weights/{card.file}")


def test_what_is_listed_is_what_arrives(place, hub: Hub):
    listed = push_files(NAME, REPO, dataset="uci/digits", **place)
    push_student(NAME, REPO, dataset="uci/digits", **place)
    files = hub.repos[REPO]["main"]
    assert {f.path: f.size for f in listed} == {p: len(c) for p, c in files.items() if p != ".gitattributes"}
    for file in listed:
        assert hashlib.sha256(files[file.path]).hexdigest() == file.sha256
    (entry,) = yaml.safe_load(files[f".eval_results/{NAME}.yaml"])
    assert entry["dataset"]["id"] == "uci/digits"
    assert entry["value"] == 12.5


def test_branch_is_made_and_named(place, hub: Hub):
    done = push_student(NAME, REPO, private=True, revision="v1.0", **place)
    assert done.reference == f"hf://{REPO}@v1.0"
    assert hub.private[REPO]
    assert hub.repos[REPO]["main"].keys() == {".gitattributes"}
    assert f"cards/{NAME}.json" in hub.repos[REPO]["v1.0"]
    assert f'load_student("hf://{REPO}@v1.0")' in hub.repos[REPO]["v1.0"]["README.md"].decode()


def test_second_push_replaces_the_first(place, hub: Hub, tmp_path):
    push_student(NAME, REPO, **place)
    files = hub.repos[REPO]["main"]
    old = f"weights/{NAME}-00000000.safetensors"
    files |= {old: b"old", "results/toy/other/kd/seed0.json": b"{}", "notes.txt": b"mine"}
    push_student(NAME, REPO, message="again", **place)
    files = hub.repos[REPO]["main"]
    assert hub.commits[-1]["header"]["summary"] == "again"
    assert old not in files
    assert "results/toy/other/kd/seed0.json" not in files
    assert files["notes.txt"] == b"mine"
    assert f"cards/{NAME}.json" in files


def test_repository_of_another_student_is_left_alone(place, hub: Hub):
    hub.repos[REPO] = dict(main={"cards/other.student.json": b"{}"})
    with pytest.raises(HubError, match=r"it has other\.student; a repository is for one student"):
        push_student(NAME, REPO, **place)
    assert hub.repos[REPO]["main"] == {"cards/other.student.json": b"{}"}
    assert not hub.commits


def test_weights_are_checked_before_anything_is_sent(place, hub: Hub):
    flip_bit(weights_path(NAME, zoo_dir=place["zoo_dir"]))
    for act in (push_files, push_student):
        with pytest.raises(CorruptFile, match=r"sha256 is .*, expected"):
            act(NAME, REPO, **place)
    assert not hub.calls


def test_record_must_be_there_and_be_the_cards(place, hub: Hub, tmp_path):
    with pytest.raises(ConfigError, match=r"record of resnet8w4\.toy_kd is not there; name the folder .* --results"):
        push_student(NAME, REPO, zoo_dir=place["zoo_dir"], results=tmp_path / "nowhere")
    card = find(NAME, zoo_dir=place["zoo_dir"])
    write_record(tmp_path / "other", fabricate(card.sha256, metrics=dict(top1=99.0, nll=2.0)))
    with pytest.raises(CorruptFile, match="its metrics is"):
        push_student(NAME, REPO, zoo_dir=place["zoo_dir"], results=tmp_path / "other")
    assert not hub.calls


def test_wrong_names(place, hub: Hub):
    for wrong in (dict(repo="digits"), dict(repo=REPO, dataset="digits"), dict(repo=REPO, teacher_repo="a/b/c")):
        with pytest.raises(ConfigError, match="OWNER/NAME"):
            push_student(NAME, **wrong, **place)
    with pytest.raises(UnknownName, match=r"did you mean 'resnet8w4\.toy_kd'"):
        push_student("resnet8w4.toy_kdd", REPO, **place)
    assert not hub.calls


def test_no_token(place, hub: Hub, monkeypatch):
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    with pytest.raises(HubError, match=r"not pushed to me/digits-student: there is no token; run `hf auth login`"):
        push_student(NAME, REPO, **place)
    assert not hub.calls


@pytest.mark.parametrize(
    ("token", "said"),
    [("hf_wrong", "the token is missing or wrong"), (READ_ONLY, "the token may not do this; take one with permission")],
)
def test_refused_token(place, hub: Hub, monkeypatch, token, said):
    monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(HubError, match=said) as caught:
        push_student(NAME, REPO, **place)
    assert "\n" not in str(caught.value)
    assert token not in str(caught.value)
    assert not hub.commits


def test_no_network(place, hub: Hub, monkeypatch):
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # discard: nobody listens
    with pytest.raises(HubError, match=r"the hub cannot be reached .*; check the network and HF_ENDPOINT"):
        push_student(NAME, REPO, **place)


@pytest.mark.parametrize(
    ("part", "status", "said"),
    [
        ("/commit/", 403, "may not do this"),
        ("/commit/", 409, "something else was there first"),
        ("/tree/", 404, "no such repository, revision or file"),
        ("/api/repos/create", 400, "the hub answers with HTTP 400"),
    ],
)
def test_hub_that_refuses_later(place, hub: Hub, part, status, said):
    hub.fail[part] = status
    with pytest.raises(HubError, match=said):
        push_student(NAME, REPO, **place)
    assert not hub.commits


def invoke(place, *args: str):
    given = ["zoo", "push", NAME, REPO, "--results", str(place["results"]), *args]
    return CliRunner().invoke(app, given)


def test_dry_run_lists_and_sends_nothing(place, hub: Hub, monkeypatch):
    monkeypatch.setenv("LIMBECK_ZOO", str(place["zoo_dir"]))
    monkeypatch.delenv("HF_TOKEN")
    before = sorted(p for p in place["zoo_dir"].parent.rglob("*"))
    done = invoke(place, "--dry-run", "--dataset", "uci/digits")
    assert done.exit_code == 0, done.output
    lines = done.output.splitlines()
    assert lines[-1] == "nothing was sent"
    card = find(NAME)
    rows = {line.split()[2]: line.split()[:2] for line in lines[:-1]}
    assert rows.keys() == {
        ".eval_results/resnet8w4.toy_kd.yaml", "README.md", f"cards/{NAME}.json", "model-index.yml",
        f"results/{card.record}.json", f"weights/{card.file}",
    }  # fmt: skip
    assert rows[f"weights/{card.file}"] == [card.sha256, f"{card.file_bytes:,}"]
    assert not hub.calls
    assert sorted(p for p in place["zoo_dir"].parent.rglob("*")) == before


def test_command_pushes(place, hub: Hub, monkeypatch):
    monkeypatch.setenv("LIMBECK_ZOO", str(place["zoo_dir"]))
    done = invoke(place, "--private", "--revision", "v2")
    assert done.exit_code == 0, done.output
    assert f'limbeck.load_student("hf://{REPO}@v2")' in done.output
    assert hub.private[REPO]


@pytest.mark.parametrize("token", ["hf_wrong", None])
def test_fault_is_one_sentence_and_exit_status_2(place, hub: Hub, token):
    """As a user meets it: another process, the hub's address and the token in the environment."""
    env = {k: v for k, v in os.environ.items() if k not in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")}
    env |= dict(
        HF_ENDPOINT=hub.url,
        HF_HUB_DISABLE_XET="1",
        HF_HOME=str(place["results"] / "hf"),
        LIMBECK_ZOO=str(place["zoo_dir"]),
        NO_PROXY="127.0.0.1",
    )
    if token is not None:
        env["HF_TOKEN"] = token
    command = [sys.executable, "-m", "limbeck", "zoo", "push", NAME, REPO, "--results", str(place["results"])]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 2, done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.strip()]
    assert "hf auth login" in line
    assert not done.stdout
    assert not hub.commits
