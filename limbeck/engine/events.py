"""Events of a suite, from workers to whoever displays them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Event:
    """What happened to one run, for a display."""

    kind: Literal["skip", "start", "step", "finish", "fail"]
    id: str
    done: int = 0
    total: int = 0
    stage: str = ""
    text: str = ""
