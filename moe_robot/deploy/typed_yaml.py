"""Reads a YAML file into frozen dataclasses; every complaint is one line that begins with the file and the line number.

The dataclasses are the schema: a field is a key, its annotation is the type, a field without a default must be there.
"""

from __future__ import annotations

import dataclasses
import math
import types
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import yaml

from moe_robot.registry import unknown
from moe_robot.types import UserError

T = TypeVar("T")


class Inconsistent(ValueError):
    """Raised by a dataclass's ``__post_init__``: the value of ``key`` does not fit the others."""

    def __init__(self, key: str, message: str) -> None:
        super().__init__(message)
        self.key = key


def read(kind: type[T], path: Path) -> T:
    """The object of dataclass ``kind`` that the file holds.

    Understood annotations: ``str``, ``int``, ``float``, ``Literal``, tuples, ``X | None``, dataclasses and
    ``Mapping[str, X]``. Numbers must be finite. Keys that are unknown or stand twice are refused.

    Raises:
        UserError: ``FILE:LINE: KEY: what is wrong, what was expected``.
    """
    try:
        root = yaml.compose(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}; give the path of a YAML file") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is no text in UTF-8: expected a YAML file") from error
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise UserError(f"{path}:{line}: this is no YAML: {error.problem}; mend the line or the one before") from error
    except yaml.YAMLError as error:
        raise UserError(f"{path}: this is no YAML: {' '.join(str(error).split())}") from error
    except RecursionError:
        raise UserError(f"{path}: nested too deeply; expected a few levels of keys") from None
    if root is None:
        raise UserError(f"{path}:1: the file is empty: expected the keys {', '.join(_fields(kind))}")
    return _Reader(path).value(root, kind, "")


def _fields(kind: Any) -> dict[str, dataclasses.Field]:
    return {field.name: field for field in dataclasses.fields(kind)}


@dataclass(frozen=True)
class _Reader:
    """Turns YAML nodes, which know their lines, into values. ``key`` is the dotted way to a value, for people."""

    path: Path

    def error(self, node: yaml.Node, key: str, message: str) -> UserError:
        place = f"{self.path}:{node.start_mark.line + 1}"
        return UserError(f"{place}: {key}: {message}" if key else f"{place}: {message}")

    def value(self, node: yaml.Node, kind: Any, key: str) -> Any:
        origin, arguments = get_origin(kind), get_args(kind)
        if origin in (Union, types.UnionType):  # only ever X | None: a key that may be left out
            return self.value(node, arguments[0], key)
        if dataclasses.is_dataclass(kind):
            return self.record(node, kind, key)
        if origin is Mapping:
            pairs = self.pairs(node, key).items()
            return {name: self.value(child, arguments[1], _below(key, name)) for name, (_, child) in pairs}
        if origin is tuple:
            return self.sequence(node, arguments, key)
        return self.scalar(node, kind, key)

    def pairs(self, node: yaml.Node, key: str) -> dict[str, tuple[yaml.Node, yaml.Node]]:
        """Key -> (node of the key, node of the value) of a mapping."""
        if not isinstance(node, yaml.MappingNode):
            raise self.error(node, key, f"expected keys and values, got {_shown(node)}")
        found: dict[str, tuple[yaml.Node, yaml.Node]] = {}
        for name, child in node.value:
            if not isinstance(name, yaml.ScalarNode):
                raise self.error(name, key, f"expected a word as key, got {_shown(name)}")
            if name.value in found:
                first = found[name.value][0].start_mark.line + 1
                raise self.error(name, _below(key, name.value), f"stands here again after line {first}: remove one")
            found[name.value] = (name, child)
        return found

    def record(self, node: yaml.Node, kind: Any, key: str) -> Any:
        pairs, fields, hints = self.pairs(node, key), _fields(kind), get_type_hints(kind)
        for name, (place, _) in pairs.items():
            if name not in fields:
                raise self.error(place, key, str(unknown("key", name, fields)))
        for name, field in fields.items():
            required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
            if required and name not in pairs:
                raise self.error(node, key, f"the key {name!r} is missing: add it here")
        values = {name: self.value(child, hints[name], _below(key, name)) for name, (_, child) in pairs.items()}
        try:
            return kind(**values)
        except Inconsistent as error:
            place = pairs[error.key][0] if error.key in pairs else node
            raise self.error(place, _below(key, error.key), str(error)) from error

    def sequence(self, node: yaml.Node, arguments: tuple[Any, ...], key: str) -> tuple[Any, ...]:
        if not isinstance(node, yaml.SequenceNode):
            raise self.error(node, key, f"expected a list, got {_shown(node)}")
        n = len(node.value)
        kinds = [arguments[0]] * n if arguments[1:] == (Ellipsis,) else list(arguments)
        if n != len(kinds):
            raise self.error(node, key, f"expected {len(kinds)} entries, got {n}")
        entries = enumerate(zip(node.value, kinds, strict=True))
        return tuple(self.value(child, kind, f"{key}[{i}]") for i, (child, kind) in entries)

    def scalar(self, node: yaml.Node, kind: Any, key: str) -> Any:
        if not isinstance(node, yaml.ScalarNode):
            raise self.error(node, key, f"expected {_NAMES.get(kind, 'one value')}, got {_shown(node)}")
        quoted, text = node.style in ("'", '"'), node.value
        try:
            if kind is float and not quoted and math.isfinite(float(text)):
                return float(text)
            if kind is int and not quoted:
                return int(text)
        except ValueError:
            pass
        if kind is str and (quoted or node.tag == "tag:yaml.org,2002:str"):
            return text
        if get_origin(kind) is Literal:
            choices = {str(choice): choice for choice in get_args(kind)}
            if text in choices:
                return choices[text]
            raise self.error(node, key, str(unknown("value", text, choices)))
        raise self.error(node, key, f"expected {_NAMES[kind]}, got {_shown(node)}")


_NAMES = {float: "a finite number", int: "a whole number", str: "a text (put it in quotes)"}


def _below(key: str, name: str) -> str:
    return f"{key}.{name}" if key else name


def _shown(node: yaml.Node) -> str:
    if isinstance(node, yaml.ScalarNode):
        return repr(node.value) if node.value else "nothing"
    return "a list" if isinstance(node, yaml.SequenceNode) else "keys and values"
