"""Objects that can be written down as JSON and built again: layers, losses, optimizers, schedules, initializers.

The convention is scikit-learn's: a constructor stores each of its arguments under the argument's own name. From
that alone follow `repr`, equality, and the description that a model file carries.
"""

from __future__ import annotations

import inspect
from typing import Any, ClassVar

from xpnn.errors import ConfigError


class Configurable:
    """Base of everything that is described by the arguments of its constructor."""

    _classes: ClassVar[dict[str, type[Configurable]]] = {}

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if not cls.__name__.startswith("_"):
            Configurable._classes[cls.__name__] = cls

    def arguments(self) -> tuple[list[Any], dict[str, Any]]:
        """The positional and keyword arguments that build an equal object."""
        positional: list[Any] = []
        keyword: dict[str, Any] = {}
        for name, parameter in inspect.signature(type(self).__init__).parameters.items():
            if name == "self":
                continue
            value = getattr(self, name)
            if parameter.kind is parameter.VAR_POSITIONAL:
                positional.extend(value)
            elif parameter.kind is parameter.VAR_KEYWORD:
                keyword.update(value)
            else:
                keyword[name] = value
        return positional, keyword

    def __eq__(self, other: object) -> bool:
        if type(self) is not type(other) or not isinstance(other, Configurable):
            return NotImplemented
        return self.arguments() == other.arguments()

    __hash__ = object.__hash__

    def __repr__(self) -> str:
        positional, keyword = self.arguments()
        defaults = inspect.signature(type(self).__init__).parameters
        shown = [repr(value) for value in positional]
        shown += [
            f"{name}={value!r}"
            for name, value in keyword.items()
            if name not in defaults or (defaults[name].default is not value and defaults[name].default != value)
        ]
        return f"{type(self).__name__}({', '.join(shown)})"


def encode(value: Any) -> Any:
    """`value` as JSON data. Raises ConfigError for what has no description (a function, an array)."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, (list, tuple)):
        return [encode(item) for item in value]
    if isinstance(value, dict):
        return {"dict": [[encode(key), encode(item)] for key, item in value.items()]}
    if isinstance(value, Configurable):
        positional, keyword = value.arguments()
        return {
            "class": type(value).__name__,
            "positional": [encode(item) for item in positional],
            "keyword": {name: encode(item) for name, item in keyword.items()},
        }
    raise ConfigError(
        f"{value!r} cannot be written into a model file: only numbers, strings, lists and xpnn objects can. "
        "Give the function a class of its own (a subclass of xpnn.Layer) to save the network."
    )


def decode(data: Any, custom: dict[str, type[Configurable]] | None = None) -> Any:
    """What `encode` wrote, built again; classes are looked up in `custom`, then among all that are imported."""
    if isinstance(data, list):
        return tuple(decode(item, custom) for item in data)
    if isinstance(data, dict) and "dict" in data:
        return {decode(key, custom): decode(item, custom) for key, item in data["dict"]}
    if isinstance(data, dict):
        name = data["class"]
        known = {**Configurable._classes, **(custom or {})}
        if name not in known:
            raise ConfigError(
                f"the file names a class {name!r} that xpnn does not know; import the module that defines it, "
                f"or pass it: Network.load(path, custom=[{name}])"
            )
        positional = [decode(item, custom) for item in data["positional"]]
        keyword = {key: decode(item, custom) for key, item in data["keyword"].items()}
        return known[name](*positional, **keyword)
    return data


def by_name(kind: str, value: Any, table: dict[str, Any], base: type) -> Any:
    """An object of class `base` from itself, or built with defaults from its name in `table`."""
    if isinstance(value, base):
        return value
    if isinstance(value, str):
        if value in table:
            return table[value]()
        raise ConfigError(f"{kind}={value!r} is unknown; known names: {', '.join(sorted(table))}")
    raise ConfigError(f"{kind}={value!r} is a {type(value).__name__}; give a name or an xpnn.{base.__name__} object")
