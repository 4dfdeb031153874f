"""Cards: what they hold, and what a damaged one gets."""

from __future__ import annotations

import json

import pytest

from limbeck.errors import CorruptFile
from limbeck.zoo.card import Card, read_card
from tests.zoo.fabricate import NAME, make_zoo


@pytest.fixture
def card_file(tmp_path):
    zoo, _ = make_zoo(tmp_path)
    return zoo / "cards" / f"{NAME}.json"


def change(path, **values):
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_card_survives_its_file(card_file):
    card = read_card(card_file)
    assert Card.model_validate(json.loads(card.model_dump_json())) == card
    assert card.value == card.metrics["top1"] == 12.5


def test_card_is_frozen(card_file):
    with pytest.raises(ValueError, match="frozen"):
        read_card(card_file).name = "other"


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (dict(metric=1), "metric: Extra inputs"),
        (dict(name="no tag"), "name: "),
        (dict(file="../student.safetensors"), "file: "),
        (dict(file="student.pth"), "file: "),
        (dict(file_bytes=4_000_000_001), "file_bytes: "),
        (dict(sha256="abc"), "sha256: "),
        (dict(latency_ms=1.0), "latency_ms, latency_device and latency_threads go together"),
        (dict(metrics=dict(top1=float("nan"))), "metrics.top1: .*finite"),
        (dict(metrics=dict(nll=1.0)), "lack the primary"),
        (dict(task="cooking"), "task: "),
        (dict(classes=[]), "classes: "),
        (dict(card_version=2), "card_version: "),
        (
            dict(preprocessing=dict(input_size=[3, 8, 8], mean=[0.5], std=[0.5])),
            "preprocessing: .*each of the channels",
        ),
        (dict(preprocessing=dict(input_size=[1, 8, 8], mean=[0.5], std=[0])), "std must be positive"),
        (dict(preprocessing=dict(input_size=[1, 8, 8], mean=[0.5], std=[1], crop_pct=2)), "crop_pct"),
    ],
)
def test_card_that_is_not_valid_names_file_and_field(card_file, values, said):
    change(card_file, **values)
    with pytest.raises(CorruptFile, match=f"{NAME}.json: .*{said}"):
        read_card(card_file)


@pytest.mark.parametrize("damage", [lambda b: b[:-20], lambda b: b"", lambda b: b"\xff" + b, lambda b: b"[]"])
def test_card_that_is_not_whole_names_the_file(card_file, damage):
    card_file.write_bytes(damage(card_file.read_bytes()))
    with pytest.raises(CorruptFile, match=f"{NAME}.json: "):
        read_card(card_file)


def test_card_that_is_absent_names_the_file(tmp_path):
    with pytest.raises(CorruptFile, match=r"gone\.toy_kd\.json"):
        read_card(tmp_path / "gone.toy_kd.json")


def test_card_under_another_name_is_refused(card_file):
    moved = card_file.rename(card_file.with_name("other.toy_kd.json"))
    with pytest.raises(CorruptFile, match=f"must be called {NAME}.json"):
        read_card(moved)
