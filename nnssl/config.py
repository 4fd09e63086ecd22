"""Frozen dataclasses as configuration: to JSON, from JSON, and `key=value` overrides from the command line."""

import dataclasses
import json
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

T = TypeVar("T")


def to_dict(config: Any) -> dict[str, Any]:
    """A dataclass as plain JSON values (tuples become lists)."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def from_dict(cls: type[T], values: Mapping[str, Any]) -> T:
    """Build dataclass `cls` from JSON values; an unknown key is an error that lists the known ones."""
    hints = typing.get_type_hints(cls)
    known = [field.name for field in dataclasses.fields(cls)]  # type: ignore[arg-type]
    for key in values:
        _check_known(cls, key, known)
    return cls(**{key: _coerce(value, hints[key], key) for key, value in values.items()})


def override(config: T, assignments: Sequence[str]) -> T:
    """A copy of `config` with `key=value` assignments applied; values are read as JSON, else as text.

    >>> override(recipe, ["lr=1e-4", "global_crop=[64,64,48]"])
    """
    hints = typing.get_type_hints(type(config))
    known = [field.name for field in dataclasses.fields(config)]  # type: ignore[arg-type]
    changes = {}
    for assignment in assignments:
        key, separator, text = assignment.partition("=")
        if not separator:
            raise ValueError(f"--set {assignment!r}: expected key=value; known keys: {', '.join(known)}")
        _check_known(type(config), key, known)
        changes[key] = _coerce(_read_value(text), hints[key], key)
    return dataclasses.replace(config, **changes)  # type: ignore[type-var]


def knows(cls: type, assignment: str) -> bool:
    """Whether the key of a `key=value` assignment is a field of dataclass `cls`."""
    return assignment.partition("=")[0] in {field.name for field in dataclasses.fields(cls)}


def flattened(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one with dotted keys: {"a": {"b": 1}} becomes {"a.b": 1}; to name what differs."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= flattened(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat


def _check_known(cls: type, key: str, known: Sequence[str]) -> None:
    if key not in known:
        raise ValueError(f"{cls.__name__} has no setting {key!r}; known settings: {', '.join(known)}")


def _read_value(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return {"True": True, "False": False, "None": None}.get(text, text)


def _coerce(value: Any, hint: Any, key: str) -> Any:
    """Bring a JSON value to the annotated type: lists to tuples, ints to floats, dicts to dataclasses."""
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in typing.get_args(hint):
            return None
        inner = [option for option in typing.get_args(hint) if option is not type(None)]
        return _coerce(value, inner[0], key)
    if dataclasses.is_dataclass(hint) and isinstance(value, Mapping):
        return from_dict(typing.cast(type, hint), value)
    if origin is tuple:
        return _coerce_tuple(value, typing.get_args(hint), key)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(hint, type) and origin is None and not _is_instance(value, hint):
        raise ValueError(f"setting {key!r}: expected {hint.__name__}, got {value!r}")
    return value


def _coerce_tuple(value: Any, arguments: tuple[Any, ...], key: str) -> tuple[Any, ...]:
    if not isinstance(value, list | tuple):
        raise ValueError(f"setting {key!r}: expected a list, for example [64,64,48], got {value!r}")
    if len(arguments) == 2 and arguments[1] is Ellipsis:
        return tuple(_coerce(item, arguments[0], key) for item in value)
    if len(arguments) != len(value):
        raise ValueError(f"setting {key!r}: expected {len(arguments)} values, got {list(value)}")
    return tuple(_coerce(item, hint, key) for item, hint in zip(value, arguments, strict=True))


def _is_instance(value: Any, hint: type) -> bool:
    if hint in (int, float) and isinstance(value, bool):
        return False
    return isinstance(value, hint)
