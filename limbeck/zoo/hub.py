"""Hugging Face repositories: which students one holds, at which commit, and a file of it."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from inspect import signature
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

from limbeck.errors import ConfigError, CorruptFile

Report = Callable[[int, int | None], None]  # bytes that are there, bytes in all where they are known
SCHEME = "hf://"
FORM = "hf://owner/name[@revision][/student]"
_ADDRESS = re.compile(r"hf://(?P<repo>[^/@]+/[^/@]+)(?:@(?P<revision>[^/]+))?(?:/(?P<rest>.+))?")


@dataclass(frozen=True, slots=True)
class HubAddress:
    """hf://owner/name[@revision][/rest]; the rest is a student's name or, where it says so, a file's path."""

    repo: str
    revision: str | None
    rest: str | None

    def __str__(self) -> str:
        pinned = f"@{quote(self.revision, safe='')}" if self.revision else ""
        return f"{SCHEME}{self.repo}{pinned}{f'/{self.rest}' if self.rest else ''}"


def too_long(name: str, limit: int) -> CorruptFile:
    """The error for a file that is longer than it may be."""
    return CorruptFile(f"{name}: more than the {limit:,} bytes that the file may have; ask its author")


def is_hub(address: str) -> bool:
    """Whether an address is of a Hugging Face repository."""
    return address.startswith(SCHEME)


def parse_hub(address: str) -> HubAddress:
    """Read an address; a revision with a slash is written with %2F. Raises: ConfigError for another form."""
    match = _ADDRESS.fullmatch(address.rstrip("/"))
    if match is None:
        raise ConfigError(f"{address} is no address of a Hugging Face repository; write {FORM}")
    revision = match["revision"]
    return HubAddress(match["repo"], unquote(revision) if revision else None, match["rest"])


def read_repository(address: HubAddress) -> tuple[str, list[str]]:
    """The commit that a revision is, and the paths of the files there; errors are those of huggingface_hub."""
    from huggingface_hub import HfApi

    info = HfApi(library_name="limbeck", endpoint=_endpoint()).model_info(address.repo, revision=address.revision)
    return str(info.sha), [file.rfilename for file in info.siblings or ()]


def fetch_from_hub(address: str, part: Path, limit: int, report: Report | None) -> None:
    """Fetch hf://owner/name@commit/path into `part`; errors are those of huggingface_hub."""
    from huggingface_hub import hf_hub_download

    found = parse_hub(address)
    inside = part.with_name(f"{part.name}.hub")  # not the shared cache of the hub: the file would lie there twice
    watched = "tqdm_class" in signature(hf_hub_download).parameters  # since huggingface_hub 1.0
    extra: dict[str, Any] = {"tqdm_class": _bar(limit, report)} if watched else {}
    try:
        path = hf_hub_download(
            found.repo,
            str(found.rest),
            revision=found.revision,
            local_dir=inside,
            library_name="limbeck",
            endpoint=_endpoint(),
            **extra,
        )
        if Path(path).stat().st_size > limit:
            raise too_long(address, limit)
        Path(path).resolve().replace(part)
    finally:
        shutil.rmtree(inside, ignore_errors=True)


def _endpoint() -> str | None:
    """$HF_ENDPOINT as it is now: huggingface_hub reads it once, when it is imported."""
    return os.environ.get("HF_ENDPOINT", "").rstrip("/") or None


def _bar(limit: int, report: Report | None) -> type:
    """A bar for huggingface_hub that ends a download of more than `limit` bytes; it reports instead of being shown."""
    from huggingface_hub.utils import tqdm

    class Bar(tqdm):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            self.there, self.whole = int(kwargs.get("initial") or 0), kwargs.get("total")
            super().__init__(*args, **(kwargs if report is None else {**kwargs, "disable": True}))

        def update(self, n: float | None = 1) -> bool | None:
            self.there += int(n or 0)
            if self.there > limit:
                raise too_long(self.desc if hasattr(self, "desc") else "the file", limit)
            if report is not None:
                report(self.there, self.whole)
            return super().update(n)

    return Bar
