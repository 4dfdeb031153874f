"""Output folders and devices: refused before anything is trained, and one run a folder."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
from collections import namedtuple
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from limbeck.engine import weights
from limbeck.engine.output import RESERVE_BYTES, check_output, exclusive, pick_device
from limbeck.errors import DeviceError, OutputError

ROOT = Path(__file__).parents[2]
Usage = namedtuple("Usage", "total used free")
HOLDER = """
import sys
from limbeck.engine.output import exclusive
with exclusive(sys.argv[1]):
    print("held", flush=True)
    sys.stdin.read()
"""
TAKER = """
import sys
from limbeck.engine.output import exclusive
from limbeck.errors import OutputError
try:
    with exclusive(sys.argv[1]):
        print("held")
except OutputError as error:
    print("refused", error)
"""


def start(code: str, folder: Path) -> subprocess.Popen:
    command = [sys.executable, "-c", code, str(folder)]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env)


def take(folder: Path) -> str:
    return start(TAKER, folder).communicate(timeout=60)[0].strip()


# --- one run a folder ---


def test_second_process_is_refused_until_the_first_is_done(tmp_path):
    with start(HOLDER, tmp_path / "run") as holder:
        assert holder.stdout.readline().strip() == "held"
        said = take(tmp_path / "run")
        assert said.startswith("refused")
        assert f"{tmp_path / 'run'}: another run is writing here" in said
        assert "--out" in said
        holder.stdin.close()
        assert holder.wait(30) == 0
    assert take(tmp_path / "run") == "held"


def test_lock_is_free_after_the_holder_was_killed(tmp_path):
    with start(HOLDER, tmp_path) as holder:
        assert holder.stdout.readline().strip() == "held"
        with pytest.raises(OutputError), exclusive(tmp_path):
            pass
        holder.send_signal(signal.SIGKILL)
        assert holder.wait(30) == -signal.SIGKILL
    with exclusive(tmp_path):
        assert take(tmp_path).startswith("refused")


def test_lock_is_free_after_an_exception(tmp_path):
    with pytest.raises(RuntimeError, match="stop"), exclusive(tmp_path):
        raise RuntimeError("stop")
    with exclusive(tmp_path):
        pass


def test_second_run_in_one_process_is_refused_and_the_first_keeps_the_folder(tmp_path):
    with exclusive(tmp_path):
        for _ in range(2):
            with pytest.raises(OutputError, match="another run"), exclusive(tmp_path):
                pass


def test_other_folders_are_free(tmp_path):
    with exclusive(tmp_path / "a"), exclusive(tmp_path / "b"), exclusive(tmp_path):
        assert take(tmp_path / "c") == "held"


def test_stale_lock_file_is_in_nobodys_way(tmp_path):
    (tmp_path / ".lock").write_text("")
    with exclusive(tmp_path):
        pass


def test_exclusive_below_a_file_is_an_output_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot be locked"), exclusive(tmp_path / "file" / "run"):
        pass


# --- before training ---


def test_check_makes_the_folder_and_leaves_nothing_in_it(tmp_path):
    assert check_output(tmp_path / "a" / "b") == tmp_path / "a" / "b"
    assert list((tmp_path / "a" / "b").iterdir()) == []


def test_check_leaves_what_is_there(tmp_path):
    (tmp_path / "old").write_text("old")
    check_output(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["old"]


def test_runs_may_check_one_folder_at_the_same_time(tmp_path):
    """The workers of a suite share their records' folder."""
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(check_output, [tmp_path] * 400))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("where", ["file", "file/deeper"])
def test_path_that_cannot_be_a_folder_is_refused(tmp_path, where):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match=r"cannot write .*choose another"):
        check_output(tmp_path / where)


@pytest.mark.parametrize(
    ("code", "said"), [(errno.EACCES, "Permission denied"), (errno.EROFS, "Read-only file system")]
)
def test_folder_that_may_not_be_written_is_refused(tmp_path, monkeypatch, code, said):
    def refuse(*_args, **_kwargs):
        raise OSError(code, said)

    monkeypatch.setattr(weights.tempfile, "mkstemp", refuse)
    with pytest.raises(OutputError, match=said):
        check_output(tmp_path)


def test_folder_without_room_is_refused_with_both_sizes(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(10**12, 10**12, 10**9))
    check_output(tmp_path, 10**9 - RESERVE_BYTES)
    with pytest.raises(OutputError, match=r"1000 MB free, 2067 MB needed; free space or choose another"):
        check_output(tmp_path, 2 * 10**9)


def test_some_room_is_kept_even_where_nothing_is_asked_for(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(10**12, 10**12, 1000))
    with pytest.raises(OutputError, match="0 MB free"):
        check_output(tmp_path)


# --- devices ---


def gpus(monkeypatch, count: int) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)


@pytest.mark.parametrize("name", ["cuda", "cuda:0", "cuda:1"])
def test_absent_gpu_is_a_device_error(monkeypatch, name):
    gpus(monkeypatch, 0)
    with pytest.raises(DeviceError, match=f"'{name}' was asked for, but torch sees no GPU here; use --device cpu"):
        pick_device(name)


def test_gpu_beyond_those_that_are_there_is_a_device_error(monkeypatch):
    gpus(monkeypatch, 2)
    assert pick_device("cuda:1") == "cuda:1"
    with pytest.raises(DeviceError, match="'cuda:2' was asked for, but there are 2 GPUs"):
        pick_device("cuda:2")


def test_auto_takes_a_gpu_where_there_is_one(monkeypatch):
    gpus(monkeypatch, 0)
    assert pick_device("auto") == "cpu"
    gpus(monkeypatch, 1)
    assert pick_device("auto") == pick_device("cuda") == "cuda"


@pytest.mark.parametrize("name", ["", "gpu", "cuda:", "cuda:x", "cuda:-1", "cuda:²", "CUDA", "cpu:0", "0"])
def test_unknown_device_says_which_there_are(monkeypatch, name):
    gpus(monkeypatch, 1)
    with pytest.raises(DeviceError, match="none of auto, cpu, cuda, cuda:N"):
        pick_device(name)


def test_cpu_is_always_there():
    assert pick_device("cpu") == "cpu"
