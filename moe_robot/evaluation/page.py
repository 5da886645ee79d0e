"""Sets a report as one self-contained HTML page, for a laptop and a phone; only the videos lie beside it."""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from html import escape
from importlib.resources import files
from typing import Any
from urllib.parse import quote

from moe_robot.evaluation.knockouts import GATES_NOTE, changes_gate, heading, knocked_out, sensors_missing
from moe_robot.evaluation.page_elements import (
    bar,
    cell,
    count,
    heatmap,
    interval,
    percent,
    points,
    rate_cells,
    share_cell,
    table,
)
from moe_robot.evaluation.table import tier_rows
from moe_robot.evaluation.video import ROLES, role_color

INSTRUCTIONS = {
    "seen": "sentences of the kind the policy was trained on",
    "heldout": "new sentences from words the policy was trained on",
    "newwords": "sentences with words the policy never met",
    "newcombos": "task and object pairs that were never demonstrated",
    "shuffled": "the sentence names another task than the one that is judged",
}

QUANTILES = {"p50": "median", "p95": "95 %", "max": "longest"}


def page(report: Mapping[str, Any]) -> str:
    """The whole page, from what is in ``report.json``."""
    title = f"{report['preset'] or 'Policy'} in {report['env'].rpartition('/')[2]}"
    body = "\n".join(
        part
        for part in (
            _headline(report, title),
            _tasks(report),
            _tiers(report),
            _routing(report),
            _knockouts(report),
            _sensors_off(report),
            _videos(report),
            _latency(report),
            _setup(report),
        )
        if part
    )
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}: evaluation</title>
<style>{files("moe_robot.evaluation").joinpath("page.css").read_text(encoding="utf-8")}</style>
</head>
<body>
<main>
{body}
</main>
</body>
</html>
"""


def _headline(report: Mapping[str, Any], title: str) -> str:
    overall = report["overall"]
    what = INSTRUCTIONS.get(report["instructions"], "")
    told = f"Instructions: <b>{escape(report['instructions'])}</b>{escape(', ' + what if what else '')}."
    if report.get("instruction"):
        told = f"Every episode was told <q>{escape(report['instruction'])}</q> in place of the environment's sentence."
    named = ""
    if "named_success" in overall:
        named = (
            f'<p class="named">The task that the sentence <em>named</em> was done in '
            f"<strong>{percent(overall['named_success'])} %</strong> "
            f"(95 % interval {interval(overall['named_ci95'])}); the number above is of the task that was meant.</p>"
        )
    failures = _failures(overall)
    return f"""<header>
<p class="over">Evaluation</p>
<h1>{escape(title)}</h1>
<p class="big"><strong>{percent(overall["success_rate"])}<small> %</small></strong>
<span>success, 95 % interval <b>{interval(overall["ci95"])}</b><br>
{overall["successes"]} of {overall["episodes"]} episodes on {count(len(report["tasks"]), "task")}{failures}</span></p>
{bar(overall["success_rate"], overall["ci95"])}
{named}<p class="note">{told}
<span class="whole">Seeds {_seeds(overall["seeds"])}.</span></p>
</header>"""


def _failures(summary: Mapping[str, Any]) -> str:
    parts = []
    if summary["wrong"]:
        parts.append(f"{summary['wrong']} did something else")
    if summary["timeouts"]:
        parts.append(f"{summary['timeouts']} ran out of time")
    return f"; {' and '.join(parts)}" if parts else ""


def _seeds(seeds: Sequence[int]) -> str:
    """``100000 to 100029``, or the list when there are gaps."""
    unique = sorted(set(seeds))
    if len(unique) > 1 and unique[-1] - unique[0] == len(unique) - 1:
        return f"{unique[0]} to {unique[-1]}"
    return ", ".join(map(str, unique))


def _tasks(report: Mapping[str, Any]) -> str:
    shuffled = "named_success" in report["overall"]
    rows = [
        (
            name,
            rate_cells(task["success_rate"], task["ci95"])
            + (share_cell("named task done", task["named_success"], task["named_ci95"]) if shuffled else "")
            + cell("episodes", f"{task['successes']} / {task['episodes']}")
            + cell("wrong", task["wrong"])
            + cell("out of time", task["timeouts"])
            + cell("steps", f"{task['episode_steps']:.0f}"),
        )
        for name, task in report["tasks"].items()
    ]
    named = ["named task done"] if shuffled else []
    heads = ["task", "", "success, 95 % interval", *named, "episodes", "wrong", "out of time", "mean steps"]
    return f"""<section>
<h2>By task</h2>
{table("tasks", heads, rows)}
<p class="note">The dark bar is the success rate, the line its 95 % interval (Wilson). <em>Wrong</em> ended by doing
something else than asked.</p>
</section>"""


def _tiers(report: Mapping[str, Any]) -> str:
    rows = [(name, rate_cells(mean["success_rate"], mean["ci95"])) for name, mean in tier_rows(report)]
    if not rows:
        return ""
    return f"""<section>
<h2>By tier of difficulty</h2>
{table("tasks", ["", "", "success, 95 % interval"], rows)}
<p class="note">A tier's rate is the mean of its tasks' rates. The mean of tasks weighs every task alike, the mean of
tiers every tier. Intervals: bootstrap of the episodes within each task; a task that always or never succeeds adds no
width.</p>
</section>"""


def _routing(report: Mapping[str, Any]) -> str:
    end, start = report["routing"], report.get("routing_step0")
    if end is None:
        return "<section><h2>Routing</h2><p>This policy has no gate: every token takes the same way.</p></section>"
    maps = heatmap("In this evaluation" + (" (change since step 0, in points)" if start else ""), end, start)
    if start:
        maps = heatmap("At step 0, before training", start, None) + maps
        note = (
            "The gate starts with a bonus for the experts of a token's own kind. A bright diagonal at step 0 is the "
            "imprint of that starting bonus and no learning; what the gate learned is only the difference between the "
            "two tables, and whether the experts matter is told by switching them off, not by their share."
        )
    else:
        note = (
            "The checkpoint does not tell its routing at step 0, so this table alone says nothing about what the gate "
            "learned: a bright diagonal may be the imprint of the starting bonus and no learning."
        )
    return f"""<section>
<h2>Where the gate sends tokens</h2>
<p>Share of routes in percent: rows are kinds of token, columns are roles of experts, over all layers.</p>
<div class="maps">{maps}</div>
<p class="note">{note}</p>
</section>"""


def _knockouts(report: Mapping[str, Any]) -> str:
    if not report["knockouts"]:
        return ""
    rows = {knocked_out(name): row for name, row in report["knockouts"].items()}
    note = f" {GATES_NOTE}" if changes_gate(report["knockouts"]) else ""
    return f"""<section>
<h2>With {heading(report["knockouts"])}</h2>
{_ablations(report["overall"], "all experts on", rows)}
<p class="note">The same tasks and seeds again with all experts of one role off. The change is paired, episode by
episode, with a 95 % bootstrap interval stratified by task.{note}</p>
</section>"""


def _sensors_off(report: Mapping[str, Any]) -> str:
    if not report["sensors_off"]:
        return ""
    rows = {sensors_missing(names): row for names, row in report["sensors_off"].items()}
    return f"""<section>
<h2>With sensors switched off</h2>
{_ablations(report["overall"], "all sensors on", rows)}
<p class="note">The same tasks and seeds again; the policy treats these sensors as absent. The change is paired, as for
experts.</p>
</section>"""


def _ablations(whole: Mapping[str, Any], all_on: str, without: Mapping[str, Mapping[str, Any]]) -> str:
    rows = [
        (
            all_on,
            rate_cells(whole["success_rate"], whole["ci95"])
            + cell("episodes", whole["episodes"])
            + '<td class="n empty"></td>',
        )
    ]
    for name, row in without.items():
        low, high = (points(-bound) for bound in reversed(row["difference_ci95"]))
        rows.append(
            (
                name,
                rate_cells(row["success_rate"], row["ci95"])
                + cell("episodes", row["episodes"])
                + cell("change", f"{points(-row['difference'])} points <small>{low} to {high}</small>"),
            )
        )
    return table("tasks knock", ["", "", "success, 95 % interval", "episodes", "change, paired"], rows)


def _videos(report: Mapping[str, Any]) -> str:
    if not report["videos"]:
        return ""
    cards = []
    for clip in report["videos"]:
        source = f"videos/{quote(clip['name'])}"
        kind = clip["verdict"].replace(" ", "")
        cards.append(
            f'<figure class="clip"><video controls preload="metadata" playsinline muted src="{source}.mp4"></video>'
            f'<figcaption><b class="{kind}">{escape(clip["verdict"])}</b> {escape(clip["task"])}, seed {clip["seed"]} '
            f'· <a href="{source}.png">strip</a><br><q>{escape(clip["sentence"])}</q></figcaption></figure>'
        )
    legend = ""
    if report["routing"] is not None:
        roles = dict.fromkeys(role for row in report["routing"].values() for role in row)
        dots = "".join(
            f'<span><i style="background:rgb{role_color(role, list(roles) or list(ROLES))}"></i>{escape(role)}</span>'
            for role in roles
        )
        legend = (
            f'<p class="legend">Lamps show which experts were awake in the latest inference: {dots} '
            "Rows are experts, columns are layers; the brighter, the larger the share of the layer's routes.</p>"
        )
    return f"""<section>
<h2>Episodes, failures first</h2>
{legend}<div class="clips">{"".join(cards)}</div>
</section>"""


def _latency(report: Mapping[str, Any]) -> str:
    machine = report["machine"]
    period = 1000 / report["environment"]["control_hz"]
    measured = {
        "new action chunk (the network runs)": report["latency_ms"],
        "whole control step (policy and simulation)": report["control_step_ms"],
    }
    rows = [
        (name, "".join(cell(label, f"{times[key]:.1f}") for key, label in QUANTILES.items()))
        for name, times in measured.items()
        if times
    ]
    where = machine["gpu"] or f"one thread of {machine['cpu']}"
    shared = f"{count(machine['workers'], 'worker')} on {count(machine['cores'], 'core')}"
    return f"""<section>
<h2>Time</h2>
{table("tasks times", ["milliseconds", *QUANTILES.values()], rows)}
<p class="note">Wall time on {escape(where)}, {shared} with a load of {machine["load"]}. A control step may take
{period:.0f} ms on a robot.</p>
</section>"""


def _setup(report: Mapping[str, Any]) -> str:
    environment, training = report["environment"], report["training"]
    options = ", ".join(f"{key}={value}" for key, value in report["env_options"].items()) or "defaults"
    rows: list[tuple[str, object]] = [
        ("Checkpoint", report["checkpoint"]),
        ("Its SHA-256", report["checkpoint_sha256"]),
        ("Preset", report["preset"] or "not told"),
        ("Environment", f"{report['env']} ({options})"),
        ("Objects", environment.get("objects")),
        ("Control", f"{environment.get('control', '')} {environment['control_hz']} Hz".strip()),
        ("Renderer", report["renderer"] or "not told"),
        ("Seeds", _seeds(report["overall"]["seeds"])),
        ("Versions", ", ".join(f"{name} {number}" for name, number in report["versions"].items() if number)),
    ]
    if training:
        told = {
            "seed": "seed {}",
            "steps": "{} steps",
            "minutes": "{} minutes",
            "samples": "{} samples",
            "dataset_sha256": "data {}",
        }
        parts = [text.format(_short(training[key])) for key, text in told.items() if training.get(key) is not None]
        rows.append(("Training", ", ".join(parts)))
        if training.get("held_out_tasks"):
            rows.append(("Never demonstrated", ", ".join(training["held_out_tasks"])))
    rows.append(("Report", f"schema {report['schema']}, written {datetime.date.today().isoformat()}"))
    items = "".join(f"<dt>{escape(name)}</dt><dd>{escape(str(value))}</dd>" for name, value in rows if value)
    return f"<section><h2>Setup</h2><dl>{items}</dl></section>"


def _short(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.1f}"
    return f"{value[:12]}…" if isinstance(value, str) and len(value) > 16 else str(value)
