"""The cache: what it lists, and what prune removes and leaves."""

from __future__ import annotations

import os
import time

import pytest
from filelock import FileLock

from limbeck.errors import CorruptFile
from limbeck.zoo.store import DAY, Entry, checked, part_file, prune, recall, remember, stored, weights_file


def entry(card, reference):
    return Entry(reference, f"at {reference}", (f"{reference}.safetensors",), card)


def put(card, reference, content=b"weights", days=0.0):
    """A student of the cache that was last used so many days ago."""
    remember(entry(card, reference))
    path = weights_file(card.sha256)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    newest = max((path.parent.parent / "cards").iterdir(), key=lambda file: file.stat().st_mtime_ns)
    os.utime(newest, (time.time() - days * DAY,) * 2)
    return path


@pytest.fixture
def cards(shipped):
    card = shipped[2]
    other = card.model_copy(update=dict(name="other.toy_kd", sha256="ab" * 32))
    return card, other


def test_entry_survives_its_file_and_notes_its_use(cache, cards):
    before = entry(cards[0], "https://a/x.json")
    put(cards[0], "https://a/x.json", days=9)
    assert stored()[0].last_used < time.time() - 8 * DAY
    assert recall("https://a/x.json") == before
    assert stored()[0].last_used > time.time() - DAY
    assert recall("https://a/y.json") is None


def test_list_is_by_name_with_source_and_size(cache, cards):
    put(cards[1], "b", b"12345")
    put(cards[0], "a", b"123")
    remember(entry(cards[0], "c"))
    lines = [(line.name, line.source, line.size) for line in stored()]
    assert lines == [("other.toy_kd", "at b", 5), (cards[0].name, "at a", 3), (cards[0].name, "at c", 3)]


def test_damaged_entry_counts_as_absent(cache, cards):
    put(cards[0], "a")
    (file,) = (cache / "cards").iterdir()
    file.write_text(file.read_text()[:-9])
    assert recall("a") is None
    assert stored() == []


def test_damaged_weights_are_removed_and_named(cache, cards):
    path = put(cards[0], "a", b"not these")
    with pytest.raises(CorruptFile, match=rf"{cards[0].sha256[:12]}….*it was removed from the cache"):
        checked(path, cards[0].sha256)
    assert not path.exists()


def test_prune_removes_what_nobody_needs_and_no_more(cache, cards):
    path = put(cards[0], "a", days=100)
    orphan = weights_file("cd" * 32)
    orphan.write_bytes(b"1234")
    part = part_file("ef" * 32)
    part.parent.mkdir(parents=True)
    part.write_bytes(b"12")
    planned = prune(dry_run=True)
    assert [(one.path, one.what, one.size) for one in planned] == [
        (str(orphan), "weights", 4),
        (str(part), "unfinished download", 2),
    ]
    assert orphan.is_file()
    assert part.is_file()
    assert prune() == planned
    assert not orphan.exists()
    assert not part.exists()
    assert path.is_file()


def test_prune_by_age_keeps_weights_that_another_student_uses(cache, cards):
    path = put(cards[0], "old", days=40)
    put(cards[0], "new", days=1)
    gone = put(cards[1], "other", days=40)
    assert sorted(one.what for one in prune(30)) == ["card of other.toy_kd", f"card of {cards[0].name}", "weights"]
    assert path.is_file()
    assert not gone.exists()
    assert [line.source for line in stored()] == ["at new"]
    prune(everything=True)
    assert stored() == []
    assert not path.exists()


def test_prune_leaves_a_download_that_goes_on(cache):
    part = part_file("ef" * 32)
    part.parent.mkdir(parents=True)
    part.write_bytes(b"12")
    with FileLock(part.with_suffix(".lock")):
        assert prune(everything=True) == []
    assert part.is_file()


def test_prune_of_nothing(cache):
    assert prune(everything=True) == []
    assert stored() == []
