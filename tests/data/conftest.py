"""Puts the tests' own environment and sample episodes where Python finds them, in workers and command lines too."""

import sys
from pathlib import Path

import pytest

PLUGIN = Path(__file__).parent / "plugin"
sys.path.insert(0, str(PLUGIN))  # at import: test modules import from it; spawned workers inherit it


@pytest.fixture(autouse=True, scope="session")
def pointworld(plugged_in):
    """The environment registered here, and found by processes that a command line starts."""
    with plugged_in(PLUGIN) as module:
        module.register()
        yield module
