"""`limbeck zero-shot`: the line, the table, JSON, and one sentence for every mistake."""

from __future__ import annotations

import json

import pytest
from PIL import Image

import limbeck.multimodal.vlm._tiny_clip as tiny
from limbeck.cli import main
from limbeck.engine.registry import MODELS
from limbeck.engine.weights import load_into
from limbeck.multimodal.vlm._tiny_clip import train_tiny_clip
from limbeck.multimodal.vlm.zero_shot import evaluate_zero_shot, open_split

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


@pytest.mark.parametrize(("adapt", "kind"), [("tip-adapter-f", "TipAdapterF"), ("clap", "CLAP")])
def test_fitted_to_few_labels_and_compared_with_zero_shot_on_the_same_images(capsys, tmp_path, adapt, kind):
    file = tmp_path / "fitted.safetensors"
    args = (*TINY, "--limit", 80, "--adapt", adapt, "--shots", 3, "--seed", 2)
    before = json.loads(run(capsys, *TINY, "--limit", 80, "--json"))
    found = json.loads(run(capsys, *args, "--json", "--save", file))
    assert found["zero_shot"] == {key: before[key] for key in ("correct", "top1", "low", "high")}
    assert (found["labelled_images"], found["seed"], found["images"]) == (30, 2, 80)
    assert ("alpha" in found) == (kind == "TipAdapterF")
    assert found["model"] == dict(type=kind, zero_shot=before["model"], support=30)
    # The saved weights are those that gave the figures, and fit the config that is printed.
    model = MODELS.make(found["model"])
    load_into(model, file, sha256=found["sha256"])
    again = evaluate_zero_shot(model.eval(), open_split("Digits", "test", limit=80), [str(i) for i in range(10)])
    assert (again.correct, again.low, again.high) == (found["correct"], found["low"], found["high"])
    said = run(capsys, *args)
    assert f"zero-shot: top-1 {before['top1']:.2f} % [{before['low']:.2f}, {before['high']:.2f}]" in said
    assert f"{adapt}, fitted to 30 labelled images of train:" in said
    assert (
        f"\ntop-1 {found['top1']:.2f} % [{found['low']:.2f}, {found['high']:.2f}] on 80 images of digits test" in said
    )


def test_augmented_views_are_of_the_labelled_images_alone(capsys):
    args = (*TINY, "--limit", 80, "--adapt", "clap", "--shots", 2, "--json")
    plain, augmented = (json.loads(run(capsys, *args, *more)) for more in ((), ("augment={'pad': 2}", "views=4")))
    assert plain["zero_shot"] == augmented["zero_shot"]  # the tested images are the same
    assert plain["labelled_images"] == augmented["labelled_images"] == 20


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ((*TINY, "--adapt", "clip"), "unknown adaptation 'clip'; did you mean 'clap'"),
        ((*TINY, "--shots", 3), "--shots and --save are of a fitted model; add --adapt"),
        ((*TINY, "--adapt", "clap", "--shots", 500), "fewer than 500 shots"),
        ((*TINY, "--adapt", "clap", "--split", "train"), "clap reads labels of train; test it on another split"),
        ((*TINY, "--adapt", "tip-adapter-f", "--split", "val"), "reads labels of train and val; test it on another"),
    ],
)
def test_mistakes_of_fitting_cost_one_line(capsys, args, said):
    found = run(capsys, *args, status=2).strip()
    assert said in found
    assert "Traceback" not in found


def test_tip_adapter_says_that_it_needs_a_validation_split(capsys, tmp_path):
    for split in ("train", "test"):
        for name, grey in (("zero", 40), ("one", 200)):
            (tmp_path / split / name).mkdir(parents=True)
            for i in range(3):
                Image.new("L", (8, 8), grey + i).save(tmp_path / split / name / f"{i}.png")
    args = ("ImageFolder", f"root={tmp_path}", "size=8", "--model", "tiny", "--threads", 1, "--shots", 2, "--adapt")
    said = run(capsys, *args, "tip-adapter-f", status=2)
    assert "tip-adapter-f is chosen on the split val" in said
    assert "take --adapt clap, which needs none" in said


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
    said = run(capsys, "--help")
    assert "Example: limbeck zero-shot CIFAR10JPEG" in said
    assert "--adapt tip-adapter-f --shots 4" in said
