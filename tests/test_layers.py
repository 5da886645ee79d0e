"""The import layers of the house: who may import whom, and what costs nothing to import."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from moe_robot.cli import VERBS

ROOT = Path(__file__).parents[1]
PACKAGES = {
    "moe_robot": ROOT / "moe_robot",
    "moe_envs": ROOT / "envs/moe_envs",
    "moe_policies": ROOT / "policies/moe_policies",
}

VERSION = "moe_robot"  # the bare package holds only its version
COMMON = {"moe_robot.types", "moe_robot.registry", "moe_robot.kinematics", "moe_robot.processes", "moe_robot.words"}
ALLOWED = {
    "moe_robot": set(),
    "moe_robot.__main__": {"moe_robot.cli"},
    "moe_robot.types": set(),
    "moe_robot.registry": {"moe_robot.types"},
    "moe_robot.kinematics": {"moe_robot.types"},
    "moe_robot.processes": set(),
    "moe_robot.words": set(),
    "moe_robot.moe": set(),
    "moe_robot.data": COMMON,
    "moe_robot.evaluation": COMMON,
    "moe_robot.deploy": COMMON,
    "moe_robot.training": COMMON | {"moe_robot.data", "moe_robot.moe"},
    "moe_policies": COMMON | {"moe_robot.moe"},
    "moe_envs": COMMON,
}
"""Room -> the other rooms of the project that it may import. ``moe_robot.cli`` composes: it sees everything."""

HEAVY = {"torch", "torchvision", "transformers", "mujoco", "gymnasium", "cv2", "av", "pyarrow", "matplotlib", "scipy"}


def _modules() -> dict[str, Path]:
    """Dotted name -> file of every module in the three packages."""
    found: dict[str, Path] = {}
    for package, folder in PACKAGES.items():
        for file in sorted(folder.rglob("*.py")):
            parts = (package, *file.relative_to(folder).with_suffix("").parts)
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    return found


MODULES = _modules()


def _nodes(tree: ast.AST, for_types: bool) -> Iterator[ast.AST]:
    """All nodes below ``tree``, those under ``if TYPE_CHECKING`` only when asked for."""
    for node in ast.iter_child_nodes(tree):
        yield node
        if for_types or not (isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")):
            yield from _nodes(node, for_types)


def _imports(name: str, source: str, is_package: bool = False, for_types: bool = True) -> Iterator[str]:
    """Every module that ``source`` imports, at the top, inside functions, for types only or by a literal name."""
    for node in _nodes(ast.parse(source), for_types):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = name.split(".") if is_package else name.split(".")[:-1]
                base = ".".join([*parents[: len(parents) - node.level + 1], *filter(None, [node.module])])
            for alias in node.names:
                yield f"{base}.{alias.name}" if f"{base}.{alias.name}" in MODULES else base
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = ast.unparse(node.func)
            if called in {"importlib.import_module", "import_module", "__import__"}:
                yield str(node.args[0].value)


def _room(module: str) -> str:
    """``moe_robot.moe.router`` -> ``moe_robot.moe``; ``moe_policies.heads`` -> ``moe_policies``."""
    parts = module.split(".")
    return ".".join(parts[:2]) if parts[0] == "moe_robot" else parts[0]


def _own_imports(module: str, for_types: bool = True) -> list[str]:
    file = MODULES[module]
    found = _imports(module, file.read_text(), file.name == "__init__.py", for_types)
    return [name for name in found if name.split(".")[0] in PACKAGES]


def test_every_room_has_its_place_in_the_rule():
    assert {_room(module) for module in MODULES} - {"moe_robot.cli"} <= set(ALLOWED)


@pytest.mark.parametrize("module", [m for m in MODULES if _room(m) != "moe_robot.cli"])
def test_a_module_imports_only_rooms_that_its_own_may_see(module):
    allowed = ALLOWED[_room(module)] | {_room(module)}
    trespasses = [name for name in _own_imports(module) if _room(name) not in allowed and name != VERSION]
    assert not trespasses


def test_no_module_imports_itself_through_others():
    graph = {module: {name for name in _own_imports(module, for_types=False)} for module in MODULES}
    finished: set[str] = set()

    def walk(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, " -> ".join([*path, module])
        if module not in finished:
            for name in graph.get(module, ()):
                walk(name, (*path, module))
            finished.add(module)

    for module in graph:
        walk(module, ())


@pytest.mark.parametrize(
    ("source", "seen"),
    [
        ("def f():\n    from moe_robot.data import store", "moe_robot.data"),
        ("from .. import data", "moe_robot.data"),
        ("from ..data import store", "moe_robot.data"),
        ("import importlib\nimportlib.import_module('moe_policies.policy')", "moe_policies"),
        ("from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import moe_envs.rendering", "moe_envs"),
    ],
)
def test_no_form_of_import_escapes_the_rule(source, seen):
    assert seen in {_room(name) for name in _imports("moe_robot.moe.router", source)}


@pytest.mark.parametrize(
    ("room", "permitted"),
    [
        ("moe_robot.types", {"numpy"}),
        ("moe_robot.kinematics", {"numpy"}),
        ("moe_robot.words", {"numpy"}),
        ("moe_robot.registry", {"numpy", "gymnasium", "yaml"}),
        ("moe_robot.moe", {"torch"}),
    ],
)
def test_the_lowest_rooms_need_next_to_nothing_foreign(room, permitted):
    foreign: set[str] = set()
    for module, file in MODULES.items():
        if _room(module) == room:
            names = {name.split(".")[0] for name in _imports(module, file.read_text(), file.name == "__init__.py")}
            foreign |= names - set(sys.stdlib_module_names) - set(PACKAGES)
    assert foreign <= permitted


def _loaded_after(code: str) -> set[str]:
    """Top-level packages in ``sys.modules`` after ``code`` ran in a fresh interpreter."""
    report = "\nimport sys; print('\\n', *{name.partition('.')[0] for name in sys.modules})"
    done = subprocess.run([sys.executable, "-c", code + report], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.splitlines()[-1].split())


def test_packages_are_empty_handed_when_imported():
    packages = [module for module, file in MODULES.items() if file.name == "__init__.py"]
    packages.remove("moe_robot.moe")  # whoever imports it wants its torch modules
    code = "\n".join(f"import {package}" for package in packages)
    loaded = _loaded_after(code) & HEAVY
    assert not loaded


@pytest.mark.parametrize("arguments", [[], *([verb] for verb in VERBS)], ids=lambda a: " ".join(a) or "overview")
def test_help_is_given_without_loading_torch(arguments):
    code = f"from moe_robot.cli import main\nassert main({[*arguments, '--help']}) == 0"
    loaded = _loaded_after(code) & {"torch", "torchvision", "transformers", "mujoco"}
    assert not loaded
