"""Writes files so that a name either holds the complete new content or the old one, also after a power cut."""

from __future__ import annotations

import errno
import fcntl
import json
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from moe_robot.types import UserError

TEMPORARY = ".tmp"
"""Suffix of a file that is being written. Whatever carries it is rubbish once its writer is gone."""


def write_atomically(path: Path, write: Callable[[Path], None]) -> None:
    """Let ``write`` fill a temporary file beside ``path``, flush it to the disk, then give it its name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + TEMPORARY)
    try:
        write(temporary)
        _sync_file(temporary)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_directory(path.parent)


def write_together(files: Sequence[tuple[Path, Callable[[Path], None]]]) -> None:
    """As :func:`write_atomically` for several files, of which the last is what makes readers see the others.

    It gets its name when all others have theirs, on the disk too. Whatever fails before the first name is given leaves
    everything as it was. The disk is asked to flush them at once: one after the other each costs a turn of its journal,
    on a busy disk a tenth of a second.
    """
    temporaries = {path: path.with_name(path.name + TEMPORARY) for path, _ in files}
    *others, last = temporaries
    try:
        for path, write in files:
            path.parent.mkdir(parents=True, exist_ok=True)
            write(temporaries[path])
        with ThreadPoolExecutor(len(files)) as pool:
            list(pool.map(_sync_file, temporaries.values()))
            for path in others:
                os.replace(temporaries[path], path)
            list(pool.map(sync_directory, {path.parent for path in others}))
        os.replace(temporaries[last], last)
    except BaseException:
        for temporary in temporaries.values():
            temporary.unlink(missing_ok=True)
        raise
    sync_directory(last.parent)


def write_json(path: Path, data: Any) -> None:
    """Write ``data`` as indented JSON, atomically. NaN is refused: other readers would choke on it."""
    write_atomically(path, json_writer(data))


def json_writer(data: Any) -> Callable[[Path], None]:
    """What writes ``data`` as indented JSON. NaN is refused."""
    text = json.dumps(data, indent=4, allow_nan=False)

    def write(path: Path) -> None:
        path.write_text(text, encoding="utf-8")

    return write


def _sync_file(path: Path) -> None:
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def sync_directory(folder: Path) -> None:
    """Flush the folder's list of names, without which a rename may be lost in a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def disk_errors(folder: Path, kept: str = "what was finished is kept; the same command goes on") -> Iterator[None]:
    """Turn a full or unwritable disk into one line that names the folder and says what to do."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise UserError(f"no space left for {folder}: free some or choose another directory ({kept})") from error
        if isinstance(error, PermissionError) or error.errno == errno.EROFS:
            raise UserError(f"{folder} is not writable: choose another directory or change its permissions") from error
        if isinstance(error, NotADirectoryError | FileExistsError):
            raise UserError(f"{folder} is not a directory: choose another name") from error
        raise UserError(f"writing to {folder} failed: {error.strerror or error} ({kept})") from error


@contextmanager
def only_writer(folder: Path, wait: bool = False) -> Iterator[None]:
    """Hold ``folder`` for one process. The lock dies with its process, so a killed writer blocks nobody.

    Raises:
        UserError: another process holds it and ``wait`` is False.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"{folder} is being written by another process: wait for it or choose another directory"
            ) from None
        yield
