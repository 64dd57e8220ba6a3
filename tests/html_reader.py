"""A reader of the pages that the library writes."""

import base64
import hashlib
import re
from html.parser import HTMLParser


def hashed(text):
    digest = hashlib.sha256(text.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"


LINK = re.compile(r"\./[A-Za-z0-9._~/%-]*")
"""A link to a file beside the page: nothing of it can be a scheme, a host or a query."""


class Reader(HTMLParser):
    """The text of a page, and its tags with their attributes."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.text = [], ""
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.text += data


def stands_alone(page):
    """Check that a page fetches nothing, and allows its own style sheet and script alone."""
    found = Reader(page)
    (csp,) = [
        a["content"] for tag, a in found.tags if a.get("http-equiv") == "Content-Security-Policy"
    ]
    rules = dict(rule.strip().split(" ", 1) for rule in csp.split(";"))
    styles = re.findall(r"(?s)<style>(.*?)</style>", page)
    scripts = re.findall(r"(?s)<script>(.*?)</script>", page)
    assert rules == {
        "default-src": "'none'",
        "style-src": hashed(*styles),
        "script-src": hashed(*scripts) if scripts else "'none'",
        "img-src": "data:",
        "base-uri": "'none'",
        "form-action": "'none'",
    }
    sources = [
        a[key]
        for tag, a in found.tags
        for key in ("src", "href", "xlink:href", "action", "formaction")
        if not a.get(key, "#").startswith(("#", "data:image/png;base64,"))
        and not (tag == "a" and key == "href" and LINK.fullmatch(a[key]))
    ]
    blocked = [(tag, k) for tag, a in found.tags for k in a if k[:2] == "on" or k == "style"]
    kinds = [a.get("type") for tag, a in found.tags if tag == "script"]
    assert sources == [] and blocked == []
    assert kinds.count(None) == len(scripts) and set(kinds) <= {None, "application/json"}
    return True
