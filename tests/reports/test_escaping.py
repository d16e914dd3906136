"""Text from files stays text: on a terminal, in Markdown, in a workflow, in a spreadsheet."""

from __future__ import annotations

import csv
import io
import unicodedata

import pytest

from moegeo_cli.reports import escaping


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("router", "router"),
        ("a b\tc\nd\r", "a b c d"),
        ("\x1b[31mred\x1b[0m", "red"),
        ("\x9b2Jgone", "gone"),
        ("\x1b]0;title\x07name", "name"),
        ("\x1b]8;;http://a\x1b\\link\x1b]8;;\x1b\\", "link"),
        ("\x1bPq#0\x1b\\device", "device"),
        ("\x1bcreset", "reset"),
        ("a\u202eb\u200bc\x00d\u2066e", "abcde"),
        ("\ud800half", "\ufffdhalf"),
        ("Ünïcödé 专家", "Ünïcödé 专家"),
        (7, "7"),
    ],
)
def test_a_name_is_one_printable_line(text: object, shown: str) -> None:
    assert escaping.clean(text) == shown
    assert escaping.clean(text).isprintable() or "\ufffd" in shown


def test_no_character_of_unicode_leaves_a_control_or_a_direction() -> None:
    for code in range(0x11000):
        kept = escaping.clean(f"a{chr(code)}b")
        assert not any(unicodedata.category(c) in {"Cc", "Cf", "Zl", "Zp", "Cs"} for c in kept), (
            code
        )


def test_a_long_text_is_cut_with_a_mark() -> None:
    assert escaping.clean("x" * 600) == "x" * 600
    assert escaping.clean("x" * 601) == "x" * 599 + "…"
    assert escaping.clean("router", limit=4) == "rou…"


def test_lines_of_code_keep_their_indents() -> None:
    assert escaping.clean_lines("def f():\n\treturn\x1b[1m 1\n\n  x") == [
        "def f():", "    return 1", "", "  x",
    ]  # fmt: skip


def test_markdown_is_escaped_and_words_with_underscores_are_not() -> None:
    assert escaping.markdown_text("a_b") == "a_b"
    assert escaping.markdown_text("_a_ *b* [c](d) <e> f|g") == (r"\_a\_ \*b\* \[c\](d) \<e\> f\|g")
    assert escaping.markdown_text("`x` ~y~ $z$ \\ &amp;") == r"\`x\` \~y\~ \$z\$ \\ \&amp;"


def test_a_code_span_cannot_be_left() -> None:
    assert escaping.markdown_code("a`b|c") == "`a'b\\|c`"
    assert escaping.markdown_code("\x00") == "` `", "an empty span is no span"


def test_a_workflow_command_has_one_line_and_its_own_properties() -> None:
    assert escaping.github_message(["50%", "a\n::error::b"]) == "50%25%0Aa ::error::b"
    assert escaping.github_property("a,line=1::b%") == "a%2Cline=1%3A%3Ab%25"


@pytest.mark.parametrize("first", ["=", "+", "-", "@"])
def test_a_cell_is_no_formula(first: str) -> None:
    text = f'{first}HYPERLINK("a","b")'
    out = io.StringIO()
    csv.writer(out).writerow([escaping.csv_text(text), escaping.csv_text("layer 1")])
    assert next(csv.reader(io.StringIO(out.getvalue()))) == ["'" + text, "layer 1"]
