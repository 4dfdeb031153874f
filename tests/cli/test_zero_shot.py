"""`limbeck zero-shot`: the line, the table, JSON, and one sentence for every mistake."""

from __future__ import annotations

import json

import pytest

import limbeck.multimodal.vlm._tiny_clip as tiny
from limbeck.cli import main
from limbeck.multimodal.vlm._tiny_clip import train_tiny_clip

TINY = ("Digits", "--model", "tiny", "--threads", 1)


@pytest.fixture(autouse=True)
def quick(tmp_path, monkeypatch):
    """A tiny CLIP of few steps, in a cache of its own."""
    monkeypatch.setenv("LIMBECK_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(tiny, "train_tiny_clip", lambda noise, seed: train_tiny_clip(noise, seed, steps=10))


def run(capsys: pytest.CaptureFixture[str], *args: object, status: int = 0) -> str:
    with pytest.raises(SystemExit) as stop:
        main(["zero-shot", *(str(a) for a in args)])
    said = capsys.readouterr()
    assert int(stop.value.code or 0) == status, said.err
    return said.err if status else said.out


def test_line_and_table_say_what_json_says(capsys):
    found = json.loads(run(capsys, *TINY, "--limit", 60, "--json"))
    said = run(capsys, *TINY, "limit=60", "--per-class")
    assert f"top-1 {found['top1']:.2f} % [{found['low']:.2f}, {found['high']:.2f}] on 60 images of digits test" in said
    assert "10 classes (chance 10.00 %)" in said
    rows = [line.split() for line in said.splitlines()[1:11]]
    assert [(r[0], int(r[1]), int(r[2])) for r in rows] == [
        (c["name"], c["images"], c["correct"]) for c in found["classes"]
    ]
    assert found["images"] == sum(c["images"] for c in found["classes"]) == 60
    assert found["model"]["type"] == "ZeroShotTiny"


def test_names_and_templates(capsys, tmp_path):
    names = tmp_path / "names.txt"
    names.write_text("\n".join(["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]))
    args = (*TINY, "--limit", 30, "--json", "--split", "val", "--names", names)
    found = json.loads(run(capsys, *args, "--template", "the number {}", "--template", "{}"))
    assert found["model"]["templates"] == ["the number {}", "{}"]
    assert found["classes"][7]["name"] == "seven"
    assert found["split"] == "val"


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("Digitz", "--model", "tiny"), "did you mean 'Digits'"),
        ((*TINY, "--template", "a photo"), "unknown templates 'a photo'"),
        ((*TINY, "--template", "a", "--template", "{}"), "template 'a' has no '{}'"),
        ((*TINY, "--tag", "openai"), "has no tag"),
        ((*TINY, "--names", "gone.txt"), "gone.txt"),
        ((*TINY, "--split", "tests"), "did you mean 'test'"),
        ((*TINY, "--template", "a drawing of {}"), "unknown word 'drawing'"),
    ],
    ids=str,
)
def test_mistakes_cost_one_line(capsys, args, said):
    found = run(capsys, *args, status=2).strip()
    assert said in found
    assert found.startswith("error: ")
    assert "Traceback" not in found


def test_fewer_names_than_classes(capsys, tmp_path):
    names = tmp_path / "names.json"
    names.write_text('["zero", "one"]')
    assert "fewer names than classes: 2 for 10" in run(capsys, *TINY, "--names", names, status=2)


def test_help_has_an_example(capsys):
    assert "Example: limbeck zero-shot CIFAR10JPEG" in run(capsys, "--help")
