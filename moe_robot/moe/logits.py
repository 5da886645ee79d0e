"""A gate's logits, with the noise that some gates have in training."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from moe_robot.moe.choice import Noise
from moe_robot.moe.draws import fresh_key, normal, uniform
from moe_robot.moe.gate import Units, at_least_float32


def gate_logits(
    x_TD: Tensor,
    weight_ED: Tensor,
    bias_TE: Tensor | None,
    noise_ED: Tensor | None = None,
    jitter: float = 0.0,
    units: Units | None = None,
    place: Tensor | None = None,
) -> tuple[Tensor, Noise | None]:
    """Logits (T, E), and the noise in them.

    Args:
        x_TD: the tokens, at least float32.
        weight_ED: of the gate.
        bias_TE: what each token's modality adds; None for nothing.
        noise_ED: weights that say how much Gaussian noise there is on each logit; None for none.
        jitter: the gate's copy of its input is multiplied by uniform noise in [1 - jitter, 1 + jitter].
        units: what decides together; None when every token decides for itself.
        place: int64, which token (or unit) of the whole batch each is; both kinds of noise are a function of it.
    """
    weight_DE = at_least_float32(weight_ED).t()
    if bias_TE is not None and units is None and noise_ED is None and not jitter:
        return torch.addmm(bias_TE, x_TD, weight_DE), None
    reads = x_TD if units is None else at_least_float32(units.read(x_TD))
    if place is None and (jitter or noise_ED is not None):
        place = torch.arange(len(reads), device=reads.device)
    if jitter:
        assert place is not None
        reads = reads * (1 + jitter * (2 * uniform(fresh_key(), place, reads.shape[1]) - 1))
    clean, scale = reads @ weight_DE, None
    logits = clean
    if noise_ED is not None:
        assert place is not None
        scale = F.softplus(reads @ at_least_float32(noise_ED).t()) + 1e-2  # never 0: the load loss divides by it
        logits = clean + normal(fresh_key(), place, clean.shape[1]) * scale
    if units is not None:
        logits, clean = logits[units.of_T], clean[units.of_T]
        scale = None if scale is None else scale[units.of_T]
    if bias_TE is not None:
        logits, clean = logits + bias_TE, clean + bias_TE
    return logits, None if scale is None else Noise(clean, scale)
