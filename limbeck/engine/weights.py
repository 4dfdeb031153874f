"""Weights and files: safetensors with metadata, hashes, and writes that are whole or absent."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from limbeck.errors import CorruptFile, OutputError

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn


def sha256_file(path: str | Path) -> str:
    """The sha256 of a file's bytes, as 64 hex digits."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def check_sha256(path: str | Path, expected: str) -> None:
    """Check a file's hash.

    Raises: CorruptFile with both hashes.
    """
    found = sha256_file(path)
    if found != expected:
        raise CorruptFile(
            f"{path}: sha256 is {found[:12]}…, expected {expected[:12]}…; delete the file and get it again"
        )


def sha256_json(value: Any) -> str:
    """The sha256 of a JSON value with sorted keys: the same before and after a JSON round trip.

    Raises: TypeError for what JSON does not have; its text may leave out what differs.
    """
    return sha256_plain(json.loads(json.dumps(value, default=_path_text)))  # keys as text, before they are sorted


def sha256_plain(value: Any) -> str:
    """The `sha256_json` of a value that was read from JSON and has no other keys than text."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _path_text(value: Any) -> str:
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    raise TypeError(f"{type(value).__name__} is no JSON value and cannot be hashed")


def hash_state(state: Mapping[str, Tensor]) -> str:
    """The sha256 of a state dict: names, dtypes, shapes and bytes, in the order of names."""
    import torch

    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        digest.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b"")
    return digest.hexdigest()


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Give a temporary name beside `path`; rename it into place when the block ends well, remove it otherwise.

    Raises: OutputError when the folder cannot be written or the disk is full.
    """
    target = Path(path)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{target.name}.", suffix=".tmp", dir=target.parent)
        os.close(handle)
    except OSError as error:
        raise OutputError(f"cannot write {target}: {error.strerror}; choose another output folder") from error
    temporary = Path(name)
    try:
        yield temporary
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        mode = os.umask(0)
        os.umask(mode)
        temporary.chmod(0o666 & ~mode)
        temporary.replace(target)
    except OSError as error:
        said = error.strerror or error
        raise OutputError(f"cannot write {target}: {said}; free space or choose another folder") from error
    finally:
        temporary.unlink(missing_ok=True)


def copy_file(source: str | Path, target: str | Path) -> None:
    """Copy a file, whole or not at all. Raises: OutputError."""
    with atomic_path(target) as temporary:
        shutil.copyfile(source, temporary)


def write_json(path: str | Path, value: Any) -> None:
    """Write JSON, whole or not at all."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(value, indent=1, sort_keys=False) + "\n", encoding="utf-8")


def save_weights(
    path: str | Path, state: Mapping[str, Tensor], *, metadata: Mapping[str, str], dtype: torch.dtype | None = None
) -> str:
    """Save a state dict as safetensors, floating tensors in `dtype` where given; returns the file's sha256.

    A tensor with values that `dtype` would make infinite keeps its own.

    Raises: OutputError when the folder cannot be written or the disk is full.
    """
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    tensors = {}
    for name, tensor in state.items():
        value = tensor.detach().cpu()
        if dtype is not None and value.is_floating_point():
            cast = value.to(dtype)
            value = cast if torch.equal(cast.isinf(), value.isinf()) else value
        tensors[name] = value.clone().contiguous()  # safetensors refuses tensors that share memory
    with atomic_path(path) as temporary:
        try:
            save_file(tensors, temporary, metadata=dict(metadata))
        except SafetensorError as error:  # how it says that the disk is full
            raise OutputError(f"cannot write {path}: {error}; free space or choose another folder") from error
    return sha256_file(path)


def read_weights(path: str | Path, *, sha256: str | None = None) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read a safetensors file on the CPU in float32 where it holds half precision; returns tensors and metadata.

    Raises: CorruptFile when the file is absent or damaged, or its hash differs.
    """
    import torch
    from safetensors import SafetensorError, safe_open

    file = Path(path)
    if not file.is_file():
        raise CorruptFile(f"{file}: no such weight file; train the member first or name another path")
    if sha256 is not None:
        check_sha256(file, sha256)
    try:
        with safe_open(file, framework="pt") as opened:
            metadata = dict(opened.metadata() or {})
            state = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 - not a mapping
    except SafetensorError as error:
        raise CorruptFile(
            f"{file}: not a whole safetensors file ({error}; sha256 {sha256_file(file)[:12]}…); get or train it again"
        ) from error
    half = (torch.float16, torch.bfloat16)
    return {k: v.float() if v.dtype in half else v for k, v in state.items()}, metadata


def load_into(model: nn.Module, path: str | Path, *, sha256: str | None = None) -> dict[str, str]:
    """Load a safetensors file into a model, every key of it; returns the file's metadata.

    Raises: CorruptFile when the file is damaged or holds other tensors than the model.
    """
    state, metadata = read_weights(path, sha256=sha256)
    own = model.state_dict()
    missing, extra = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
    wrong = [k for k in own.keys() & state.keys() if own[k].shape != state[k].shape]
    if missing or extra or wrong:
        parts = [("lacks", missing), ("has unknown", extra), ("has other shapes for", wrong)]
        said = "; ".join(f"{verb} {', '.join(keys[:3])}{' …' if len(keys) > 3 else ''}" for verb, keys in parts if keys)
        raise CorruptFile(f"{path} does not fit the model: it {said}; name the weights of this architecture")
    load_state(model, state)
    return metadata


def load_state(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Load tensors by name, every one of them, from a plain mapping such as a file gives.

    torch's own state dicts also say in which version each module wrote its tensors. Without that, mmdetection3d's
    sparse convolutions take a kernel for one of spconv 1 and move its axes: loudly where they differ, else silently.
    """
    named = model.state_dict()  # a dict with the versions of today's modules
    named.clear()
    named.update(state)
    model.load_state_dict(named)
