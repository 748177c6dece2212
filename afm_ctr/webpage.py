"""A self-contained HTML page: no network, no scripts, no external fonts or styles."""

from __future__ import annotations

import base64
import functools
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from afm_ctr.errors import UserError
from afm_ctr.io.files import as_user_error, refusal, write_bytes
from afm_ctr.visible import visible

if TYPE_CHECKING:
    import jinja2
    from matplotlib.figure import Figure

Cell = str | int | None

_SIGN = b"default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri"  # in the head of each of our pages
_NARROW = 3  # columns that fit side by side on a phone


class Page:
    """A page under construction; every text is escaped, so names from logs may hold anything.

    Equal content gives equal bytes: the page has no date except those in its text.

    Example:
        >>> page = Page("Run 7")
        >>> page.section("Data")
        >>> page.table(["split", "rows"], [["train", "9,000"]], numeric=["rows"])
        >>> page.write("run-7.html")
    """

    def __init__(self, title: str, subtitle: str = "") -> None:
        self.title, self.subtitle = title, subtitle
        self._sections: list[str] = []
        self._blocks: list[dict[str, Any]] = []

    def _add(self, kind: str, **content: Any) -> None:
        self._blocks.append({"kind": kind, **content})

    def section(self, heading: str, note: str = "") -> None:
        """Begin a section, listed at the top of the page; ``note`` describes it."""
        self._sections.append(heading)
        self._add("section", number=len(self._sections), text=heading, note=note)

    def heading(self, text: str) -> None:
        """A heading inside a section."""
        self._add("heading", text=text)

    def paragraph(self, text: str) -> None:
        """A paragraph of plain text."""
        self._add("paragraph", text=text)

    def facts(self, mapping: Mapping[str, Cell]) -> None:
        """A list of names and values."""
        self._add("facts", entries=list(mapping.items()))

    def table(
        self,
        header: Sequence[str],
        rows: Iterable[Sequence[Cell]],
        caption: str = "",
        numeric: Collection[str] = (),
        marked: Collection[int] = (),
        folded: bool = False,
    ) -> None:
        """A table; on a phone the rows of a wide one become blocks, one line per cell.

        Args:
            rows: cells as text, numbers already formatted; None leaves a cell empty.
            numeric: headings of the right-aligned columns.
            marked: numbers of highlighted rows, from 0.
            folded: show only the caption until the reader opens it.

        Raises:
            ValueError: a row's number of cells is not that of the columns.
        """
        rows = [list(row) for row in rows]
        if any(len(row) != len(header) for row in rows):
            raise ValueError(f"every row of a table needs {len(header)} cells, one per column: {', '.join(header)}")
        self._add(
            "table", header=header, rows=rows, caption=caption, marked=marked, folded=folded,
            numeric=[name in numeric for name in header], stacks=len(header) > _NARROW,
        )  # fmt: skip

    def figure(self, figure: Figure, caption: str, alt: str) -> None:
        """A matplotlib figure as an inline drawing; ``alt`` describes it in words."""
        from afm_ctr.plots import svg

        source = base64.b64encode(svg(figure)).decode()
        width = round(float(figure.get_figwidth()) * 96)
        self._add("figure", source=source, width=width, caption=caption, alt=alt)

    def html(self) -> str:
        """The whole page as text."""
        return _template().render(
            title=self.title, subtitle=self.subtitle, sections=self._sections, blocks=self._blocks
        )

    def write(self, path: str | Path) -> Path:
        """Write the page atomically, creating missing folders.

        Raises:
            UserError: it cannot be written there.
        """
        path = file_of(path)
        try:
            # Bytes of a log that are not UTF-8 may have become lone surrogates.
            write_bytes(path, self.html().encode("utf-8", "replace"))
        except OSError as error:
            raise UserError(f"cannot write {path.name} in the folder {path.parent}: {refusal(error)}") from error
        return path


def file_of(path: str | Path) -> Path:
    """The path of a page, checked before the work is done.

    Raises:
        UserError: it is a folder, or a file that is not one of our pages and would be lost.
    """
    path = Path(path)
    if path.is_dir():
        raise UserError(f"{path} is a folder, the page is a file; name a file in it, such as {path / 'page.html'}")
    if path.is_file():
        with as_user_error(f"cannot write {path}"), open(path, "rb") as stream:
            start = stream.read(1000)
        if start and _SIGN not in start:
            raise UserError(f"{path} is there already and is not a page of afm-ctr; remove it, or name another file")
    return path


@functools.cache
def _template() -> jinja2.Template:
    import jinja2

    def shown(value: Any) -> Any:
        """A text with its invisible characters escaped; an absent cell is empty."""
        return visible(value, keep="\n") if isinstance(value, str) else "" if value is None else value

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("afm_ctr", ""), autoescape=True, finalize=shown, trim_blocks=True,
        lstrip_blocks=True, undefined=jinja2.StrictUndefined, keep_trailing_newline=True,
    )  # fmt: skip
    return environment.get_template("webpage.html.jinja")
