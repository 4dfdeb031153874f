"""Members of a run: what a config may say of each, checked before anything is built."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from limbeck.engine.config import parse
from limbeck.errors import ConfigError, UnknownName


class Member(BaseModel):
    """One named model of a distillation run.

    type: 'frozen' (a teacher), 'trained' (a student), 'ema' (a moving average of another member).
    model: its config, or a built module.
    weights: a path, 'run://…' or 'zoo://…'; needed by frozen members.
    sha256: of the weights file, checked before it is read.
    initial_weights: a frozen member's model config already loads pretrained weights.
    init: the name by which a trained member's first weights are drawn; its own where not given. One that is compared
        with a student that was trained alone starts from the same weights with init='student'.
    of, momentum: for 'ema': the member it follows, and how slowly.
    precision: a frozen member may run in lower precision.
    expected, tolerance: what a frozen member's metric on validation must be, and how far off it may be.
    """

    model_config = ConfigDict(extra="forbid", arbitrary_types_allowed=True)

    type: Literal["frozen", "trained", "ema"]
    model: Any = None
    weights: str | None = None
    sha256: str | None = None
    initial_weights: bool = False
    init: str | None = None
    of: str | None = None
    momentum: float = Field(0.999, ge=0.0, le=1.0)
    precision: Literal["float32", "float16", "bfloat16"] = "float32"
    expected: dict[str, float] | None = None
    tolerance: float = 0.5


def parse_members(members: Mapping[str, Mapping[str, Any]], deploy: str) -> dict[str, Member]:
    """Validate members and their relations.

    Raises: ConfigError, UnknownName.
    """
    specs = {name: parse(Member, dict(cfg), f"member {name!r}") for name, cfg in members.items()}
    if deploy not in specs:
        raise UnknownName("member", deploy, specs, "as deploy")
    for name, spec in specs.items():
        if spec.type == "ema":
            if spec.of not in specs or specs[spec.of].type != "trained":
                trained = [n for n, s in specs.items() if s.type == "trained"]
                raise UnknownName("trained member", str(spec.of), trained, f"for the ema member {name!r}")
        elif spec.model is None:
            raise ConfigError(f"member {name!r} needs a model config")
        if spec.type != "frozen" and spec.precision != "float32":
            raise ConfigError(f"member {name!r}: only a frozen member has a precision of its own; set the recipe's")
    return specs
