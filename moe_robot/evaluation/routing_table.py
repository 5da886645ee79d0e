"""Prints the routing report as tables in the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table


def print_routing(report: Mapping[str, Any], console: Console) -> None:
    """Print ``routing.json`` to a rich console."""
    console.print(
        f"{report['frames']} frames of {report['episodes']} episodes ({report['split']}) of {report['data']}, "
        f"{len(report['tasks'])} tasks",
        highlight=False,
    )
    fresh = report["untrained"]
    for i, layer in enumerate(report["layers"]):
        console.print(_layer(layer, report, fresh and fresh["layers"][i]))
    if report["information"]:
        console.print(_information(report))
    console.print(_roles(report))
    for layer in report["layers"]:
        for word in ("cold", "idle"):
            if layer[word]:
                console.print(f"layer {layer['layer']}, {word}: {', '.join(layer[word])}", highlight=False)
        if layer["drop_rate"]:
            console.print(f"layer {layer['layer']}: {_percent(layer['drop_rate'])} of routes dropped", highlight=False)
    if not any(layer["drop_rate"] for layer in report["layers"]):
        console.print("no route was dropped", highlight=False)
    console.print(report["cold_means"], style="dim", highlight=False)


def _layer(layer: Mapping[str, Any], report: Mapping[str, Any], fresh: Mapping[str, Any] | None) -> Table:
    """Experts in rows: load, and the share of each modality's routes; below, how sure the gate is."""
    dropped = any(row["drop_rate"] for row in report["layers"])
    modalities = layer["modalities"]
    table = _table(f"layer {layer['layer']}: where the routes of each modality go", "expert")
    for name in ("all", "over fair", *(("dropped",) if dropped else ()), *modalities):
        table.add_column(name, justify="right", no_wrap=True)
    for name, row in layer["experts"].items():
        load = _number(row["over_fair"]) if name not in layer["idle"] else "idle"
        cells = [_percent(row["share"]), f"{load} cold" if name in layer["cold"] else load]
        cells += [_percent(row["drop_rate"])] if dropped else []
        table.add_row(name, *cells, *(_percent(of["experts"][name]) for of in modalities.values()))
    table.add_section()
    blank = ("",) * (3 if dropped else 2)
    of_log = [of["entropy_of_log_experts"] for of in modalities.values()]
    rows = {
        "entropy, nats": [_number(of["entropy_nats"]) for of in modalities.values()],
        "of log E": ["-" if share is None else _percent(share) for share in of_log],
    }
    if fresh is not None:
        before = [fresh["modalities"].get(name, {}).get("entropy_nats") for name in modalities]
        rows["at the start"] = [_number(entropy) for entropy in before]
    rows["tokens"] = [str(of["tokens"]) for of in modalities.values()]
    rows |= {"dropped": [_percent(of["drop_rate"]) for of in modalities.values()]} if dropped else {}
    for name, cells in rows.items():
        table.add_row(name, *blank, *cells)
    return table


def _information(report: Mapping[str, Any]) -> Table:
    from rich import box

    fresh = report["untrained"]
    before = {_about(row): row["beyond_chance"] for row in (fresh["information"] if fresh else ())}
    table = _table("what the expert tells about (bits)", "about", "layer", "tokens of")
    table.box = box.SIMPLE_HEAD  # without lines it fits into 80 columns
    for name in ("chance", "beyond", *(("start",) if fresh else ()), "at most", "p"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in report["information"]:
        table.add_row(
            *map(str, _about(row)),
            f"{row['null']:.3f}",
            f"{row['beyond_chance']:.3f}",
            *((f"{before[_about(row)]:.3f}" if _about(row) in before else "-",) if fresh else ()),
            f"{row['limit']:.2f}",
            f"{row['p_holm']:.3f}{'*' if row['significant'] else ' '}",
            style=None if row["significant"] else "dim",
        )
    start = "; start: in an untrained policy" if fresh else ""
    table.caption = f"chance: the mean of 999 shuffles; beyond: bits above it{start}; p after Holm, * below 0.05"
    return table


def _about(row: Mapping[str, Any]) -> tuple[str, int, str]:
    return row["label"], row["layer"], row["tokens"]


def _roles(report: Mapping[str, Any]) -> Table:
    start = report["role_share_at_step0"]
    then = "at step 0 in brackets" if start else "train.json does not tell step 0"
    table = _table(f"beyond the prior: share by role over all layers ({then})", "tokens of")
    roles = list(dict.fromkeys(report["roles"]))
    for role in roles:
        table.add_column(role, justify="right", no_wrap=True)
    for modality, row in report["role_share"].items():
        before = (start or {}).get(modality, {})
        cells = [_percent(row[role]) + (f" ({_percent(before[role])})" if role in before else "") for role in roles]
        table.add_row(modality, *cells)
    return table


def _table(title: str, *columns: str) -> Table:
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    for name in columns:
        table.add_column(name, no_wrap=True)
    return table


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %" if share >= 0.005 or share == 0 else "<1 %"
