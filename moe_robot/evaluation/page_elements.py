"""The pieces that the report page is set from: numbers with intervals, bars, tables, heat maps (HTML strings)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

from moe_robot.evaluation.video import role_color


def percent(share: float) -> str:
    """A share as whole percent, without the sign."""
    return f"{100 * share:.0f}"


def points(difference: float) -> str:
    """A difference of shares in percentage points, with its sign."""
    points = round(100 * difference)
    return f"{points:+d}".replace("-", "−") if points else "0"


def interval(ci95: Sequence[float]) -> str:
    """An interval of shares, in percent."""
    return f"{percent(ci95[0])} to {percent(ci95[1])} %"


def bar(rate: float, ci95: Sequence[float]) -> str:
    """A bar with a whisker from the lower to the upper end of the interval."""
    low, high = ci95
    label = f"{percent(rate)} %, 95 % interval {interval(ci95)}"
    return (
        f'<span class="bar" role="img" aria-label="{label}"><i style="width:{100 * rate:.2f}%"></i>'
        f'<b style="left:{100 * low:.2f}%;width:{100 * (high - low):.2f}%"></b></span>'
    )


def rate_cells(rate: float, ci95: Sequence[float]) -> str:
    """Two table cells: the bar, and the number with its interval."""
    return f'<td class="barcell">{bar(rate, ci95)}</td>' + share_cell("success", rate, ci95, "n rate")


def share_cell(label: str, rate: float, ci95: Sequence[float], kind: str = "n") -> str:
    """A table cell: a share with its interval."""
    return f'<td class="{kind}" data-label="{label}">{percent(rate)} % <small>{interval(ci95)}</small></td>'


def cell(label: str, content: object) -> str:
    """A number in a table; the label stands beside it on a phone, where there is no head line."""
    return f'<td class="n" data-label="{label}">{content}</td>'


def table(kind: str, heads: Sequence[str], rows: Sequence[tuple[str, str]]) -> str:
    """A table from its head line and (first cell, further cells as HTML) per row; an empty head is over the bar."""
    head = "".join(f'<th scope="col"{"" if name else " class=barcell"}>{name}</th>' for name in heads[1:])
    body = "".join(f'<tr><th scope="row">{escape(first)}</th>{cells}</tr>' for first, cells in rows)
    head = f'<thead><tr><th scope="col">{heads[0]}</th>{head}</tr></thead>'
    return f'<table class="{kind}">{head}<tbody>{body}</tbody></table>'


def count(n: int, noun: str) -> str:
    """``1 task``, ``3 tasks``."""
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"


def heatmap(
    caption: str, table: Mapping[str, Mapping[str, float]], before: Mapping[str, Mapping[str, float]] | None
) -> str:
    """Shares of routes by modality (rows) and role (columns), and how far each is from ``before``."""
    roles = list(dict.fromkeys(role for row in table.values() for role in row))
    head = "".join(f'<th scope="col">{escape(role)}</th>' for role in roles)
    rows = []
    for modality, row in table.items():
        cells = []
        for role in roles:
            share = row.get(role, 0.0)
            red, green, blue = role_color(role, roles)
            ink = "#fff" if share > 0.55 else "#262c34"
            change = ""
            if before is not None:
                change = f"<small>{points(share - before.get(modality, {}).get(role, 0.0))}</small>"
            cells.append(
                f'<td style="background:rgba({red},{green},{blue},{0.06 + 0.94 * share:.3f});color:{ink}">'
                f"{percent(share)}{change}</td>"
            )
        rows.append(f'<tr><th scope="row">{escape(modality)}</th>{"".join(cells)}</tr>')
    return (
        f'<figure><figcaption>{caption}</figcaption><table class="heat"><thead><tr><td></td>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></figure>"
    )
