"""Configuration: frozen dataclasses <- YAML <- flags; one declaration per setting, strict at every level."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar, dataclass_transform, get_args, get_type_hints

import yaml
from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as pydantic_dataclass

T = TypeVar("T")


@dataclass_transform(frozen_default=True, kw_only_default=True)
def config(cls: type[T]) -> type[T]:
    """A frozen, strict, keyword-only dataclass; the docstring under a field is its `--help`."""
    return pydantic_dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid", strict=True))(cls)  # type: ignore[return-value]


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
    text = yaml.safe_dump({**extra, **to_dict(value)}, sort_keys=False, allow_unicode=True, width=120)
    Path(path).write_text(text, encoding="utf-8")


def read_yaml(path: Path | str) -> dict[str, Any]:
    """A recipe's mapping with `${NAME}` filled in from the environment.

    Raises ValueError that names the file (and line) for a missing file, broken YAML, a list at the top or an unset name.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path}: no such recipe; recipes are YAML files such as recipes/sums.yaml")
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
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
            raise ValueError(f"{path}: ${{{match[1]}}} is not set; set it, e.g. `export {match[1]}=/path/to/data`")
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
    path = ".".join(str(part) for part in error["loc"]) or "(top level)"
    if error["type"] == "unexpected_keyword_argument":
        known = ", ".join(f.name for f in fields(kind)) if is_dataclass(kind) and len(error["loc"]) == 1 else ""
        return f"unknown key `{path}`" + (f"; known keys: {known}" if known else "")
    if error["type"] == "union_tag_invalid":
        return f"{path}: unknown name {error['ctx']['tag']!r}; known: {error['ctx']['expected_tags']}"
    message = error["msg"].removeprefix("Value error, ")
    return f"{path}: {message}; got {error['input']!r}"


def expand_methods(kind: Any, data: Any) -> Any:
    """`algorithm: rloo` -> `{name: reinforce, baseline: leave_one_out}`: names and presets of methods written out."""
    if not is_dataclass(kind) or not isinstance(data, dict):
        return data
    out = dict(data)
    hints = get_type_hints(kind)
    for key in data.keys() & hints.keys():
        members = union_members(hints[key])
        value = {"name": out[key]} if members and isinstance(out[key], str) else out[key]
        member = members.get(value.get("name", "")) if isinstance(value, dict) else None
        if member is not None:
            given = {k: v for k, v in value.items() if k != "name"}
            value = {"name": canonical_name(member), **presets(member).get(value["name"], {}), **given}
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
            found.update({name: arg for name in (*get_args(get_type_hints(arg)["name"]), *presets(arg))})
        elif arg is not kind and get_args(arg):
            found.update(union_members(arg))
    return found


def parse(
    kind: type[T], args: Sequence[str], data: Mapping[str, Any] | None = None, where: str = "flags", **help_: Any
) -> T:
    """defaults < `data` (a recipe) < `args` (flags such as `--algorithm grpo --algorithm.clip-low 0.3`).

    Raises ValueError for a bad key or value; `--help` prints and exits as argparse does.
    """
    import tyro

    data, args = dict(data or {}), list(args)
    _choose_members(kind, data, args)
    default = build(kind, data, where)
    chosen = tyro.cli(kind, args=args, default=default, config=(tyro.conf.AvoidSubcommands,), **help_)
    return build(kind, to_dict(chosen), "flags")


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
