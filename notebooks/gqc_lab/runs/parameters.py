"""What a notebook lets a batch choose, and whether a choice is allowed.

The `parameters` cell is the declaration: ``name = literal  # rule; prose``.  The literal, or the
annotation of a None, gives the type.  A first line ``# settings: package.module.Class`` names the
config of the study (`gqc_lab.loop.settings`): a parameter that has the name of one of its fields
has that field's rules, and so has each element of a list with that name and an "s".  For the other
parameters, or to allow less, the comment holds rules, separated from prose by semicolons:

- ``one of smoke, laptop, paper``: the allowed texts; patterns such as ``hf:*`` count, and
  ``PATH`` stands for any file that exists;
- ``above 0``, ``at least 1``, ``below 1``, ``at most 64``, or several of them with commas: bounds
  of a number.

A rule holds for each element of a list.  Everything is checked before anything runs, where
papermill only warns about unknown names and injects them.
"""

from __future__ import annotations

import ast
import io
import math
import re
import runpy
import tokenize
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import yaml

from gqc_lab.errors import BadInput, check_name, nearest
from gqc_lab.loop.settings import Setting, settings_of

_BOUNDS = {"above": "above", "at least": "low", "below": "below", "at most": "high"}
_BOUND = rf"({'|'.join(_BOUNDS)})\s*([-+]?\d[\d.eE+-]*)"
_TABLE = re.compile(r"^# settings: (\w+(?:\.\w+)*)\.(\w+)$", re.M)


@dataclass(frozen=True)
class Parameter:
    """One name of a `parameters` cell.

    Args:
        name: as assigned.
        default: the literal.
        kind: allowed type, that of the literal or of the annotation; None allows any.
        is_optional: whether None is allowed (the default is None, or the annotation says so).
        rules: of the comment, and of the study's setting; all of them have to hold.
    """

    name: str
    default: Any
    kind: type | None = None
    is_optional: bool = False
    rules: tuple[Setting, ...] = ()

    def check(self, value: Any) -> Any:
        """Return ``value`` in the parameter's own type (1 becomes 1.0 where a float is declared).

        Raises: BadInput: the type is another one, a number is NaN, or a rule does not hold.
        """
        if value is None and self.is_optional:
            return None
        _refuse_nan(self.name, value)
        checked = value if self.kind is None else self._as_kind(value)
        try:
            for rule in self.rules:
                is_each = isinstance(checked, list) and rule.kind is not tuple
                for element in checked if is_each else [checked]:
                    rule.check(self.name, element)
        except ValueError as error:
            raise BadInput(str(error)) from None
        return checked

    def _as_kind(self, value: Any) -> Any:
        if self.kind is float and type(value) is int:
            return float(value)
        if type(value) is not self.kind:
            raise BadInput(
                f"{self.name}={value!r}: expected {self.kind and self.kind.__name__}, as in the "
                f"notebook's {self.name} = {self.default!r}"
            )
        if (
            isinstance(value, list)
            and len(kinds := {type(each) for each in self.default or []}) == 1
        ):
            each = Parameter(self.name, self.default[0], kinds.pop())
            return [each.check(element) for element in value]
        return value


def _refuse_nan(name: str, value: Any) -> None:
    if isinstance(value, float) and math.isnan(value):
        raise BadInput(f"{name}=nan: expected a number")


def parse_cell(
    source: str, where: str = "parameters cell", folder: Path = Path()
) -> dict[str, Parameter]:
    """Return the parameters that a cell of ``name = literal`` lines declares.

    Args:
        where: the cell in words, for errors.
        folder: of the notebook, where the module of its settings may be.
    Raises: BadInput: a line is something else (a batch could not tell what it may change), or there
        are no such settings.
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
    named = _TABLE.search(source)
    table = _read_table(named[1], named[2], where, folder) if named else {}
    declared = {}
    for statement in statements:
        comment = comments.get(statement.end_lineno or 0, "")
        parameter = _parse_statement(statement, comment, table)
        if parameter is None:
            line = source.splitlines()[statement.lineno - 1].strip()
            raise BadInput(f"{where}: {line!r}: expected only `name = literal` lines")
        declared[parameter.name] = parameter
    return declared


def _read_table(module: str, name: str, where: str, folder: Path) -> Mapping[str, Setting]:
    """Return the settings of a config class, of a module next to the notebook or installed."""
    beside = folder / f"{module}.py"
    try:
        if beside.is_file():
            return settings_of(runpy.run_path(str(beside), run_name=module)[name])
        return settings_of(getattr(import_module(module), name))
    except (ImportError, AttributeError, KeyError, NameError) as error:
        raise BadInput(f"{where}: # settings: {module}.{name}: {error!r}") from None


def _parse_statement(
    statement: ast.stmt, comment: str, table: Mapping[str, Setting]
) -> Parameter | None:
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
    kinds = {"int": int, "float": float, "str": str, "bool": bool, "list": list}
    kind = type(default) if default is not None else kinds.get(annotation.split(" |")[0])
    is_optional = default is None or "None" in annotation or "Optional" in annotation
    rules = [_parse_rules(comment, int if kind is int else float)]
    rules.append(table.get(name) or (table.get(name.removesuffix("s")) if kind is list else None))
    return Parameter(name, default, kind, is_optional, tuple(r for r in rules if r is not None))


def _parse_rules(comment: str, kind: type) -> Setting | None:
    for clause in (part.strip() for part in comment.split(";")):
        if listed := re.fullmatch(r"one of:?\s+(.+)", clause):
            choices = tuple(choice.strip() for choice in listed[1].split(","))
            return Setting(read=partial(_read_choice, choices))
        if re.fullmatch(rf"{_BOUND}(\s*(,|and)\s*{_BOUND})*", clause):
            bounds: dict[str, Any] = {
                _BOUNDS[word]: float(number) for word, number in re.findall(_BOUND, clause)
            }
            return Setting(kind=kind, **bounds)
    return None


def _read_choice(choices: tuple[str, ...], name: str, value: Any) -> Any:
    is_file = "PATH" in choices and Path(str(value)).is_file()
    if not is_file and not any(fnmatchcase(str(value), choice) for choice in choices):
        check_name(name, value, choices)
    return value


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
