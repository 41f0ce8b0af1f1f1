"""Untrusted Markdown: what it becomes, an XSS corpus read as a browser reads it, and no text that takes seconds."""

from __future__ import annotations

import json
import time
from html.parser import HTMLParser
from pathlib import Path

import pytest

from tutelage.feedback.markdown import LONGEST, MOST_MARKS, TAGS, render

XSS = json.loads((Path(__file__).parent / "xss.json").read_text(encoding="utf-8"))
ALLOWED = {"a": {"href", "rel", "target"}, "ol": {"start"}, "th": {"align"}, "td": {"align"}}


class Elements(HTMLParser):
    """Every start tag of a fragment with its attributes."""

    def __init__(self, fragment: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(fragment)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


@pytest.mark.parametrize("text", XSS)
def test_nothing_outside_the_allow_list_survives(text: str) -> None:
    for surrounded in (
        text,
        f"before {text} after",
        f"- {text}",
        f"> {text}",
        f"**{text}**",
        f"[{text}](https://ok.test)",
    ):
        for tag, attributes in Elements(render(surrounded)).found:
            assert tag in TAGS
            assert attributes.keys() <= ALLOWED.get(tag, set())
            href = attributes.get("href")
            assert href is None or href.startswith(("https://ok.test", "https://tracker.test"))


def test_the_corpus_is_still_readable() -> None:
    """Escaped, not deleted: an annotator must see what the model wrote."""
    assert "&lt;img src=x onerror=alert(1)&gt;" in render("<img src=x onerror=alert(1)>")
    assert render("`<script>`") == "<p><code>&lt;script&gt;</code></p>\n"


def test_markdown_that_people_expect() -> None:
    assert render("**b** *e* `c` ~~s~~") == "<p><strong>b</strong> <em>e</em> <code>c</code> <s>s</s></p>\n"
    assert render("one\ntwo") == "<p>one<br>\ntwo</p>\n"
    assert render("3. a\n4. b") == '<ol start="3">\n<li>a</li>\n<li>b</li>\n</ol>\n'
    assert render("# a\n\n###### b") == "<h3>a</h3>\n<h6>b</h6>\n"
    assert '<td align="right">1</td>' in render("|n|\n|-:|\n|1|")
    assert render("```python\nx = 1\n```") == "<pre><code>x = 1\n</code></pre>\n"


def test_links_leave_safely_and_only_absolutely() -> None:
    kept = Elements(render("[a](https://ok.test/x?y=1)")).found[1]
    assert kept == (
        "a",
        {"href": "https://ok.test/x?y=1", "target": "_blank", "rel": "noopener noreferrer nofollow"},
    )
    assert Elements(render("[a](//ok.test/x)")).found[1][1]["href"] == "https://ok.test/x"
    assert Elements(render("[a](mailto:a@ok.test)")).found[1][1]["href"] == "mailto:a@ok.test"
    for own in ("/admin", "admin", "?next=1", "#top", "https:admin", "/\\ok.test", "///ok.test"):
        href = Elements(render(f"[a]({own})")).found[1][1].get("href")
        assert href is None, own


def test_images_are_named_but_never_fetched() -> None:
    assert render("![a **cat**](https://tracker.test/p.png)") == "<p>[image: a **cat**]</p>\n"


def test_bidirectional_controls_are_shown() -> None:
    assert render("safe \u202etxt.exe") == "<p>safe [U+202E]txt.exe</p>\n"
    assert render("שלום \u200fx") == "<p>שלום \u200fx</p>\n"


@pytest.mark.parametrize(
    "piece", ["*a ", "[", "**a_b", "![", "[a](", "|a", "`", "> ", "- ", "<", "[a]: b\n", "\\", "&"]
)
def test_no_text_takes_long(piece: str) -> None:
    long = piece * (LONGEST // len(piece))
    most = piece * (MOST_MARKS // max(1, sum(piece.count(mark) for mark in "[*_~|<`")))
    start = time.process_time()
    render(long + long)
    render(most[:LONGEST])
    assert time.process_time() - start < 2
    assert render(long + long).startswith("<pre>")
