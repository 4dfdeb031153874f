"""Output folders: checked before training starts, and used by one run at a time."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from limbeck.engine.weights import atomic_path
from limbeck.errors import DeviceError, OutputError

RESERVE_BYTES = 64 * 1024 * 1024


def check_output(folder: str | Path, needed_bytes: int = 0) -> Path:
    """Make the folder and check that it can be written and has room.

    Raises: OutputError, before anything is trained.
    """
    path = Path(folder)
    probe = path / ".write-test"
    with atomic_path(probe) as temporary:
        temporary.write_bytes(b"limbeck")
    probe.unlink(missing_ok=True)  # another run may be probing the same folder
    free = shutil.disk_usage(path).free
    if free < needed_bytes + RESERVE_BYTES:
        raise OutputError(
            f"{path}: {free / 1e6:.0f} MB free, {(needed_bytes + RESERVE_BYTES) / 1e6:.0f} MB needed; "
            "free space or choose another folder with --out"
        )
    return path


@contextmanager
def exclusive(folder: str | Path) -> Iterator[None]:
    """Hold the folder for one run; the operating system lets go when the process dies, however it does.

    Raises: OutputError when another run holds it.
    """
    path = Path(folder)
    lock = FileLock(path / ".lock")
    try:
        path.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except Timeout as error:
        raise OutputError(
            f"{path}: another run is writing here; wait for it or choose another folder with --out"
        ) from error
    except OSError as error:
        raise OutputError(f"{path}: cannot be locked ({error.strerror}); choose another folder with --out") from error
    try:
        yield
    finally:
        lock.release()


def pick_device(name: str) -> str:
    """Check that 'cpu', 'cuda', 'cuda:1' or 'auto' is there; 'auto' takes a GPU where there is one.

    Raises: DeviceError.
    """
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cpu":
        return name
    kind, colon, index = name.partition(":")
    if kind != "cuda" or (colon and not index.isdecimal()):
        raise DeviceError(f"device {name!r} is none of auto, cpu, cuda, cuda:N")
    if not torch.cuda.is_available():
        raise DeviceError(f"device {name!r} was asked for, but torch sees no GPU here; use --device cpu")
    if index and int(index) >= torch.cuda.device_count():
        count = torch.cuda.device_count()
        raise DeviceError(f"device {name!r} was asked for, but there are {count} GPUs; count from cuda:0")
    return name
