"""Where a network computes, and in which arithmetic."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch

from moe_robot import registry
from moe_robot.types import UserError


def resolve_device(name: str) -> torch.device:
    """``auto`` is the GPU where there is one. Asking for one that is not there is refused, never replaced."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name.partition(":")[0] not in {"cpu", "cuda"}:
        raise registry.unknown("device", name, ("auto", "cpu", "cuda"))
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise UserError("no CUDA device here: expected a GPU that torch can use; choose --device cpu")
    return torch.device(name)


def uses_bf16(precision: str, device: torch.device) -> bool:
    """Whether the network computes in bf16: as asked, or ``auto``: where the processor has it."""
    if precision == "auto":
        return torch.cuda.is_bf16_supported() if device.type == "cuda" else torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return precision == "bf16"


def autocast(device: torch.device, bf16: bool) -> Any:
    """The context in which the network computes."""
    return torch.autocast(device.type, dtype=torch.bfloat16) if bf16 else nullcontext()
