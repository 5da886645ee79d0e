"""Sets a comparison as tables: in the terminal, or as Markdown for a results page. Every rate has its interval."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from moe_robot.evaluation.compare import Comparison, Difference, Row

if TYPE_CHECKING:
    from rich.console import Console

NONE = "–"


@dataclass(frozen=True)
class Grid:
    """A table of texts: a title, the heads of its columns, rows of as many cells, and a note below."""

    title: str
    heads: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str


def grids(comparison: Comparison, speed: Mapping[str, Mapping[str, Any]], per_task: bool = False) -> tuple[Grid, ...]:
    """The tables of success, of each training seed where there are several, of each task if asked, of cost and speed,
    and of what was switched off where something was."""
    seeds = sorted({seed for row in comparison.rows for seed in row.seeds})
    tables = [_success(comparison)]
    if len(seeds) > 1:
        tables.append(_by_seed(comparison, seeds))
    if per_task:
        tables.append(_by_task(comparison))
    tables.append(_cost(comparison, speed))
    if comparison.ablations:
        tables.append(_ablations(comparison))
        if per_task:
            tables.append(_ablations_by_task(comparison))
    return tuple(tables)


def _success(comparison: Comparison) -> Grid:
    base = comparison.baseline
    heads = ("entry", "seeds", "episodes", "success [Wilson]", "[bootstrap]", "lowest task")
    rows = []
    for row in comparison.rows:
        task, rate = row.lowest
        against = (NONE, NONE) if row.against is None else (_change(row.against), _p(row.against.p_holm))
        seeds = " ".join(map(str, row.seeds))
        rows.append((row.label, seeds, str(row.success.n), str(row.success), _ci(row.ci95), f"{task} {rate}", *against))
    return Grid(
        "success",
        (*heads, f"minus {base}, points", "p"),
        tuple(rows),
        "95 % intervals: Wilson over all episodes (of these networks); bootstrap over training seeds and episodes (of "
        f"the preset), also of the difference. p: exact McNemar against {base} on the same training seeds, tasks and "
        "episode seeds, Holm-corrected over the entries.",
    )


def _by_seed(comparison: Comparison, seeds: Sequence[int]) -> Grid:
    return Grid(
        "success by training seed",
        ("entry", *(f"seed {seed}" for seed in seeds)),
        tuple((row.label, *(str(row.by_seed.get(seed, NONE)) for seed in seeds)) for row in comparison.rows),
        "Each of one network, with its Wilson interval.",
    )


def _by_task(comparison: Comparison) -> Grid:
    tasks = dict.fromkeys(task for row in comparison.rows for task in row.tasks)
    return Grid(
        "success by task",
        ("task", *(row.label for row in comparison.rows)),
        tuple((task, *(str(row.tasks.get(task, NONE)) for row in comparison.rows)) for task in tasks),
        "All training seeds of an entry together, with the Wilson interval of these networks.",
    )


def _cost(comparison: Comparison, speed: Mapping[str, Mapping[str, Any]]) -> Grid:
    heads = (
        "entry", "parameters", "active", "MFLOP/chunk", "samples trained", "train samples/s", "chunk ms p50", "p95",
        "chunk CPU ms p50", "chunks/s (64)",
    )  # fmt: skip
    return Grid(
        "cost and speed",
        heads,
        tuple(_cost_row(row, speed.get(row.label)) for row in comparison.rows),
        "Of one new action chunk for one observation (ms, one thread), of 64 at once (chunks/s), and of whole training "
        "steps; all entries measured in turn in one process, apart from the training.",
    )


def _cost_row(row: Row, speed: Mapping[str, Any] | None) -> tuple[str, ...]:
    cost = row.cost
    chunk: Mapping[str, Mapping[str, float]] = speed or {"chunk_wall_ms": {}, "chunk_cpu_ms": {}}
    rates: Mapping[str, float | None] = speed or {}
    return (
        row.label,
        _number(cost.total_parameters if cost else row.parameters, ",.0f")
        + (f" + {cost.frozen_parameters:,} frozen" if cost and cost.frozen_parameters else ""),
        _number(cost and cost.active_parameters, ",.0f"),
        _number(cost and cost.total_flops / 1e6, ".1f"),
        _number(row.samples, ",.0f"),
        _number(rates.get("training_samples_per_second"), ".0f"),
        _number(chunk["chunk_wall_ms"].get("p50"), ".2f"),
        _number(chunk["chunk_wall_ms"].get("p95"), ".2f"),
        _number(chunk["chunk_cpu_ms"].get("p50"), ".2f"),
        _number(rates.get("chunks_per_second"), ".0f"),
    )


def _number(value: float | None, form: str) -> str:
    return NONE if value is None else format(value, form)


def _ablations(comparison: Comparison) -> Grid:
    shuffled = any(one.named for one in comparison.ablations)
    rows = [
        (
            one.label,
            one.what,
            str(one.success.n),
            str(one.success),
            _ci(one.ci95),
            _change(one.change),
            _p(one.change.p_holm),
            *((str(one.named or NONE),) if shuffled else ()),
        )
        for one in comparison.ablations
    ]
    heads = ("entry", "without", "episodes", "success [Wilson]", "[bootstrap]", "change, points", "p")
    return Grid(
        "with parts switched off",
        (*heads, "named task done") if shuffled else heads,
        tuple(rows),
        "The same policies on the same episodes with these sensors, experts or parts of the gate off (gate roles: "
        "permuted), or with sentences that name another task; change and p (exact McNemar, Holm over this table) are "
        "against the whole policy.",
    )


def _ablations_by_task(comparison: Comparison) -> Grid:
    tasks = dict.fromkeys(task for one in comparison.ablations for task in one.tasks)
    return Grid(
        "with parts switched off, by task",
        ("entry", "without", *tasks),
        tuple(
            (
                one.label,
                one.what,
                *(
                    f"{one.tasks[task]} ({100 * one.whole[task].value:.0f})" if task in one.tasks else NONE
                    for task in tasks
                ),
            )
            for one in comparison.ablations
        ),
        "In round brackets the whole policy on the same episodes, in percent.",
    )


def _ci(ci95: Sequence[float]) -> str:
    return f"[{100 * ci95[0]:.0f}, {100 * ci95[1]:.0f}]"


def _change(difference: Difference) -> str:
    low, high = difference.ci95
    return f"{_points(difference.value)} [{_points(low)}, {_points(high)}]"


def _points(difference: float) -> str:
    return f"{100 * difference:+.0f}" if round(100 * difference) else "0"


def _p(value: float) -> str:
    return f"{value:.3f}" if value >= 0.001 else "< 0.001"


def print_grids(tables: Sequence[Grid], console: Console) -> None:
    """Print the tables to a rich console."""
    from rich.table import Table

    for grid in tables:
        table = Table(title=grid.title, caption=grid.note, caption_justify="left")
        for i, head in enumerate(grid.heads):
            table.add_column(head.replace("[", r"\["), justify="right" if i else "left")
        for row in grid.rows:
            table.add_row(*(cell.replace("[", r"\[") for cell in row))
        console.print(table)


def markdown(tables: Sequence[Grid]) -> str:
    """The tables as Markdown."""
    parts = []
    for grid in tables:
        lines = [f"**{grid.title[0].upper()}{grid.title[1:]}**", ""]
        lines.append(f"| {' | '.join(grid.heads)} |")
        lines.append(f"|{'|'.join(['---', *['--:'] * (len(grid.heads) - 1)])}|")
        lines += [f"| {' | '.join(row)} |" for row in grid.rows]
        parts.append("\n".join([*lines, "", grid.note]))
    return "\n\n".join(parts) + "\n"
