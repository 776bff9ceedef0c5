"""What a notebook lets a batch choose, and whether a choice is allowed.

The `parameters` cell is the declaration: ``name = literal  # rule; prose``.  The literal gives
the type.  The comment may hold rules, separated from prose by semicolons:

- ``one of smoke, laptop, paper``: the allowed texts; patterns such as ``hf:*`` count, and
  ``PATH`` stands for any file that exists;
- ``above 0``, ``at least 1``, ``below 1``, ``at most 64``, or several of them with commas: bounds
  of a number.  Signs (``> 0``, ``>= 1``) do as well, but papermill's own ``--help-notebook`` cannot
  read a line with a second "=".

A rule holds for each element of a list.  Everything is checked before anything runs, where
papermill only warns about unknown names and injects them.
"""

from __future__ import annotations

import ast
import io
import math
import operator
import re
import tokenize
from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import yaml

from gqc_lab.errors import BadInput, nearest

_COMPARISONS = {
    "above": operator.gt,
    "at least": operator.ge,
    "below": operator.lt,
    "at most": operator.le,
    ">=": operator.ge,
    ">": operator.gt,
    "<=": operator.le,
    "<": operator.lt,
}
_BOUND = rf"({'|'.join(_COMPARISONS)})\s*([-+]?\d[\d.eE+-]*)"


@dataclass(frozen=True)
class Parameter:
    """One name of a `parameters` cell.

    Args:
        name: as assigned.
        default: the literal; its type is the type that is allowed.
        is_optional: whether None is allowed (the default is None, or the annotation says so).
        choices: allowed texts and patterns; empty allows all.
        bounds: pairs such as ("above", 0.0); every one has to hold.
    """

    name: str
    default: Any
    is_optional: bool = False
    choices: tuple[str, ...] = ()
    bounds: tuple[tuple[str, float], ...] = field(default=())

    def check(self, value: Any) -> Any:
        """``value`` in the parameter's own type (1 becomes 1.0 where a float is declared).

        Raises: BadInput: the type is another one, a number is NaN, or a rule does not hold.
        """
        if value is None and self.is_optional:
            return None
        if self.default is None:
            _refuse_nan(self.name, value)
            checked = value
        else:
            checked = _as_type_of(self.name, self.default, value)
        for element in checked if isinstance(checked, list) else [checked]:
            self._check_rules(element, value)
        return checked

    def _check_rules(self, element: Any, value: Any) -> None:
        if self.choices and not any(_matches(choice, element) for choice in self.choices):
            raise BadInput(f"{self.name}={value!r}: expected one of {', '.join(self.choices)}")
        is_number = isinstance(element, int | float) and not isinstance(element, bool)
        for sign, limit in self.bounds:
            if not (is_number and _COMPARISONS[sign](element, limit)):
                allowed = ", ".join(f"{s} {n:g}" for s, n in self.bounds)
                raise BadInput(f"{self.name}={value!r}: expected {allowed}")


def _matches(choice: str, element: Any) -> bool:
    if choice == "PATH":
        return Path(str(element)).is_file()
    return fnmatchcase(str(element), choice)


def _refuse_nan(name: str, value: Any) -> None:
    if isinstance(value, float) and math.isnan(value):
        raise BadInput(f"{name}=nan: expected a number")


def _as_type_of(name: str, default: Any, value: Any) -> Any:
    _refuse_nan(name, value)
    if isinstance(default, float) and type(value) is int:
        return float(value)
    if isinstance(default, list) and isinstance(value, list):
        kinds = {type(element) for element in default}
        if len(kinds) != 1:
            return value
        return [_as_type_of(name, default[0], element) for element in value]
    if type(value) is not type(default):
        raise BadInput(
            f"{name}={value!r}: expected {type(default).__name__}, as in the notebook's "
            f"{name} = {default!r}"
        )
    return value


def parse_cell(source: str, where: str = "parameters cell") -> dict[str, Parameter]:
    """The parameters that a cell of ``name = literal`` lines declares.

    Raises: BadInput: a line is something else (a batch could not tell what it may change).
    """
    try:
        statements = ast.parse(source).body
    except SyntaxError as error:
        raise BadInput(f"{where}: line {error.lineno}: {error.msg}") from None
    comments = {
        token.start[0]: token.string.lstrip("# ")
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type == tokenize.COMMENT
    }
    declared = {}
    for statement in statements:
        parameter = _parse_statement(statement, comments.get(statement.end_lineno or 0, ""))
        if parameter is None:
            line = source.splitlines()[statement.lineno - 1].strip()
            raise BadInput(f"{where}: {line!r}: expected only `name = literal` lines")
        declared[parameter.name] = parameter
    return declared


def _parse_statement(statement: ast.stmt, comment: str) -> Parameter | None:
    annotation = ""
    match statement:
        case ast.Assign(targets=[ast.Name(id=name)], value=expression):
            pass
        case ast.AnnAssign(target=ast.Name(id=name), value=ast.expr() as expression):
            annotation = ast.unparse(statement.annotation)
        case _:
            return None
    try:
        default = ast.literal_eval(expression)
    except ValueError:
        return None
    if isinstance(default, tuple):
        default = list(default)
    is_optional = default is None or "None" in annotation or "Optional" in annotation
    choices, bounds = _parse_rules(comment)
    return Parameter(name, default, is_optional, choices, bounds)


def _parse_rules(comment: str) -> tuple[tuple[str, ...], tuple[tuple[str, float], ...]]:
    choices: tuple[str, ...] = ()
    bounds: tuple[tuple[str, float], ...] = ()
    for clause in (part.strip() for part in comment.split(";")):
        if listed := re.fullmatch(r"one of:?\s+(.+)", clause):
            choices = tuple(choice.strip() for choice in listed[1].split(","))
        elif re.fullmatch(rf"{_BOUND}(\s*(,|and)\s*{_BOUND})*", clause):
            bounds = tuple((sign, float(number)) for sign, number in re.findall(_BOUND, clause))
    return choices, bounds


def resolve(declared: Mapping[str, Parameter], given: Mapping[str, Any]) -> dict[str, Any]:
    """Every declared parameter's value, in the notebook's order: the default unless given.

    Raises: BadInput: a given name is not declared, or its value is not allowed.
    """
    for name in given:
        if name not in declared:
            raise BadInput(f"unknown parameter {name!r}={given[name]!r}{nearest(name, declared)}")
    return {
        name: parameter.check(given[name]) if name in given else parameter.default
        for name, parameter in declared.items()
    }


class _Loader(yaml.SafeLoader):
    """SafeLoader that reads 1e-3 as a number, as YAML 1.2 does; PyYAML takes it for a text."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        repeated = {key for key in keys if keys.count(key) > 1}
        if repeated:
            raise BadInput(f"{sorted(map(str, repeated))[0]!r} is given twice; keep one")
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"),
    list("-+.0123456789"),
)


def parse_yaml(text: str, where: str) -> Any:
    """The value of a YAML text.  Raises: BadInput: it is not YAML, or repeats a key."""
    try:
        return yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        line = " ".join(str(error).split())
        raise BadInput(f"{where}: not valid YAML: {line}") from None
    except BadInput as error:
        raise BadInput(f"{where}: {error}") from None


def read_mapping(path: Path) -> dict[str, Any]:
    """A YAML file that holds a mapping of names to values.

    Raises: BadInput: no such file (the ones beside it are listed), or not a mapping.
    """
    if not path.is_file():
        beside = sorted(p.name for p in path.parent.glob("*.y*ml")) if path.parent.is_dir() else []
        raise BadInput(f"{path}: no such file; here are: {', '.join(beside) or 'no YAML files'}")
    mapping = parse_yaml(path.read_text(encoding="utf-8"), str(path))
    if mapping is None:
        return {}
    if not isinstance(mapping, dict) or not all(isinstance(key, str) for key in mapping):
        raise BadInput(f"{path}: expected a mapping of names to values")
    return mapping


def parse_option(declared: Mapping[str, Parameter], name: str, text: str) -> Any:
    """The value that ``-p name text`` means; a parameter whose default is a text takes it as is."""
    parameter = declared.get(name)
    if parameter is not None and isinstance(parameter.default, str):
        return text
    return parse_yaml(text, f"-p {name}")
