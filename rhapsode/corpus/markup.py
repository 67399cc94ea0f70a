"""The text that a reader of an HTML page sees, one line a block."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from selectolax.lexbor import LexborNode

# fmt: off
UNSEEN = frozenset((
    "head", "script", "style", "template", "noscript", "iframe", "object", "svg", "math", "canvas", "audio",
    "video", "select", "datalist", "textarea",
))
BLOCKS = frozenset((
    "html", "body", "address", "article", "aside", "blockquote", "br", "caption", "center", "dd", "details",
    "dialog", "div", "dl", "dt", "fieldset", "figcaption", "figure", "footer", "form", "h1", "h2", "h3", "h4",
    "h5", "h6", "header", "hgroup", "hr", "legend", "li", "main", "menu", "nav", "ol", "option", "p", "pre",
    "section", "summary", "table", "tbody", "tfoot", "thead", "tr", "ul",
))
# fmt: on
CELLS = frozenset(("td", "th"))
SPACE = re.compile(r"[ \t\n\r\f]+")
STYLED_AWAY = re.compile(r"display\s*:\s*none", re.IGNORECASE)


def visible_text(page: str) -> str:
    """The visible text of an HTML page: scripts, styles and hidden elements left out, each block on its own line.

    Runs of white space become one space, except in `pre`. Cells of a table row are separated by tabs.
    """
    from selectolax.lexbor import LexborHTMLParser

    body = LexborHTMLParser(page).body
    if body is None:
        return ""
    text = _Lines()
    # Pages may nest deeper than Python's stack, so the way through the tree is kept here.
    ahead: list[tuple[LexborNode, bool]] = [(body, False)]
    while ahead:
        node, entered = ahead.pop()
        if entered:
            _leave(node, text)
        elif _enter(node, text):
            ahead.append((node, True))
            ahead += [(child, False) for child in reversed(list(node.iter(include_text=True)))]
    return text.finished()


def _enter(node: LexborNode, text: _Lines) -> bool:
    """Take in what `node` shows by itself; whether its children are to be seen."""
    if node.is_text_node:
        text.add(node.text_content or "")
        return False
    tag = node.tag or ""
    if tag in UNSEEN or not node.is_element_node or _is_hidden(node):
        return False
    if tag in BLOCKS:
        text.break_line()
    if tag == "pre":
        text.preformatted += 1
    return True


def _leave(node: LexborNode, text: _Lines) -> None:
    tag = node.tag or ""
    if tag == "pre":
        text.preformatted -= 1
    if tag in BLOCKS:
        text.break_line()
    elif tag in CELLS:
        text.end_cell()


def _is_hidden(node: LexborNode) -> bool:
    attributes = node.attributes
    return "hidden" in attributes or bool(STYLED_AWAY.search(attributes.get("style") or ""))


class _Lines:
    """Text being put together: at most one space between words, one newline between blocks."""

    def __init__(self) -> None:
        self.preformatted = 0
        self._lines: list[str] = []
        self._line: list[str] = []

    def add(self, text: str) -> None:
        if self.preformatted:
            self._line.append(text)
            return
        text = SPACE.sub(" ", text)
        if text.startswith(" ") and (not self._line or self._line[-1].endswith((" ", "\t", "\n"))):
            text = text[1:]
        if text:
            self._line.append(text)

    def end_cell(self) -> None:
        if self._line:
            self._line.append("\t")

    def break_line(self) -> None:
        line = "".join(self._line)
        line = line.strip("\n") if self.preformatted else line.rstrip(" \t\n")
        if line:
            self._lines.append(line + "\n")
        self._line.clear()

    def finished(self) -> str:
        self.break_line()
        return "".join(self._lines)
