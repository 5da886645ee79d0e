"""Puts the tests' own environment and sample episodes where Python finds them, in workers and command lines too."""

import importlib
import os
import sys
from pathlib import Path

import pytest

PLUGIN = Path(__file__).parent / "plugin"
sys.path.insert(0, str(PLUGIN))  # at import: test modules import from it; spawned workers inherit it


@pytest.fixture(autouse=True, scope="session")
def pointworld():
    """The environment registered here, and PYTHONPATH set so that processes started by a command line find it."""
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(PLUGIN), before]))
    module = importlib.import_module("pointworld")
    module.register()
    yield module
    if before is None:
        del os.environ["PYTHONPATH"]
    else:
        os.environ["PYTHONPATH"] = before
