"""What all configurations share: immutable models, absolute paths, and reading them from YAML under flags."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from functools import reduce
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError

from cflow_ray.errors import ConfigError


def absolute_uri(uri: object) -> object:
    """A local path made absolute, so that workers with another working folder find it; URIs stay as they are."""
    if isinstance(uri, Path):
        uri = str(uri)
    if not isinstance(uri, str) or "://" in uri:
        return uri
    if not uri.strip():
        raise ValueError("an empty path; give a path or URI (is a variable of the shell unset?)")
    return os.path.abspath(os.path.expanduser(uri))


Uri = Annotated[str, BeforeValidator(absolute_uri)]
"""A path or URI; local paths become absolute."""


def parse_size(value: object) -> object:
    """Bytes from text like `256MB`, `64MiB` or `1GB`; anything else is left for validation to judge."""
    match = (
        re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMG]?)(i?)B?\s*", value, re.IGNORECASE)
        if isinstance(value, str)
        else None
    )
    if match is None:
        return value
    base = 1024 if match[3] else 1000
    return int(float(match[1]) * base ** " KMG".index(match[2].upper() or " "))


Bytes = Annotated[int, BeforeValidator(parse_size)]
"""Bytes, as a number or as text like 64MB."""


class Model(BaseModel):
    """Base of all configurations: immutable, all numbers finite, and an unknown key is an error."""

    # Defaults are copied for every instance.
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


AnyModel = TypeVar("AnyModel", bound=Model)


def load_config(kind: type[AnyModel], file: str | None, flags: Mapping[str, Any]) -> AnyModel:
    """A configuration from a YAML file (or none), with the flags that were given laid over it.

    Raises ConfigError with the key, what is allowed and what to do.
    """
    return validated(kind, read_settings(file, flags), where=file or "the flags")


def read_settings(file: str | None, flags: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a YAML file (or none) under the flags that were given, not validated yet.

    `flags` holds dotted names (`defaults.recipe`); entries that are None or empty were not given.
    """
    values = _read_yaml(file) if file else {}
    given = {name: value for name, value in flags.items() if value is not None and value not in ((), {})}
    for name in given:
        _refuse_hiding(values, name, file or "the flags")
    return merge(values, _nested(given))


def _refuse_hiding(values: Mapping[str, Any], name: str, where: str) -> None:
    """Raises ConfigError where a flag would take the place of a value that is no mapping, and hide the mistake."""
    path = name.split(".")
    below: Any = values
    for depth, part in enumerate(path[:-1], start=1):
        below = below.get(part)
        if below is None:
            return
        if not isinstance(below, dict):
            raise ConfigError(
                f"{where}: {'.'.join(path[:depth])!r} is {below!r}; a mapping is needed, with {path[depth]!r} in it."
            )


def _read_yaml(file: str) -> dict[str, Any]:
    try:
        values = yaml.safe_load(Path(file).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(
            f"cannot read the configuration {file!r}: {error.strerror}. Give an existing YAML file."
        ) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file} is no YAML: {' '.join(str(error).split())}") from error
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(f"{file} holds a {type(values).__name__}; a mapping of keys to values is needed.")
    return values


def _nested(flat: Mapping[str, Any]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for name, value in flat.items():
        branch = reduce(lambda below, part: {part: below}, reversed(name.split(".")), value)
        tree = merge(tree, branch)
    return tree


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`over` laid over `base`, key by key at every depth."""
    merged = dict(base)
    for key, value in over.items():
        below = merged.get(key)
        merged[key] = merge(below, value) if isinstance(below, dict) and isinstance(value, Mapping) else value
    return merged


def validated(kind: type[AnyModel], values: Mapping[str, Any], where: str) -> AnyModel:
    """A configuration from plain values; ConfigError names `where` they stand, the key and what is allowed."""
    try:
        return kind.model_validate(dict(values))
    except ValidationError as error:
        raise ConfigError(f"{where}: " + "; ".join(_explain(kind, item) for item in error.errors())) from error


def _explain(kind: type[Model], item: Mapping[str, Any]) -> str:
    """One pydantic error as: key, what was given, what is allowed."""
    path = ".".join(str(part) for part in item["loc"])
    if item["type"] == "extra_forbidden":
        return f"unknown key {path!r}; allowed here: {', '.join(sorted(_fields_at(kind, item['loc'][:-1])))}"
    if item["type"] == "missing":
        return f"{path!r} is missing; give it in the YAML file or on the command line (--help says how)"
    message = item["msg"].removeprefix("Value error, ")
    return f"{path!r} is {item['input']!r}: {message}" if path else message


def _fields_at(kind: type[Model], location: tuple[Any, ...]) -> list[str]:
    for part in location:
        field = kind.model_fields.get(str(part))
        of_field = [] if field is None else [field.annotation, *get_args(field.annotation)]
        models = [one for one in of_field if isinstance(one, type) and issubclass(one, Model)]
        if not models:
            break
        kind = models[0]
    return list(kind.model_fields)
