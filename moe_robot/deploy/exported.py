"""A policy that ``moe-robot export`` wrote, run by onnxruntime: numpy and onnxruntime are all that it needs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from moe_robot.types import IMAGE_PREFIX, STATE, TASK, Features, Observation, UserError
from moe_robot.words import number_words

MANIFEST, ONNX, TORCH = "export.json", "policy.onnx", "policy.pt2"
FORMAT = 1
"""Of the manifest; one that is newer is refused."""


@dataclass(frozen=True)
class Manifest:
    """What stands beside an exported graph.

    Attributes:
        features: what the policy sees and commands.
        chunk: H, control steps planned at once.
        execute: control steps of a plan that the policy was evaluated with before it planned again.
        vocabulary: number of each word (``moe_robot.words``); None for a graph without the input ``task``.
        only_instruction: the one sentence that it follows; empty for all.
        any_batch: whether the graph takes batches of any size, or of one.
        origin: where it comes from: hash of the checkpoint's weights, versions, largest difference in a trial.
    """

    features: Features
    chunk: int
    execute: int
    vocabulary: Mapping[str, int] | None = None
    only_instruction: str = ""
    any_batch: bool = False
    origin: Mapping[str, Any] = field(default_factory=dict)

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the graph's inputs, in order."""
        cameras = [IMAGE_PREFIX + camera for camera in self.features.cameras]
        return (*cameras, STATE, *((TASK,) if self.vocabulary is not None else ()))

    def write(self, folder: Path) -> None:
        """As ``export.json`` in ``folder``."""
        fields = {name: getattr(self, name) for name in ("chunk", "execute", "vocabulary", "only_instruction")}
        content = {"format": FORMAT, "features": self.features.to_json(), "inputs": self.inputs, **fields}
        content |= {"batch": "dynamic" if self.any_batch else 1, "origin": dict(self.origin)}
        (folder / MANIFEST).write_text(json.dumps(content, indent=2), encoding="utf-8")

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """The inverse of :meth:`write`.

        Raises:
            UserError: it is no such file, or a newer one.
        """
        path = folder / MANIFEST
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            if content["format"] > FORMAT:
                raise UserError(f"{path} has format {content['format']}, expected at most {FORMAT}: update moe-robot")
            fields = {name: content[name] for name in ("chunk", "execute", "vocabulary", "only_instruction", "origin")}
            features, any_batch = Features.from_json(content["features"]), content["batch"] == "dynamic"
        except (ValueError, KeyError, TypeError) as error:
            reason = f"{type(error).__name__}: {error}"
            raise UserError(f"{path} is not what moe-robot export writes ({reason}): export again") from error
        return cls(features, any_batch=any_batch, **fields)


def is_export(folder: Path) -> bool:
    """Whether ``folder`` holds an exported policy."""
    return (folder / MANIFEST).is_file()


class ExportedPolicy:
    """A policy that plans ahead, run by onnxruntime.

    Args:
        folder: what ``moe-robot export`` wrote.
        threads: of the processor that one plan may use.
        providers: of onnxruntime; only the processor's has been tried.

    Raises:
        UserError: there is no ``policy.onnx`` that fits its ``export.json``, or no onnxruntime.
    """

    def __init__(self, folder: Path, threads: int = 1, providers: Sequence[str] = ("CPUExecutionProvider",)) -> None:
        try:
            import onnxruntime
        except ImportError as error:
            raise UserError(f"{folder} needs onnxruntime: pip install onnxruntime") from error
        self.manifest, graph = Manifest.read(folder), folder / ONNX
        if not graph.is_file():
            raise UserError(f"{folder} has no {ONNX}, which is what runs here: export with --format onnx")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        try:
            self._session = onnxruntime.InferenceSession(str(graph), options, providers=list(providers))
        except Exception as error:  # onnxruntime's errors share no other class
            raise UserError(f"onnxruntime cannot load {graph}: {' '.join(str(error).split())[:200]}") from error
        there = tuple(node.name for node in self._session.get_inputs())
        if there != self.manifest.inputs:
            wanted = ", ".join(self.manifest.inputs)
            raise UserError(f"{graph} takes {', '.join(there)}, and its {MANIFEST} says {wanted}: export again")

    @property
    def features(self) -> Features:
        """The features the policy was made for."""
        return self.manifest.features

    def action_chunk(self, observation: Observation) -> np.ndarray:
        """The plan for the next H control steps, float32 (H, A), in the environment's units.

        Raises:
            UserError: the observation lacks something, or has another size.
        """
        feed = {IMAGE_PREFIX + camera: self._frame(observation, camera)[None] for camera in self.features.cameras}
        feed[STATE] = self._state(observation)[None]
        if self.manifest.vocabulary is not None:
            feed[TASK] = number_words([self._sentence(observation)], self.manifest.vocabulary)
        return self._run(feed)[0]

    def predict_action_chunk(self, batch: Mapping[str, Any]) -> np.ndarray:
        """A batch of observations, checked by the caller -> plans (B, H, A), float32, in the environment's units.

        Args:
            batch: ``observation.images.<camera>`` uint8 (B, H, W, 3), ``observation.state`` float32 (B, S), and
                ``task``, B sentences.

        Raises:
            UserError: the graph was written for one observation at a time, or does not follow one of the sentences.
        """
        if not self.manifest.any_batch:
            raise UserError("this policy was exported for one observation at a time: export it with --batch dynamic")
        feed = {name: batch[name] for name in self.manifest.inputs if name != TASK}
        if self.manifest.vocabulary is not None:
            sentences = [self._sentence(Observation({}, None, sentence)) for sentence in batch[TASK]]
            feed[TASK] = number_words(sentences, self.manifest.vocabulary)
        return self._run(feed)

    def _run(self, feed: Mapping[str, np.ndarray]) -> np.ndarray:
        (actions_BHA,) = self._session.run(None, dict(feed))
        return np.asarray(actions_BHA)

    def _frame(self, observation: Observation, camera: str) -> np.ndarray:
        wanted, frame = (*self.features.cameras[camera], 3), observation.images.get(camera)
        if frame is None:
            there = ", ".join(map(repr, observation.images)) or "none"
            raise UserError(f"the observation lacks camera {camera!r} (it has {there}): an exported policy needs all")
        if frame.shape != wanted or frame.dtype != np.uint8:
            raise UserError(f"camera {camera!r} gives {frame.dtype} {frame.shape}, expected uint8 {wanted}")
        return frame

    def _state(self, observation: Observation) -> np.ndarray:
        names, state = self.features.state_names, observation.state
        if state is None or state.shape != (len(names),):
            shape = None if state is None else state.shape
            raise UserError(f"the state has shape {shape}, expected ({len(names)},): {', '.join(names)}")
        return state.astype(np.float32, copy=False)

    def _sentence(self, observation: Observation) -> str:
        only = self.manifest.only_instruction
        if not observation.task:
            raise UserError("the observation has no instruction, and the policy reads one: set its task")
        if only and observation.task != only:
            raise UserError(f"this policy was cut out for {only!r} and follows nothing else, got {observation.task!r}")
        return observation.task
