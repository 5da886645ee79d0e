"""Knock-out studies of one policy: experts of a role are switched off, or its gates' own parts changed for a while."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from moe_policies.config import MODALITIES
from moe_policies.network import Network
from moe_robot.moe import Router
from moe_robot.registry import unknown
from moe_robot.types import GATE_CONTENT, GATE_MODALITY, GATE_PARTS, GATE_ROLES, UserError


class Studies:
    """What is switched off in one policy.

    A gate is changed by exchanging the values of its parameters, so that routers need no branch for it. The originals
    are kept meanwhile and come back bit by bit. As long as a gate is changed, the network refuses to be trained, saved
    or filled: its weights are not the policy's.

    Args:
        network: of the policy.
        preset: of the policy, for messages.
    """

    def __init__(self, network: Network, preset: str) -> None:
        self.network, self.preset = network, preset
        self.available_E: Tensor | None = None
        """bool (E,), False for experts of roles that are off; None for all on."""
        self._originals: list[tuple[Router, str, Tensor]] = []
        self._guards: list[torch.utils.hooks.RemovableHandle] = []

    @property
    def names(self) -> tuple[str, ...]:
        """All that :meth:`switch_off` takes: roles that have experts, then parts of the gate; none when dense."""
        roles = tuple(dict.fromkeys(self.network.roles))
        return (*roles, *(part for part in GATE_PARTS if self._lack(part) is None)) if roles else ()

    def switch_off(self, names: Sequence[str]) -> None:
        """From now on these and no others are off: roles, and at most one part of the gate. Empty: all is on.

        Raises:
            UserError: an unknown name, or what the policy does not have; then nothing changes.
        """
        roles, parts = self._checked(names)
        self._restore()
        keep = [role not in roles for role in self.network.roles]
        self.available_E = torch.tensor(keep, device=self.network.queries.device) if roles else None
        if parts:
            self._change(parts[0])

    def _checked(self, names: Sequence[str]) -> tuple[list[str], list[str]]:
        roles = self.network.roles or MODALITIES
        for name in names:
            if name not in GATE_PARTS and name not in roles:
                kind = "part of the gate" if name.startswith("gate") else "expert role"
                raise unknown(kind, name, (*roles, *GATE_PARTS))
        if names and not self.network.roles:
            raise UserError(
                f"the {self.preset!r} policy has no experts to switch off and no gate to change: "
                "use a preset with a gate, or leave the knock-outs away"
            )
        parts = [name for name in dict.fromkeys(names) if name in GATE_PARTS]
        for part in parts:
            if (reason := self._lack(part)) is not None:
                others = ", ".join(self.names)
                raise UserError(
                    f"{part} cannot be knocked out of this {self.preset!r} gate: {reason}; choose from {others}"
                )
        if len(parts) > 1:
            raise UserError(f"{' and '.join(parts)} change the same gate: expected one of them at a time")
        return [name for name in names if name not in GATE_PARTS], parts

    def _lack(self, part: str) -> str | None:
        """Why the gates have no such part, or None when they do. All gates of a policy are of one kind."""
        router = self.network.moe_layers[0].router
        config = router.config
        has_term = config.bias and (config.kind == "learned" or config.prior != 0)
        if config.kind == "typed":
            return "it is hard-wired by modality, expected a gate with weights"
        if part == GATE_CONTENT and not has_term and config.experts_per_token < len(router.roles):
            return "without the token nothing would be left to decide by, expected a gate with a term per modality"
        if part != GATE_CONTENT and not has_term:
            return "expected a gate with a term per modality (gate_bias, and a routing_unit other than instruction)"
        if part == GATE_ROLES and len(set(router.roles)) < 2:
            return "all its experts have one role, expected two roles or more"
        return None

    @torch.no_grad()
    def _change(self, part: str) -> None:
        for layer in self.network.moe_layers:
            for name, value in changed(layer.router, part).items():
                parameter = layer.router.get_parameter(name)
                self._originals.append((layer.router, name, parameter.detach().clone()))
                parameter.copy_(value)

        def refuse(*_: object) -> None:
            raise UserError(
                f"the study {part} is on, so these weights are not the policy's: expected none while it is trained, "
                "saved or filled; call disable_experts(()) first"
            )

        self._guards = [
            self.network.register_state_dict_pre_hook(refuse),
            self.network.register_load_state_dict_pre_hook(refuse),
            self.network.register_forward_pre_hook(lambda network, _: refuse() if network.training else None),
        ]

    @torch.no_grad()
    def _restore(self) -> None:
        for guard in self._guards:
            guard.remove()
        for router, name, original in self._originals:
            router.get_parameter(name).copy_(original)
        self._guards, self._originals = [], []


def changed(router: Router, part: str) -> dict[str, Tensor]:
    """The parameters of a gate that a study changes, with their values in it.

    ``gate.modality``: no term per modality, so what is left of the starting bonus counts nothing. ``gate.content``: no
    weights on the token. ``gate.roles``: each modality has the term of the next one that has experts of its own.
    """
    if part == GATE_MODALITY:
        return {"bias_ME": torch.zeros_like(router.bias_ME)}
    if part == GATE_CONTENT:
        weights = {"weight_ED": router.weight_ED, "noise_ED": router.noise_ED}
        return {name: torch.zeros_like(weight) for name, weight in weights.items() if weight is not None}
    return {"bias_ME": router.bias_ME[[_next(m, router) for m in range(len(router.modalities))]]}


def _next(m: int, router: Router) -> int:
    """The modality after ``m``, in a circle, that has experts of its own."""
    following = [*range(m + 1, len(router.modalities)), *range(m + 1)]
    return next(other for other in following if router.modalities[other] in router.roles)
