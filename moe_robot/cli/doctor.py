"""``moe-robot doctor``: says what works on this machine and how to mend what does not.

The exit status is 0 when everything is there that collecting, training and evaluating need; notes do not count.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import moe_robot
from moe_robot.cli.drawing_speed import Drawing, measure_in_a_process

LOCK = Path(moe_robot.__file__).parents[1] / "requirements.lock"
REPAIR = "run scripts/demo --setup-only"
GIB = 2**30


@dataclass(frozen=True)
class Options:
    """What to look at and how to say it."""

    out: Path = Path("runs")
    """Folder that runs will be written to."""
    json: bool = False
    """Print one JSON object in place of the table."""


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        subject: what was looked at.
        verdict: ``ok``; ``note`` when the core works without it; ``broken`` when it does not.
        observed: what was found.
        remedy: what to do, or an empty string.
    """

    subject: str
    verdict: Literal["ok", "note", "broken"]
    observed: str
    remedy: str = ""


def run(options: Options) -> int:
    """Look at everything, print it, and return 1 if something is broken."""
    findings = [*examine(options.out)]
    broken = [finding for finding in findings if finding.verdict == "broken"]
    if options.json:
        print(json.dumps({"schema": 1, "ok": not broken, "findings": [asdict(f) for f in findings]}, indent=2))
    else:
        _print_table(findings)
        print("The core works here." if not broken else f"{len(broken)} of {len(findings)} must be mended first.")
    return 1 if broken else 0


def examine(out: Path) -> Iterator[Finding]:
    """All findings, one after another. A check that fails in an unforeseen way is itself a broken finding."""
    checks: tuple[tuple[str, Callable[[], Finding]], ...] = (
        ("Python", python),
        ("packages", packages),
        ("lock", lock),
        ("drawing", lambda: drawing(measure_in_a_process())),
        ("torch", torch_and_gpu),
        ("worlds and policies", entry_points),
        *((f"extra {name}", lambda name=name: extra(name)) for name in _extras()),
        ("output folder", lambda: output_folder(out)),
        ("processor", processor),
        ("memory", memory),
    )
    for subject, check in checks:
        try:
            yield check()
        except Exception as error:  # a doctor that dies over one symptom helps nobody
            yield Finding(subject, "broken", f"{type(error).__name__}: {' '.join(str(error).split())}", REPAIR)


def python() -> Finding:
    """The interpreter's version against the one that the package asks for."""
    version = ".".join(map(str, sys.version_info[:3]))
    if (3, 11) <= sys.version_info < (3, 14):
        return Finding("Python", "ok", f"{version} at {sys.prefix}")
    return Finding("Python", "broken", version, f"Python 3.11, 3.12 or 3.13 is needed: {REPAIR}")


def packages() -> Finding:
    """The packages that the core needs, against what is installed."""
    from packaging.requirements import Requirement

    wanted = [Requirement(line) for line in importlib.metadata.requires("moe-robot") or ()]
    core = [r for r in wanted if not r.marker or r.marker.evaluate({"extra": ""})]
    faults: list[str] = []
    for requirement in core:
        version = _installed(requirement.name)
        if version is None:
            faults.append(f"{requirement.name} is missing")
        elif not requirement.specifier.contains(version, prereleases=True):
            faults.append(f"{requirement.name} is {version}, needed {requirement.specifier}")
    if faults:
        return Finding("packages", "broken", "; ".join(faults), REPAIR)
    return Finding("packages", "ok", f"moe-robot {moe_robot.__version__} and the {len(core)} packages that it needs")


def lock() -> Finding:
    """The installed versions against requirements.lock, where the package runs from a checkout."""
    if not LOCK.is_file():
        return Finding("lock", "note", "no requirements.lock beside the package: it was installed without its checkout")
    pinned = locked_versions(LOCK.read_text())
    missing = sorted(name for name in pinned if _installed(name) is None)
    other = sorted(
        f"{name} {found} (locked {version})"
        for name, version in pinned.items()
        if (found := _installed(name)) is not None and found.partition("+")[0] != version
    )
    parts = [f"{len(pinned) - len(missing) - len(other)} of {len(pinned)} packages as locked"]
    parts += [f"other versions: {_some(other)}"] if other else []
    parts += [f"not installed: {_some(missing)}"] if missing else []
    observed = "; ".join(parts)
    return Finding("lock", "note", observed, REPAIR) if missing or other else Finding("lock", "ok", observed)


def locked_versions(text: str) -> dict[str, str]:
    """Package -> version from the lines of a lock whose marker holds on this machine."""
    from packaging.requirements import Requirement

    lines = (line.rstrip(" \\") for line in text.splitlines() if re.match(r"^[A-Za-z0-9]", line))
    pins = [Requirement(line) for line in lines]
    return {pin.name: next(iter(pin.specifier)).version for pin in pins if pin.marker is None or pin.marker.evaluate()}


def drawing(measured: Drawing) -> Finding:
    """Whether cameras can be drawn off screen, and how fast."""
    if measured.error:
        return Finding("drawing", "broken", measured.error, measured.remedy)
    rate = f"{measured.frames_per_cpu_second:.0f} frames of {measured.pixels} pixels per CPU-second of a small scene"
    return Finding("drawing", "ok", f"{measured.renderer}; {rate}")


def torch_and_gpu() -> Finding:
    """Whether torch can be imported and whether it sees a graphics card."""
    import torch

    if torch.cuda.is_available():
        device = torch.cuda.get_device_properties(0)
        cards = f"{torch.cuda.device_count()} GPU: {device.name}, {device.total_memory / GIB:.0f} GiB"
        return Finding("torch", "ok", f"{torch.__version__}, {cards}")
    observed = f"{torch.__version__}, no GPU: training and evaluation run on {torch.get_num_threads()} CPU threads"
    if shutil.which("nvidia-smi") and subprocess.run(["nvidia-smi", "-L"], capture_output=True).returncode == 0:
        built = torch.version.cuda or "none"
        return Finding(
            "torch", "note", f"{observed}, though nvidia-smi sees one", f"update the NVIDIA driver for CUDA {built}"
        )
    return Finding("torch", "ok", observed)


def entry_points() -> Finding:
    """Whether the registry finds our world and the presets of the policies."""
    from moe_robot.registry import environment_id, presets

    found = f"{environment_id('pitstop')}; presets {', '.join(sorted(presets())) or 'none'}"
    return Finding("worlds and policies", "ok", found) if presets() else Finding("policies", "broken", found, REPAIR)


def extra(name: str) -> Finding:
    """Whether the packages of an optional extra are installed."""
    from packaging.requirements import Requirement

    wanted = [Requirement(line) for line in importlib.metadata.requires("moe-robot") or ()]
    wanted = [
        r for r in wanted if r.marker and r.marker.evaluate({"extra": name}) and not r.marker.evaluate({"extra": ""})
    ]
    missing = [r.name for r in wanted if _installed(r.name) is None]
    if missing:
        return Finding(
            f"extra {name}", "note", f"not installed: {', '.join(missing)}", f"pip install 'moe-robot[{name}]'"
        )
    return Finding(f"extra {name}", "ok", ", ".join(f"{r.name} {_installed(r.name)}" for r in wanted))


def output_folder(out: Path) -> Finding:
    """Whether runs can be written there and how much room is left."""
    existing = next(folder for folder in (out.absolute(), *out.absolute().parents) if folder.exists())
    try:
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as error:
        remedy = "choose another --out, or change its permissions"
        return Finding("output folder", "broken", f"{existing}: {error.strerror}", remedy)
    free = shutil.disk_usage(existing).free / GIB
    observed = f"{out.absolute()} can be written, {free:.1f} GiB free"
    if free < 0.5:
        return Finding("output folder", "broken", observed, "free some space: the demo writes about 0.5 GiB")
    return Finding("output folder", "ok" if free >= 2 else "note", observed, "" if free >= 2 else "free some space")


def processor() -> Finding:
    """The cores that this process may use, and how busy they are."""
    cores = len(os.sched_getaffinity(0))
    load = os.getloadavg()[0]
    observed = f"{cores} cores, load {load:.1f}"
    if load > cores / 2:
        return Finding("processor", "note", observed, "other programs are busy: measured times will be too long")
    return Finding("processor", "ok", observed)


def memory() -> Finding:
    """The memory that is free for us."""
    fields = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
    free = int(fields["MemAvailable"].split()[0]) / 2**20
    if free < 3:
        return Finding("memory", "note", f"{free:.1f} GiB free", "the demo needs about 3 GiB: use --workers 1")
    return Finding("memory", "ok", f"{free:.1f} GiB free")


def _extras() -> list[str]:
    return importlib.metadata.metadata("moe-robot").get_all("Provides-Extra") or []


def _installed(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _some(names: list[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def _print_table(findings: list[Finding]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False)
    for column in ("", "what", "found", "to do"):
        table.add_column(column, overflow="fold")
    style = {"ok": "green", "note": "yellow", "broken": "bold red"}
    for f in findings:
        table.add_row(Text(f.verdict, style[f.verdict]), Text(f.subject), Text(f.observed), Text(f.remedy))
    Console().print(table)
