"""The experts: feed-forward networks, one module each, and banks of experts of one shape."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import pairwise
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Activation = Literal["swiglu", "geglu", "relu"]
Storage = Literal["separate", "stacked"]


def is_gated(activation: Activation) -> bool:
    """Whether the inner projection is twice as wide: one half is the gate of the other."""
    if activation not in ("swiglu", "geglu", "relu"):
        raise ValueError(f"activation is {activation!r}, expected 'swiglu', 'geglu' or 'relu'")
    return activation != "relu"


def activate(inner_RP: Tensor, activation: Activation) -> Tensor:
    """From the inner projection to the hidden layer: (R, 2H) -> (R, H) when gated, (R, H) -> (R, H) otherwise."""
    if activation == "relu":
        return F.relu(inner_RP)
    gate_RH, up_RH = inner_RP.chunk(2, dim=-1)
    return (F.silu(gate_RH) if activation == "swiglu" else F.gelu(gate_RH)) * up_RH


def compute_dtype(x: Tensor) -> torch.dtype:
    """What products with ``x`` are computed in: autocast's type where it is on, its own otherwise."""
    device = x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype


def feed_forward(x_RD: Tensor, gate_up_PD: Tensor, out_DH: Tensor, activation: Activation) -> Tensor:
    """One expert on rows (R, D) -> (R, D), from its two matrices."""
    return F.linear(activate(F.linear(x_RD, gate_up_PD), activation), out_DH)


class FeedForwardExpert(nn.Module):
    """Two matrices and an activation between them, no biases, tokens (R, D) -> tokens (R, D).

    ``swiglu``: ``W_out (silu(W_gate x) * W_up x)`` (Shazeer 2020); ``geglu``: the same with GELU, as GLaM's experts
    (Du et al. 2021); ``relu``: ``W_out relu(W_up x)``, as Switch Transformer's (Fedus et al. 2021).
    Gate and up projection are one matrix: one large product is quicker than two small ones.
    """

    def __init__(self, width: int, hidden: int, activation: Activation = "swiglu") -> None:
        super().__init__()
        self.activation: Activation = activation
        self.gate_up = nn.Linear(width, (2 if is_gated(activation) else 1) * hidden, bias=False)
        self.out = nn.Linear(hidden, width, bias=False)

    def forward(self, x_RD: Tensor) -> Tensor:
        """Apply the network to each row."""
        return self.out(activate(self.gate_up(x_RD), self.activation))


class ExpertBank(nn.ModuleList):
    """E feed-forward experts of one shape, kept apart or stacked.

    ``separate``: one module per expert. Backward touches only the experts that ran and the others get no gradient at
    all: the form for training on CPUs. ``stacked``: one 3-D parameter per matrix, which grouped products need: the form
    for GPUs, and the quickest for a CPU that only acts.
    The state dict is the same in both, one entry per expert (``0.gate_up.weight``, ``0.out.weight``, ...), so a
    checkpoint moves freely. Call :meth:`store_as` before the optimiser is made: it replaces the parameters.
    """

    storage: Storage = "separate"

    def __init__(
        self, n_experts: int, width: int, hidden: int, activation: Activation = "swiglu", storage: Storage = "separate"
    ) -> None:
        super().__init__(FeedForwardExpert(width, hidden, activation) for _ in range(n_experts))
        self.n_experts = n_experts
        self.activation: Activation = activation
        self.store_as(storage)

    def store_as(self, storage: Storage) -> ExpertBank:
        """Change how the parameters are kept; values and device stay. Returns the bank."""
        if storage not in ("separate", "stacked"):
            raise ValueError(f"storage is {storage!r}, expected 'separate' or 'stacked'")
        if storage != self.storage:
            gate_up_EPD, out_EDH = (bank.detach() for bank in self.stacked())
            if storage == "stacked":
                self._modules.clear()
                self.gate_up_EPD, self.out_EDH = nn.Parameter(gate_up_EPD), nn.Parameter(out_EDH)
            else:
                del self.gate_up_EPD, self.out_EDH
                for e in range(self.n_experts):
                    self._modules[str(e)] = self._expert(gate_up_EPD[e], out_EDH[e])
            self.storage = storage
        self._lay_together()
        return self

    def _lay_together(self) -> None:
        """Parameters that are kept apart still lie beside each other in memory: read a few per cent quicker."""
        pairs = self.apart(range(len(self))) if self.storage == "separate" else None
        for weights in zip(*(pairs or {}).values(), strict=True):
            starts = [weight.data_ptr() for weight in weights]
            if any(b - a != weights[0].nbytes for a, b in pairwise(starts)) and len({w.shape for w in weights}) == 1:
                for weight, place in zip(weights, torch.stack([weight.data for weight in weights]), strict=True):
                    weight.data = place

    def _apply(self, fn: Any, recurse: bool = True) -> ExpertBank:
        super()._apply(fn, recurse)
        self._lay_together()
        return self

    def stacked(self) -> tuple[Tensor, Tensor]:
        """All inner matrices (E, P, D) and all outer matrices (E, D, H); copied together when kept apart."""
        if self.storage == "stacked":
            return self.gate_up_EPD, self.out_EDH
        inner, outer = zip(*((expert.gate_up.weight, expert.out.weight) for expert in self), strict=True)
        return torch.stack(inner), torch.stack(outer)

    def apart(self, which: Iterable[int]) -> dict[int, tuple[Tensor, Tensor]] | None:
        """The two matrices of each of these experts; None where more than the matrices matters, because one of them
        was replaced, wrapped, quantised or hooked."""
        if self.storage == "stacked":
            gate_up, out = self.gate_up_EPD, self.out_EDH
            if not torch.is_grad_enabled():
                return {e: (gate_up.select(0, e), out.select(0, e)) for e in which}
            # not so with gradients: the backward of a slice would fill a whole bank with zeros for each expert
            gate_up, out = gate_up.unbind(0), out.unbind(0)
            return {e: (gate_up[e], out[e]) for e in which}
        found = {}
        for e in which:
            expert = self._modules[str(e)]
            if type(expert) is not FeedForwardExpert:
                return None
            inner, outer = expert._modules["gate_up"], expert._modules["out"]  # attributes would cost microseconds
            if type(inner) is not nn.Linear or type(outer) is not nn.Linear or _any_hooked(expert, inner, outer):
                return None
            found[e] = inner._parameters["weight"], outer._parameters["weight"]
        return found

    def __len__(self) -> int:
        return self.n_experts if self.storage == "stacked" else super().__len__()

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[e] for e in range(len(self))[index]]
        if self.storage == "separate":
            return super().__getitem__(index)
        e = range(self.n_experts)[index]
        return lambda x_RD: feed_forward(x_RD, self.gate_up_EPD[e], self.out_EDH[e], self.activation)

    def __iter__(self) -> Iterator[Any]:
        return iter([self[e] for e in range(len(self))])

    def _expert(self, gate_up_PD: Tensor, out_DH: Tensor) -> FeedForwardExpert:
        with torch.device("meta"):
            expert = FeedForwardExpert(out_DH.shape[0], out_DH.shape[1], self.activation)
        expert.gate_up.weight, expert.out.weight = nn.Parameter(gate_up_PD), nn.Parameter(out_DH)
        return expert

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        if self.storage == "separate":
            return super()._save_to_state_dict(destination, prefix, keep_vars)
        for e, weights in enumerate(zip(*self.stacked(), strict=True)):
            for name, weight in zip(("gate_up", "out"), weights, strict=True):
                destination[f"{prefix}{e}.{name}.weight"] = weight if keep_vars else weight.detach()

    def _load_from_state_dict(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, state_dict: Mapping[str, Any], prefix: str, *rest: Any
    ) -> None:
        if self.storage == "separate":
            return super()._load_from_state_dict(state_dict, prefix, *rest)
        _metadata, _strict, missing_keys, unexpected_keys, error_msgs = rest
        wanted = {
            f"{prefix}{e}.{name}.weight": bank[e]
            for name, bank in zip(("gate_up", "out"), (self.gate_up_EPD.data, self.out_EDH.data), strict=True)
            for e in range(self.n_experts)
        }
        for key, weight in wanted.items():
            if key not in state_dict:
                missing_keys.append(key)
            elif state_dict[key].shape != weight.shape:
                error_msgs.append(f"size mismatch for {key}: {tuple(state_dict[key].shape)}, not {tuple(weight.shape)}")
            else:
                weight.copy_(state_dict[key])
        unexpected_keys.extend(key for key in state_dict if key.startswith(prefix) and key not in wanted)


def _any_hooked(*modules: nn.Module) -> bool:
    return any(m._forward_hooks or m._forward_pre_hooks or m._backward_hooks or m._backward_pre_hooks for m in modules)
