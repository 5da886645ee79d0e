"""A policy whose plans tell what they were made of, served by ``moe-robot serve`` in a process of its own."""

import json
import os
from contextlib import contextmanager
from pathlib import Path

import pytest
from robots import ServedBy

PLUGIN = Path(__file__).parent / "plugin"


@pytest.fixture(autouse=True, scope="module")
def mirror(plugged_in):
    """The plug-in of these tests; gone after the module, so that no other test finds it."""
    with plugged_in(PLUGIN) as module:
        yield module


def write_checkpoint(folder: Path, **config) -> Path:
    """A checkpoint of the plug-in's policy, put in its place at once as a careful trainer does."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in (("model.safetensors", os.urandom(16)), ("config.json", b"")):
        part = folder / f"{name}.part"
        part.write_bytes(content or json.dumps({"policy": "mirror", **config}).encode())
        part.replace(folder / name)
    return folder


@pytest.fixture
def checkpoint(tmp_path):
    return write_checkpoint(tmp_path / "policy")


@pytest.fixture
def write():
    return write_checkpoint


@pytest.fixture
def serve(command):
    """Starts servers that end with the test."""

    def start(checkpoint, *options) -> ServedBy:
        return ServedBy(command("serve", checkpoint, "--port", "0", "--device", "cpu", *options))

    return start


@contextmanager
def _shared(folder):
    from commands import commands

    with commands() as start:
        yield ServedBy(start("serve", write_checkpoint(folder), "--port", "0", "--device", "cpu"))


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """One server for all tests of a file."""
    with _shared(tmp_path_factory.mktemp("served")) as served:
        yield served
