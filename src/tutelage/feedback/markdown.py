"""Untrusted Markdown as HTML that is safe to show: parsed without raw HTML, then cut down to an allow-list.

Texts come from models and strangers. Images are dropped (a remote one would tell its host who judges what and when, and a
local one would de-blind the judge), a link keeps its address only where that is absolute, and bidirectional control
characters, which can make a text read otherwise than it is stored, are shown as their code.
"""

from __future__ import annotations

import html
import re
from collections.abc import Sequence
from functools import cache, lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from markdown_it import MarkdownIt
    from markdown_it.rules_core import StateCore
    from markdown_it.token import Token

TAGS = frozenset(
    "p br hr h3 h4 h5 h6 strong em s code pre blockquote ul ol li a table thead tbody tr th td".split()  # noqa: SIM905
)
ALIGNMENTS = frozenset({"left", "center", "right"})
BIDI_CONTROLS = re.compile("[\u202a-\u202e\u2066-\u2069]")
"""Embeddings, overrides and isolates (UAX #9). The plain marks U+200E and U+200F stay: Hebrew and Arabic need them."""
ABSOLUTE = re.compile(r"https?://[^/\\\s]|mailto:", re.IGNORECASE)
LONGEST, MOST_MARKS = 100_000, 4_000
"""Characters, and characters that may open markup, above which a text is shown as it is: parsing is quadratic in them."""
MARKS = re.compile(r"[\[*_~|<`]")


@lru_cache(maxsize=512)  # an item is handed to several people within a short time
def render(text: str) -> str:
    """`text`, Markdown (CommonMark with tables and strikethrough, line breaks kept), as an HTML fragment.

    A text beyond LONGEST or MOST_MARKS is not parsed. Whatever the text is, the fragment holds no script, style, image,
    form, id, event handler or relative link.
    """
    import nh3

    text = visible_controls(text)
    if len(text) > LONGEST or len(MARKS.findall(text)) > MOST_MARKS:
        return f"<pre>{html.escape(text)}</pre>"
    return nh3.clean(
        _parser().render(text),
        tags=set(TAGS),
        clean_content_tags={"script", "style"},
        attributes={"*": set(), "a": {"href"}, "ol": {"start"}},  # "*": no title, no lang
        tag_attribute_values={"th": {"align": set(ALIGNMENTS)}, "td": {"align": set(ALIGNMENTS)}},
        attribute_filter=_attribute,
        url_schemes={"http", "https", "mailto"},
        link_rel="noopener noreferrer nofollow",
        set_tag_attribute_values={"a": {"target": "_blank"}},
    )


def visible_controls(text: str) -> str:
    """`text` with every bidirectional control character written as its code, such as [U+202E]."""
    return BIDI_CONTROLS.sub(lambda found: f"[U+{ord(found[0]):04X}]", text)


def _attribute(tag: str, name: str, value: str) -> str | None:
    """Only a full address stays a link: a browser reads `/x`, and `https:x` on a page over https, as this site's own."""
    return None if (tag, name) == ("a", "href") and not ABSOLUTE.match(value) else value


@cache
def _parser() -> MarkdownIt:
    from markdown_it import MarkdownIt

    parser = MarkdownIt("commonmark", {"html": False, "breaks": True}).enable(["table", "strikethrough"])
    parser.core.ruler.push("plain_page", _fit_the_page)
    parser.add_render_rule("image", _without_image)
    return parser


def _fit_the_page(state: StateCore) -> None:
    """Headings sink below the page's own two levels, links say their scheme, alignment needs no style attribute."""
    for token in state.tokens:
        for link in token.children or ():
            href = str(link.attrs.get("href", ""))
            if href.startswith("//"):  # relative to this page's scheme, and so past many a filter of schemes
                link.attrSet("href", "https:" + href)
        if token.type in ("heading_open", "heading_close"):
            token.tag = f"h{min(6, int(token.tag[1]) + 2)}"
        elif token.type in ("th_open", "td_open") and (style := token.attrs.pop("style", "")):
            token.attrSet("align", str(style).partition(":")[2])


def _without_image(
    self: object, tokens: Sequence[Token], index: int, options: object, environment: object
) -> str:  # the signature that markdown-it-py calls a render rule with
    return f"[image: {html.escape(tokens[index].content)}]"
