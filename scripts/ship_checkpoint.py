"""Makes the small copy of a trained checkpoint that assets/checkpoints holds: bfloat16 weights and a model card.

python scripts/ship_checkpoint.py runs/mt10/policy assets/checkpoints/metaworld-mt10-moe
moe-robot eval assets/checkpoints/metaworld-mt10-moe --seed 100000 --out report
python scripts/ship_checkpoint.py runs/mt10/policy assets/checkpoints/metaworld-mt10-moe --report report/report.json \
    --command "python scripts/train_metaworld.py --out runs/mt10 --steps 6000"

What is evaluated is the copy, so that the card speaks of the numbers that are shipped.
"""

import argparse
import json
import shutil
import textwrap
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from moe_robot.registry import checkpoint_directory

KEPT = ("config.json", "train.json", "text_encoder")


def main() -> None:
    """Copy, and with a report write the card."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--report", type=Path)
    parser.add_argument("--command", default="", help="what it was trained with, for the card")
    arguments = parser.parse_args()
    source, out = checkpoint_directory(arguments.run), arguments.out
    out.mkdir(parents=True, exist_ok=True)
    for name in KEPT:
        copy = shutil.copytree if (source / name).is_dir() else shutil.copy2
        copy(source / name, out / name, **({"dirs_exist_ok": True} if (source / name).is_dir() else {}))
    weights = load_file(source / "model.safetensors")
    small = {name: w.bfloat16() if name.startswith("network.") and w.ndim > 1 else w for name, w in weights.items()}
    save_file({name: w.contiguous() for name, w in small.items()}, out / "model.safetensors")
    if arguments.report:
        (out / "README.md").write_text(card(out, json.loads(arguments.report.read_text()), arguments.command))
    size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    print(f"{out}: {size / 2**20:.1f} MiB")


def card(folder: Path, report: dict, command: str) -> str:
    """The model card: what it is, how it was made, what it does, and what it does not."""
    trained = json.loads((folder / "train.json").read_text())
    parameters = sum(w.numel() for w in load_file(folder / "model.safetensors").values() if w.dtype == torch.bfloat16)
    rows = [f"| {task} | {counts(result)} |" for task, result in report["tasks"].items()]
    latency = report["latency_ms"]
    world = f"{trained['environment']}, {json.dumps(trained['environment_options'])}"
    episodes = next(iter(report["tasks"].values()))["episodes"]
    made = (
        f"on {trained['episodes']} demonstrations of {len(report['tasks'])} tasks by scripted experts ({world}), "
        f"training seed {trained['seed']}, {trained['steps']:,} steps of {trained['batch_size']} frames, "
        f"{trained['minutes']:.0f} minutes on one shared processor core. In training it was also told where the object "
        "and the goal are; it never sees that when it acts."
    )
    return f"""---
library_name: moe_robot
license: apache-2.0
tags: [robotics, mixture-of-experts]
---
# {folder.name}
Preset `{trained["preset"]}`, {parameters:,} matrix weights in bfloat16, nothing pretrained. Made with

    {command}

{textwrap.fill(made, 110)}

    moe-robot eval {folder} --episodes {episodes} --seed {report["first_seed"]} --out report

gave, with the renderer "{report["renderer"]}":

| task | successes | 95 %, Wilson |
|---|---|---|
{chr(10).join(rows)}
| all | {counts(report["overall"])} |

A new action chunk takes {latency["p50"]:.0f} ms (p50; 95 % under {latency["p95"]:.0f} ms) on one core.

Limits: simulation only; cameras where they were in training; one training seed; the sentences of these tasks alone.
"""


def counts(result: dict) -> str:
    """Successes and their interval, two cells of the table."""
    low, high = (100 * bound for bound in result["ci95"])
    return f"{result['successes']}/{result['episodes']} | {low:.0f} to {high:.0f}"


if __name__ == "__main__":
    main()
