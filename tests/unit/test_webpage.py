"""One page of HTML that needs nothing beside itself."""

from __future__ import annotations

import base64
from html.parser import HTMLParser
from pathlib import Path

import pytest
from matplotlib.figure import Figure

from afm_ctr.errors import UserError
from afm_ctr.plots import panels, styled
from afm_ctr.webpage import Page

EVIL = '<script>alert("x")</script> & $a_b$'


class Parsed(HTMLParser):
    """Tags, attributes and text, with a check that tags close in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self._open: list[str] = []
        self.feed(text)
        assert not self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img"):
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


@styled
def _figure(label: str = "clicks") -> Figure:
    figure, (axis,) = panels(4, 2)
    axis.plot([0, 1, 2], [1, 4, 2])
    axis.set_xlabel(label)
    return figure


def _page() -> Page:
    page = Page(EVIL, subtitle=EVIL)
    page.section(EVIL, note=EVIL)
    page.heading(EVIL)
    page.paragraph(EVIL)
    page.facts({EVIL: EVIL, "none": None})
    page.table([EVIL, "rows"], [[EVIL, 7], [None, 8]], caption=EVIL, numeric=["rows"], marked=[1])
    page.table(["a"], [["b"]], caption=EVIL, folded=True)
    page.section("Pictures")
    page.figure(_figure(EVIL), caption=EVIL, alt=EVIL)
    return page


def test_every_text_is_escaped_and_nothing_comes_from_elsewhere() -> None:
    text = _page().html()
    parsed = Parsed(text)
    tags = [tag for tag, _ in parsed.tags]
    assert "script" not in tags and "link" not in tags
    # title, h1, subtitle, h2, its link, note, h3, p, dt, dd, th, td, caption, summary, figcaption
    assert sum(data == EVIL for data in parsed.text) == 15
    image = next(attributes for tag, attributes in parsed.tags if tag == "img")
    assert image["alt"] == EVIL
    assert (image["src"] or "").startswith("data:image/svg+xml;base64,")
    sources = [value or "" for _, attributes in parsed.tags for name, value in attributes.items() if name == "src"]
    assert all(source.startswith("data:") for source in sources)
    assert "http" not in text.replace(image["src"] or "", "").replace("http-equiv", "")


def test_a_browser_is_told_to_run_and_fetch_nothing() -> None:
    page = Parsed(Page("a").html())
    policies = [
        attrs["content"] or "" for tag, attrs in page.tags if attrs.get("http-equiv") == "Content-Security-Policy"
    ]
    assert len(policies) == 1
    rules = dict(rule.strip().split(" ", 1) for rule in policies[0].split(";"))
    assert rules["default-src"] == "'none'" and rules["img-src"] == "data:" and "script-src" not in rules


def test_links_lead_to_sections_and_numbers_are_flush_right() -> None:
    parsed = Parsed(_page().html())
    targets = [a["href"] for tag, a in parsed.tags if tag == "a"]
    assert targets == [f"#{a['id']}" for tag, a in parsed.tags if tag == "h2"]
    assert sum(a.get("class") == "number" for tag, a in parsed.tags if tag == "td") == 2
    assert sum(a.get("class") == "marked" for tag, a in parsed.tags if tag == "tr") == 1


def test_equal_content_equal_bytes_and_a_dollar_is_no_formula() -> None:
    assert _page().html() == _page().html()
    page = Page("x")
    page.figure(_figure("$\\nonsense{$"), "c", "a")
    drawn = base64.b64decode(page.html().split("base64,")[1].split('"')[0])
    assert b"<svg" in drawn and b"<dc:date>" not in drawn


def test_a_wide_table_has_what_it_needs_to_become_blocks_on_a_phone() -> None:
    page = Page("x")
    page.table(["slice", EVIL, "rows", "AUC"], [["a", "b", "7", None]])
    page.table(["key", "value", "default"], [["a", "b", None]])
    tags = Parsed(page.html()).tags
    assert [attributes.get("class") for tag, attributes in tags if tag == "table"] == ["stacks", None]
    names = [attributes.get("data-name") for tag, attributes in tags if tag == "td"]
    assert names == [None, EVIL, "rows", "AUC", None, None, None]


def test_a_row_of_the_wrong_length_is_refused() -> None:
    with pytest.raises(ValueError):
        Page("x").table(["a", "b"], [["1"]])


def test_write_makes_folders_and_leaves_nothing_beside_the_page(tmp_path: Path) -> None:
    target = tmp_path / "new" / "page.html"
    assert Page("a\udcffb").write(target) == target
    assert target.read_bytes().startswith(b"<!DOCTYPE html>")
    assert [file.name for file in target.parent.iterdir()] == ["page.html"]


def test_what_cannot_be_written_is_told_in_a_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is a folder"):
        Page("x").write(tmp_path)
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(UserError, match=f"cannot write page.html in the folder {file}"):
        Page("x").write(file / "page.html")


def test_a_page_replaces_a_page_and_no_other_file(tmp_path: Path) -> None:
    target = tmp_path / "page.html"
    target.touch()
    Page("first").write(target)
    Page("second").write(target)
    assert "second" in target.read_text()
    for other in ("schema: mine\n", "<!DOCTYPE html>\n<html><body>a page of somebody else"):
        target.write_text(other)
        with pytest.raises(UserError, match=r"page\.html is there already and is not a page of afm-ctr; remove it"):
            Page("third").write(target)
        assert target.read_text() == other
