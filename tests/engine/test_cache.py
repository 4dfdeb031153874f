"""The teacher cache: what was put comes back, a stale key is never read, damage and a full disk are said."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest
import torch

from limbeck.engine import cache as module
from limbeck.engine.cache import TeacherCache, cache_key
from limbeck.errors import ConfigError, CorruptFile, OutputError, TrainingStopped

ROOT = Path(__file__).parents[2]
SHAPES = {"logits": [3], "layer2": [4, 2, 2]}
KEY = {
    "teacher_hash": "a" * 64,
    "pipeline": {"hash": "b" * 64, "split": "train", "views": 2, "augment": {"crop": 2, "flip": True}},
    "shapes": SHAPES,
    "dtype": "float16",
    "inputs": {"mean": [0.5], "std": [0.25]},
}
Usage = namedtuple("Usage", "total used free")


def open_cache(folder: Path, samples: int = 6, views: int = 2, **changes) -> TeacherCache:
    return TeacherCache(folder / "cache", **{"shapes": SHAPES, "samples": samples, "views": views, **changes})


def taps(ids: torch.Tensor, views: torch.Tensor) -> dict[str, torch.Tensor]:
    """Values that say which sample and view they are of."""
    base = (ids * 10 + views).float()
    return {
        "logits": base[:, None] + torch.tensor([0.1, 0.2, 0.3]),
        "layer2": -base[:, None, None, None] - torch.rand(len(ids), 4, 2, 2),
    }


def filled_cache(folder: Path) -> TeacherCache:
    cache = open_cache(folder)
    cache.put(torch.tensor([1, 2]), torch.tensor([0, 1]), taps(torch.tensor([1, 2]), torch.tensor([0, 1])))
    return cache


def full_disk(*_args) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


# --- round trip ---


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_put_and_get_give_the_same_rounded_values(tmp_path, dtype):
    cache, ids, views = open_cache(tmp_path, dtype=dtype), torch.tensor([4, 0, 5]), torch.tensor([1, 0, 1])
    values = taps(ids, views)
    given = cache.put(ids, views, values)
    found = cache.get(ids, views, list(SHAPES))
    assert found is not None
    for tap, value in values.items():
        assert given[tap].dtype == found[tap].dtype == torch.float32
        assert torch.equal(given[tap], found[tap])
        assert torch.equal(given[tap], value.to(getattr(torch, dtype)).float())


def test_half_precision_really_rounds(tmp_path):
    cache, ids = open_cache(tmp_path), torch.tensor([0])
    given = cache.put(ids, None, {"logits": torch.full((1, 3), 0.1), "layer2": torch.zeros(1, 4, 2, 2)})
    assert given["logits"][0, 0].item() == float(np.float16(0.1)) != pytest.approx(0.1, rel=1e-6)


def test_put_leaves_its_argument_alone_and_carries_no_graph(tmp_path):
    cache, ids = open_cache(tmp_path), torch.tensor([0])
    value = torch.full((1, 3), 0.1, requires_grad=True)
    given = cache.put(ids, None, {"logits": value, "layer2": torch.zeros(1, 4, 2, 2)})
    assert torch.equal(value.detach(), torch.full((1, 3), 0.1))
    assert not given["logits"].requires_grad


def test_put_takes_half_precision_tensors(tmp_path):
    cache, ids = open_cache(tmp_path), torch.tensor([0])
    value = torch.full((1, 3), 0.75, dtype=torch.bfloat16)
    given = cache.put(ids, None, {"logits": value, "layer2": torch.zeros(1, 4, 2, 2)})
    assert torch.equal(given["logits"], torch.full((1, 3), 0.75))


def test_what_was_got_may_be_changed_without_changing_the_cache(tmp_path):
    cache, ids, views = filled_cache(tmp_path), torch.tensor([1]), torch.tensor([0])
    first = cache.get(ids, views, ["logits"])["logits"]
    expected = first.clone()
    first.zero_()
    assert torch.equal(cache.get(ids, views, ["logits"])["logits"], expected)


def test_repeated_sample_in_a_batch(tmp_path):
    cache, ids = filled_cache(tmp_path), torch.tensor([1, 1])
    found = cache.get(ids, torch.tensor([0, 0]), ["logits"])
    assert torch.equal(found["logits"][0], found["logits"][1])


def test_get_gives_only_the_taps_asked_for(tmp_path):
    cache = filled_cache(tmp_path)
    assert set(cache.get(torch.tensor([1]), torch.tensor([0]), ["layer2"])) == {"layer2"}


def test_value_beyond_half_precision_is_loud(tmp_path):
    cache, ids = open_cache(tmp_path), torch.tensor([0])
    values = {"logits": torch.full((1, 3), 7e4), "layer2": torch.zeros(1, 4, 2, 2)}
    with pytest.raises(
        TrainingStopped, match=r"'logits' reaches 7e\+04, more than float16 holds; set cache.dtype='float32'"
    ):
        cache.put(ids, None, values)
    assert cache.get(ids, None, ["logits"]) is None
    wide = TeacherCache(tmp_path / "wide", shapes=SHAPES, samples=6, views=2, dtype="float32")
    assert wide.put(ids, None, values)["logits"].max() == 7e4


# --- rows ---


def test_views_index_rows_of_their_own(tmp_path):
    cache = open_cache(tmp_path, samples=5, views=3)
    ids, views = torch.arange(5).repeat_interleave(3), torch.arange(3).repeat(5)
    values = taps(ids, views)
    order = torch.randperm(15, generator=torch.Generator().manual_seed(0))
    for row in order.split(4):
        cache.put(ids[row], views[row], {tap: value[row] for tap, value in values.items()})
    assert cache.filled == 1.0
    for view in range(3):
        found = cache.get(torch.tensor([3, 1]), torch.full((2,), view), ["logits"])
        assert torch.equal(found["logits"][:, 0].round().int(), torch.tensor([30 + view, 10 + view], dtype=torch.int32))


def test_no_views_means_the_first_view(tmp_path):
    cache, ids = open_cache(tmp_path), torch.tensor([2])
    cache.put(ids, None, taps(ids, torch.tensor([0])))
    assert cache.get(ids, torch.tensor([0]), ["logits"]) is not None
    assert cache.get(ids, torch.tensor([1]), ["logits"]) is None


def test_absent_row_of_a_batch_makes_the_whole_batch_absent(tmp_path):
    cache = filled_cache(tmp_path)
    assert cache.get(torch.tensor([1, 2]), torch.tensor([0, 1]), ["logits"]) is not None
    assert cache.get(torch.tensor([1, 3]), torch.tensor([0, 1]), ["logits"]) is None


def test_row_with_some_of_its_taps_is_never_read(tmp_path):
    cache, ids = open_cache(tmp_path), torch.tensor([2])
    values = taps(ids, torch.tensor([0]))
    given = cache.put(ids, None, {"logits": values["logits"]})
    assert set(given) == {"logits"}
    assert cache.get(ids, None, ["logits"]) is None
    assert open_cache(tmp_path).get(ids, None, ["logits"]) is None
    cache.put(ids, None, values)
    assert cache.get(ids, None, ["logits"]) is not None


def test_row_whose_writing_broke_off_is_never_read(tmp_path):
    cache, ids = open_cache(tmp_path), torch.tensor([2])
    with pytest.raises(ValueError, match="broadcast"):
        cache.put(ids, None, {"logits": torch.zeros(1, 3), "layer2": torch.zeros(1, 9, 2, 2)})
    assert cache.get(ids, None, ["logits"]) is None


@pytest.mark.parametrize(("ids", "views"), [([6], [0]), ([-1], [0]), ([0], [2]), ([0], [-1]), ([5, 99], [1, 1])])
def test_sample_or_view_outside_is_refused_and_not_another_row(tmp_path, ids, views):
    cache = open_cache(tmp_path)
    ids, views = torch.tensor(ids), torch.tensor(views)
    with pytest.raises(ConfigError, match="6 samples with 2 views"):
        cache.put(ids, views, taps(ids, views))
    with pytest.raises(ConfigError, match="6 samples with 2 views"):
        cache.get(ids, views, ["logits"])
    assert cache.filled == 0.0


def test_filled_counts_rows(tmp_path):
    cache = open_cache(tmp_path)
    assert cache.filled == 0.0
    ids = torch.tensor([0, 1, 2])
    cache.put(ids, None, taps(ids, torch.zeros(3, dtype=torch.long)))
    assert cache.filled == pytest.approx(3 / 12)


def test_nbytes_is_what_the_taps_take(tmp_path):
    cache = open_cache(tmp_path)
    assert cache.nbytes == 12 * (3 + 16) * 2
    assert sum(p.stat().st_size for p in cache.folder.glob("tap*.bin")) == cache.nbytes


# --- the key ---


def test_key_is_the_same_for_the_same_content():
    again = {
        **KEY,
        "pipeline": dict(reversed(KEY["pipeline"].items())),
        "shapes": {k: tuple(v) for k, v in SHAPES.items()},
    }
    assert cache_key(**KEY) == cache_key(**again)


@pytest.mark.parametrize(
    "change",
    [
        {"teacher_hash": "c" * 64},
        {"pipeline": {**KEY["pipeline"], "hash": "d" * 64}},
        {"pipeline": {**KEY["pipeline"], "split": "val"}},
        {"pipeline": {**KEY["pipeline"], "views": 3}},
        {"pipeline": {**KEY["pipeline"], "augment": {"crop": 3, "flip": True}}},
        {"pipeline": {k: v for k, v in KEY["pipeline"].items() if k != "augment"}},
        {"shapes": {"logits": [3]}},
        {"shapes": {"logits": [3], "layer1": [4, 2, 2]}},
        {"shapes": {"logits": [3], "layer2": [4, 4, 1]}},
        {"dtype": "float32"},
        {"inputs": {"mean": [0.4], "std": [0.25]}},
        {"inputs": None},
    ],
    ids=lambda change: str(change)[:40],
)
def test_key_changes_with_what_it_is_made_of(change):
    assert cache_key(**{**KEY, **change}) != cache_key(**KEY)


def test_key_refuses_what_it_cannot_tell_apart():
    """Two long arrays have one text: keyed by it, a stale cache would be read."""
    with pytest.raises(TypeError, match="ndarray"):
        cache_key(**{**KEY, "inputs": {"mean": np.zeros(5000)}})


# --- sharing ---


def test_second_opener_reads_what_the_first_wrote(tmp_path):
    first, second = open_cache(tmp_path), open_cache(tmp_path)
    ids, views = torch.tensor([3]), torch.tensor([1])
    given = first.put(ids, views, taps(ids, views))
    assert torch.equal(second.get(ids, views, ["logits"])["logits"], given["logits"])


OTHER = """
import sys, torch
from pathlib import Path
from limbeck.engine.cache import TeacherCache
cache = TeacherCache(Path(sys.argv[1]) / "cache", shapes={"logits": [3], "layer2": [4, 2, 2]}, samples=6, views=2)
for line in sys.stdin:
    row = int(line)
    ids = torch.tensor([row])
    found = cache.get(ids, None, ["logits"])
    print("absent" if found is None else found["logits"].tolist(), flush=True)
    cache.put(ids, None, {"logits": torch.full((1, 3), row + 0.5), "layer2": torch.zeros(1, 4, 2, 2)})
    print("put", flush=True)
"""


def test_two_processes_share_one_cache_while_both_are_open(tmp_path):
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", OTHER, str(tmp_path)]
    cache = open_cache(tmp_path)
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env) as other:
        ids = torch.tensor([0])
        cache.put(ids, None, {"logits": torch.full((1, 3), 7.0), "layer2": torch.zeros(1, 4, 2, 2)})
        for row, expected in ((0, "[[7.0, 7.0, 7.0]]"), (4, "absent")):
            other.stdin.write(f"{row}\n")
            other.stdin.flush()
            assert other.stdout.readline().strip() == expected
            assert other.stdout.readline().strip() == "put"
            found = cache.get(torch.tensor([row]), None, ["logits"])
            assert torch.equal(found["logits"], torch.full((1, 3), row + 0.5))
        other.stdin.close()
        assert other.wait(30) == 0


def test_loser_of_a_race_to_create_takes_the_winners_cache(tmp_path, monkeypatch):
    real, winners = os.rename, []

    def rename(source, target):
        if not winners:
            winners.append(None)
            winners[0] = filled_cache(tmp_path)  # another process is faster
        real(source, target)

    monkeypatch.setattr(module.os, "rename", rename)
    loser = open_cache(tmp_path)
    assert loser.get(torch.tensor([1]), torch.tensor([0]), ["logits"]) is not None
    assert [p.name for p in tmp_path.iterdir()] == ["cache"]


# --- what bad input gets ---


def test_truncated_tap_file_is_named_with_both_sizes(tmp_path):
    path = filled_cache(tmp_path).folder / "tap1.bin"
    os.truncate(path, 100)
    with pytest.raises(CorruptFile, match=rf"tap1\.bin has 100 bytes, expected {12 * 16 * 2}; delete .*cache"):
        open_cache(tmp_path)


def test_lengthened_file_is_refused_too(tmp_path):
    path = filled_cache(tmp_path).folder / "filled.bin"
    path.write_bytes(path.read_bytes() + b"\1")
    with pytest.raises(CorruptFile, match=r"filled\.bin has 13 bytes, expected 12"):
        open_cache(tmp_path)


@pytest.mark.parametrize("name", ["tap0.bin", "filled.bin", "meta.json"])
def test_missing_file_is_named(tmp_path, name):
    (filled_cache(tmp_path).folder / name).unlink()
    with pytest.raises(CorruptFile, match=f"{name} is missing.*delete .*cache"):
        open_cache(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["cache"]


@pytest.mark.parametrize("content", [b"", b'{"version": 1, "ro', b"\xff\xfe\x00"])
def test_damaged_meta_file_is_named(tmp_path, content):
    (filled_cache(tmp_path).folder / "meta.json").write_bytes(content)
    with pytest.raises(CorruptFile, match=r"meta\.json"):
        open_cache(tmp_path)


def test_folder_that_holds_another_cache_is_refused(tmp_path):
    filled_cache(tmp_path)
    for change in ({"samples": 7}, {"views": 3}, {"dtype": "float32"}, {"shapes": {"logits": [3]}}):
        with pytest.raises(CorruptFile, match="expected"):
            open_cache(tmp_path, **change)


def test_meta_says_what_the_cache_holds(tmp_path):
    meta = json.loads((filled_cache(tmp_path).folder / "meta.json").read_text())
    assert meta["taps"] == [{"tap": "logits", "shape": [3]}, {"tap": "layer2", "shape": [4, 2, 2]}]


def test_disk_without_room_is_refused_with_sizes_and_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(10**12, 10**12, 10**9))
    with pytest.raises(OutputError, match=r"needs 2\.0 GB in .*, which has 1\.0 GB free"):
        open_cache(tmp_path, samples=10**6, views=1, shapes={"logits": [1000]})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="this system cannot reserve blocks")
def test_disk_that_fills_up_while_the_cache_is_made_is_refused_and_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(module.os, "posix_fallocate", full_disk)
    with pytest.raises(OutputError, match="No space left on device"):
        open_cache(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="this system cannot reserve blocks")
def test_blocks_are_reserved_when_the_cache_is_made(tmp_path):
    cache = open_cache(tmp_path, samples=4096, views=1, shapes={"logits": [100]})
    assert (cache.folder / "tap0.bin").stat().st_blocks * 512 >= cache.nbytes


def test_folder_below_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="teacher cache cannot be used"):
        TeacherCache(tmp_path / "file" / "cache", shapes=SHAPES, samples=6, views=2)


def test_cache_that_may_not_be_written_is_refused(tmp_path, monkeypatch):
    filled_cache(tmp_path)

    def refuse(*_args, **_kwargs):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(module.np, "memmap", refuse)
    with pytest.raises(OutputError, match="Permission denied"):
        open_cache(tmp_path)
