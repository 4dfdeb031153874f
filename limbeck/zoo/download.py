"""Download: several students at once, into the cache or into a folder of one's own."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from limbeck.engine.weights import copy_file, write_json
from limbeck.errors import NotFetched, UserError
from limbeck.zoo.index import CARDS, WEIGHTS
from limbeck.zoo.sources import locate, weights

WORKERS = 4  # files at a time; more do not make one connection faster
Progress = Callable[[str, int, int | None], None]  # reference, bytes that are there, bytes in all where they are known


@dataclass(frozen=True, slots=True)
class Downloaded:
    """A student that is here: `reference` as asked for, `path` and `size` in bytes of its checked weight file."""

    reference: str
    name: str
    source: str
    path: str
    size: int
    sha256: str


def download(
    names: Iterable[str],
    to: str | Path | None = None,
    *,
    revision: str | None = None,
    refresh: bool = False,
    progress: Progress | None = None,
) -> list[Downloaded]:
    """Bring students here, several at a time, in the order of `names`; those that came stay though others fail.

    Args:
        names: of the zoo, addresses and paths, as `limbeck.zoo.sources` says.
        to: a folder that gets cards/NAME.json and weights/FILE, for $LIMBECK_ZOO; None: the cache alone.
        revision: of all of them; see `load_student`.
        refresh: ask addresses again that the cache knows, for a branch that has moved.
    Raises: what `sources.locate` and `sources.weights` raise; NotFetched naming those that failed, when several do.
    """
    wanted = list(dict.fromkeys(names))
    stop = threading.Event()

    def one(name: str) -> Downloaded:
        found = locate(name, revision=revision, refresh=refresh)
        path = weights(found, report=None if progress is None else partial(progress, name), stop=stop)
        if to is not None:
            card = found.card
            copy_file(path, target := Path(to) / WEIGHTS / card.file)
            write_json(Path(to) / CARDS / f"{card.name}.json", card.model_dump(mode="json"))
            path = target
        size = found.card.file_bytes
        if progress is not None:
            progress(name, size, size)
        return Downloaded(name, found.card.name, found.source, str(path), size, found.card.sha256)

    with _quiet(progress is not None), ThreadPoolExecutor(WORKERS) as pool:
        futures = {name: pool.submit(one, name) for name in wanted}
        try:
            return _results(futures)
        except KeyboardInterrupt:
            stop.set()  # each download ends at its next chunk, and its part file stays
            pool.shutdown(cancel_futures=True)
            raise


def _results(futures: dict[str, Future[Downloaded]]) -> list[Downloaded]:
    done, failed = [], {}
    for name, future in futures.items():
        try:
            done.append(future.result())
        except UserError as error:
            failed[name] = error
    if len(failed) == 1:
        raise next(iter(failed.values()))
    if failed:
        said = "; ".join(f"({place}) {name}: {error}" for place, (name, error) in enumerate(failed.items(), 1))
        raise NotFetched(f"{len(failed)} of {len(futures)} students could not be had: {said}")
    return done


@contextmanager
def _quiet(wanted: bool) -> Iterator[None]:
    """Keep huggingface_hub from drawing bars of its own and from logging what it tries again."""
    if not wanted:
        yield
        return
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars, logging

    shown, level = not are_progress_bars_disabled(), logging.get_verbosity()
    if shown:
        disable_progress_bars()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if shown:
            enable_progress_bars()
