"""Cards from elsewhere: what a card may ask for when we did not write it ourselves."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import ValidationError

from limbeck.errors import CorruptFile, first_problem
from limbeck.zoo.card import Card

CARD_BYTES = 1_000_000  # of a card from elsewhere; those of this zoo have a few thousand
# OpenMMLab's registries take any importable name with dots for a type and call it. A plain name is looked up among
# registered classes, and these three packages hold nothing at their top that does harm.
TYPE = re.compile(r"(?:(?:mmdet|mmseg|mmdet3d)\.)?[A-Za-z_][A-Za-z0-9_]*")
UNSAFE_KEYS = frozenset({"checkpoint", "_base_", "custom_imports", "_custom_imports_", "_delete_"})
ADDRESS = re.compile(r"://|^(?:hf[-_]hub|local[-_]dir|open-mmlab|torchvision|modelzoo|mmcls|openmmlab):", re.IGNORECASE)


def card_from(content: bytes, address: str) -> Card:
    """A card from elsewhere, validated, whose configs only name classes and read or fetch no further files.

    Weights are safetensors, which hold numbers alone; but the card's configs of architecture and data set are built, so
    a type with dots (that OpenMMLab's registries would import and call), a checkpoint and an address are refused.

    Raises: CorruptFile naming the address and what is wrong.
    """
    try:
        card = Card.model_validate(json.loads(content))
    except ValidationError as error:
        raise CorruptFile(f"{address}: {first_problem(error, 'card')}; ask its author for a valid card") from error
    except (ValueError, RecursionError) as error:  # JSON or UTF-8
        raise CorruptFile(f"{address}: not a JSON card ({error}); name the address of a card") from error
    for place, reason in (*_unsafe(card.model, "model"), *_unsafe(card.dataset.test, "dataset.test")):
        raise CorruptFile(f"{address}: {place}: {reason}, which is not allowed in a card from elsewhere; do not use it")
    return card


def _unsafe(value: Any, place: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            where = f"{place}.{key}"
            if key in UNSAFE_KEYS:
                yield where, f"the key {key!r}"
            elif key == "type" and isinstance(inner, str) and not TYPE.fullmatch(inner):
                yield where, f"the type {inner[:60]!r}, not the plain name of a class"
            elif key.startswith("pretrained") and inner not in (False, None):
                yield where, "weights beside the student's own"
            yield from _unsafe(inner, where)
    elif isinstance(value, (list, tuple)):
        for index, inner in enumerate(value):
            yield from _unsafe(inner, f"{place}.{index}")
    elif isinstance(value, str) and ADDRESS.search(value):
        yield place, f"the address {value[:60]!r}"
