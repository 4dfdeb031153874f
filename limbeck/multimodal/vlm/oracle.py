"""Who tells the labels of chosen images: a data set that knows them all, or a file that a person has filled in."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np

from limbeck.errors import ConfigError, CorruptFile, DataMissing, UnknownName

DELIMITERS = (",", ";", "\t")  # spreadsheets of some countries save CSV with semicolons


@runtime_checkable
class Oracle(Protocol):
    """Answers for images that were chosen, and for no others."""

    def reveal(self, ids: np.ndarray) -> np.ndarray:
        """Labels (n,) int64 of these ids (n,), in their order."""
        ...


class KnownLabels:
    """All labels of a data set, given out only for images that were chosen: stands in for a person in benchmarks.

    `choose` says which ids a strategy has chosen; `reveal` then answers for them. What was revealed is remembered.

    Args:
        labels: (N,) by id.
        chosen: ids that may be revealed from the start, such as the first labelled images.
    Raises: ConfigError for ids out of range; from `reveal` for an id that was not chosen.
    """

    def __init__(self, labels: np.ndarray | Sequence[int], chosen: Iterable[int] = ()) -> None:
        self._labels = np.asarray(labels, dtype=np.int64).copy()
        self._chosen = np.zeros(len(self._labels), dtype=bool)
        self._revealed = np.zeros(len(self._labels), dtype=bool)
        self.choose(np.fromiter(chosen, dtype=np.int64))

    def __repr__(self) -> str:
        return f"KnownLabels(images={len(self._labels)}, revealed={int(self._revealed.sum())})"

    @property
    def revealed(self) -> np.ndarray:
        """Ids whose labels were given out, ascending."""
        return np.flatnonzero(self._revealed)

    def choose(self, ids: np.ndarray) -> None:
        """Allow these ids to be revealed."""
        self._chosen[self._checked(ids)] = True

    def reveal(self, ids: np.ndarray) -> np.ndarray:
        """Labels (n,) int64 of chosen ids (n,)."""
        asked = self._checked(ids)
        closed = asked[~self._chosen[asked]]
        if len(closed):
            raise ConfigError(f"oracle: id {closed[0]} was not chosen, so its label stays hidden; choose it first")
        self._revealed[asked] = True
        return self._labels[asked]

    def _checked(self, ids: np.ndarray) -> np.ndarray:
        asked = np.asarray(ids, dtype=np.int64)
        wrong = asked[(asked < 0) | (asked >= len(self._labels))]
        if len(wrong):
            raise ConfigError(f"oracle: id {wrong[0]} is not in 0 to {len(self._labels) - 1}")
        return asked


@dataclass(frozen=True, slots=True)
class _Row:
    line: int
    label: int | None  # None where nobody has filled it in


class LabelFile:
    """Labels that a person has filled into a CSV file, such as the one that `write_sheet` makes.

    Columns: `label`, and `id` or `file` or both; others are ignored. A label is a class's name or its index; where a
    class is named like a number, the name counts. UTF-8, with commas, semicolons or tabs. Rows without a label are
    allowed as long as nobody asks for them, and so are rows that say the same twice. The file is read anew whenever
    labels are asked for, so it may be filled in later.

    Args:
        path: of the file.
        classes: (K,) names, in order of index.
        names: file name of every id, (N,); needed where the file has no `id` column, else compared with `file`.
        exact: refuse rows of images that were not asked for: another round's file, or one of another length.
    Raises: from `reveal`: DataMissing without the file; CorruptFile where it is no CSV file; ConfigError, naming file
        and line, for an unknown class or image, rows of one image that disagree, a row of another length than the
        header, an image without a row or label, and with `exact` a row too many.
    """

    def __init__(
        self, path: str | Path, classes: Sequence[str], *, names: Sequence[str] | None = None, exact: bool = True
    ) -> None:
        self.path, self.classes, self.exact = Path(path), [str(name) for name in classes], exact
        self.names = None if names is None else [str(name) for name in names]
        self._class = {name: index for index, name in enumerate(self.classes)}
        self._image: dict[str, list[int]] = {}
        for index, name in enumerate(self.names or []):
            self._image.setdefault(name, []).append(index)

    def reveal(self, ids: np.ndarray) -> np.ndarray:
        """Labels (n,) int64 of these ids (n,), in their order."""
        asked = [int(i) for i in ids]
        rows = self._rows()
        labels = []
        for i in asked:
            row = rows.get(i)
            if row is None:
                last = max((r.line for r in rows.values()), default=1)
                absent = sum(other not in rows for other in asked)
                raise ConfigError(
                    f"{self.path}: lines 2 to {last} have no row for {self._named(i)}; {len(asked)} labels are asked "
                    f"for, {absent} of them have no row"
                )
            if row.label is None:
                raise self._error(row.line, f"{self._named(i)} has no label; write the name or index of a class")
            labels.append(row.label)
        extra = sorted((row.line, i) for i, row in rows.items() if i not in set(asked)) if self.exact else []
        if extra:
            line, i = extra[0]
            raise self._error(line, f"{self._named(i)} is none of the {len(asked)} images asked for; delete its row")
        return np.array(labels, dtype=np.int64)

    def _rows(self) -> dict[int, _Row]:
        (top, header), *lines = read_table(self.path)
        columns = [cell.strip().lower() for cell in header]
        if "label" not in columns or not {"id", "file"} & set(columns):
            raise self._error(top, f"columns have to be 'label' and 'id' or 'file'; got {columns}")
        if "id" not in columns and self.names is None:
            raise self._error(top, "there is no column 'id', and no list of file names to find images by")
        rows: dict[int, _Row] = {}
        for line, cells in lines:
            if len(cells) != len(columns):
                raise self._error(line, f"{len(cells)} cells where the header has {len(columns)}")
            cell = {column: text.strip() for column, text in zip(columns, cells)}
            i, label = self._id(line, cell), self._label(line, cell["label"])
            before = rows.get(i)
            if before is None or before.label is None:
                rows[i] = _Row(line, label)
            elif label is not None and label != before.label:
                one, two = self.classes[before.label], self.classes[label]
                raise self._error(line, f"{self._named(i)} is {two!r} here and {one!r} in line {before.line}")
        return rows

    def _id(self, line: int, cell: dict[str, str]) -> int:
        if "id" not in cell:
            found = self._image.get(cell["file"], [])
            if len(found) > 1:
                raise self._error(line, f"{len(found)} images are called {cell['file']!r}; add a column 'id'")
            if not found:
                raise UnknownName("image", cell["file"], self._image, f"in {self.path}, line {line}")
            return found[0]
        try:
            i = int(cell["id"])
        except ValueError as error:
            raise self._error(line, f"id {cell['id']!r} is no whole number") from error
        if i < 0 or (self.names is not None and i >= len(self.names)):
            raise self._error(line, f"there is no image with id {i}")
        if self.names is not None and cell.get("file", self.names[i]) != self.names[i]:
            raise self._error(line, f"id {i} is file {self.names[i]!r}, not {cell['file']!r}")
        return i

    def _label(self, line: int, text: str) -> int | None:
        if not text:
            return None
        if text in self._class:
            return self._class[text]
        try:
            index = int(text)
        except ValueError:
            raise UnknownName("class", text, self.classes, f"in {self.path}, line {line}") from None
        if not 0 <= index < len(self.classes):
            raise self._error(line, f"class {index} is not in 0 to {len(self.classes) - 1}")
        return index

    def _named(self, i: int) -> str:
        return f"id {i}" if self.names is None or i >= len(self.names) else f"id {i} ({self.names[i]})"

    def _error(self, line: int, what: str) -> ConfigError:
        return ConfigError(f"{self.path}, line {line}: {what}")


def read_table(path: Path) -> list[tuple[int, list[str]]]:
    """Rows of a CSV file that are not blank, each with its line; the header first.

    Raises: DataMissing without the file; CorruptFile, naming the line, where it is no CSV file.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError as error:
        raise DataMissing(f"{path}: there is no such file of labels; fill in the sheet and save it") from error
    except OSError as error:
        raise CorruptFile(f"{path}: cannot be read ({error.strerror})") from error
    try:
        text = data.decode("utf-8-sig")  # spreadsheets put a byte-order mark first
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise CorruptFile(f"{path}, line {line}: not UTF-8 text; save it as 'CSV UTF-8'") from error
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise CorruptFile(f"{path}, line {line}: has a zero byte, so it is no CSV file; save it as CSV")
    first = text.partition("\n")[0]
    by = [d for d in DELIMITERS if "label" in [cell.strip(' "\r').lower() for cell in first.split(d)]]
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=by[0] if by else ",", strict=True)
    table: list[tuple[int, list[str]]] = []
    try:
        table.extend((reader.line_num, cells) for cells in reader if any(cell.strip() for cell in cells))
    except csv.Error as error:
        raise CorruptFile(f"{path}, line {reader.line_num}: no CSV ({error}); save it as CSV") from error
    if not table:
        raise CorruptFile(f"{path}, line 1: the file is empty; the first line has to name the columns")
    return table
