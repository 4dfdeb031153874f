"""Renders templates into files; a process compiles each template once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from limbeck.leaderboard.site.addresses import Addresses
from limbeck.leaderboard.stats import CONFIDENCE

if TYPE_CHECKING:
    from jinja2 import Environment
    from markupsafe import Markup


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
    made.globals |= dict(confidence=f"{100 * CONFIDENCE:.0f}", filled=filled)
    return made


def filled(form: str, rows: Sequence[Sequence[str]]) -> Markup:
    """Markup of rows, each '<dt>%s</dt><dd>%s</dd>' with its texts, escaped together: far faster than singly."""
    from markupsafe import Markup, escape

    texts = [text for row in rows for text in row]
    escaped = str(escape("\0".join(texts))).split("\0")
    if len(escaped) != len(texts):  # a text has the separator
        escaped = [str(escape(text)) for text in texts]
    return Markup(str(form) * len(rows) % tuple(escaped))
