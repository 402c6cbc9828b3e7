"""Reads a page as a browser would, and holds it to closing its tags."""

from html.parser import HTMLParser

VOID = {"meta", "img", "br", "hr"}


class Reader(HTMLParser):
    """What a browser would find; every tag must be closed in its turn."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.found, self.words = [], [], [], []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.found += [(tag, *pair) for pair in attributes]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.words.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())

    def values(self, tag, name):
        return [
            value for where, attribute, value in self.found if (where, attribute) == (tag, name)
        ]
