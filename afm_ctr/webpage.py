"""One HTML page that needs nothing else: no network, no script, no fonts or styles from elsewhere."""

from __future__ import annotations

import base64
import io
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from html import escape as _escape
from pathlib import Path
from typing import TYPE_CHECKING

from afm_ctr.errors import UserError
from afm_ctr.io.files import write_bytes
from afm_ctr.visible import visible

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Cell = str | int | None


def escape(text: str) -> str:
    """A text as HTML that shows it."""
    return _escape(visible(text, keep="\n"))


_STYLE = """
:root { color-scheme: light dark; --paper: #fff; --ink: #1c2328; --soft: #5b6770; --line: #d5dce1; --shade: #f3f6f8;
  --mark: #fff3d6; --accent: #1b6ca8; }
@media (prefers-color-scheme: dark) { :root { --paper: #15191c; --ink: #e4e9ec; --soft: #9aa7b0; --line: #38424a;
  --shade: #1e2428; --mark: #4a3c14; --accent: #6fb4e6; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1180px; padding: 1.2rem 1.2rem 4rem; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: .6rem 0 .2rem; overflow-wrap: anywhere; }
h2 { font-size: 1.25rem; margin: 2.4rem 0 .6rem; padding-top: .6rem; border-top: 2px solid var(--line); }
h3 { font-size: 1.02rem; margin: 1.5rem 0 .4rem; overflow-wrap: anywhere; }
p { max-width: 78ch; margin: .5rem 0; overflow-wrap: anywhere; }
a { color: var(--accent); }
.note, .subtitle, figcaption, caption { color: var(--soft); }
nav { margin: .8rem 0; } nav a { display: inline-block; margin: 0 1rem .2rem 0; }
.wide { overflow-x: auto; margin: .6rem 0 1.2rem; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
caption { text-align: left; padding-bottom: .3rem; font-size: .95rem; }
th, td { padding: .22rem .7rem; text-align: left; vertical-align: top; border-bottom: 1px solid var(--line); }
th { background: var(--shade); font-weight: 600; }
.number { text-align: right; white-space: nowrap; }
tr.marked td { background: var(--mark); }
td { max-width: 34rem; overflow-wrap: break-word; }
.facts { display: grid; grid-template-columns: minmax(8rem, max-content) 1fr; gap: .15rem 1.2rem; margin: .6rem 0;
  font-size: .95rem; }
.facts dt { color: var(--soft); } .facts dd { margin: 0; overflow-wrap: anywhere; }
figure { margin: 1rem 0 1.4rem; }
.drawing { overflow-x: auto; }
figure img { display: block; max-width: 100%; height: auto; background: #fff; border-radius: 4px; }
figcaption { font-size: .92rem; margin-top: .3rem; max-width: 78ch; }
summary { cursor: pointer; padding: .2rem 0; overflow-wrap: anywhere; }
@media (max-width: 600px) { body { padding: .8rem .8rem 3rem; } th, td { padding: .2rem .4rem; }
  td { max-width: 14rem; }
  .facts { grid-template-columns: 1fr; } .facts dd { margin-bottom: .4rem; } figure img { max-width: 44rem; } }
@media print { nav { display: none; } body { max-width: none; font-size: 11pt; } figure, tr { break-inside: avoid; }
  .wide, .drawing { overflow: visible; } details::details-content { content-visibility: visible; block-size: auto; } }
"""


# No script runs and nothing is fetched, even if a text should ever get past the escaping.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"


class Page:
    """A page in the making; every text is escaped, so names out of logs may hold what they like.

    Equal content gives equal bytes: there is no date on the page but those in its text.

    Args:
        title: heading and title of the window.
        subtitle: a line below it.

    Example:
        >>> page = Page("Run 7")
        >>> page.section("Data")
        >>> page.table(["split", "rows"], [["train", "9,000"]], numeric=["rows"])
        >>> page.write("run-7.html")
    """

    def __init__(self, title: str, subtitle: str = "") -> None:
        self.title, self.subtitle = title, subtitle
        self._sections: list[str] = []
        self._body: list[str] = []

    def section(self, heading: str, note: str = "") -> None:
        """Begin a section, which the list at the top of the page leads to; ``note`` says what it shows."""
        self._sections.append(heading)
        self._body.append(f'<h2 id="s{len(self._sections)}">{escape(heading)}</h2>')
        if note:
            self._body.append(f'<p class="note">{escape(note)}</p>')

    def heading(self, text: str) -> None:
        """A heading inside a section."""
        self._body.append(f"<h3>{escape(text)}</h3>")

    def paragraph(self, text: str) -> None:
        """A paragraph of plain text."""
        self._body.append(f"<p>{escape(text)}</p>")

    def facts(self, mapping: Mapping[str, Cell]) -> None:
        """A list of names and values."""
        entries = "".join(f"<dt>{escape(name)}</dt><dd>{_cell(value)}</dd>" for name, value in mapping.items())
        self._body.append(f'<dl class="facts">{entries}</dl>')

    def table(
        self,
        header: Sequence[str],
        rows: Iterable[Sequence[Cell]],
        caption: str = "",
        numeric: Collection[str] = (),
        marked: Collection[int] = (),
        folded: bool = False,
    ) -> None:
        """A table; one too wide for the screen scrolls in its own frame.

        Args:
            header: headings of the columns.
            rows: cells as text, numbers in the form in which they are to be read; None leaves a cell empty.
            caption: what the table shows.
            numeric: the headings whose columns are flush right.
            marked: numbers of rows, from 0, that stand out.
            folded: show the caption only until the reader opens it.

        Raises:
            ValueError: a row that has not one cell a column.
        """
        classes = [' class="number"' if name in numeric else "" for name in header]
        head = "".join(f'<th scope="col"{c}>{escape(name)}</th>' for name, c in zip(header, classes, strict=True))
        lines = []
        for number, row in enumerate(rows):
            cells = "".join(f"<td{c}>{_cell(cell)}</td>" for cell, c in zip(row, classes, strict=True))
            stands_out = ' class="marked"' if number in marked else ""
            lines.append(f"<tr{stands_out}>{cells}</tr>\n")
        heading = f"<caption>{escape(caption)}</caption>" if caption and not folded else ""
        body = "".join(lines)
        text = (
            f'<div class="wide"><table>{heading}<thead><tr>{head}</tr></thead><tbody>\n{body}</tbody></table></div>'
        )
        if folded:
            text = f"<details><summary>{escape(caption)}</summary>{text}</details>"
        self._body.append(text)

    def figure(self, figure: Figure, caption: str, alt: str) -> None:
        """A figure of matplotlib as a drawing inside the page; ``alt`` says in words what can be seen on it."""
        source = base64.b64encode(_svg(figure)).decode()
        width = round(float(figure.get_figwidth()) * 96)
        self._body.append(
            f'<figure><div class="drawing"><img width="{width}" alt="{escape(alt)}" '
            f'src="data:image/svg+xml;base64,{source}"></div><figcaption>{escape(caption)}</figcaption></figure>'
        )

    def html(self) -> str:
        """The whole page as text."""
        links = "".join(
            f'<a href="#s{number}">{escape(heading)}</a>' for number, heading in enumerate(self._sections, start=1)
        )
        subtitle = f'<p class="subtitle">{escape(self.subtitle)}</p>\n' if self.subtitle else ""
        nav = f"<nav>{links}</nav>\n" if len(self._sections) > 1 else ""
        return (
            '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
            '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
            f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
            f"<title>{escape(self.title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
            f"<h1>{escape(self.title)}</h1>\n{subtitle}{nav}" + "\n".join(self._body) + "\n</body>\n</html>\n"
        )

    def write(self, path: str | Path) -> Path:
        """Write the page, whole or not at all; folders that are missing are made.

        Raises:
            UserError: it cannot be written there.
        """
        path = file_of(path)
        try:
            # What is not UTF-8 in a log may have become lone surrogates on its way.
            write_bytes(path, self.html().encode("utf-8", "replace"))
        except OSError as error:
            raise UserError(
                f"cannot write {path.name} in the folder {path.parent}: {error.strerror or error}; name another file"
            ) from error
        return path


def file_of(path: str | Path) -> Path:
    """Where a page is to go, checked before the work is done.

    Raises:
        UserError: it is a folder.
    """
    path = Path(path)
    if path.is_dir():
        raise UserError(f"{path} is a folder, the page is a file; name a file in it, such as {path / 'page.html'}")
    return path


@contextmanager
def plain_labels() -> Iterator[None]:
    """Draw figures in this context: a ``$`` in a label is a dollar and begins no formula."""
    import matplotlib

    with matplotlib.rc_context({"text.parse_math": False}):
        yield


def _cell(value: Cell) -> str:
    return "" if value is None else escape(str(value))


def _svg(figure: Figure) -> bytes:
    """A drawing with its letters as outlines, the same bytes for the same figure."""
    import matplotlib

    target = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "afm-ctr", "svg.fonttype": "path"}):
        figure.savefig(target, format="svg", metadata={"Date": None, "Creator": None})
    return target.getvalue()
