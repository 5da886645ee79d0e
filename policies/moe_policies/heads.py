"""Action heads: from the action tokens to a chunk of H normalised actions. All have ``loss`` and ``sample``.

A loss weighs the error of each step of each chunk, (B, H): padding counts 0, and what counts has all weight together.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from moe_robot.moe import ALONE, Ranks, at_least_float32, competitive_loss, fresh_key, normal, uniform


class L1Head(nn.Module):
    """Regression of the chunk with an L1 loss (ACT, Zhao et al. 2023). Each action token predicts its own entries.

    Args:
        groups: for each action token, the indices of the action vector that it predicts.
    """

    def __init__(self, width: int, chunk: int, groups: list[list[int]]) -> None:
        super().__init__()
        self.chunk = chunk
        self.norm = nn.RMSNorm(width, eps=1e-6)
        self.out = nn.ModuleList(nn.Linear(width, chunk * len(group)) for group in groups)
        flat = [index for group in groups for index in group]
        self.register_buffer("order", torch.tensor(flat).argsort(), persistent=False)

    def sample(self, context_BGD: Tensor) -> Tensor:
        """Action tokens (B, G, D) -> normalised chunk (B, H, A)."""
        h_BGD = self.norm(at_least_float32(context_BGD))
        parts = [out(h_BGD[:, g]).view(h_BGD.shape[0], self.chunk, -1) for g, out in enumerate(self.out)]
        return torch.cat(parts, dim=-1)[..., self.order]  # type: ignore[index]

    def loss(self, context_BGD: Tensor, action_BHA: Tensor, weight_BH: Tensor, ranks: Ranks = ALONE) -> Tensor:
        """Absolute error, the mean over the entries of an action."""
        error_BHA = (at_least_float32(self.sample(context_BGD)) - action_BHA).abs()
        return (error_BHA.mean(dim=-1) * weight_BH).sum()


class FlowHead(nn.Module):
    """Flow matching (Lipman et al. 2023): a velocity field carries noise at t=0 to the chunk at t=1 on straight paths.

    Sampling integrates with fixed Euler steps from one fixed noise, so that the same observation gives the same
    chunk, alone or in a batch.
    """

    def __init__(self, width: int, chunk: int, groups: list[list[int]], hidden: int = 256, steps: int = 8) -> None:
        super().__init__()
        self.chunk, self.n_actions, self.steps = chunk, sum(map(len, groups)), steps
        size = chunk * self.n_actions
        self.norm = nn.RMSNorm(width, eps=1e-6)
        self.velocity = nn.Sequential(
            nn.Linear(len(groups) * width + size + 16, hidden), nn.SiLU(),
            nn.Linear(hidden, hidden), nn.SiLU(), nn.Linear(hidden, size),
        )  # fmt: skip
        noise = torch.randn(size, generator=torch.Generator().manual_seed(0))
        self.register_buffer("noise", noise)

    def _field(self, context_BC: Tensor, x_BX: Tensor, t_B1: Tensor) -> Tensor:
        octaves = 2.0 ** torch.arange(8, device=x_BX.device) * torch.pi
        time_BF = torch.cat([(t_B1 * octaves).sin(), (t_B1 * octaves).cos()], dim=-1)
        return self.velocity(torch.cat([context_BC, x_BX, time_BF], dim=-1))

    def sample(self, context_BGD: Tensor) -> Tensor:
        """Action tokens (B, G, D) -> normalised chunk (B, H, A)."""
        context_BC = self.norm(at_least_float32(context_BGD)).flatten(1)
        x_BX = self.noise.expand(context_BC.shape[0], -1).to(context_BC.dtype)  # type: ignore[operator]
        for i in range(self.steps):
            t_B1 = torch.full_like(x_BX[:, :1], i / self.steps)
            x_BX = x_BX + self._field(context_BC, x_BX, t_B1) / self.steps
        return x_BX.view(-1, self.chunk, self.n_actions)

    def loss(self, context_BGD: Tensor, action_BHA: Tensor, weight_BH: Tensor, ranks: Ranks = ALONE) -> Tensor:
        """Squared error of the velocity at a random time, the mean over the entries of an action."""
        target_BX = action_BHA.flatten(1)
        sample_B = ranks.samples(len(target_BX), target_BX.device)
        noise_BX = normal(fresh_key(), sample_B, target_BX.shape[1]).to(target_BX.dtype)
        t_B1 = uniform(fresh_key(), sample_B, 1).to(target_BX.dtype)
        x_BX = noise_BX * (1 - t_B1) + target_BX * t_B1
        context_BC = self.norm(at_least_float32(context_BGD)).flatten(1)
        error_BX = at_least_float32(self._field(context_BC, x_BX, t_B1)) - (target_BX - noise_BX)
        return (error_BX.square().view_as(action_BHA).mean(dim=-1) * weight_BH).sum()


class MixtureHead(nn.Module):
    """Adaptive mixtures of local experts (Jacobs, Jordan, Nowlan, Hinton 1991): experts compete for whole cases.

    Each expert is a linear map from all action tokens to a chunk, the gate a linear softmax of the same. The error is
    ``-log sum_i p_i exp(-1/2 |d - o_i|^2)`` (eq. 1.3); what is acted on is the mixture's mean ``sum_i p_i o_i``.
    """

    def __init__(self, width: int, chunk: int, groups: list[list[int]], n_experts: int) -> None:
        super().__init__()
        self.chunk, self.n_actions, self.n_experts = chunk, sum(map(len, groups)), n_experts
        self.norm = nn.RMSNorm(width, eps=1e-6)
        self.gate = nn.Linear(len(groups) * width, n_experts)
        self.experts = nn.Linear(len(groups) * width, n_experts * chunk * self.n_actions)

    def _mixture(self, context_BGD: Tensor) -> tuple[Tensor, Tensor]:
        """Probabilities (B, E) and chunks (B, E, H, A)."""
        h_BC = self.norm(at_least_float32(context_BGD)).flatten(1)
        p_BE = at_least_float32(self.gate(h_BC)).softmax(dim=-1)
        return p_BE, at_least_float32(self.experts(h_BC)).view(-1, self.n_experts, self.chunk, self.n_actions)

    def sample(self, context_BGD: Tensor) -> Tensor:
        """Action tokens (B, G, D) -> normalised chunk (B, H, A), the mean of the mixture."""
        p_BE, chunk_BEHA = self._mixture(context_BGD)
        return torch.einsum("be,beha->bha", p_BE, chunk_BEHA)

    def loss(self, context_BGD: Tensor, action_BHA: Tensor, weight_BH: Tensor, ranks: Ranks = ALONE) -> Tensor:
        """The competitive error per step that counts; it is of a case, so all of a case's steps weigh alike or 0."""
        p_BE, chunk_BEHA = self._mixture(context_BGD)
        keep_BH1 = (weight_BH > 0).unsqueeze(-1).to(action_BHA.dtype)
        error_B = competitive_loss(
            p_BE, (chunk_BEHA * keep_BH1.unsqueeze(1)).flatten(2), (action_BHA * keep_BH1).flatten(1)
        )
        return (error_B * weight_BH.amax(dim=1)).sum()
