"""Text of cards made safe for Markdown: it shows as it stands, whatever it holds."""

from __future__ import annotations

import re
import unicodedata

_SPECIAL = re.compile(r"([\\`*_\[\]{}#|~!$<>&^])")
_ENTITIES = {"<": "&lt;", ">": "&gt;", "&": "&amp;"}
# What GitHub's dialect turns into a link without brackets, an address or a mention.
_AUTOLINK = re.compile(r"(?i)(://)|\b(www)\.|@")
# What begins a block where a line does: a list, a rule, a heading's underline.
_BLOCK = re.compile(r"^(\d{1,9})?([-+=.)])")
_HIDDEN = ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")  # control, format, surrogates, private, not assigned


def one_line(text: str) -> str:
    """The text without line breaks, control characters, and signs that turn the direction of what follows."""
    plain = "".join(" " if c.isspace() else c for c in text if c.isspace() or unicodedata.category(c) not in _HIDDEN)
    return " ".join(plain.split())


def escaped(text: str) -> str:
    """A text as one line of Markdown that shows every character of it and is nothing else: no link, no HTML."""
    line = _SPECIAL.sub(lambda m: _ENTITIES.get(m[1], "\\" + m[1]), one_line(text))
    line = _AUTOLINK.sub(_broken, line)
    return _BLOCK.sub(lambda m: f"{m[1] or ''}\\{m[2]}", line)


def _broken(match: re.Match[str]) -> str:
    if match[1]:
        return "\\://"
    return f"{match[2]}\\." if match[2] else "\\@"


def code(text: str) -> str:
    """A text as a code span, or escaped where a span cannot hold it in a table too."""
    line = one_line(text)
    return escaped(line) if not line or "`" in line or "|" in line else f"`{line}`"
