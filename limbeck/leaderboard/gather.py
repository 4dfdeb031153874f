"""Gathering: records from folders, or from a Git repository of somebody else's runs, cloned into the cache.

A repository is data, never code: nothing of it is run, its symbolic links become plain files, and what it holds is
validated like our own records.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from filelock import FileLock

from limbeck.engine.data_files import temporary_inside
from limbeck.engine.paths import cache_dir
from limbeck.errors import ConfigError, OutputError
from limbeck.leaderboard.checks import DuplicateRecord, ResultsError
from limbeck.leaderboard.index import Listed

SCHEMES = ("https", "http", "ssh", "file", "git")
SECONDS = 600  # for one git command; a broken network must not hang for ever
_PLACE = re.compile(r"^(?:git\+)?(?P<scheme>[a-z]{2,}):/+(?P<rest>.*)$", re.IGNORECASE)
_COMMIT = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_EXAMPLE = "git+https://example.org/runs.git@main#results"


class GatherError(ResultsError):
    """Records of somebody else cannot be had: no such repository, ref or folder, or no git."""


@dataclass(frozen=True)
class Repository:
    """Where records lie: a Git URL, a branch, tag or commit (None: the default branch), and a folder inside."""

    url: str
    ref: str | None = None
    subfolder: str = ""

    @property
    def folder(self) -> Path:
        """Its place in the cache: the bare repository, and a folder a commit."""
        name = re.sub(r"[^a-z0-9]+", "-", self.url.lower()).strip("-")[-40:].strip("-")
        return cache_dir() / "results" / f"{name}-{hashlib.sha256(self.url.encode()).hexdigest()[:12]}"


def is_remote(place: str | Path) -> bool:
    """Whether a place is a Git URL, 'git+https://…' or 'file:///….git', and not a folder."""
    return str(place).lower().startswith(("git+", "file:/")) or (
        bool(_PLACE.match(str(place))) and not Path(place).exists()
    )


def resolve_results(place: str | Path) -> Path:
    """The folder of records that a place names: a folder as it is, or 'git+URL@ref#subfolder', cloned into the cache.

    Without '#subfolder' a repository's folder 'results' is taken, or its root where it has none. A commit is fetched
    once; a branch or tag each time.

    Raises: ConfigError for a URL that does not read; GatherError when it cannot be fetched, or has no such folder.
    """
    if not is_remote(place):
        return Path(place)
    repository = parse_repository(str(place))
    root = _checkout(repository)
    inside = repository.subfolder or ("results" if (root / "results").is_dir() else ".")
    folder = (root / inside).resolve()
    if not folder.is_relative_to(root.resolve()) or not folder.is_dir():
        names = ", ".join(sorted(p.name for p in root.iterdir() if p.is_dir())) or "none"
        raise GatherError(f"{place}: the repository has no folder {inside!r}; its folders are: {names}")
    return folder


def check_agree(folders: Sequence[Path], listed: Sequence[Listed]) -> None:
    """Refuse folders that hold different records of one run; the same record in several of them is one.

    Raises: DuplicateRecord naming both files.
    """
    first: dict[str, Path] = {}
    for folder, files in zip(folders, listed):
        for path, *_ in files.records:
            known = first.setdefault(path, folder)
            if known is not folder and not _same_json(known / path, folder / path):
                raise DuplicateRecord(
                    f"{known / path} and {folder / path} are different records of one run; leave out one of the two "
                    "places, or delete the record that is not wanted"
                )


def _same_json(a: Path, b: Path) -> bool:
    """Whether two files hold the same values, however they are laid out; a damaged one is like no other."""
    try:
        ours, theirs = a.read_bytes(), b.read_bytes()
        return ours == theirs or json.loads(ours) == json.loads(theirs)
    except (OSError, ValueError):
        return False


def parse_repository(place: str) -> Repository:
    """Take 'git+https://host/owner/name@ref#subfolder' apart; a URL whose slashes were collapsed to one reads too.

    Raises: ConfigError naming what is wrong.
    """
    match = _PLACE.match(place)
    scheme = match["scheme"].lower() if match else ""
    if match is None or scheme not in SCHEMES:
        raise ConfigError(f"{place!r} is no Git URL of {', '.join(SCHEMES)}; write it as {_EXAMPLE}")
    rest, _, subfolder = match["rest"].partition("#")
    host, _, path = ("", "", rest) if scheme == "file" else rest.partition("/")
    path, at, ref = path.rpartition("@") if "@" in path else (path, "", "")
    if scheme == "file" and at and Path(f"/{path}@{ref}").exists():  # a folder whose name has an '@'
        path, at, ref = f"{path}@{ref}", "", ""
    path = path.strip("/")
    url = f"{scheme}://{host}/{path}"
    subfolder = unquote(subfolder).removeprefix("subdirectory=").strip("/")
    if not path or (scheme != "file" and not urlsplit(url).hostname) or host.startswith("-"):
        raise ConfigError(f"{place!r} names no repository; write it as {_EXAMPLE}")
    if urlsplit(url).password:
        raise ConfigError("a Git URL with a password would be shown and kept; use a credential helper or ssh")
    if (at and not ref) or ref.startswith("-") or re.search(r"[\s~^:?*\[\\]|\.\.", ref):
        raise ConfigError(f"{place!r}: {ref!r} is no branch, tag or commit; write it as {_EXAMPLE}")
    if ".." in Path(subfolder).parts:
        raise ConfigError(f"{place!r}: the folder {subfolder!r} leads out of the repository; name one inside")
    return Repository(url, ref or None, subfolder)


def _checkout(repository: Repository) -> Path:
    """The files of a repository at its ref, in a folder named by the commit."""
    folder = repository.folder
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{folder}: cannot be made ({error.strerror}); name another cache: LIMBECK_CACHE") from error
    with FileLock(folder / ".lock"):
        if repository.ref and _COMMIT.fullmatch(repository.ref) and (folder / repository.ref).is_dir():
            return folder / repository.ref
        bare = folder / "git"
        commit = _fetch(repository, bare)
        target = folder / commit
        if not target.is_dir():
            with temporary_inside(folder) as temporary:
                tree = temporary / "tree"
                tree.mkdir()
                git = (f"--git-dir={bare}", f"--work-tree={tree}")
                _git(repository, *git, "checkout", "--force", commit, "--", ".", index=temporary / "index")
                tree.rename(target)
        return target


def _fetch(repository: Repository, bare: Path) -> str:
    """Fetch one commit without its history; returns its name."""
    if not (bare / "HEAD").is_file():
        shutil.rmtree(bare, ignore_errors=True)
        _git(repository, "init", "--quiet", "--bare", str(bare))
    git = (f"--git-dir={bare}",)
    shallow = (*git, "fetch", "--quiet", "--depth=1", "--no-tags", "--no-recurse-submodules", "--force")
    wanted = repository.ref or "HEAD"
    try:
        _git(repository, *shallow, "--", repository.url, wanted)
    except GatherError:
        if not _COMMIT.fullmatch(wanted) and not re.fullmatch(r"[0-9a-f]{7,39}", wanted):
            raise
        # a server that gives no commit by its name: all branches, then the commit among them
        _git(repository, *git, "fetch", "--quiet", "--force", "--", repository.url, "+refs/*:refs/gathered/*")
        return _git(repository, *git, "rev-parse", "--verify", "--quiet", f"{wanted}^{{commit}}").strip()
    return _git(repository, *git, "rev-parse", "--verify", "FETCH_HEAD^{commit}").strip()


def _git(repository: Repository, *args: str, index: Path | None = None) -> str:
    """Run git without prompts, hooks, symbolic links or large-file downloads.

    Raises: GatherError with git's last line.
    """
    where = f"{repository.url}{f'@{repository.ref}' if repository.ref else ''}"
    quiet = ("core.symlinks=false", "core.hooksPath=/dev/null", "protocol.ext.allow=never", "core.autocrlf=false")
    command = ["git", *(part for setting in quiet for part in ("-c", setting)), *args]
    own = {k: v for k, v in os.environ.items() if k not in ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE")}
    settings = {"GIT_TERMINAL_PROMPT": "0", "GIT_LFS_SKIP_SMUDGE": "1", "LC_ALL": "C"}
    settings |= {} if index is None else {"GIT_INDEX_FILE": str(index)}
    try:
        done = subprocess.run(
            command,
            env={**own, **settings},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=SECONDS,
        )
    except FileNotFoundError as error:
        raise GatherError(f"{where} needs git, which is not installed; install it, or clone elsewhere") from error
    except subprocess.TimeoutExpired as error:
        raise GatherError(f"{where}: git did not end in {SECONDS} s; clone it yourself and name the folder") from error
    if done.returncode:
        said = next((line for line in reversed(done.stderr.splitlines()) if line.strip()), "git failed")
        raise GatherError(f"{where}: {said.strip().rstrip('.')}; check URL, ref and network")
    return done.stdout
