"""The presets: one policy, several feed-forward layers, so that a comparison changes one thing only."""

from __future__ import annotations

from typing import Any

from moe_policies.config import PolicyConfig

PRESETS: dict[str, dict[str, Any]] = {
    "moe": {},
    # One dense network with the FLOPs of the two experts that a token wakes.
    "dense-active": {"feed_forward": "dense-active"},
    # The same experts behind a gate that never learns: a control for what learning to route is worth.
    "random": {"gate_learned": False, "gate_prior": 0.0},
}


def preset(name: str, **overrides: Any) -> PolicyConfig:
    """The configuration of a preset, with some fields overridden."""
    return PolicyConfig.from_json({"preset": name, **PRESETS[name], **overrides})
