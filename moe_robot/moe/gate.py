"""How a gate decides: its options, and the units that decide together."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor


@dataclass(frozen=True)
class GateConfig:
    """How a gate decides. What is only for training is ignored when the module is in evaluation mode."""

    experts_per_token: int = 2
    """K."""
    kind: Literal["learned", "random", "typed"] = "learned"
    """A learned gate; one frozen at its random start (the control for "does learning to route matter"); or none:
    every modality visits the experts of the role with its name, equally."""
    prior: float = 1.0
    """Bonus in logits that each modality's bias starts with on the experts of the role of the same name. It only says
    where tokens begin: the bias is learned like any weight."""
    bias: bool = True
    """Whether the logits have a term per modality at all."""
    choice: Literal["token", "expert"] = "token"
    """Tokens choose experts; or each expert takes its best K T / E tokens (Zhou et al. 2022), in training only."""
    jitter: float = 0.0
    """Training: the gate's copy of its input is multiplied by uniform noise in [1 - jitter, 1 + jitter] (Switch)."""
    noisy: bool = False
    """Training: learned Gaussian noise on the logits (noisy top-k, Shazeer et al. 2017, eq. 4)."""
    capacity_factor: float | None = None
    """Training: an expert takes at most ceil(K T / E * factor) rows of a pass; None for no limit."""
    bias_balancing: bool = False
    """Selection looks at probability + a balancing bias that :meth:`Router.balance` moves (DeepSeek-V3)."""


@dataclass(frozen=True)
class Units:
    """What decides together: all tokens of a frame, of a sentence, or of a whole sample share one decision.

    Attributes:
        of_T: int64 (T,), the unit of each token.
        n: U, the number of units.
        reads_UD: what the gate reads of each unit (U, D); None for the mean of its tokens.
    """

    of_T: Tensor
    n: int
    reads_UD: Tensor | None = None

    def read(self, x_TD: Tensor) -> Tensor:
        """(U, D), what the gate reads of each unit."""
        if self.reads_UD is not None:
            return self.reads_UD
        total_UD = x_TD.new_zeros(self.n, x_TD.shape[1]).index_add(0, self.of_T, x_TD)
        size_U = x_TD.new_zeros(self.n).index_add(0, self.of_T, torch.ones_like(x_TD[:, 0]))
        return total_UD / size_U.clamp(min=1).unsqueeze(1)


def at_least_float32(x: Tensor) -> Tensor:
    """What gates and losses compute in: float32 in place of anything narrower; float64 stays."""
    return x if x.dtype == torch.float64 else x.float()


def own_role(roles: Sequence[str], modalities: Sequence[str]) -> Tensor:
    """bool (M, E), True where an expert's role bears the name of the modality."""
    return torch.tensor([[role == modality for role in roles] for modality in modalities])


def check_gate(config: GateConfig, roles: Sequence[str], modalities: Sequence[str]) -> None:
    """Refuse a gate that does not fit its experts, in one line (ValueError)."""
    k = config.experts_per_token
    if not 1 <= k <= len(roles):
        raise ValueError(f"experts_per_token is {k}, expected 1 to {len(roles)} (the number of experts)")
    if config.capacity_factor is not None and config.capacity_factor <= 0:
        raise ValueError(f"capacity_factor is {config.capacity_factor}, expected more than 0, or None for no limit")
    if not 0 <= config.jitter < 1:
        raise ValueError(f"jitter is {config.jitter}, expected at least 0 and below 1")
    if config.kind == "typed":
        for modality in modalities:
            n = sum(role == modality for role in roles)
            if n > k or n == 0:
                raise ValueError(
                    f"typed routing has no gate to choose among {n} experts of role {modality!r}: "
                    f"expected 1 to {k} (experts_per_token)"
                )


def refuse_at_inference(config: GateConfig, capacity_factor: float | None, whole_batch: bool) -> None:
    """What would make one robot's action depend on the others in its batch is refused, with the reason (ValueError)."""
    if capacity_factor is not None:
        raise ValueError(
            f"capacity_factor {capacity_factor} at inference: it would drop tokens of one robot because of others in "
            "the batch; expected none, capacity is for training"
        )
    if config.choice == "expert" and not whole_batch:
        raise ValueError(
            "expert choice at inference: what an expert takes of one robot would depend on the rest of the batch, and "
            "on a batch of one it means nothing; expected choice='token'"
        )


def refuse_not_finite(logits_TE: Tensor) -> None:
    """Logits that are no numbers choose no experts (ValueError). On a GPU the question would stall it at every layer,
    so there the loss is asked."""
    if logits_TE.device.type != "cpu" or torch.compiler.is_compiling():
        return
    # one token alone is asked in Python: two operations fewer for a control loop (moe-robot bench moe --tokens 1)
    total = sum(logits_TE.tolist()[0]) if len(logits_TE) == 1 else logits_TE.detach().sum().item()
    if not math.isfinite(total):
        raise ValueError(
            "the gate's logits are not finite: expected finite tokens and gate weights; lower the learning rate, "
            "or give the z-loss some weight"
        )
