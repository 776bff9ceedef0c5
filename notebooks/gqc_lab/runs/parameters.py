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

import ast
import io
import itertools
import math
import re
import runpy
import tokenize
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import yaml

from gqc_lab.errors import BadInput, nearest
from gqc_lab.loop.settings import Setting, settings_of

# What the readers of Python and YAML raise over a text that is none, is too deep or too long.
UNREADABLE = (
    SyntaxError, tokenize.TokenError, ValueError, TypeError, KeyError, RecursionError, MemoryError,
)  # fmt: skip
_MOST_VALUES = 1_000_000
_BOUNDS = {"above": "above", "at least": "low", "below": "below", "at most": "high"}
_BOUND = rf"({'|'.join(_BOUNDS)})\s*([-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)"
_TABLE = re.compile(r"^# settings: (\w+(?:\.\w+)*)\.(\w+)$", re.M)


@dataclass(frozen=True)
class Parameter:
    """One name of a `parameters` cell.

    Args:
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
        value = plain(self.name, value)
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
        if isinstance(value, list) and len(kinds := set(map(type, self.default or []))) == 1:
            each = Parameter(self.name, self.default[0], kinds.pop())
            return [each.check(element) for element in value]
        return value


def plain(name: str, value: Any) -> Any:
    """Return ``value`` as JSON would return it.

    Raises: BadInput: it is, or holds, what JSON has no word for or other readers misread: NaN,
        dates, bytes, keys that are no texts, integers of more than 64 bits.
    """
    if isinstance(value, list | tuple):
        return [plain(name, element) for element in value]
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return {plain(name, key): plain(key, element) for key, element in value.items()}
    if isinstance(value, float) and math.isnan(value):
        raise BadInput(f"{name}=nan: expected a number")
    if isinstance(value, int) and not abs(value) < 2**64:
        raise BadInput(f"{name}: an integer of {value.bit_length()} bits: expected at most 64")
    if isinstance(value, str) and value.encode(errors="replace").decode() != value:
        raise BadInput(f"{name}={value!r}: expected a text that UTF-8 can hold")
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise BadInput(
        f"{name}={value!r}: expected a number, text, flag, null, or a list or mapping of texts to "
        f"them, got {type(value).__name__}"
    )


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
        comments = {
            token.start[0]: token.string.lstrip("# ")
            for token in tokenize.generate_tokens(io.StringIO(source).readline)
            if token.type == tokenize.COMMENT
        }
    except SyntaxError as error:
        raise BadInput(f"{where}: line {error.lineno}: {error.msg}") from None
    except UNREADABLE as error:
        raise BadInput(f"{where}: {error}") from None
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
    except UNREADABLE:
        return None
    default = plain(name, default)
    kinds = {"int": int, "float": float, "str": str, "bool": bool, "list": list}
    kind = type(default) if default is not None else kinds.get(annotation.split(" |")[0])
    is_optional = default is None or "None" in annotation or "Optional" in annotation
    rules = list(_parse_rules(comment, int if kind is int else float))
    of_study = table.get(name) or (table.get(name.removesuffix("s")) if kind is list else None)
    return Parameter(name, default, kind, is_optional, (*rules, *([of_study] if of_study else [])))


def _parse_rules(comment: str, kind: type) -> Iterator[Setting]:
    for clause in (part.strip() for part in comment.split(";")):
        if listed := re.fullmatch(r"one of:?\s+(.+)", clause):
            choices = tuple(choice.strip() for choice in listed[1].split(","))
            yield Setting(read=partial(_read_choice, choices))
        if re.fullmatch(rf"{_BOUND}(\s*(,|and)\s*{_BOUND})*", clause):
            bounds: dict[str, Any] = {
                _BOUNDS[word]: float(number) for word, number in re.findall(_BOUND, clause)
            }
            yield Setting(kind=kind, **bounds)


def _read_choice(choices: tuple[str, ...], name: str, value: Any) -> Any:
    if not ("PATH" in choices and Path(str(value)).is_file()):
        Setting(choices=choices).check(name, value)
    return value


def resolve(declared: Mapping[str, Parameter], given: Mapping[str, Any]) -> dict[str, Any]:
    """Every declared parameter's value, in the notebook's order: the default unless given.

    Raises: BadInput: a given name is not declared, or a value or default is not allowed.
    """
    for name in given:
        if name not in declared:
            raise BadInput(f"unknown parameter {name!r}={given[name]!r}{nearest(name, declared)}")
    return {
        name: parameter.check(given.get(name, parameter.default))
        for name, parameter in declared.items()
    }


class _Loader(yaml.SafeLoader):
    """YAML 1.2: ``1e-3`` and ``010`` are decimal numbers, ``yes``, ``1:30`` and dates are texts."""

    yaml_implicit_resolvers: dict[str, list[Any]] = {}
    yaml_constructors = {
        f"tag:yaml.org,2002:{kind}": yaml.SafeLoader.yaml_constructors[f"tag:yaml.org,2002:{kind}"]
        for kind in ("null", "bool", "float", "str", "seq", "map")
    } | {None: yaml.SafeLoader.yaml_constructors[None]}

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        is_merge = "tag:yaml.org,2002:merge".__eq__
        keys = [self.construct_object(k, deep=True) for k, _ in node.value if not is_merge(k.tag)]
        for place, key in enumerate(keys):
            if not isinstance(key, str):
                raise BadInput(f"key {key!r}: expected a text; put it in quotes")
            if key in keys[:place]:
                raise BadInput(f"{key!r} is given twice; keep one")
        return super().construct_mapping(node, deep)


def _read_int(loader: yaml.SafeLoader, node: Any) -> int:
    text = loader.construct_scalar(node)
    return int(text, 0 if text[:2] in {"0o", "0x"} else 10)


_Loader.add_constructor("tag:yaml.org,2002:int", _read_int)
for _kind, _pattern, _first in (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?\d+|0o[0-7]+|0x[\da-fA-F]+", list("-+0123456789")),
    (
        "float",
        r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        list("-+.0123456789"),
    ),
    ("merge", "<<", ["<"]),
):
    _Loader.add_implicit_resolver(
        f"tag:yaml.org,2002:{_kind}", re.compile(f"(?:{_pattern})$"), _first
    )


def parse_yaml(text: str, where: str) -> Any:
    """Return the value of a YAML text.

    Raises: BadInput: it is not YAML, repeats a key, holds what JSON cannot, or has aliases that
        stand for more than a million values.
    """
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        if (size := _size(node, {})) > _MOST_VALUES:
            raise BadInput(f"its aliases stand for {size:.2g} values: expected at most 1,000,000")
        return plain("value", loader.construct_document(node))
    except (BadInput, yaml.YAMLError, *UNREADABLE) as error:
        kind = "" if isinstance(error, BadInput) else "not valid YAML: "
        raise BadInput(f"{where}: {kind}{' '.join(str(error).split())}") from None


def _size(node: yaml.Node, sizes: dict[yaml.Node, float]) -> float:
    """Return how many values ``node`` stands for, aliases written out; infinity for a loop."""
    if node not in sizes:
        sizes[node] = math.inf
        parts = node.value if isinstance(node, yaml.CollectionNode) else ()
        each = itertools.chain(*parts) if isinstance(node, yaml.MappingNode) else parts
        sizes[node] = 1 + sum(_size(part, sizes) for part in each)
    return sizes[node]


def read_text(path: Path) -> str:
    """Return the content of a UTF-8 file.  Raises: BadInput: it is something else."""
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise BadInput(f"{path}: not UTF-8: {error}") from None


def read_mapping(path: Path) -> dict[str, Any]:
    """A YAML file that holds a mapping of names to values.

    Raises: BadInput: no such file (the ones beside it are listed), or not a mapping.
    """
    if not path.is_file():
        beside = sorted(p.name for p in path.parent.glob("*.y*ml")) if path.parent.is_dir() else []
        raise BadInput(f"{path}: no such file; here are: {', '.join(beside) or 'no YAML files'}")
    mapping = parse_yaml(read_text(path), str(path))
    if mapping is None:
        return {}
    if not isinstance(mapping, dict):
        raise BadInput(f"{path}: expected a mapping of names to values")
    return mapping


def parse_option(declared: Mapping[str, Parameter], name: str, text: str) -> Any:
    """The value that ``-p name text`` means; a parameter whose default is a text takes it as is."""
    parameter = declared.get(name)
    if parameter is not None and isinstance(parameter.default, str):
        return text
    return parse_yaml(text, f"-p {name}")
