"""Whether a split that is found here is the one that a record was made with."""

from __future__ import annotations

from limbeck.engine.record import RunRecord
from limbeck.errors import CorruptFile


def check_split(record: RunRecord, split: str, found: str, recorded: str | None) -> None:
    """Raises: CorruptFile for another content hash than the record's; one of None is of an older record, and passes."""
    if recorded not in (None, found):
        raise CorruptFile(
            f"the {split} split of {record.data.name} found here has hash {found[:12]}…, that of {record.id} has "
            f"{recorded[:12]}…; get the data that the record was made with"
        )
