"""Downloading CIFAR-10 and CIFAR-100 from their authors' page: checked, then unpacked without loading a pickle."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import os
import shutil
import sys
import tarfile
import zlib
from pathlib import Path

from limbeck.engine.data_files import temporary_inside
from limbeck.engine.paths import cache_dir
from limbeck.engine.weights import atomic_path, sha256_file, write_json
from limbeck.errors import CorruptFile, DataMissing
from limbeck.vision.data._cifar_files import PUBLISHED, Published


def get_cifar(name: str, progress: bool = True) -> Path:
    """Download 'cifar10' or 'cifar100' into the cache folder and return its folder; nothing is done where it is there.

    Beside the .bin files it keeps MANIFEST.sha256 of them, and source.json with the archive's address and hashes.

    Raises: DataMissing when it cannot be downloaded; CorruptFile when something else arrives; OutputError.
    """
    data = PUBLISHED[name]
    folder = cache_dir() / "data" / data.folder
    if (folder / "MANIFEST.sha256").is_file() and all((folder / f).is_file() for f in (*data.train, *data.test)):
        return folder
    with temporary_inside(folder) as temporary:
        archive = _download(data, temporary, progress)
        md5, sha256 = _check(data, archive)
        _unpack(data, archive, folder)
        size = archive.stat().st_size
    write_json(folder / "source.json", {"url": data.url, "bytes": size, "md5": md5, "sha256": sha256})
    if progress:
        print(f"{data.title}: {size} bytes, md5 {md5} and sha256 {sha256} as expected", file=sys.stderr)
    return folder


def _download(data: Published, folder: Path, progress: bool) -> Path:
    from torchvision.datasets.utils import download_url

    with contextlib.ExitStack() as stack:
        if not progress:
            quiet = stack.enter_context(open(os.devnull, "w", encoding="utf-8"))
            stack.enter_context(contextlib.redirect_stderr(quiet))
            stack.enter_context(contextlib.redirect_stdout(quiet))
        try:
            download_url(data.url, str(folder), "archive.tar.gz")
        except (OSError, RuntimeError, http.client.HTTPException) as error:
            raise DataMissing(
                f"{data.title} could not be downloaded from {data.url} ({error}); try again, or unpack the archive "
                f"elsewhere and put its .bin files into $LIMBECK_DATA/{data.folder}"
            ) from error
    return folder / "archive.tar.gz"


def _check(data: Published, archive: Path) -> tuple[str, str]:
    with open(archive, "rb") as file:
        # MD5 because the authors' page states it; the sha256 is what guards.
        md5 = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
    sha256 = sha256_file(archive)
    if (md5, sha256) != (data.md5, data.sha256):
        raise CorruptFile(
            f"{data.title} as downloaded from {data.url}: {archive.stat().st_size} bytes, md5 is {md5[:12]}…, expected "
            f"{data.md5[:12]}…, sha256 is {sha256[:12]}…, expected {data.sha256[:12]}…; try again"
        )
    return md5, sha256


def _unpack(data: Published, archive: Path, folder: Path) -> None:
    """Copy the .bin files alone, each whole or not at all; MANIFEST.sha256 last, since it marks the folder complete."""
    lines = []
    try:
        with tarfile.open(archive, "r:gz") as tar:
            for name in sorted((*data.train, *data.test)):
                member = tar.extractfile(f"{data.inner}/{name}")
                if member is None:
                    raise CorruptFile(f"{data.title} as downloaded: {data.inner}/{name} is no file; try again")
                with member, atomic_path(folder / name) as temporary, open(temporary, "wb") as file:
                    shutil.copyfileobj(member, file)
                lines.append(f"{sha256_file(folder / name)}  {name}\n")
    except (tarfile.TarError, EOFError, zlib.error, KeyError) as error:
        raise CorruptFile(f"{data.title} as downloaded is no archive of {data.inner} ({error}); try again") from error
    with atomic_path(folder / "MANIFEST.sha256") as temporary:
        temporary.write_text("".join(lines), encoding="utf-8")
