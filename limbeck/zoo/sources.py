"""Where a student comes from: a name of the zoo, a Hugging Face repository, an address, a folder, or a mirror.

| reference | its card and weights |
|---|---|
| `NAME` | of `zoo_dir`, $LIMBECK_ZOO or the shipped zoo; what is not there, of the mirror that $LIMBECK_MIRROR names |
| `hf://owner/name[@revision][/NAME]` | a Hugging Face repository; NAME where it holds several students |
| `https://…/NAME.json` | a card, with its weight file beside it, or in `../weights/` where the card is in `cards/` |
| a path with a slash | of a card, of a folder with `cards/` and `weights/`, or `FOLDER/NAME` |

The mirror is an address or a path with `cards/NAME.json` and `weights/FILE` below it. What a reference gave is kept in
the cache (`limbeck.zoo.store`) and used from there until it is asked for again with `refresh`: nothing that was loaded
once needs the network, and a revision that moves does not change a program's results by itself.

Weights have the length and the sha256 of their card before anything reads them. How files are fetched, resumed and
tried again: `limbeck.zoo.fetching`; what a card from elsewhere may say: `limbeck.zoo.outside`.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast
from urllib.parse import urljoin, urlsplit

from limbeck.errors import ConfigError, CorruptFile, UnknownName
from limbeck.zoo import store
from limbeck.zoo.card import Card, is_name
from limbeck.zoo.fetching import LOCAL, NoSuchFile, asked, fetch_bytes, fetch_file, scheme, shown, unwritable
from limbeck.zoo.hub import FORM, Report, is_hub, parse_hub, read_repository
from limbeck.zoo.index import CARDS, WEIGHTS, entries
from limbeck.zoo.outside import CARD_BYTES, card_from
from limbeck.zoo.store import Entry


@dataclass(frozen=True, slots=True)
class Student:
    """A student that was found.

    path: of its weights, which may be absent or not checked yet; None where they have to be fetched.
    entry: of the cache; None for a student of a folder.
    """

    card: Card
    source: str
    path: Path | None = None
    entry: Entry | None = None


def is_reference(name: str) -> bool:
    """Whether this is an address or a path, and no plain name."""
    return "/" in name or os.sep in name


def mirror() -> str | None:
    """The address of the private mirror, $LIMBECK_MIRROR, or None."""
    named = os.environ.get("LIMBECK_MIRROR", "").rstrip("/")
    return named or None


def locate(
    name: str, *, revision: str | None = None, zoo_dir: str | Path | None = None, refresh: bool = False
) -> Student:
    """Find a student's card; of an address, fetch it where the cache does not have it.

    Args:
        revision: of a Hugging Face repository; of any other student the first digits, six or more, of the sha256 that
            its weights must have.
        refresh: ask the address again, though the cache knows it.
    Raises: UnknownName with near names; ConfigError for an address of another form, or another revision; NotFetched;
        OutputError; CorruptFile for a card that is not valid.
    """
    if is_hub(name):
        return _hub(name, revision, refresh)
    found = _place(name, zoo_dir, refresh)
    if revision is not None:
        _check_revision(found, name, revision)
    return found


def weights(student: Student, *, report: Report | None = None, stop: threading.Event | None = None) -> Path:
    """A student's weight file, fetched where it is not here, with the length and the sha256 of its card.

    Raises: CorruptFile with both hashes; NotFetched; OutputError.
    """
    from limbeck.engine.weights import check_sha256

    if student.path is not None:
        if not student.path.is_file():
            raise CorruptFile(
                f"{student.path}: the weights of {student.card.name} are absent, expected sha256 "
                f"{student.card.sha256[:12]}…; get them again, or name a mirror that has them in LIMBECK_MIRROR"
            )
        check_sha256(student.path, student.card.sha256)
        return student.path
    card = student.card
    target = store.weights_file(card.sha256)
    if target.is_file():
        return store.checked(target, card.sha256)
    with store.locked(card.sha256):
        if not target.is_file():  # else another process has just brought it
            _bring(student, target, report, stop)
    store.remember(cast(Entry, student.entry))  # so that prune knows whose the file is
    return target


def _bring(student: Student, target: Path, report: Report | None, stop: threading.Event | None) -> None:
    """Fetch into the part file, check it, and only then give it its name."""
    card, part = student.card, store.part_file(student.card.sha256)
    resumed = part.is_file() and part.stat().st_size > 0
    try:
        _from_any(student, part, report, stop)
        _check_part(part, card)
    except CorruptFile:
        part.unlink(missing_ok=True)
        if not resumed:
            raise
        try:  # what was there before was no part of this file
            _from_any(student, part, report, stop)
            _check_part(part, card)
        except CorruptFile:
            part.unlink(missing_ok=True)
            raise
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        part.replace(target)
    except OSError as error:
        raise unwritable(target, error) from error


def _from_any(student: Student, part: Path, report: Report | None, stop: threading.Event | None) -> None:
    """Fetch from the first address that has the file."""
    size = student.card.file_bytes
    absent = NoSuchFile(f"{student.card.name} has no address of its weights")
    for place, address in enumerate(cast(Entry, student.entry).weights):
        try:
            return fetch_file(address, part, size=size, limit=size, report=report, stop=stop)
        except NoSuchFile as error:
            absent = absent if place else error  # the first place is the one to name
    raise absent


def _check_part(part: Path, card: Card) -> None:
    from limbeck.engine.weights import sha256_file

    size, found = part.stat().st_size, sha256_file(part)
    if (size, found) != (card.file_bytes, card.sha256):
        raise CorruptFile(
            f"the weights of {card.name} have {size:,} bytes and sha256 {found[:12]}…, expected {card.file_bytes:,} "
            f"and {card.sha256[:12]}…; they were removed: try again, or tell who publishes them"
        )


# --- names, folders and addresses ---


def _place(name: str, zoo_dir: str | Path | None, refresh: bool) -> Student:
    if scheme(name) in ("", "file"):
        path = Path(name.removeprefix("file://")).expanduser()
        return _path(name, path) if is_reference(name) else _named(name, zoo_dir, refresh)
    if not urlsplit(name).path.endswith(".json"):
        raise ConfigError(f"{shown(name)} is no address of a card, which ends in .json; or write {FORM}")
    return _remembered(name, refresh, lambda: _fetched(name, name))


def _named(name: str, zoo_dir: str | Path | None, refresh: bool) -> Student:
    known = entries(zoo_dir)
    base = mirror() if zoo_dir is None else None
    if name in known:
        card, root = known[name]
        path = root / WEIGHTS / card.file
        if path.is_file() or base is None:
            return Student(card, str(root), path)
        return Student(card, base, entry=Entry(name, base, (f"{base}/{WEIGHTS}/{card.file}",), card))
    if base is None or not is_name(name):
        raise UnknownName("student", name, known, "in the zoo")
    address = f"{base}/{CARDS}/{name}.json"
    try:
        return _remembered(address, refresh, lambda: _fetched(address, address))
    except NoSuchFile as error:
        raise UnknownName("student", name, known, f"in the zoo and in the mirror {shown(base)}") from error


def _path(name: str, path: Path) -> Student:
    """A card's file, a folder of a zoo, or such a folder and a name."""
    if path.suffix == ".json":
        if not path.is_file():
            raise ConfigError(f"{name}: there is no such card; name a card, or a folder with {CARDS}/ and {WEIGHTS}/")
        card = card_from(path.read_bytes()[: CARD_BYTES + 1], str(path))
        beside = path.parent / card.file
        return Student(card, str(path), beside if beside.is_file() else path.parent.parent / WEIGHTS / card.file)
    folder, wanted = (path, None) if (path / CARDS).is_dir() else (path.parent, path.name)
    if not (folder / CARDS).is_dir():
        raise ConfigError(
            f"{name}: there is no card and no folder with {CARDS}/ and {WEIGHTS}/; name one, or FOLDER/NAME"
        )
    wanted = _choose(name, wanted, {card.stem: card.name for card in (folder / CARDS).glob("[!.]*.json")})
    return _path(name, folder / CARDS / wanted)


def _choose(reference: str, wanted: str | None, there: dict[str, str]) -> str:
    """The path of the student that is asked for, or of the only one."""
    if wanted is not None:
        if wanted not in there:
            raise UnknownName("student", wanted, there, f"in {reference.rpartition('/')[0]}")
        return there[wanted]
    if not there:
        raise ConfigError(f"{reference} has no card of a student, NAME.json; name another place")
    if len(there) > 1:
        names = sorted(there)
        some = ", ".join(names[:6]) + (", …" if len(names) > 6 else "")
        raise ConfigError(f"{reference} has several students, {some}; name one: {reference.rstrip('/')}/{names[0]}")
    return next(iter(there.values()))


def _fetched(reference: str, address: str) -> Entry:
    """The card at an address, and where its weights may be."""
    card = card_from(fetch_bytes(address, CARD_BYTES), shown(address))
    beside, above = _joined(address, card.file), _joined(address, f"../{WEIGHTS}/{card.file}")
    in_cards = urlsplit(address).path.rpartition("/")[0].endswith(f"/{CARDS}")
    return Entry(reference, shown(address), (above, beside) if in_cards else (beside,), card)


def _joined(address: str, relative: str) -> str:
    """`urljoin` for every kind of address; it knows only some."""
    if scheme(address) in ("http", "https"):
        return urljoin(address, relative)
    folder = address.rpartition("/")[0]
    return f"{folder.rpartition('/')[0]}/{relative[3:]}" if relative.startswith("../") else f"{folder}/{relative}"


def _hub(name: str, revision: str | None, refresh: bool) -> Student:
    address = parse_hub(name)
    if revision is not None:
        if address.revision not in (None, revision):
            raise ConfigError(f"{name} names a revision, and revision={revision!r} another; leave one out")
        address = replace(address, revision=revision)
    reference = str(address)
    return _remembered(reference, refresh, lambda: _fetched_from_hub(reference))


def _fetched_from_hub(reference: str) -> Entry:
    address = parse_hub(reference)
    commit, files = asked(reference, lambda: read_repository(address))
    cards = {}
    for file in sorted(files, key=lambda file: file.count("/"), reverse=True):  # one at the top wins
        folder, _, last = file.rpartition("/")
        stem = last.removesuffix(".json")
        if last != stem and is_name(stem) and (folder in ("", CARDS) or folder == stem):
            cards[stem] = file
    if not cards and "card.json" in files:
        cards["card.json" if address.rest is None else address.rest] = "card.json"
    path = _choose(reference, address.rest, cards)
    pinned = replace(address, revision=commit)
    source = str(replace(pinned, rest=path))
    card = card_from(fetch_bytes(source, CARD_BYTES), source)
    if address.rest not in (None, card.name):
        raise CorruptFile(f"{source}: the card is of {card.name!r}, and not of {address.rest!r}; ask its author")
    folder = path.rpartition("/")[0]
    beside = f"{folder}/{card.file}" if folder else card.file
    places = [place for place in (beside, f"{WEIGHTS}/{card.file}", card.file) if place in files] or [beside]
    return Entry(reference, source, tuple(str(replace(pinned, rest=place)) for place in places), card)


def _remembered(reference: str, refresh: bool, fetch: Callable[[], Entry]) -> Student:
    """What the cache has of a reference, else what `fetch` gives, which is kept."""
    local = scheme(reference) in LOCAL
    entry = store.recall(reference) if not refresh and not local else None
    if entry is None:
        entry = fetch()
        store.remember(entry)
    return Student(entry.card, entry.source, entry=entry)


def _check_revision(found: Student, name: str, revision: str) -> None:
    digits = revision.lower().removeprefix("sha256:")
    if len(digits) < 6 or not set(digits) <= set("0123456789abcdef"):
        raise ConfigError(
            f"revision {revision!r} of {name}: give six or more first digits of the sha256 of its weights; branches "
            "and commits are of hf:// references"
        )
    if not found.card.sha256.startswith(digits):
        raise ConfigError(
            f"{name} has weights of sha256 {found.card.sha256[:12]}…, not of revision {revision!r}; name another "
            "revision, or leave it out"
        )
