"""Weight files: whole or absent, with metadata and hashes; damage is said with what was expected and found."""

from __future__ import annotations

import errno
import json
import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from limbeck.engine import weights as module
from limbeck.engine.weights import (
    atomic_path,
    check_sha256,
    hash_state,
    load_into,
    load_state,
    read_weights,
    save_weights,
    sha256_file,
    sha256_json,
    write_json,
)
from limbeck.errors import CorruptFile, OutputError
from tests.engine.toys import ToyNet

ROOT = Path(__file__).parents[2]
HEX = r"[0-9a-f]{12}"


def state() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "conv.weight": torch.randn(4, 3, 3, 3, generator=generator),
        "norm.count": torch.tensor(7),
        "norm.mean": torch.randn(4, generator=generator, dtype=torch.float64),
        "empty": torch.zeros(0, 3),
        "mask": torch.tensor([True, False]),
    }


def run(code: str, *args: object) -> subprocess.CompletedProcess:
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, args)], env=env, capture_output=True, text=True, check=False
    )


# --- round trip ---


def test_save_and_read_are_exact_without_a_dtype(tmp_path):
    digest = save_weights(tmp_path / "w.safetensors", state(), metadata={"name": "toy", "top1": "91.5"})
    found, metadata = read_weights(tmp_path / "w.safetensors", sha256=digest)
    assert metadata == {"name": "toy", "top1": "91.5"}
    assert found.keys() == state().keys()
    for name, tensor in state().items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor)


def test_save_in_half_precision_rounds_floats_and_keeps_the_rest(tmp_path):
    save_weights(tmp_path / "w.safetensors", state(), metadata={}, dtype=torch.float16)
    found, _ = read_weights(tmp_path / "w.safetensors")
    assert found["conv.weight"].dtype == torch.float32
    assert torch.equal(found["conv.weight"], state()["conv.weight"].half().float())
    assert torch.equal(found["norm.mean"], state()["norm.mean"].half().float())
    assert found["norm.count"].dtype == torch.int64
    assert found["mask"].dtype == torch.bool


def test_half_precision_file_is_half_as_big(tmp_path):
    big = {"w": torch.randn(100, 100)}
    save_weights(tmp_path / "full", big, metadata={})
    save_weights(tmp_path / "half", big, metadata={}, dtype=torch.float16)
    assert (tmp_path / "full").stat().st_size - (tmp_path / "half").stat().st_size == 20_000


def test_tensor_that_half_precision_would_make_infinite_keeps_its_own(tmp_path):
    values = {"running_var": torch.tensor([1e5, 1.0]), "w": torch.tensor([0.1]), "inf": torch.tensor([float("inf")])}
    save_weights(tmp_path / "w", values, metadata={}, dtype=torch.float16)
    found, _ = read_weights(tmp_path / "w")
    assert torch.equal(found["running_var"], values["running_var"])
    assert torch.equal(found["w"], values["w"].half().float())
    assert found["inf"].isinf().all()


def test_reading_twice_and_saving_again_changes_nothing(tmp_path):
    first = save_weights(tmp_path / "a", state(), metadata={"k": "v"}, dtype=torch.float16)
    found, metadata = read_weights(tmp_path / "a")
    assert save_weights(tmp_path / "b", found, metadata=metadata, dtype=torch.float16) == first


def test_save_gives_the_sha256_of_the_file(tmp_path):
    digest = save_weights(tmp_path / "w", state(), metadata={})
    assert digest == sha256_file(tmp_path / "w")
    assert len(digest) == 64


def test_tied_and_overlapping_tensors_are_saved(tmp_path):
    base = torch.arange(12.0).view(3, 4)
    tied = {"embed": base, "head": base, "row": base[1], "transposed": base.t()}
    save_weights(tmp_path / "w", tied, metadata={})
    found, _ = read_weights(tmp_path / "w")
    assert all(torch.equal(found[name], tensor) for name, tensor in tied.items())


def test_tied_module_loads_and_stays_tied(tmp_path):
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Linear(3, 3, bias=False)
            self.head = nn.Linear(3, 3, bias=False)
            self.head.weight = self.embed.weight

    source, target = Tied(), Tied()
    save_weights(tmp_path / "w", source.state_dict(), metadata={})
    load_into(target, tmp_path / "w")
    assert torch.equal(target.head.weight, source.embed.weight)
    assert target.head.weight is target.embed.weight


def test_load_into_makes_the_models_equal_and_gives_metadata(tmp_path):
    source, target = ToyNet(norm=True), ToyNet(norm=True)
    save_weights(tmp_path / "w", source.state_dict(), metadata={"a": "b"})
    assert load_into(target, tmp_path / "w") == {"a": "b"}
    assert hash_state(target.state_dict()) == hash_state(source.state_dict())


class Versioned(nn.Module):
    """Turns a kernel that no version is said of, as mmdetection3d's sparse convolutions do."""

    _version = 2

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 3))

    def _load_from_state_dict(self, state_dict, prefix, local_metadata, *args):
        if local_metadata.get("version") != 2:
            state_dict[f"{prefix}weight"] = state_dict[f"{prefix}weight"].t()
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *args)


def test_modules_are_told_their_version(tmp_path):
    source, target = nn.Sequential(Versioned()), nn.Sequential(Versioned())
    target.load_state_dict(dict(source.state_dict()))
    assert torch.equal(target[0].weight, source[0].weight.t())  # what a plain dict does
    load_state(target, dict(source.state_dict()))
    assert torch.equal(target[0].weight, source[0].weight)
    save_weights(tmp_path / "w", source.state_dict(), metadata={})
    load_into(target, tmp_path / "w")
    assert torch.equal(target[0].weight, source[0].weight)
    with pytest.raises(RuntimeError, match="Missing key"):
        load_state(target, {})


def test_saving_does_not_change_the_state(tmp_path):
    model = ToyNet()
    before = hash_state(model.state_dict())
    save_weights(tmp_path / "w", model.state_dict(), metadata={}, dtype=torch.float16)
    assert hash_state(model.state_dict()) == before


# --- hash_state ---


def test_hash_does_not_depend_on_insertion_order():
    assert hash_state(dict(reversed(state().items()))) == hash_state(state())


def test_hash_does_not_depend_on_memory_layout():
    weight = torch.randn(4, 3, 3, 3)
    assert hash_state({"w": weight.to(memory_format=torch.channels_last)}) == hash_state({"w": weight})
    assert hash_state({"w": weight.t() if weight.dim() == 2 else weight[::2]}) == hash_state({"w": weight[::2].clone()})


@pytest.mark.parametrize(
    "changed",
    [
        {"w": torch.zeros(2, 6, dtype=torch.float64)},
        {"w": torch.zeros(2, 6, dtype=torch.int32)},  # the same bytes
        {"w": torch.zeros(3, 4)},  # the same bytes
        {"w": torch.zeros(12)},
        {"v": torch.zeros(2, 6)},
        {"w": torch.full((2, 6), -0.0)},
        {"w": torch.zeros(2, 6), "x": torch.zeros(0)},
        {},
    ],
    ids=["float64", "int32", "shape", "flat", "name", "sign", "extra", "none"],
)
def test_hash_tells_apart(changed):
    assert hash_state(changed) != hash_state({"w": torch.zeros(2, 6)})


def test_hash_sees_one_bit():
    weight = torch.ones(1000)
    before = hash_state({"w": weight})
    weight[500] = torch.nextafter(weight[500], torch.tensor(2.0))
    assert hash_state({"w": weight}) != before


@pytest.mark.parametrize(
    "dtype", [torch.bool, torch.bfloat16, torch.float16, torch.complex64, torch.uint8, torch.int64]
)
def test_hash_takes_every_dtype(dtype):
    assert len(hash_state({"scalar": torch.ones((), dtype=dtype), "w": torch.ones(3, dtype=dtype)})) == 64


def test_hash_is_the_same_in_another_process():
    code = """
import torch
from limbeck.engine.weights import hash_state
print(hash_state({'b': torch.ones(2), 'a': torch.arange(3)}))
"""
    assert run(code).stdout.strip() == hash_state({"a": torch.arange(3), "b": torch.ones(2)})


# --- sha256_json ---

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3) | st.integers(0, 20), inner, max_size=4)
    ),
    max_leaves=8,
)


@given(JSON)
def test_json_hash_survives_a_round_trip(value):
    assert sha256_json(json.loads(json.dumps(value))) == sha256_json(value)


def test_json_hash_ignores_order_of_keys_and_kind_of_sequence():
    assert sha256_json({"a": 1, "b": {"c": (1, 2), "d": 2}}) == sha256_json({"b": {"d": 2, "c": [1, 2]}, "a": 1})
    assert sha256_json({2: "a", 10: "b"}) == sha256_json({"10": "b", "2": "a"})


def test_json_hash_tells_apart():
    values = [{"a": 1}, {"a": 2}, {"a": "1"}, {"a": None}, {"a": [1]}, {"b": 1}, {}, []]
    assert len({sha256_json(v) for v in values}) == len(values)


def test_json_hash_refuses_what_json_does_not_have():
    with pytest.raises(TypeError, match="object"):
        sha256_json({"a": object()})


# --- whole or absent ---


def test_exception_in_the_block_leaves_nothing_new(tmp_path):
    path = tmp_path / "w"
    with pytest.raises(RuntimeError, match="stop"), atomic_path(path) as temporary:  # noqa: PT012 - the block is the subject
        temporary.write_text("half")
        raise RuntimeError("stop")
    assert list(tmp_path.iterdir()) == []


def test_exception_in_the_block_leaves_the_old_file(tmp_path):
    path = tmp_path / "w"
    path.write_text("old")
    with pytest.raises(KeyboardInterrupt), atomic_path(path) as temporary:  # noqa: PT012 - the block is the subject
        temporary.write_text("half")
        raise KeyboardInterrupt
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_target_is_not_there_before_the_block_ends(tmp_path):
    path = tmp_path / "deep" / "w"
    with atomic_path(path) as temporary:
        temporary.write_text("new")
        assert temporary.parent == path.parent
        assert not path.exists()
    assert path.read_text() == "new"
    assert list(path.parent.iterdir()) == [path]


def test_written_file_has_the_users_mode_and_not_that_of_a_temporary_file(tmp_path):
    old = os.umask(0o027)
    try:
        write_json(tmp_path / "r.json", {})
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "r.json").stat().st_mode) == 0o640


def test_write_json_round_trip_and_failed_write_keeps_the_old(tmp_path):
    write_json(tmp_path / "r.json", {"b": 1, "a": [1.5, None, "é"]})
    with pytest.raises(TypeError):
        write_json(tmp_path / "r.json", {"b": object()})
    assert json.loads((tmp_path / "r.json").read_text(encoding="utf-8")) == {"b": 1, "a": [1.5, None, "é"]}
    assert [p.name for p in tmp_path.iterdir()] == ["r.json"]


KILLED = """
import os, signal, sys, torch
import safetensors.torch
from limbeck.engine.weights import save_weights
real = safetensors.torch.save_file
def save_file(tensors, path, metadata=None):
    real(tensors, path, metadata=metadata)
    if sys.argv[2] == "half":
        os.truncate(path, os.path.getsize(path) // 2)
    os.kill(os.getpid(), signal.SIGKILL)
safetensors.torch.save_file = save_file
save_weights(sys.argv[1], {"w": torch.ones(1000)}, metadata={})
"""


@pytest.mark.parametrize("when", ["half", "whole"])
def test_kill_in_the_middle_of_a_write_leaves_the_old_file_whole(tmp_path, when):
    path = tmp_path / "w.safetensors"
    digest = save_weights(path, {"w": torch.zeros(1000)}, metadata={})
    assert run(KILLED, path, when).returncode == -signal.SIGKILL
    found, _ = read_weights(path, sha256=digest)
    assert torch.equal(found["w"], torch.zeros(1000))
    save_weights(path, {"w": torch.ones(1000)}, metadata={})  # what the killed process left is in nobody's way
    assert torch.equal(read_weights(path)[0]["w"], torch.ones(1000))


FULL = """
import resource, signal, sys, torch
from limbeck.engine.weights import save_weights
from limbeck.errors import OutputError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))
try:
    save_weights(sys.argv[1], {"w": torch.zeros(10000)}, metadata={})
except OutputError as error:
    print(error)
"""


def test_write_that_finds_no_room_is_an_output_error_and_leaves_nothing(tmp_path):
    """The writer of safetensors says so with an exception of its own."""
    done = run(FULL, tmp_path / "w.safetensors")
    assert done.returncode == 0, done.stderr
    assert "w.safetensors" in done.stdout
    assert "free space" in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_full_disk_at_the_last_moment_is_an_output_error(tmp_path, monkeypatch):
    def full(_descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    (tmp_path / "w").write_text("old")
    monkeypatch.setattr(module.os, "fsync", full)
    with pytest.raises(OutputError, match="No space left on device; free space"):
        save_weights(tmp_path / "w", state(), metadata={})
    assert (tmp_path / "w").read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["w"]


def test_read_only_folder_is_an_output_error(tmp_path, monkeypatch):
    def refuse(*_args, **_kwargs):
        raise PermissionError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(module.tempfile, "mkstemp", refuse)
    with pytest.raises(OutputError, match="Read-only file system; choose another output folder"):
        save_weights(tmp_path / "w", state(), metadata={})


def test_folder_below_a_file_is_an_output_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot write"):
        write_json(tmp_path / "file" / "r.json", {})


def test_target_that_is_a_folder_is_an_output_error(tmp_path):
    (tmp_path / "w").mkdir()
    with pytest.raises(OutputError):
        write_json(tmp_path / "w", {})
    assert [p.name for p in tmp_path.iterdir()] == ["w"]


# --- damage ---


def test_other_sha256_is_said_with_both(tmp_path):
    digest = save_weights(tmp_path / "w", state(), metadata={})
    with pytest.raises(CorruptFile) as caught:
        read_weights(tmp_path / "w", sha256="0" * 64)
    assert str(tmp_path / "w") in str(caught.value)
    assert digest[:12] in str(caught.value)
    assert "000000000000" in str(caught.value)


def test_one_flipped_bit_is_found_by_the_sha256(tmp_path):
    path = tmp_path / "w"
    digest = save_weights(path, state(), metadata={})
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
    check_sha256(path, sha256_file(path))
    with pytest.raises(CorruptFile, match=rf"sha256 is {HEX}…, expected {digest[:12]}…"):
        check_sha256(path, digest)


@pytest.mark.parametrize("keep", [0, 4, 8, 40, -1, -100])
def test_truncated_file_is_named(tmp_path, keep):
    path = tmp_path / "w.safetensors"
    save_weights(path, state(), metadata={"k": "v"})
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(CorruptFile, match=rf"w\.safetensors: not a whole safetensors file .*sha256 {HEX}"):
        read_weights(path)


@pytest.mark.parametrize("content", [b"not weights at all", b"\x80\x02}q\x00.", b"\xff" * 64, b"{}"])
def test_file_of_another_kind_is_named(tmp_path, content):
    (tmp_path / "w").write_bytes(content)
    with pytest.raises(CorruptFile, match="not a whole safetensors file"):
        read_weights(tmp_path / "w")


def test_absent_file_says_what_to_do(tmp_path):
    with pytest.raises(CorruptFile, match=r"no such weight file; .*name another path"):
        read_weights(tmp_path / "w")


def test_missing_extra_and_misshapen_tensors_are_listed_and_nothing_is_loaded(tmp_path):
    model = ToyNet()
    before = hash_state(model.state_dict())
    other = ToyNet().state_dict()
    del other["fc.bias"]
    other["fc.scale"] = torch.ones(1)
    other["layer2.weight"] = torch.zeros(4, 4, 1, 1)
    save_weights(tmp_path / "w", other, metadata={})
    with pytest.raises(CorruptFile) as caught:
        load_into(model, tmp_path / "w")
    said = str(caught.value)
    assert "lacks fc.bias" in said
    assert "has unknown fc.scale" in said
    assert "has other shapes for layer2.weight" in said
    assert hash_state(model.state_dict()) == before


def test_list_of_wrong_tensors_is_cut(tmp_path):
    save_weights(tmp_path / "w", {"other": torch.zeros(1)}, metadata={})
    with pytest.raises(CorruptFile, match=r"lacks fc\.bias, fc\.weight, layer1\.bias …;"):
        load_into(ToyNet(), tmp_path / "w")
