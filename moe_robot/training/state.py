"""The state of a run, from which it goes on: written beside the training, whole or not at all, by one process or many.

``RUN/state/step-00000400`` is a folder of torch.distributed.checkpoint. Every tensor is stored under its name in the
whole policy, each expert's weights and moments apart, so a state may be read by any number of processes and with any
division of the experts. A folder is written under another name, flushed, and then given its own: whatever has its name
is complete.
"""

from __future__ import annotations

import json
import pickle
import shutil
import threading
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta, TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load as read
from torch.distributed.checkpoint.state_dict_saver import save as write

from moe_robot.data.durable import TEMPORARY, sync_directory
from moe_robot.training.checkpoint import OLD_STATE, STATES, complete_states, newest_state
from moe_robot.training.optimise import AveragedWeights
from moe_robot.types import UserError

VALUES = "values"

warnings.filterwarnings("ignore", message="torch.distributed is disabled")  # one process saves by itself: as meant


class States:
    """Saves and loads the states of one run.

    Args:
        run: folder of the run.
        keep: how many states are kept.
        leads: whether this process is the one that gives folders their names and removes them.
        group: of the processes that save together; None for one by itself.
    """

    def __init__(self, run: Path, keep: int, leads: bool = True, group: Any = None) -> None:
        self.run, self.keep, self.leads, self.group = run, keep, leads, group
        self.saved = -1
        """The step of the latest state that was saved or gone on from."""
        self._writing: threading.Thread | None = None
        self._failure: BaseException | None = None
        if leads:
            for leftover in (run / STATES).glob(f"*{TEMPORARY}"):
                shutil.rmtree(leftover)

    def save(self, step: int, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        """Copy the state and write it in the background; waits for the one before. All processes call it together.

        Args:
            step: optimiser steps that were made.
            tensors: of this process; one that several have is written once.
            values: plain values, the same for all.
        """
        self.wait()
        folder = self.run / STATES / f"step-{step:08d}"
        if step == self.saved:  # not whether the folder is there: it has its name a little later than others may look
            return
        self.saved = step
        staged = {name: tensor.detach().to("cpu", copy=True) for name, tensor in tensors.items()}
        staged[VALUES] = torch.frombuffer(bytearray(json.dumps(values).encode()), dtype=torch.uint8)
        self._writing = threading.Thread(target=self._write, args=(folder, staged), daemon=True)
        self._writing.start()

    def wait(self) -> None:
        """Until the state that is being written is complete.

        Raises:
            OSError: it could not be written; the one before is still there.
        """
        if self._writing is not None:
            self._writing.join()
            self._writing = None
        if self._failure is not None:
            failure, self._failure = self._failure, None
            raise failure

    def settle(self) -> None:
        """Until nothing is being written any more, whatever came of it: before a run ends with an error."""
        if self._writing is not None:
            self._writing.join()
        self._writing = self._failure = None

    def _write(self, folder: Path, staged: dict[str, Tensor]) -> None:
        temporary = folder.with_name(folder.name + TEMPORARY)
        try:
            writer = FileSystemWriter(temporary)
            write(staged, storage_writer=writer, process_group=self.group, no_dist=self.group is None)
            if self.leads:  # all have written by now
                sync_directory(temporary)
                temporary.rename(folder)
                sync_directory(folder.parent)
                for old in sorted(complete_states(self.run))[: -self.keep]:
                    shutil.rmtree(old.rename(old.with_name(old.name + TEMPORARY)))
        except BaseException as error:
            self._failure = _cause(error)
            if self.leads:
                shutil.rmtree(temporary, ignore_errors=True)


def load(run: Path, wanted: Callable[[str], bool] = lambda name: True) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors with the wanted names, and the plain values, of the latest state. Nothing in it is executed.

    Raises:
        UserError: there is none, it is of an older version, or it is damaged.
    """
    folder = newest_state(run)
    if folder is None and (run / OLD_STATE).exists():
        raise UserError(
            f"{run / OLD_STATE} was saved by an older version, which this one cannot go on from: finish the run with "
            "that one, or begin again with another --out"
        )
    if folder is None:
        raise UserError(
            f"nothing to resume in {run}: expected {STATES}/step-* of an interrupted run; leave out --resume to begin"
        )
    try:
        reader = _Reader(folder)
        entries = reader.read_metadata().state_dict_metadata
        tensors = {
            name: torch.empty(entry.size, dtype=entry.properties.dtype)
            for name, entry in entries.items()
            if isinstance(entry, TensorStorageMetadata) and (name == VALUES or wanted(name))
        }
        read(tensors, storage_reader=reader, no_dist=True)
        values = json.loads(bytes(tensors.pop(VALUES).tolist()))
    except (Exception, CheckpointException) as error:  # the latter is no Exception
        reason = " ".join(str(_cause(error)).split())[:200]
        older = len(complete_states(run)) > 1
        remedy = "remove that folder to go on from the one before" if older else "begin again with another --out"
        raise UserError(f"{folder} cannot be read ({reason}): {remedy}") from error
    return tensors, values


def pack(model: nn.Module, average: AveragedWeights, optimiser: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Everything that training changes, as tensors under ``<part>/<name>``."""
    parts = {
        "model": model.state_dict(),
        "average": average.state,
        "optimiser": moments(model, optimiser),
        "random": {"torch": torch.get_rng_state()},
    }
    return {f"{part}/{name}": tensor for part, tensors in parts.items() for name, tensor in tensors.items()}


def wanted_by(model: nn.Module) -> Callable[[str], bool]:
    """Which tensors of a state a process needs that keeps these weights, perhaps not all there are."""
    mine = {f"{part}/{name}" for name in model.state_dict() for part in ("model", "average", "optimiser")}
    return lambda name: name.startswith("random/") or name in mine or name.rpartition("/")[0] in mine


def unpack(
    tensors: Mapping[str, Tensor], model: nn.Module, average: AveragedWeights, optimiser: torch.optim.Optimizer
) -> None:
    """The inverse of :func:`pack`, into a model, an average and an optimiser of the same shapes."""
    parts: dict[str, dict[str, Tensor]] = {"model": {}, "average": {}, "optimiser": {}, "random": {}}
    for name, tensor in tensors.items():
        part, _, rest = name.partition("/")
        parts[part][rest] = tensor
    model.load_state_dict(parts["model"])
    average.state = {name: parts["average"][name].to(tensor) for name, tensor in average.state.items()}
    restore_moments(model, optimiser, parts["optimiser"])
    torch.set_rng_state(parts["random"]["torch"])


def moments(model: nn.Module, optimiser: torch.optim.Optimizer) -> dict[str, Tensor]:
    """What the optimiser remembers, as ``<name of the weight>/<name of the moment>``, each expert's apart."""
    found = {}
    for name, weight in model.state_dict(keep_vars=True).items():
        parameter, row = _parameter_of(weight)
        for kind, value in optimiser.state.get(parameter, {}).items():
            found[f"{name}/{kind}"] = value if row is None or not value.ndim else value[row]
    return found


def restore_moments(model: nn.Module, optimiser: torch.optim.Optimizer, found: Mapping[str, Tensor]) -> None:
    """The inverse of :func:`moments`. Weights without an entry had never had a gradient, and have none remembered."""
    kinds = {name.rpartition("/")[2] for name in found}
    for name, weight in model.state_dict(keep_vars=True).items():
        parameter, row = _parameter_of(weight)
        for kind in kinds:
            value = found.get(f"{name}/{kind}")
            if value is None:
                continue
            memory = optimiser.state[parameter]
            if not value.ndim:
                memory[kind] = value.clone()
            elif row is None:
                memory[kind] = value.to(parameter.device)
            else:
                memory.setdefault(kind, torch.zeros_like(parameter, requires_grad=False))[row] = value.to(parameter)


def _parameter_of(weight: Tensor) -> tuple[Tensor, int | None]:
    """The parameter behind an entry of the state dict, and its row where a bank holds several experts."""
    bank = weight._base
    if isinstance(weight, nn.Parameter) or bank is None:
        return weight, None
    return bank, int(weight.storage_offset() - bank.storage_offset()) // bank.stride(0)


def _cause(error: BaseException) -> BaseException:
    """What went wrong in one of the processes, out of the wrapping that torch puts around it."""
    if isinstance(error, CheckpointException) and error.failures:
        return next(iter(error.failures.values()))[0]
    return error


class _Reader(FileSystemReader):
    """Reads a state without executing anything in it: torch's own would unpickle whatever its index says."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        with (Path(self.path) / ".metadata").open("rb") as file:
            metadata = _Index(file).load()
        metadata.storage_meta = metadata.storage_meta or StorageMeta()
        metadata.storage_meta.load_id = self.load_id
        return metadata


class _Index(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _KNOWN or (module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"its index names {module}.{name}")


_RECORDS = (
    "Metadata", "TensorStorageMetadata", "TensorProperties", "_MEM_FORMAT_ENCODING", "ChunkStorageMetadata",
    "MetadataIndex", "StorageMeta",
)  # fmt: skip
_KNOWN = {("torch.distributed.checkpoint.metadata", name) for name in _RECORDS} | {
    ("torch.distributed.checkpoint.filesystem", "_StorageInfo"),
    ("torch.serialization", "_get_layout"),
    ("torch", "Size"),
    ("pathlib", "PosixPath"),
    ("pathlib._local", "PosixPath"),  # Python 3.13
}
"""All that an index of tensors is made of."""
