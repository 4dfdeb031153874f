"""Renders templates into files; a process compiles each template once, and parts that many pages share render once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from limbeck.leaderboard.site.addresses import Addresses
from limbeck.leaderboard.stats import CONFIDENCE

if TYPE_CHECKING:
    from jinja2 import Environment

_KEPT = 4096  # sections of records, such as an environment, that are kept as markup


@dataclass(frozen=True)
class Pages:
    """Where pages are written, and what is on all of them; small, for it goes to other processes.

    site: `title`, `version`, `records`, `latest` and `tasks` of the frame around every page.
    """

    made: Path
    site: Mapping[str, Any]
    addresses: Addresses

    def write(self, address: str, template: str, *, file: str | None = None, **context: Any) -> None:
        """Write one page.

        Args:
            file: below the folder, where it is not the address itself, which is quoted.
        """
        root = "../" * address.count("/")
        found = templates().get_template(f"{template}.html.j2")
        text = found.render(root=root, here=address, site=self.site, **context)
        with open(f"{self.made}/{file or address}", "wb") as page:
            page.write(text.encode())


@cache
def templates() -> Environment:
    """The site's templates; every text in them is escaped."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    made = Environment(
        loader=PackageLoader("limbeck.leaderboard.site", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        auto_reload=False,
    )
    section: Any = made.get_template("parts.html.j2").module
    made.globals |= dict(confidence=f"{100 * CONFIDENCE:.0f}", section=lru_cache(_KEPT)(section.section))
    return made
