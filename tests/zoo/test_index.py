"""The index: lists, near names, hashes, own zoos, and the cards that are shipped."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import limbeck.zoo
from limbeck.engine.record import read_record, record_path
from limbeck.engine.sources import resolve_weights
from limbeck.engine.weights import sha256_file
from limbeck.errors import ConfigError, CorruptFile, UnknownName
from limbeck.zoo import find, list_students, weight_files, weights_path
from limbeck.zoo.card import MAX_BYTES, Card
from limbeck.zoo.index import SHIPPED, WEIGHTS
from tests.zoo.fabricate import NAME, flip_bit, make_zoo

SHIPPED_CARDS = list_students(zoo_dir=SHIPPED)
RESULTS = Path(__file__).parents[2] / "results"


@pytest.fixture
def zoo(tmp_path):
    for method, seed in (("plain", 0), ("KD", 3), ("KD", 0)):
        made, _ = make_zoo(tmp_path, method, seed)
    return made


def test_list_is_by_name_and_filters(zoo):
    assert [c.name for c in list_students(zoo_dir=zoo)] == [NAME, f"{NAME}_s3", "resnet8w4.toy_plain"]
    assert [c.name for c in list_students(method="kd", zoo_dir=zoo)] == [NAME, f"{NAME}_s3"]
    assert len(list_students("image-classification", zoo_dir=zoo)) == 3
    assert list_students("object-detection", zoo_dir=zoo) == []
    assert list_students(method="DIST", zoo_dir=zoo) == []


def test_list_unknown_task_gives_near_names(zoo):
    with pytest.raises(UnknownName, match="did you mean 'image-classification'"):
        list_students("image-clasification", zoo_dir=zoo)


def test_find_unknown_name_gives_near_names(zoo):
    with pytest.raises(UnknownName, match=f"unknown student 'resnet8w4.toy_kdd' in the zoo; did you mean '{NAME}'"):
        find("resnet8w4.toy_kdd", zoo_dir=zoo)


def test_weights_path_gives_the_checked_file(zoo):
    path = weights_path(NAME, zoo_dir=zoo)
    assert sha256_file(path) == find(NAME, zoo_dir=zoo).sha256
    # three made-up runs with the same weights: one hash
    assert set(weight_files(zoo_dir=zoo)) == {sha256_file(path)}


@pytest.mark.parametrize("damage", [flip_bit, lambda p: p.write_bytes(p.read_bytes()[:-100])])
def test_weights_path_damaged_file_names_both_hashes(zoo, damage):
    path = weights_path(NAME, zoo_dir=zoo)
    expected = sha256_file(path)
    damage(path)
    with pytest.raises(CorruptFile) as caught:
        weights_path(NAME, zoo_dir=zoo)
    for part in (str(path), expected[:12], sha256_file(path)[:12]):
        assert part in str(caught.value)


def test_weights_path_absent_file_is_named(zoo):
    path = weights_path(NAME, zoo_dir=zoo)
    path.unlink()
    with pytest.raises(CorruptFile, match=f"{path.name}: the weights of {NAME} are absent"):
        weights_path(NAME, zoo_dir=zoo)


def test_damaged_card_is_named_by_the_list(zoo):
    (zoo / "cards" / f"{NAME}.json").write_text("{")
    with pytest.raises(CorruptFile, match=f"{NAME}.json"):
        list_students(zoo_dir=zoo)


def test_own_zoo_comes_before_the_shipped_one(zoo, monkeypatch):
    monkeypatch.setenv("LIMBECK_ZOO", str(zoo))
    assert {c.name for c in list_students()} == {c.name for c in SHIPPED_CARDS} | {
        c.name for c in list_students(zoo_dir=zoo)
    }
    assert resolve_weights(f"zoo://{NAME}") == weights_path(NAME, zoo_dir=zoo)


def test_own_zoo_without_cards_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("LIMBECK_ZOO", str(tmp_path))
    with pytest.raises(ConfigError, match=r"LIMBECK_ZOO names .*no folder 'cards'"):
        list_students()


def test_public_names_are_sorted_and_there():
    assert limbeck.zoo.__all__ == sorted(limbeck.zoo.__all__) == dir(limbeck.zoo)
    assert all(callable(getattr(limbeck.zoo, name)) for name in limbeck.zoo.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = limbeck.zoo.nothing


def test_import_and_list_need_no_torch():
    code = (
        "import sys, limbeck.zoo, limbeck.cli.zoo; heavy = {'torch', 'timm', 'mmengine', 'numpy', 'PIL'};"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules);"
        "limbeck.zoo.list_students(); assert not heavy & set(sys.modules), heavy & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("card", SHIPPED_CARDS, ids=lambda card: card.name)
def test_shipped_student_has_its_record_and_its_weights(card: Card):
    path = weights_path(card.name, zoo_dir=SHIPPED)
    assert path.stat().st_size == card.file_bytes <= MAX_BYTES
    record = read_record(record_path(RESULTS, card.record))
    assert (card.metrics, card.sha256) == (record.metrics, record.student_sha256)
    assert record.status == "ok"


def test_shipped_weights_all_have_a_card():
    files = {path.name for path in (SHIPPED / WEIGHTS).glob("*.safetensors")}
    assert files == {card.file for card in SHIPPED_CARDS}
