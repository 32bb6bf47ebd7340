import base64
import hashlib
import json
import re
from html.parser import HTMLParser
from importlib.metadata import version
from pathlib import Path

import msgspec
import pytest

from leaderboard import page
from tests.leaderboard.boards import HOSTILE, board, hostile, row
from tests.leaderboard.details import details

PARTS = Path(page.__file__).with_suffix("")


class Document(HTMLParser):
    """The elements of a page in order, as (tag, attributes, text up to the next tag)."""

    def __init__(self, html):
        super().__init__()
        self.elements = []
        self.text = None
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        self.text = []
        self.elements.append((tag, dict(attributes), self.text))

    def handle_endtag(self, tag):
        self.text = None

    def handle_data(self, data):
        if self.text is not None:
            self.text.append(data)

    def all(self, tag):
        return [(attributes, "".join(text)) for name, attributes, text in self.elements if name == tag]


def blocks(document):
    return [json.loads(text) for attributes, text in document.all("script") if "data-suite" in attributes]


def test_holds_the_boards_and_nothing_of_them_as_markup():
    boards = [board(5), hostile()]
    document = Document(page.page_html(boards))
    assert blocks(document) == [json.loads(msgspec.json.encode(each)) for each in boards]
    empty = Document(page.page_html([]))
    without = [each for each in document.elements if "data-suite" not in each[1]]
    assert [each[:2] for each in without] == [each[:2] for each in empty.elements]


@pytest.mark.parametrize("text", [*HOSTILE, "</SCRIPT\t>", "]]>", "\ud7ff\U0001f600"])
def test_no_string_ends_its_block_or_is_changed(text):
    html = page.page_html([msgspec.structs.replace(board(1), rows=(row(title=text),), suite=text)])
    ((attributes, data),) = [each for each in Document(html).all("script") if "data-suite" in each[0]]
    assert json.loads(data)["rows"][0]["title"] == text
    assert attributes["data-suite"] == text
    assert not set("<>&\u2028\u2029") & set(data)


def test_what_is_not_finite_is_null():
    (only,) = blocks(Document(page.page_html([hostile()])))
    assert only["rows"][1]["clean"]["acc"] is None


def test_its_policy_allows_its_own_script_and_style_and_nothing_else():
    document = Document(page.page_html([board(3)]))
    (policy,) = [
        meta["content"] for meta, _ in document.all("meta") if meta.get("http-equiv") == "Content-Security-Policy"
    ]
    rules = dict(rule.split(" ", 1) for rule in policy.split("; "))
    assert rules.pop("default-src") == rules.pop("base-uri") == rules.pop("form-action") == "'none'"
    assert rules.pop("require-trusted-types-for") == "'script'"
    assert rules.pop("img-src") == "'self' data:"
    (script,) = [text for attributes, text in document.all("script") if attributes["type"] == "module"]
    ((_, style),) = document.all("style")
    for directive, text in (("script-src", script), ("style-src", style)):
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert rules.pop(directive) == f"'sha256-{digest}'"
    assert not rules


def test_nothing_in_it_needs_what_the_policy_forbids_or_another_file():
    html = page.page_html([])
    for tag, attributes, _ in Document(html).elements:
        assert not [
            name for name in attributes if name.startswith("on") or name in ("style", "src", "action", "srcset")
        ]
        if "href" in attributes:
            assert attributes["href"].startswith(("#", "data:", "boards.")), tag
    style = (PARTS / "page.css").read_text()
    assert "url(" not in style
    assert "@import" not in style
    addresses = set(re.findall(r"https?://[^\s\"'`]+", html))
    assert addresses == {"http://www.w3.org/2000/svg"}


def test_the_script_never_makes_markup_or_code_from_text():
    script = "".join((PARTS / name).read_text() for name in page.SCRIPTS)
    for sink in (
        "innerHTML",
        "outerHTML",
        "insertAdjacentHTML",
        "document.write",
        "eval(",
        "Function(",
        "srcdoc",
        "fetch(",
    ):
        assert sink not in script, sink
    assert {path.name for path in PARTS.glob("*.js")} == set(page.SCRIPTS)


def test_its_sources_are_ascii_and_fit_the_window():
    for path in PARTS.iterdir():
        text = path.read_text()
        assert text.isascii(), path
        assert all(len(line) <= 120 for line in text.splitlines() if "data:image" not in line), path


def test_the_same_boards_give_the_same_bytes(tmp_path):
    first, second = (
        page.write_page([board(20), board(3, "mnist")], tmp_path / name) for name in ("new/folder", "other")
    )
    assert first == tmp_path / "new/folder/index.html"
    assert first.read_bytes() == second.read_bytes()
    assert [path.name for path in first.parent.iterdir()] == ["index.html"]


def test_says_without_scripts_where_the_entries_are():
    html = page.page_html([board(1)])
    notice = html[html.index("<noscript>") : html.index("</noscript>")]
    assert "boards.csv" in notice
    assert "boards.md" in notice


def test_its_foot_has_the_repository_the_newest_date_and_how_to_cite():
    html = page.page_html([board(3)], repository="https://example.org/r?a&b")
    foot = html[html.index("<footer>") : html.index("</footer>")]
    assert 'href="https://example.org/r?a&amp;b"' in foot
    assert "newest result is of 2026-01-02" in foot
    assert "  year = {2026}," in foot
    assert f"  version = {{{version('robust-bracket')}}}," in foot
    assert "Repository" not in page.page_html([board(3)])


def test_details_are_blocks_and_files_beside_the_page(tmp_path):
    detail = details(board(5))
    folder = page.write_page([board(5)], tmp_path, [detail]).parent
    html = (folder / "index.html").read_text()
    for kind, data in (("comparisons", detail.comparisons), ("images", detail.images)):
        ((_, text),) = [each for each in Document(html).all("script") if f"data-{kind}" in each[0]]
        assert json.loads(text) == json.loads(msgspec.json.encode(data))
    for name, data in detail.files.items():
        assert (folder / name).read_bytes() == data
