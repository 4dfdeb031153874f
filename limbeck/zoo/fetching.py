"""Fetch: bytes from an address into a file, by libraries that resume and retry.

- `hf://…` through `huggingface_hub.hf_hub_download`, which honours HF_ENDPOINT, tokens and proxies. It resumes a broken
  connection within a call; its unfinished files do not outlive the call.
- `http(s)://…` through `huggingface_hub`'s `http_get`. fsspec's HTTP file system was the other choice: it neither
  resumes nor retries, and needs aiohttp. `http_get` asks for the rest with a Range header, starts anew where a server
  does not know ranges, tries again when a connection breaks, and takes an open file, so that the part file of an
  earlier process is gone on with. Every install of Limbeck has it.
- any other address (`s3://`, `gs://`, `sftp://`, a path, …) through fsspec, whole; each kind may need its own package.
"""

from __future__ import annotations

import errno
import io
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit, urlunsplit

from limbeck.engine.paths import cache_dir
from limbeck.errors import ConfigError, NotFetched, OutputError, UserError
from limbeck.zoo.hub import Report, fetch_from_hub, is_hub, too_long
from limbeck.zoo.hub_errors import Fault, fault_of, of_client

T = TypeVar("T")
TRIES = 4  # of an address that answers with a server error or breaks off; the library's own tries are inside each
WAIT = 0.5  # seconds before the second try, twice as long before each later one
LOCAL = ("", "file", "local", "memory")
OFFLINE = ("LIMBECK_OFFLINE", "HF_HUB_OFFLINE")


class NoSuchFile(NotFetched):
    """The address is reached and has no such file."""


def scheme(address: str) -> str:
    """'https' of 'https://…', '' of a path."""
    found, separator, _ = address.partition("://")
    return found.lower() if separator else ""


def shown(address: str) -> str:
    """An address as messages and lists have it: without user, password and query."""
    parts = urlsplit(address)
    if not parts.netloc or scheme(address) not in ("http", "https"):
        return address
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def fetch_bytes(address: str, limit: int) -> bytes:
    """A small file, such as a card.

    Raises: NoSuchFile; NotFetched; OutputError; CorruptFile when it is longer than `limit` bytes.
    """
    try:
        with tempfile.TemporaryDirectory(prefix="limbeck-") as temporary:
            path = Path(temporary) / "file"
            fetch_file(address, path, limit=limit)
            return path.read_bytes()
    except OSError as error:
        raise OutputError(f"cannot write {tempfile.gettempdir()}: {error.strerror}; set TMPDIR") from error


def fetch_file(
    address: str,
    part: Path,
    *,
    size: int | None = None,
    limit: int,
    report: Report | None = None,
    stop: threading.Event | None = None,
) -> None:
    """Fetch an address into `part`; what `part` holds already is not fetched again, where the server can give the rest.

    Args:
        size: bytes that the file has, where they are known.
        limit: bytes that it may have.
        stop: ends the download when it is set.
    Raises: NoSuchFile; NotFetched when the address cannot be reached or breaks off; OutputError when the disk is full;
        CorruptFile when more than `limit` bytes come. `part` keeps what has arrived.
    """
    try:
        part.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise unwritable(part, error) from error
    asked(address, lambda: _fetch(address, part, size, limit, report, stop), part)


def asked(address: str, ask: Callable[[], T], part: Path | None = None) -> T:
    """What `ask` gives, after several tries where the server is at fault, and with errors of one sentence.

    Raises: as `fetch_file` does; ConfigError for what is no address.
    """
    if (name := _offline_name()) is not None and scheme(address) not in LOCAL:
        raise NotFetched(
            f"{shown(address)} is not in the cache {cache_dir()}, and {name} is set; unset it, or get it before"
        )
    for attempt in range(TRIES - 1):
        try:
            with _told(address, part):
                return ask()
        except _TryAgain:
            time.sleep(WAIT * 2**attempt)
    try:
        with _told(address, part):
            return ask()
    except _TryAgain as error:
        raise NotFetched(str(error)) from error.__cause__


def _fetch(
    address: str, part: Path, size: int | None, limit: int, report: Report | None, stop: threading.Event | None
) -> None:
    kind = scheme(address)
    if kind in ("http", "https"):
        from huggingface_hub.file_download import http_get

        with _Part(part, limit, size, report, stop) as file:
            # No bytes may come compressed: a length and a range are those of the file.
            http_get(
                address, file, resume_size=file.tell(), expected_size=size, headers={"Accept-Encoding": "identity"}
            )
    elif is_hub(address):
        fetch_from_hub(address, part, limit, report)
    else:
        import fsspec.core

        fs, path = fsspec.core.url_to_fs(address)
        if (found := int(fs.size(path) or 0)) > limit:
            raise too_long(shown(address), limit)
        fs.get_file(path, str(part))
        if report is not None:
            report(found, found)


class _Part(io.BufferedRandom):
    """A part file, opened at its end, that takes no more than `limit` bytes and reports what it has."""

    def __init__(
        self, path: Path, limit: int, size: int | None, report: Report | None, stop: threading.Event | None
    ) -> None:
        path.touch()
        if path.stat().st_size > limit or (size is not None and path.stat().st_size > size):
            path.write_bytes(b"")  # not a part of this file
        super().__init__(io.FileIO(path, "r+"))
        self.seek(0, io.SEEK_END)
        self.shown, self.limit, self.size, self.report, self.stop = str(path), limit, size, report, stop

    def write(self, data: Any) -> int:
        if self.stop is not None and self.stop.is_set():
            raise NotFetched("the download was interrupted; the same command goes on with it")
        if (there := self.tell() + len(data)) > self.limit:
            raise too_long(self.shown, self.limit)
        written = super().write(data)
        if self.report is not None:
            self.report(there, self.size)
        return written


class _TryAgain(Exception):
    """What may go better the next time."""


@contextmanager
def _told(address: str, part: Path | None) -> Iterator[None]:
    """Say in one sentence what the libraries say in many ways; of the hub's client by `limbeck.zoo.hub_errors`."""
    name = shown(address)
    try:
        if scheme(address) in ("http", "https") and not (urlsplit(address).hostname and urlsplit(address).port != 0):
            raise ValueError("no host")
        yield
    except Exception as error:
        fault = fault_of(error, hub=is_hub(address)) if of_client(error) else None
        said = _other(name, part, error) if fault is None else _faulty(name, fault)
        if said is None:
            raise
        raise said from error


def _faulty(name: str, fault: Fault) -> Exception:
    """A status or a broken connection; a fault of the server is tried again."""
    said = f"{name}: {fault.said}"
    if fault.kind in ("server", "broken"):
        return _TryAgain(said)
    if fault.kind == "unreached":  # huggingface_hub has tried several times
        return NotFetched(f"{said}, or set LIMBECK_OFFLINE=1")
    kinds: dict[str, type[UserError]] = {"absent": NoSuchFile, "name": ConfigError}
    return kinds.get(fault.kind, NotFetched)(said)


def _other(name: str, part: Path | None, error: Exception) -> Exception | None:
    """What is of no HTTP client: of fsspec, of the address or of the disk; None for anything else."""
    if isinstance(error, FileNotFoundError):
        return NoSuchFile(f"{name}: there is no such file; check the address")
    if isinstance(error, ImportError):  # fsspec names the package that a kind of address needs
        return ConfigError(f"{name}: {error}; install that package")
    if isinstance(error, ValueError):
        return ConfigError(f"{name} is no address that can be read ({error}); use https://, hf:// or a path")
    return _os_error(name, part, error) if isinstance(error, OSError) else None


def _os_error(name: str, part: Path | None, error: OSError) -> Exception:
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.EISDIR):
        return unwritable(part or Path(name), error)
    if error.errno is None:  # fewer or more bytes than the card or the header says
        return _TryAgain(f"{name}: {_short(error)}; the same command goes on with it")
    return NotFetched(f"{name} cannot be read ({_short(error)}); check the address and the network")


def unwritable(part: Path, error: OSError) -> OutputError:
    """The error for a file of the cache that cannot be written."""
    return OutputError(
        f"cannot write {part}: {error.strerror}; free space, or set LIMBECK_CACHE to another folder, and call again"
    )


def _offline_name() -> str | None:
    said = (name for name in OFFLINE if os.environ.get(name, "").upper() in ("1", "ON", "YES", "TRUE"))
    return next(said, None)


def _short(error: BaseException) -> str:
    """The first sentence of a library's message."""
    text = str(error).partition("\n")[0].strip() or type(error).__name__
    return text[:200].rstrip(".")
