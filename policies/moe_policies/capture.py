"""Captures a policy as one graph, raw sensor values in and actions out, for formats that run without this package."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from moe_policies.bundled import SCRATCH
from moe_policies.config import PolicyConfig
from moe_policies.network import Inputs, Network
from moe_policies.pretrained import TextEncoder
from moe_policies.processor import Processor
from moe_robot.moe import execute_everywhere
from moe_robot.types import ACTION, IMAGE_PREFIX, STATE, CapturedPolicy, Features, Observation, UserError
from moe_robot.words import LONGEST, PADDING, number_words, words

N_EXAMPLES = 4


def capture(
    config: PolicyConfig, features: Features, processor: Processor, network: Network, any_batch: bool
) -> CapturedPolicy:
    """The graph of a policy, in evaluation mode and on the CPU; the policy itself is left as it is.

    Args:
        config, features, processor, network: of the policy.
        any_batch: for batches of any size; otherwise of one.

    Raises:
        UserError: for expert choice, experts that take whole frames, and text encoders with a tokenizer of their own.
    """
    _refuse(config)
    encoder = None if network.text is None else network.text.encoder
    vocabulary = encoder.vocabulary if isinstance(encoder, TextEncoder) else None
    examples = tuple(_examples(features, processor, list(vocabulary or ())))
    graph = _Graph(processor, network).eval()
    inputs = _batch(examples[: 2 if any_batch else 1], features, vocabulary)
    batch = {0: torch.export.Dim("batch", min=1, max=1024)} if any_batch else {}
    shapes: list[Any] = [dict.fromkeys(inputs[0], batch), batch]
    if vocabulary is not None:
        shapes.append({**batch, 1: torch.export.Dim("words", min=1, max=LONGEST)})
    with torch.no_grad():
        graph(*inputs)  # what is worked out once and kept (image_places) is worked out for real, not by the tracer
        program = torch.export.export(graph, inputs, dynamic_shapes=tuple(shapes), strict=False)
    _forget_files(program)
    return CapturedPolicy(program, config.chunk, config.execute, vocabulary, config.only_instruction, examples)


def _forget_files(program: torch.export.ExportedProgram) -> None:
    """Each operation remembers the line it comes from, with the path of this machine: of no use to another."""
    for module in program.graph_module.modules():
        if isinstance(module, torch.fx.GraphModule):
            for node in module.graph.nodes:
                node.meta.pop("stack_trace", None)


def _refuse(config: PolicyConfig) -> None:
    if config.gate_choice == "expert":
        raise UserError(
            "a policy with gate_choice=expert cannot act, so there is nothing to export: train with gate_choice=token"
        )
    for role, kind in config.expert_kinds.items():
        if kind != "mlp":
            raise UserError(
                f"the {role} experts are of kind {kind!r}, which take whole frames or sentences and cannot be "
                "exported: expected all expert_kinds mlp"
            )
    if config.text not in (SCRATCH, "none"):
        raise UserError(
            f"the text encoder {config.text!r} cannot be exported, since its tokenizer needs more than numpy: "
            "expected a policy trained with text=scratch, or none"
        )


class _Numbered(nn.Module):
    """The text encoder for words that are numbered already."""

    def __init__(self, encoder: TextEncoder) -> None:
        super().__init__()
        self.encoder, self.width = encoder, encoder.width

    def forward(self, ids_BW: Tensor) -> tuple[Tensor, Tensor]:
        return self.encoder.read(ids_BW), ids_BW != PADDING


class _Graph(nn.Module):
    """A copy of the policy's parts between raw sensor values and actions."""

    def __init__(self, processor: Processor, network: Network) -> None:
        super().__init__()
        self.processor, self.network = copy.deepcopy(processor).cpu(), copy.deepcopy(network).cpu()
        if self.network.text is not None:
            self.network.text.encoder = _Numbered(self.network.text.encoder)  # type: ignore[arg-type]
        for layer in self.network.moe_layers:
            layer.execute = execute_everywhere

    def forward(self, images: dict[str, Tensor], state_BS: Tensor, ids_BW: Tensor | None = None) -> Tensor:
        """uint8 (B, H, W, 3) per camera, state (B, S), numbered words (B, W) -> actions (B, H, A)."""
        images = {camera: self.processor.image(camera, frames) for camera, frames in images.items()}
        sentences: Any = () if ids_BW is None else ids_BW  # which the text stem hands on as they are
        out = self.network(Inputs(images, self.processor.normalise(STATE, state_BS), sentences))
        return self.processor.unnormalise(ACTION, self.network.head.sample(out.action_BGD).float())


def _examples(features: Features, processor: Processor, vocabulary: Sequence[str]) -> list[Observation]:
    """Observations spread like the training data: noise for pictures, words at random."""
    rng, found = np.random.default_rng(0), []

    def drawn(key: str, shape: tuple[int, ...]) -> np.ndarray:
        draw = torch.from_numpy(rng.normal(size=shape).astype(np.float32))
        return processor.unnormalise(key, draw.to(next(processor.buffers()).device)).cpu().numpy()

    spoken = [word for word in vocabulary if words(word) == [word]]
    for n in range(N_EXAMPLES):
        images = {
            camera: (255 * drawn(IMAGE_PREFIX + camera, (*size, 3))).clip(0, 255).astype(np.uint8)
            for camera, size in features.cameras.items()
        }
        task = " ".join(rng.choice(spoken, size=n + 3)) if spoken else None
        found.append(Observation(images, drawn(STATE, (len(features.state_names),)), task))
    return found


def _batch(seen: Sequence[Observation], features: Features, vocabulary: dict[str, int] | None) -> tuple[Any, ...]:
    """Observations as the graph's inputs."""
    images = {camera: torch.from_numpy(np.stack([o.images[camera] for o in seen])) for camera in features.cameras}
    state_BS = torch.from_numpy(np.stack([o.state for o in seen if o.state is not None]))
    if vocabulary is None:
        return images, state_BS
    return images, state_BS, torch.from_numpy(number_words([o.task or "" for o in seen], vocabulary))
