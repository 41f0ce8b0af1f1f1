"""Configuration: frozen dataclasses <- YAML <- flags; one declaration per setting, strict at every level."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar, dataclass_transform, get_args, get_origin, get_type_hints

import yaml
from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as pydantic_dataclass

T = TypeVar("T")


@dataclass_transform(frozen_default=True, kw_only_default=True)
def config(cls: type[T]) -> type[T]:
    """A frozen, strict, keyword-only dataclass; the docstring under a field is its `--help`."""
    return pydantic_dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid", strict=True))(cls)  # type: ignore[return-value]


class _Loader(yaml.SafeLoader):
    """`3e-4` is a number, as people mean it (YAML 1.1 wants `3.0e-4` and reads a string otherwise)."""


class _Dumper(yaml.SafeDumper):
    """Its counterpart: the string "3e-4" is written in quotes."""


def _string(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    quotes = '"' if re.search("[\x85\u2028\u2029]", text) else None  # line breaks to YAML: folded unless escaped
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=quotes)


_Dumper.add_representer(str, _string)
for _side in (_Loader, _Dumper):
    _side.add_implicit_resolver(
        "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
    )


def to_dict(value: Any) -> Any:
    """Plain YAML/JSON data; a member of a union of methods keeps its `name`."""
    if is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_dict(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, Mapping):
        return {str(k): to_dict(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [to_dict(v) for v in value]
    return str(value) if isinstance(value, Path) else value


def dump(value: Any, path: Path | str, **extra: Any) -> None:
    """Write a configuration as a valid recipe (`extra`: keys in front, such as `command`)."""
    text = yaml.dump({**extra, **to_dict(value)}, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)
    Path(path).write_text(text, encoding="utf-8")


def read_yaml(path: Path | str) -> dict[str, Any]:
    """A recipe's mapping with `${NAME}` filled in from the environment.

    Raises ValueError that names the file (and line) for a missing file, broken YAML, a list at the top or an unset name.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path}: no such recipe; recipes are YAML files such as recipes/sums.yaml")
    try:
        data = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except yaml.YAMLError as error:
        raise ValueError(f"{path}: not valid YAML: {error}") from None
    if not isinstance(data, dict):
        raise ValueError(f"{path}: a recipe is a mapping `key: value`, got {type(data).__name__}")
    return _expand(data, path)


def _expand(value: Any, path: Path) -> Any:
    if isinstance(value, dict):
        return {k: _expand(v, path) for k, v in value.items()}
    if isinstance(value, list):
        return [_expand(v, path) for v in value]
    if not isinstance(value, str):
        return value

    def variable(match: re.Match[str]) -> str:
        if match[1] not in os.environ:
            what = "; docs/recipes.md lists the files and where to get them" if match[1] == "TUTELAGE_DATA" else ""
            raise ValueError(f"{path}: ${{{match[1]}}} is not set; set it: export {match[1]}=/path/to/data{what}")
        return os.environ[match[1]]

    return re.sub(r"\$\{(\w+)\}", variable, value)


def build(kind: type[T], data: Mapping[str, Any], where: str) -> T:
    """Validate a mapping into a configuration; ValueError lists every bad key with its path, value and what is allowed."""
    try:
        plain = expand_methods(kind, to_dict(data))
        return TypeAdapter(kind).validate_json(json.dumps(plain))  # strict JSON: lists fill tuples, 1 fills a float
    except ValidationError as error:
        raise ValueError("\n".join(f"{where}: {_explain(kind, e)}" for e in error.errors())) from None


def _explain(kind: type, error: Any) -> str:
    keys, holder, inside = _place(kind, error["loc"])
    path = ".".join(keys) or "(top level)"
    if error["type"] == "unexpected_keyword_argument":
        known = ", ".join(f.name for f in fields(holder)) if is_dataclass(holder) else ""
        return f"unknown key `{path}`" + (f"; known keys: {known}" if known else "")
    if error["type"] == "union_tag_invalid":
        return f"{path}: unknown name {error['ctx']['tag']!r}; known: {', '.join(union_members(inside))}"
    if error["type"] == "union_tag_not_found":
        return f"{path}: needs a `name`; known: {', '.join(union_members(inside))}; got {error['input']!r}"
    if error["type"] == "missing":
        return f"{path}: is needed and was not given"
    message = error["msg"].removeprefix("Value error, ")
    return f"{path}: {message}; got {error['input']!r}"


def _place(kind: Any, loc: Sequence[Any]) -> tuple[list[str], Any, Any]:
    """The keys as the user wrote them (pydantic puts the method's name in between), what holds the last one, its type."""
    keys, holder, inside = [], kind, kind
    for part in loc:
        members = {} if is_dataclass(inside) else union_members(inside)
        if part in members:
            inside = members[part]
            continue
        keys.append(str(part))
        holder, inside = inside, get_type_hints(inside).get(part) if is_dataclass(inside) else None
    return keys, holder, inside


def expand_methods(kind: Any, data: Any) -> Any:
    """`algorithm: rloo` -> `{name: reinforce, baseline: leave_one_out}`: names and presets of methods written out."""
    if not is_dataclass(kind) or not isinstance(data, dict):
        return data
    out = dict(data)
    hints = get_type_hints(kind)
    for key in data.keys() & hints.keys():
        members = union_members(hints[key])
        value = {"name": out[key]} if members and isinstance(out[key], str) else out[key]
        name = value.get("name") if isinstance(value, dict) else None
        member = members.get(name) if isinstance(name, str) else None
        if member is not None:
            given = {k: v for k, v in value.items() if k != "name"}
            value = {"name": canonical_name(member), **presets(member).get(str(name), {}), **given}
        out[key] = value if members else expand_methods(hints[key], value)
    return out


def presets(member: type) -> Mapping[str, Mapping[str, Any]]:
    """Named settings of a method, such as rloo of REINFORCE."""
    return getattr(member, "presets", {})


def canonical_name(member: type) -> str:
    """A method's own name: the first value of its `name`."""
    return get_args(get_type_hints(member)["name"])[0]


def union_members(kind: Any) -> dict[str, type]:
    """The methods of a union by name and by preset, looking through Annotated and Optional."""
    found: dict[str, type] = {}
    for arg in (kind, *get_args(kind)):
        if is_dataclass(arg) and isinstance(arg, type) and "name" in get_type_hints(arg):
            found.update(dict.fromkeys((*get_args(get_type_hints(arg)["name"]), *presets(arg)), arg))
        elif arg is not kind and get_args(arg):
            found.update(union_members(arg))
    return found


def parse(
    kind: type[T], args: Sequence[str], data: Mapping[str, Any] | None = None, where: str = "flags", **help_: Any
) -> T:
    """defaults < `data` (a recipe) < `args` (flags such as `--algorithm grpo --algorithm.clip-low 0.3`).

    A flag for a tuple may repeat: `--data a --data b` is `--data a b`. Raises ValueError for a bad key, value or name of
    a method; `--help`, an unknown flag and a value that does not parse print and exit (0 and 2) as argparse does.
    """
    import tyro

    data, args = dict(data or {}), _join_repeats(kind, args)
    _choose_members(kind, data, args)
    default = build(kind, _with_needed(kind, data, args), where)
    chosen = tyro.cli(kind, args=args, default=default, config=(tyro.conf.AvoidSubcommands,), **help_)
    return build(kind, to_dict(chosen), "flags")


def _join_repeats(kind: Any, args: Sequence[str]) -> list[str]:
    """`--data=a --data b` -> `--data a b` and `--algorithm=ppo` -> `--algorithm ppo`; other words stay as they are."""
    hints = {"--" + f.name.replace("_", "-"): get_type_hints(kind)[f.name] for f in fields(kind)}
    several = {flag for flag, hint in hints.items() if get_origin(hint) is tuple and get_args(hint)[-1] is Ellipsis}
    rest: list[str] = []
    values: dict[str, list[str]] = {}
    into = rest
    for word in args:
        flag, equals, value = word.partition("=")
        if flag.startswith("--"):
            into = values.setdefault(flag, []) if flag in several else rest
        if flag in hints and equals and (flag in several or union_members(hints[flag])):
            into += [value] if flag in several else [flag, value]
        elif flag not in several:
            into.append(word)
    return rest + [word for flag, given in values.items() for word in (flag, *given)]


def _with_needed(kind: Any, data: Mapping[str, Any], args: Sequence[str]) -> dict[str, Any]:
    """Settings without a default are taken from the flags at once; where only help is wanted, their place is filled."""
    given = dict(data)
    for each in fields(kind):
        flag = "--" + each.name.replace("_", "-")
        if each.default is not MISSING or each.default_factory is not MISSING:
            continue
        with_value = [word.partition("=")[2] for word in args if word.startswith(f"{flag}=")]
        if with_value or flag in args[:-1]:
            given[each.name] = with_value[-1] if with_value else args[args.index(flag) + 1]
        elif {"-h", "--help"} & {*args}:
            given.setdefault(each.name, "(needed)")
    return given


def _choose_members(kind: Any, data: dict[str, Any], args: list[str]) -> None:
    """Take `--algorithm NAME` out of the flags and into the data, so that tyro sees the chosen method's own flags."""
    for field in fields(kind):
        members = union_members(get_type_hints(kind, include_extras=False)[field.name])
        flag = "--" + field.name.replace("_", "-")
        while members and flag in args:
            at = args.index(flag)
            if at + 1 >= len(args):
                raise ValueError(f"{flag} needs a name; known: {', '.join(members)}")
            name = args[at + 1]
            del args[at : at + 2]
            if name not in members:
                raise ValueError(f"{flag}: unknown name {name!r}; known: {', '.join(members)}")
            given = data.get(field.name)
            data[field.name] = given if isinstance(given, dict) and given.get("name") == name else name
