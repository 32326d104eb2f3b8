from __future__ import annotations

from html.parser import HTMLParser

from hypothesis import given

from shared.formats import html_page
from shared.formats.common import Writing
from tests.support.annotated import ALPHABET
from tests.support.formats import document, documents, written


class Page(HTMLParser):
    """The shown text, and what is marked in it, label by label."""

    def __init__(self, content: bytes) -> None:
        super().__init__()
        self.text = ""
        self.marked: dict[str, str] = {}
        self.open: list[str] = []
        self.within = self.small = False
        self.tags: set[str] = set()
        self.feed(content.decode())

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        if tag == "div":
            self.within = True
        elif tag == "mark":
            self.open.append(dict(attrs)["title"])
        elif tag == "small":
            self.small = True

    def handle_endtag(self, tag):
        if tag == "div":
            assert not self.open
            self.within = False
        elif tag == "mark":
            self.open.pop()
        elif tag == "small":
            self.small = False

    def handle_data(self, data):
        if self.within and not self.small:
            self.text += data
            for title in set(self.open):
                self.marked[title] = self.marked.get(title, "") + data


@given(documents(ALPHABET + "<&\"'>\n"))
def test_the_text_is_whole_and_every_entity_marked(made):
    page = Page(written(html_page.write, [made]))
    shown = made.text.replace("\x85", "\ufffd")
    assert page.text == shown
    assert page.marked == {
        f"{e.type} {e.start}–{e.end}, confidence 0.75": shown[e.start : e.end] for e in made.entities
    }


def test_hostile_text_is_text():
    text = '<script>alert(1)</script>\u202e\x1b[31m</div><img src="x">'
    writing = Writing()
    content = written(html_page.write, [document(text, [(0, 8, "disease")], "<b>")], writing)
    page = Page(content)
    assert not {"script", "img", "b"} & page.tags
    assert "<script>" in page.text
    assert "\u202e" not in page.text
    assert "\x1b" not in content.decode()
    assert writing.changed.total() == 2
    assert "default-src 'none'" in content.decode()
