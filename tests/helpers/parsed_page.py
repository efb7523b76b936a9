"""A parser of HTML pages for assertions, and a text that tries to inject markup."""

from __future__ import annotations

from html.parser import HTMLParser

HOSTILE = """</style></title><script>alert("1")</script><img src=x onerror='a()'>{{ 7 * 7 }}"""
VOID = {"meta", "img", "br", "link", "input", "hr"}


class Page(HTMLParser):
    """A parsed page: its elements with their attributes, its ids and its text; asserts that tags are balanced.

    ``text`` is the text that is visible at first; ``behind`` has the text of each popover, by its id.
    """

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.parts: list[str] = []
        self.behind: dict[str, str] = {}
        self.popover: tuple[int, str] | None = None
        self.feed(html)
        self.close()
        self.text = "".join(self.parts)
        self.ids = [value for _, attributes in self.elements if (value := attributes.get("id"))]
        self.words = " ".join(self.text.split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if "popover" in dict(attrs):
            self.popover = (len(self.open), str(dict(attrs)["id"]))

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag
        if self.popover and len(self.open) < self.popover[0]:
            self.popover = None
            return
        if tag in {"td", "th", "p", "li", "dt", "dd", "span"}:
            self.parts.append(" ")

    def handle_data(self, data: str) -> None:
        if self.popover:
            self.behind[self.popover[1]] = self.behind.get(self.popover[1], "") + data
        elif not {"style", "script"} & set(self.open):
            self.parts.append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]
