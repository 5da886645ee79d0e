"""What a policy costs: parameters, and floating-point operations of one new action chunk, part by part.

Counted are matrix products and convolutions, as ``torch.utils.flop_counter`` does; a multiplication and an addition
are two.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from moe_policies.network import Network
from moe_policies.trunk import FeedForward
from moe_robot.moe import ExpertBank, MoEFeedForward
from moe_robot.types import Cost

WORDS = 8
"""Words of the sentence that the count is made for; the encoder itself runs once per sentence and is cached."""


def cost_of(network: Network, words: int = WORDS) -> Cost:
    """The cost of one observation in evaluation, with all sensors there.

    An expert's share is counted for the K that a token wakes, wherever it goes: experts of different cost (other kinds)
    count with the mean of their layer.
    """
    flops: dict[str, int] = dict.fromkeys(("stems", "attention", "gate", "experts", "head"), 0)
    tokens = _count_tokens(network, words)
    flops["stems"] = _stems(network, words)
    entering, looked = tokens["entering"], tokens["glimpses"]
    _add_feed_forward(flops, network.entry, entering + looked, passes=2 if looked else 1)
    n = entering
    last = len(network.blocks) - 1
    for i, block in enumerate(network.blocks):
        n = entering + looked if i else entering
        readers = len(network.action_roles) if i == last else n
        d = network.config.width
        flops["attention"] += 2 * n * d * 3 * d + 2 * readers * d * d + 2 * 2 * readers * n * d
        _add_feed_forward(flops, block.feed_forward, readers)  # type: ignore[union-attr, arg-type]
    flops["head"] = _linear_flops(network.head)
    if network.config.head == "flow":
        flops["head"] *= network.head.steps  # type: ignore[union-attr, operator]
    total = sum(p.numel() for p in network.parameters())
    asleep = sum(_asleep(layer) for layer in network.moe_layers)
    frozen = 0 if network.vision is None else network.vision.n_parameters
    return Cost(total, total - asleep, flops, frozen)


def _count_tokens(network: Network, words: int) -> dict[str, int]:
    config, cameras = network.config, len(network.cameras)
    entering = len(network.action_roles) + len(network.states) + cameras * config.patches**2
    entering += words if network.text is not None else 0
    return {"entering": entering, "glimpses": len(network.glimpses) * config.glimpses}


def _stems(network: Network, words: int) -> int:
    total = 0
    for camera, stem in network.cameras.items():
        size = network.sizes[camera]
        if network.vision is None:
            flops, (height, width) = _convolutions(stem.convolutions, size)  # type: ignore[arg-type]
        else:
            flops, height, width = 0, -(-size[0] // 4), -(-size[1] // 4)
            reads: Any = iter(stem.read)  # type: ignore[arg-type]
            for stage, is_read in network.vision.stages():
                of_stage, size = _convolutions(stage, size)
                flops += of_stage + (_convolutions(next(reads), size)[0] if is_read else 0)
            flops += _convolutions(stem.convolutions, (height, width))[0]  # type: ignore[arg-type]
        total += flops
        total += 2 * network.config.patches**2 * stem.project.weight.numel()  # type: ignore[union-attr, operator]
        if camera in network.glimpses:
            glimpse: Any = network.glimpses[camera]
            place, find, q, half = (
                height * width,
                glimpse.read_width(network.config),
                len(glimpse.queries),
                glimpse.n_half,
            )
            total += 2 * place * glimpse.key.weight.numel()  # keys
            total += 2 * q * place * (2 * glimpse.queries.shape[1] + 2)  # scores; features and places of the finds
            if glimpse.point is not None:
                total += 2 * glimpse.point.weight.numel() + 2 * half * q * find  # pointing
            else:
                total += 2 * glimpse.ask.weight.numel()
            total += 2 * glimpse.n_tokens * glimpse.project.weight.numel()
    total += sum(_linear_flops(stem) for stem in network.states)
    if network.text is not None:
        total += 2 * words * network.text.project.weight.numel()
        total += 2 * words * network.summary.attend.weight.numel() * 2  # scores, and the sums they weigh
    return total


def _convolutions(module: nn.Module, size: tuple[int, int]) -> tuple[int, tuple[int, int]]:
    """Of every convolution in ``module``, one after the other on a map of ``size``; and what size leaves the last."""
    flops, (height, width) = 0, size
    for convolution in module.modules():
        if isinstance(convolution, nn.Conv2d):
            if convolution.stride[0] > 1:
                height, width = (height + 1) // 2, (width + 1) // 2
            flops += 2 * height * width * convolution.weight.numel()
    return flops, (height, width)


def _linear_flops(module: nn.Module) -> int:
    """Of every linear layer in ``module``, each used for one row."""
    return sum(2 * m.weight.numel() for m in module.modules() if isinstance(m, nn.Linear))


def _add_feed_forward(flops: dict[str, int], feed_forward: FeedForward, rows: int, passes: int = 1) -> None:
    layer = feed_forward.layer
    if not isinstance(layer, MoEFeedForward):
        flops["experts"] += rows * _linear_flops(layer)
        return
    gate = layer.router
    if gate.config.kind != "typed":
        flops["gate"] += 2 * rows * gate.weight_ED.numel()
    if feed_forward.hear is not None:
        flops["gate"] += passes * _linear_flops(feed_forward.hear)
    mean = sum(_matrices(layer)) * 2 / len(layer.experts)
    flops["experts"] += round(rows * gate.config.experts_per_token * mean)
    if layer.shared is not None:
        flops["experts"] += rows * _linear_flops(layer.shared)


def _matrices(layer: MoEFeedForward) -> list[int]:
    """Weights of each expert that a row is multiplied by: without biases, and without an attention expert's mixing of a
    segment's rows, which is small beside its matrices."""
    if isinstance(layer.experts, ExpertBank):  # one or two parameters for all, or two for each
        return [sum(p.numel() for p in layer.experts.parameters()) // len(layer.experts)] * len(layer.experts)
    return [sum(p.numel() for p in expert.parameters() if p.ndim > 1) for expert in layer.experts]


def _asleep(layer: MoEFeedForward) -> int:
    """Parameters of the experts that a token does not wake."""
    if isinstance(layer.experts, ExpertBank):
        sizes = _matrices(layer)
    else:
        sizes = sorted(sum(p.numel() for p in expert.parameters()) for expert in layer.experts)
    return sum(sizes[: len(sizes) - layer.router.config.experts_per_token])
