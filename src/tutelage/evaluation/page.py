"""One self-contained HTML page: sections of figures, tables, tiles and samples; no script, no request, written at once.

Everything that is not `Html` already is escaped where it is placed: texts that models and people wrote are untrusted. The
page forbids itself scripts and requests (its content security policy), so that a slip in escaping stays harmless.
"""

from __future__ import annotations

import hashlib
import html
import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"


class Html(str):
    """Markup that is safe to place as it is."""


def markup(value: object) -> Html:
    """`value` as markup: escaped, unless it is markup already."""
    return value if isinstance(value, Html) else Html(html.escape(str(value)))


def _tag(name: str, content: object, attributes: str = "") -> Html:
    return Html(f"<{name}{' ' + attributes if attributes else ''}>{markup(content)}</{name}>")


def _join(parts: Iterable[object]) -> Html:
    return Html("".join(map(markup, parts)))


def number(value: float | None) -> str:
    """Three significant digits; an en dash for what is unknown or not finite."""
    if value is None or not math.isfinite(value):
        return "–"
    if value == int(value) and abs(value) < 1e6:
        return f"{int(value):,}"
    size = abs(value)
    return f"{value:,.0f}" if 100 <= size < 1e6 else f"{value:.3g}"


def percent(value: float | None) -> str:
    """A share in percent: `72 %` with a no-break space, and a decimal near 0 and 1."""
    if value is None or not math.isfinite(value):
        return "–"
    near_end = 0 < min(abs(value), abs(1 - value)) < 0.02
    return f"{100 * value:.{1 if near_end else 0}f}\u00a0%"


def within(interval: Mapping[str, Any], show: Any = percent) -> str:
    """`72 % [68 %, 76 %]`; the estimate alone where the bounds are unknown."""
    low, high = interval.get("low"), interval.get("high")
    bounds = "" if low is None or high is None else f" [{show(low)}, {show(high)}]"
    return show(interval.get("estimate")) + bounds


@dataclass(frozen=True)
class Drawing:
    """A figure as inline SVG, and the table of the numbers in it."""

    title: str
    svg: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def inline_svg(svg: str, description: str, variables: Mapping[str, str]) -> str:
    """An SVG file as an element of a page: described for a screen reader, its ids its own, nothing that points outside.

    `variables` (colour -> name) lets the page's style set the colours; fonts are the page's.
    """
    box = re.search(r'viewBox="[-\d. ]+"', svg)
    assert box, "not an SVG file"
    key = "f" + hashlib.sha256((description + svg).encode(errors="replace")).hexdigest()[:8]
    body = svg[svg.index(">", box.start()) + 1 :]
    body = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", body, flags=re.S)
    used = set(re.findall(r'(?:href="|url\()#(\w+)', body))
    body = re.sub(r' id="([^"]*)"', lambda m: f' id="{key}-{m[1]}"' if m[1] in used else "", body)
    body = re.sub(r'(?:xlink:)?(href="#|url\(#)', rf"\1{key}-", body)
    body = re.sub(r" font-family: [^;\"]*;?", "", body)
    for colour, name in variables.items():
        body = body.replace(f": {colour}", f": var(--{name},{colour})")
    title = f'<title id="{key}-name">{html.escape(description)}</title>'
    return f'<svg {box[0]} role="img" aria-labelledby="{key}-name">{title}{re.sub(chr(10) + " *", " ", body).strip()}'


@dataclass
class Page:
    """A title and numbered sections in the order they were added; `html()` at any time, `write` replaces the file."""

    title: str
    subtitle: str = ""
    _top: list[Html] = field(default_factory=list)
    _sections: list[tuple[str, Html]] = field(default_factory=list)

    def top(self, *blocks: object) -> None:
        """Blocks above the first section: banners and key figures."""
        self._top.extend(map(markup, blocks))

    def section(self, title: str, text: object = "", *blocks: object) -> None:
        """A heading, a paragraph of text (where there is one) and blocks below it."""
        self._sections.append((title, _join([_tag("p", text, 'class="lead"') if text else "", *blocks])))

    def html(self) -> str:
        """The whole document."""
        style = resources.files(__package__ or "").joinpath("page.css").read_text(encoding="utf-8")
        links = (_tag("a", title, f'href="#s{i}"') for i, (title, _) in enumerate(self._sections, start=1))
        sections = (
            _tag("section", _join([_tag("h2", title), body]), f'id="s{i}"')
            for i, (title, body) in enumerate(self._sections, start=1)
        )
        subtitle = _tag("p", self.subtitle, 'class="subtitle"') if self.subtitle else ""
        head = _tag("header", _join([_tag("h1", self.title), subtitle]))
        contents = _tag("nav", _join(links), 'aria-label="Contents"')
        return (
            '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
            f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
            '<meta name="viewport" content="width=device-width, initial-scale=1"><meta name="color-scheme" content="light dark">'
            f'<link rel="icon" href="data:,">{_tag("title", self.title)}<style>{style}</style></head>\n'
            f"<body>{_tag('main', _join([head, *self._top, contents, *sections]))}</body></html>\n"
        )

    def write(self, path: Path) -> Path:
        """Replace `path` in one move: a reader sees the old page or the new one, also if this process is killed."""
        unfinished = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        try:
            unfinished.write_text(self.html(), encoding="utf-8", errors="replace")  # half an emoji must not stop a run
            os.replace(unfinished, path)
        finally:
            unfinished.unlink(missing_ok=True)
        return path


def figure(drawing: Drawing, caption: object = "") -> Html:
    """A drawing under its title, a caption in plain words, and its numbers as a table to unfold."""
    note = _tag("span", caption, 'class="caption"') if caption else ""
    heading = _tag("figcaption", _join([_tag("h3", drawing.title), note]))
    numbers = details("Numbers", table(drawing.head, drawing.rows))
    return _tag("figure", _join([heading, Html(drawing.svg), numbers]))


def side_by_side(*blocks: object) -> Html:
    """Blocks in two columns where the screen is wide enough."""
    return _tag("div", _join(blocks), 'class="grid"')


def table(head: Sequence[object], rows: Iterable[Sequence[object]], caption: str = "") -> Html:
    """A table whose first column names its rows; it scrolls by itself where the screen is narrow."""
    top = _tag("tr", _join(_tag("th", cell, 'scope="col"') for cell in head))
    body = (
        _tag("tr", _join([_tag("th", row[0], 'scope="row"'), *(_tag("td", cell) for cell in row[1:])])) for row in rows
    )
    title = _tag("caption", caption) if caption else ""
    inner = _tag("table", _join([title, _tag("thead", top), _tag("tbody", _join(body))]))
    return _tag("div", inner, f'class="scroll" tabindex="0" role="region" aria-label="{markup(caption or "Table")}"')


def tiles(*figures: tuple[str, str, str]) -> Html:
    """Key figures: (label, value, note); the note holds the interval or the unit in words."""
    cells = (
        _tag("div", _join([_tag("dt", label), _tag("dd", value, 'class="value"'), _tag("dd", note, 'class="note"')]))
        for label, value, note in figures
    )
    return _tag("dl", _join(cells), 'class="tiles"')


def card(prompt: str, answers: Iterable[tuple[str, str, Mapping[str, str]]]) -> Html:
    """A prompt and answers to it side by side: (label, text, facts such as the reward)."""
    columns = (
        _tag("div", _join([_tag("h4", label), _quote(text), _facts(facts)]), 'class="answer"')
        for label, text, facts in answers
    )
    return _tag(
        "article", _join([_quote(prompt, "prompt"), _tag("div", _join(columns), 'class="answers"')]), 'class="card"'
    )


def callout(text: str, *, stressed: str = "", warning: bool = False) -> Html:
    """A remark that must not be missed; `stressed` words stand in front."""
    content = _join([_tag("strong", stressed), " ", text]) if stressed else text
    return _tag("div", content, f'class="callout{" warning" if warning else ""}" role="note"')


def details(summary: str, *blocks: object, unfolded: bool = False) -> Html:
    """Blocks that fold away under a line of text."""
    return _tag("details", _join([_tag("summary", summary), *blocks]), "open" if unfolded else "")


def bullets(items: Iterable[object]) -> Html:
    """A plain list."""
    return _tag("ul", _join(_tag("li", item, 'dir="auto"') for item in items))


def listing(lines: str) -> Html:
    """Commands or a file, as typed."""
    return _tag("pre", _tag("code", lines), 'tabindex="0"')


def _quote(text: str, kind: str = "text") -> Html:
    return _tag("div", text if text.strip() else "(empty)", f'class="{kind}" dir="auto"')


def _facts(facts: Mapping[str, str]) -> Html:
    pairs = (_tag("span", _join([name, " ", _tag("b", value)])) for name, value in facts.items())
    return _tag("p", _join(pairs), 'class="facts"') if facts else Html("")
