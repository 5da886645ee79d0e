"""The multimodal policy: camera frames, joint and grasp state and a sentence in, a chunk of actions out."""

from __future__ import annotations

import dataclasses
import json
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save
from torch import Tensor, nn

from moe_policies.capture import capture
from moe_policies.config import PolicyConfig
from moe_policies.cost import WORDS, cost_of
from moe_policies.gate_losses import begin_gate_losses, weighted
from moe_policies.network import Inputs, Network
from moe_policies.presets import PRESETS, preset
from moe_policies.pretrained import TextEncoder, resolve_text_encoder
from moe_policies.processor import Processor
from moe_policies.senses import Senses
from moe_policies.studies import Studies
from moe_policies.surgery import extracted_config, fill_common, fill_from_choice, fill_from_dense, upcycled_config
from moe_policies.tracing import label_tokens, tell, tell_each, trace
from moe_policies.upkeep import Watches
from moe_robot.moe import ALONE, ExpertBank, Ranks, RoutingPlan, at_least_float32, drop_rate, expert_names
from moe_robot.registry import unknown
from moe_robot.types import (
    ACTION,
    ACTION_IS_PAD,
    ENVIRONMENT_STATE,
    TASK_NAME,
    CapturedPolicy,
    Cost,
    Features,
    FeatureStatistics,
    GateEvent,
    Observation,
    Routing,
    TokenRoutes,
    UserError,
)  # fmt: skip
from moe_robot.words import words

POLICY_TYPE = "multimodal"


class MultimodalPolicy(nn.Module):
    """A mixture-of-experts policy in LeRobot's interface, controlling one robot at a time.

    Args:
        config: the shape of the network.
        features: what the policy sees and commands.
        statistics: normalisation, one entry per feature; None only when a checkpoint will fill them.
        text_encoder: None for a policy that cannot read (``config.text == "none"``).
    """

    def __init__(
        self,
        config: PolicyConfig,
        features: Features,
        statistics: Mapping[str, FeatureStatistics] | None,
        text_encoder: TextEncoder | None,
    ) -> None:
        super().__init__()
        self.config, self._features = config, features
        self.processor = Processor(config, features, statistics)
        self.network = Network(config, features, text_encoder)
        self.senses = Senses(config, features, reads=text_encoder is not None)
        self.inference_count = 0
        self._queue: deque[np.ndarray] = deque()
        self.latest_plans: Sequence[Sequence[RoutingPlan]] = ()
        """Of the latest pass, per layer with experts."""
        self._present: Sequence[Sequence[Tensor]] = ()
        self.studies = Studies(self.network, config.preset)
        self.watches = Watches(config, self.network.moe_layers)
        self.ranks: Ranks = ALONE
        """Who shares the batches of training."""

    # --- making one -------------------------------------------------------------------------------------------------
    @staticmethod
    def presets() -> tuple[str, ...]:
        """Names that :meth:`from_preset` takes."""
        return tuple(PRESETS)

    @staticmethod
    def preset_horizon(name: str, **overrides: Any) -> int:
        """H of the preset, so that a data set can be opened before the policy is made."""
        return preset(name, **overrides).chunk

    @staticmethod
    def preset_settings(name: str, **overrides: Any) -> dict[str, Any]:
        """All settings of the preset after defaults, before any data: what two runs must share to be the same."""
        return preset(name, **overrides).to_json()

    @classmethod
    def from_preset(
        cls,
        name: str,
        features: Features,
        statistics: Mapping[str, FeatureStatistics],
        sentences: Iterable[str] = (),
        task_names: Sequence[str] = (),
        **overrides: Any,
    ) -> MultimodalPolicy:
        """A fresh policy.

        Args:
            name: one of :meth:`presets`.
            features: of the data set.
            statistics: of the data set.
            sentences: the training instructions, for the vocabulary of the scratch encoder.
            task_names: names of the tasks behind the sentences, where the data set has them; for training only.
            overrides: fields of :class:`PolicyConfig`.
        """
        if name not in PRESETS:
            raise unknown("preset", name, PRESETS)
        config = preset(name, **overrides)
        if config.text != "none" and config.task_weight:
            config = dataclasses.replace(config, task_names=tuple(task_names))
        if config.places_weight and config.glimpses:
            config = dataclasses.replace(config, places=features.environment_names)
        encoder = None if config.text == "none" else resolve_text_encoder(config.text, sentences)
        return cls(config, features, statistics, encoder)

    @classmethod
    def from_pretrained(cls, folder: str | Path, device: str = "cpu") -> MultimodalPolicy:
        """Load a checkpoint strictly: every weight present, no unknown key, in evaluation mode."""
        folder = Path(folder)
        data = json.loads((folder / "config.json").read_text())
        # Policies that were saved before there was a choice looked for things.
        config = PolicyConfig.from_json({"search": "things"} | data["config"])
        encoder = None if config.text == "none" else TextEncoder.load(folder / "text_encoder")
        policy = cls(config, Features.from_json(data["features"]), None, encoder)
        try:
            policy.load_state_dict(load_file(folder / "model.safetensors"), strict=True)
        except (RuntimeError, OSError) as error:
            reason = " ".join(str(error).split())[:300]
            raise UserError(f"the weights in {folder} do not fit its config.json: {reason}") from error
        return policy.to(device).stack_experts().eval()

    def stack_experts(self) -> MultimodalPolicy:
        """Keep each layer's experts in one parameter, which is quickest for acting, and for training on a GPU.

        Call it before an optimiser is made: it replaces parameters. Weights are saved the same either way.
        """
        for layer in self.network.moe_layers:
            if isinstance(layer.experts, ExpertBank):
                layer.experts.store_as("stacked")
        return self

    def upcycled(self, **overrides: Any) -> MultimodalPolicy:
        """A mixture whose experts all start as this dense policy's networks (sparse upcycling), with the same senses.

        It acts exactly like this policy until its first step of training.

        Args:
            overrides: fields of :class:`PolicyConfig` that shape gate, experts and losses, for example ``experts``.
        """
        sparse = self._like(upcycled_config(self.config, overrides))
        fill_from_dense(sparse.network, self.network)
        return sparse

    def continued(
        self, features: Features, sentences: Iterable[str] = (), task_names: Sequence[str] = ()
    ) -> MultimodalPolicy:
        """A copy to train further: the same network, normalisation and text encoder.

        Where the demonstrations have tasks that it was not told of, telling tasks apart is learned anew; where they do
        not tell of places, that loss is left out.

        Args:
            features: of the demonstrations, which fit the policy's.
            sentences: their instructions.
            task_names: of the tasks behind the sentences, where they have them.

        Raises:
            UserError: words that the policy cannot read, or other places than those that it was told of.
        """
        known = None if self.network.text is None else self.network.text.encoder.vocabulary
        if known is not None:
            new = sorted({word for sentence in sentences for word in words(sentence)} - set(known))  # type: ignore[arg-type]
            if new:
                raise UserError(
                    f"the policy's text encoder, made from its own demonstrations, cannot read {', '.join(new[:5])}: "
                    "train a fresh policy on all demonstrations, or one with --config text=bundled:minilm"
                )
        told, tell_of = self.config.places, features.environment_names
        if told and tell_of and tell_of != told:
            raise UserError(
                f"the demonstrations tell of {', '.join(tell_of)}; this policy was told of {', '.join(told)}: "
                "expected the same or none"
            )
        config = self.config
        if config.task_names and not (task_names and set(task_names) <= set(config.task_names)):
            config = dataclasses.replace(config, task_names=tuple(task_names))
        other = self._like(config)
        fill_common(other.network, self.network)
        return other

    def extracted(self, sentence: str) -> MultimodalPolicy:
        """The small dense policy that one instruction needs: the same actions for it, and no other is followed.

        Only for gates that decide by the instruction (``routing_unit``).
        """
        config = extracted_config(self.config, sentence)
        images = {name: np.zeros((*size, 3), np.uint8) for name, size in self.features.cameras.items()}
        state = np.zeros(len(self.features.state_names), np.float32)  # any picture will do: the sentence decides
        self.eval().predict_action_chunk(self.senses.batch_of_one(Observation(images, state, sentence)))
        small = self._like(config)
        fill_from_choice(small.network, self.network, self.latest_plans)
        return small.eval()

    def captured(self, any_batch: bool = True) -> CapturedPolicy:
        """The policy as one graph with its normalisation; refused for what no graph holds (UserError)."""
        return capture(self.config, self.features, self.processor, self.network, any_batch)

    def _like(self, config: PolicyConfig) -> MultimodalPolicy:
        """A fresh policy of another shape with the same features, normalisation and text encoder."""
        encoder = None if self.network.text is None else self.network.text.encoder
        other = MultimodalPolicy(config, self.features, None, encoder)  # type: ignore[arg-type]
        other.processor.load_state_dict(self.processor.state_dict())
        return other.to(self.device)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write ``config.json``, ``model.safetensors`` (normalisation inside), the text encoder and a model card."""
        folder = Path(folder)
        weights = save({k: v.contiguous() for k, v in self.state_dict().items()})
        folder.mkdir(parents=True, exist_ok=True)
        config = {"policy": POLICY_TYPE, "config": self.config.to_json(), "features": self.features.to_json()}
        (folder / "config.json").write_text(json.dumps(config, indent=2))
        (folder / "model.safetensors").write_bytes(weights)  # unlike save_file, this tells a full disk by its name
        if self.network.text is not None:
            self.network.text.encoder.save(folder / "text_encoder")  # type: ignore[operator]
        (folder / "README.md").write_text(self._model_card())

    def _model_card(self) -> str:
        n = sum(p.numel() for p in self.parameters())
        cameras = ", ".join(f"{name} {h}x{w}" for name, (h, w) in self.features.cameras.items())
        return (
            f"---\nlibrary_name: moe_robot\ntags: [robotics, mixture-of-experts]\n---\n"
            f"# {self.config.preset} policy\n\n{n:,} parameters; cameras {cameras}; "
            f"{len(self.features.state_names)} state entries; {len(self.features.action_names)} action entries at "
            f"{self.features.fps} Hz; text encoder `{self.config.text}`.\n\n"
            f"Load it with `moe_robot.registry.load_policy(folder)`; evaluate it with "
            f"`moe-robot eval`.\n"
        )

    # --- training ---------------------------------------------------------------------------------------------------
    @property
    def features(self) -> Features:
        """The features the policy was made for."""
        return self._features

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.network.queries.device

    def forward(self, batch: Mapping[str, Any]) -> tuple[Tensor, dict[str, float]]:
        """Training loss of a batch in the data set's keys, and numbers for the log.

        Where several processes share a batch, the mean of what they return is that of the whole batch.

        Args:
            batch: ``observation.images.<camera>`` uint8 (B, H, W, 3), ``observation.state`` (B, S), ``task`` list of
                B sentences, ``task_name`` list of B names, ``action`` (B, H, A), ``action_is_pad`` bool (B, H), and
                ``environment_state`` (B, n) for a policy that learns places; arrays or tensors.
        """
        inputs = self._inputs(batch)
        counted = self.ranks.begin_shares(~self._tensor(batch[ACTION_IS_PAD]))
        tells = self.network.places is not None and ENVIRONMENT_STATE in batch
        told_BN = self._tensor(batch[ENVIRONMENT_STATE]) if tells else None
        inside = {} if told_BN is None else self.network.in_pictures(told_BN)
        seen = {camera: self.ranks.begin_shares(inside_BT) for camera, inside_BT in inside.items()}
        with self._measuring_a_batch():
            out = self.network(inputs, self.studies.available_E)
        self.latest_plans, self._present = out.plans, out.present
        plans = [plan for of_layer in out.plans for plan in of_layer]
        of_gate = begin_gate_losses(self.config, self.network.roles, plans, self.ranks) if plans else None
        logs: dict[str, Tensor] = {}
        if plans and self.training:
            self.watches.note(out.plans)
            if self.config.capacity_factor is not None:
                logs["drop_rate"] = torch.stack([drop_rate(plan) for plan in plans]).mean()
        target_BHA = self.processor.normalise(ACTION, self._tensor(batch[ACTION]))
        loss = logs["action_loss"] = self.network.head.loss(out.action_BGD, target_BHA, counted(), self.ranks)
        if self.network.task_head is not None:
            names = torch.tensor([self.config.task_names.index(name) for name in batch[TASK_NAME]], device=self.device)
            guess = at_least_float32(self.network.task_head(out.summary_BS))
            logs["task_loss"] = F.cross_entropy(guess, names)
            loss = loss + self.config.task_weight * logs["task_loss"]
        if told_BN is not None:
            place_BN = self.processor.normalise(ENVIRONMENT_STATE, told_BN)[:, list(self.network.told.world)]
            found_BN = at_least_float32(self.network.told_places(out.looks, inputs.state_BS))
            logs["places_loss"] = (found_BN - place_BN).abs().mean()
            loss = loss + self.config.places_weight * logs["places_loss"]
            if seen:
                weights = {camera: shares() for camera, shares in seen.items()}
                logs["picture_loss"] = self.network.picture_loss(out.looks, told_BN, weights)
                loss = loss + self.config.pictures_weight * logs["picture_loss"]
        if of_gate is not None:
            losses = of_gate()
            loss = loss + weighted(self.config, losses)
            logs |= losses
        return loss, {name: float(value.detach()) for name, value in logs.items()}

    @contextmanager
    def _measuring_a_batch(self) -> Iterator[None]:
        """Expert choice is defined where a whole batch is at hand, so a loss may be measured in evaluation mode."""
        for layer in self.network.moe_layers:
            layer.router.whole_batch = True
        try:
            yield
        finally:
            for layer in self.network.moe_layers:
                layer.router.whole_batch = False

    def after_update(self, optimiser: Any = None) -> Sequence[GateEvent]:
        """Move the balancing biases, look for cold experts, and bring them back where the configuration says so.

        Args:
            optimiser: whose memory of revived weights is cleared; None when there is none.

        Returns:
            what happened, for the log.
        """
        return self.watches.after_update(self.config, self.network.moe_layers, optimiser)

    def cost(self, words: int = WORDS) -> Cost:
        """Parameters, and the floating-point operations of one new action chunk."""
        return cost_of(self.network, words)

    # --- missing sensors --------------------------------------------------------------------------------------------
    @property
    def sensors(self) -> tuple[str, ...]:
        """What can be missing: the cameras, the state's parts ("arm", "grasp"), and "language"."""
        return self.senses.names

    def disable_sensors(self, names: Sequence[str]) -> None:
        """Treat these sensors as missing from now on (to study what the policy needs); empty switches all on."""
        self.senses.disable(names)

    # --- acting -----------------------------------------------------------------------------------------------------
    @torch.inference_mode()
    def predict_action_chunk(self, batch: Mapping[str, Any]) -> Tensor:
        """A batch of observations (keys as in :meth:`forward`, without actions) -> actions (B, H, A) in env units.

        A policy trained with ``sensor_dropout`` may act without a camera or without the state: leave its key out.
        """
        if self.config.gate_choice == "expert":
            raise UserError(
                "this policy was trained with gate_choice=expert, for studies of training only: what an expert takes "
                "of one robot would depend on the rest of the batch; train with gate_choice=token to act"
            )
        out = self.network(self._inputs(batch), self.studies.available_E)
        self.latest_plans, self._present = out.plans, out.present
        self.inference_count += 1
        return self.processor.unnormalise(ACTION, self.network.head.sample(out.action_BGD).float())

    def select_action(self, observation: Observation) -> np.ndarray:
        """The next action (A,), float32. Runs the network when the last chunk's ``execute`` steps are used up."""
        if not self._queue:
            self._queue.extend(self.action_chunk(observation)[: self.config.execute])
        return self._queue.popleft()

    def action_chunk(self, observation: Observation) -> np.ndarray:
        """The plan for the next H control steps, float32 (H, A). Always runs the network."""
        return self.predict_action_chunk(self.senses.batch_of_one(observation))[0].cpu().numpy().astype(np.float32)

    @property
    def steps_per_plan(self) -> int:
        """How many actions of a plan are played before the next one is made."""
        return self.config.execute

    def action_chunks(self, observations: Sequence[Observation]) -> np.ndarray:
        """The plans of B robots, float32 (B, H, A), from one pass. :meth:`select_action` goes on with its own."""
        return self.predict_action_chunk(self.senses.batch(observations)).cpu().numpy().astype(np.float32)

    def reset(self) -> None:
        """Forget the episode: the rest of the last chunk is dropped."""
        self._queue.clear()

    @property
    def knockouts(self) -> tuple[str, ...]:
        """What :meth:`disable_experts` takes; nothing for a dense policy."""
        return self.studies.names

    def disable_experts(self, roles: Sequence[str]) -> None:
        """Switch experts or a part of the gate off, for a study: see :class:`Studies`. Empty: all is on again."""
        self.studies.switch_off(roles)

    def routing(self) -> Routing | None:
        """Routes of the latest forward pass, or None without a gate."""
        if not self.latest_plans:
            return None
        return tell(self.latest_plans, expert_names(self.config.experts), self.network.roles)

    def routings(self) -> tuple[Routing, ...]:
        """Routes of the latest forward pass, one per sample; empty without a gate."""
        if not self.latest_plans:
            return ()
        return tell_each(self.latest_plans, self._present, expert_names(self.config.experts), self.network.roles)

    def token_routes(self) -> tuple[TokenRoutes, ...]:
        """Which token of the latest forward pass went to which experts, per layer; empty without a gate."""
        if not self.latest_plans:
            return ()
        patches, glimpses = self.config.patches, self.config.glimpses
        others = len(label_tokens(self.network, 0, patches, 0))
        n_words = self._present[0][0].shape[1] - others  # the glimpses are not among the first to enter
        return trace(self.latest_plans, self._present, label_tokens(self.network, n_words, patches, glimpses))

    def _tensor(self, value: Any) -> Tensor:
        return torch.as_tensor(value).to(self.device, non_blocking=True)

    def _inputs(self, batch: Mapping[str, Any]) -> Inputs:
        return self.senses.inputs(batch, self.processor, self.device, self.training, self.ranks)
