"""The ranks of `bench ranks` as markdown, CSV, LaTeX, JSON or one HTML file that loads nothing else."""

from collections.abc import Callable
from html import escape
from importlib.resources import files
from string import Template
from typing import Literal

import msgspec

from leaderboard.render import Format, percent, rank_range, render, wrapped
from leaderboard.score_tests import TESTS
from leaderboard.table_ranks import RankedEntry, RankedTable
from leaderboard.untrusted_text import as_markdown, no_formula

CSV_HEADERS = (
    "name", "rank_low", "rank_high", "group", "mean", "low", "high", "n", "better_than", "lead_over_next", "p_next",
    "told_apart_from_next", "needed_to_tell_next",
)  # fmt: skip
ALIGN = "rlrrrrrrr"


def rank_report(ranked: RankedTable, form: Format | Literal["html"], width: int | None = None) -> str:
    """Render the ranks. width: of the terminal that markdown should fit; None for plain markdown."""
    if form == "json":
        return msgspec.json.format(msgspec.json.encode(ranked), indent=1).decode()
    if form == "csv":
        return render(CSV_HEADERS, [_csv_cells(entry) for entry in ranked.entries], "csv")
    header, rows = _header(ranked), [_cells(ranked, entry) for entry in ranked.entries]
    if form == "latex":
        return "\n".join([*(f"% {text}" for text in _texts(ranked)), render(header, rows, "latex", ALIGN)])
    if form == "html":
        return _html(ranked, header, rows)
    if width is None:
        rows = [[place, as_markdown(name), *numbers] for place, name, *numbers in rows]
    return "\n\n".join([
        render(header, rows, "markdown", ALIGN, width, keys=2), *(wrapped(text, width, "") for text in _texts(ranked))
    ])  # fmt: skip


def _texts(ranked: RankedTable) -> list[str]:
    """Explain the result, the ranks, and the columns about the next entry."""
    neighbours, rows = ranked.neighbours, ranked.rows
    apart = sum(neighbour.told_apart for neighbour in neighbours)
    over = "over seeds" if ranked.test == "seeds-t" else "over examples"
    return [
        f"{apart:,} of {len(neighbours):,} neighbours and {ranked.told_apart:,} of {ranked.pairs:,} pairs are told "
        "apart.",
        "The rank of an entry is 1 + the number of entries that are significantly better. A range gives the best and "
        f"the worst rank that the tests leave open. Every pair is tested by {TESTS[ranked.test]}. The false discovery "
        f"rate among all pairs is at most 5 % (Benjamini-Hochberg). The intervals are 95 % intervals {over}.",
        f"`more {rows}` is how many more {rows} it would take to tell an entry from the next one with a probability of "
        "80 %, if the difference that was observed is the true one.",
    ]


def _header(ranked: RankedTable) -> list[str]:
    unit = " %" if _fractions(ranked) else ""
    return [
        "rank", "entry", f"score{unit}", "95 % interval", ranked.rows, "better than", f"lead over next{unit}",
        "p of the lead", f"more {ranked.rows}",
    ]  # fmt: skip


def _fractions(ranked: RankedTable) -> bool:
    """Whether the mean scores are fractions, which are shown in percent."""
    return all(0 <= entry.mean <= 1 for entry in ranked.entries)


def _cells(ranked: RankedTable, entry: RankedEntry) -> list[str]:
    number = percent if _fractions(ranked) else "{:.4g}".format
    ends = "" if entry.low is None or entry.high is None else f"[{number(entry.low)}, {number(entry.high)}]"
    return [
        _rank_text(entry), " ".join(entry.name.split()), number(entry.mean), ends, f"{entry.n:,}",
        str(len(entry.better_than)), *_about_next(entry, number),
    ]  # fmt: skip


def _about_next(entry: RankedEntry, number: Callable[[float], str]) -> list[str]:
    after = entry.next
    if after is None:
        return ["", "", ""]
    more = "" if after.needed is None else f"{max(1, after.needed - entry.n):,}"
    return [number(after.difference), "" if after.p is None else f"{after.p:.2g}", more]


def _rank_text(entry: RankedEntry) -> str:
    """The ranks that the tests leave open, `-` without a rank."""
    if entry.rank_low is None or entry.rank_high is None:
        return "-"
    return rank_range(entry.rank_low, entry.rank_high)


def _csv_cells(entry: RankedEntry) -> list[object]:
    after = entry.next
    return [
        no_formula(entry.name), entry.rank_low, entry.rank_high, entry.group, entry.mean, entry.low, entry.high,
        entry.n, len(entry.better_than), after and after.difference, after and after.p, after and after.told_apart,
        after and after.needed,
    ]  # fmt: skip


def _html(ranked: RankedTable, header: list[str], rows: list[list[str]]) -> str:
    """A table with a bar for the ranks that the tests leave open; groups are set apart by a rule."""
    template = (files("leaderboard") / "page" / "ranks.html").read_text("utf-8")
    n = len(ranked.entries)
    body, group = [], None
    for entry, cells in zip(ranked.entries, rows, strict=True):
        low, high = entry.rank_low or 1, entry.rank_high or n
        bar = f'<i style="left:{100 * (low - 1) / n:.2f}%;width:{100 * (high - low + 1) / n:.2f}%"></i>'
        start = ' class="group"' if entry.group != group and group is not None else ""
        group = entry.group
        body.append(f"<tr{start}><td>{cells[0]}</td><td class=span>{bar if entry.rank_low else ''}</td>")
        body.append(f"<th scope=row>{escape(cells[1])}</th>{''.join(f'<td>{cell}</td>' for cell in cells[2:])}</tr>")
    names = [header[0], f"of {n}", *header[1:]]
    return Template(template).substitute(
        header="".join(f"<th scope=col>{name}</th>" for name in names), body="\n".join(body),
        texts="\n".join(f"<p>{escape(text.replace('`', ''))}</p>" for text in _texts(ranked)),
    ).rstrip("\n")  # fmt: skip
