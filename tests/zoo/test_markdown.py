"""Text of cards in Markdown: it shows as it stands, and makes neither a link, nor HTML, nor a block."""

from __future__ import annotations

from hypothesis import example, given
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from markdown_it.token import Token

from limbeck.zoo.markdown import code, escaped, one_line

MARKDOWN = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])
HOSTILE = st.text(st.one_of(st.characters(), st.sampled_from("\\`*_[]{}()#|~!<>&^$:@/.-+=1 \n\t'\"")), max_size=40)
LINKS = ("https://a.example", "www.a.example", "a@b.example", "<script>alert(1)</script>", "[a](javascript:b)")


def spoken(tokens: list[Token]) -> str:
    """The text that is shown; fails on what is no text."""
    shown = []
    for token in tokens:
        assert token.type in ("text", "text_special"), token
        shown.append(token.content)
    return "".join(shown)


@given(HOSTILE)
@example("1. a")
@example("- a")
@example("# a")
@example("---")
@example("===")
@example("<b>x</b> &amp; [l](http://a) ![i](b) `c` **d** ~~e~~ | f")
@example("a\u202eb\u200b\x00c")
@example("    indented")
def test_text_shows_as_it_stands(text):
    line = one_line(text)
    tokens = MARKDOWN.parse(escaped(text))
    if not line:
        assert not tokens
        return
    assert [t.type for t in tokens] == ["paragraph_open", "inline", "paragraph_close"]
    assert spoken(tokens[1].children) == line


@given(HOSTILE)
def test_text_stays_in_its_cell(text):
    tokens = MARKDOWN.parse(f"| a | b |\n|---|---|\n| {escaped(text)} | {code(text)} |\n")
    cells = [tokens[i + 1] for i, t in enumerate(tokens) if t.type == "td_open"]
    assert len(cells) == 2
    line = one_line(text)
    assert spoken(cells[0].children) == line
    assert "".join(t.content for t in cells[1].children) == line
    assert {t.type for t in cells[1].children} <= {"text", "text_special", "code_inline"}


def test_bare_links_are_broken_up():
    for link in LINKS:
        made = escaped(f"see {link}")
        assert "://" not in made.replace("\\://", "")
        assert "www." not in made
        assert "<" not in made
        assert "](" not in made.replace("\\](", "")
        assert "@" not in made.replace("\\@", "")
        assert spoken(MARKDOWN.parse(made)[1].children) == f"see {link}"


def test_control_and_direction_characters_are_dropped():
    assert one_line("a\x00b\u202ec\u2066d\ue000e\ud800f\r\n g\u2028h") == "abcdef g h"


def test_code_span_is_plain_where_it_can_be():
    assert code("digits/kd/seed0") == "`digits/kd/seed0`"
    assert code("a`b") == "a\\`b"
