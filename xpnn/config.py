"""Objects that can be written down as JSON and built again: layers, losses, optimizers, schedules, initializers.

The convention is scikit-learn's: a constructor stores each of its arguments under the argument's own name. From
that alone follow `repr`, equality, and the description that a model file carries.
"""

from __future__ import annotations

import inspect
import math
import operator
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, ClassVar

from xpnn.errors import ConfigError


class Configurable:
    """Base of everything that is described by the arguments of its constructor."""

    _classes: ClassVar[dict[str, type[Configurable]]] = {}
    _constructor_parameters: ClassVar[Mapping[str, inspect.Parameter]]

    def __init__(self) -> None:
        pass

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if not cls.__name__.startswith("_"):
            Configurable._classes[class_name(cls)] = cls

    def arguments(self) -> tuple[list[Any], dict[str, Any]]:
        """The positional and keyword arguments that build an equal object."""
        positional: list[Any] = []
        keyword: dict[str, Any] = {}
        for name, parameter in _constructor(type(self)).items():
            if name == "self":
                continue
            try:
                value = getattr(self, name)
            except AttributeError:
                raise ConfigError(
                    f"{type(self).__name__}: the constructor must store its argument {name!r} as self.{name}; saving "
                    "and printing need it"
                ) from None
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
        defaults = _constructor(type(self))
        shown = [repr(value) for value in positional]
        shown += [
            f"{name}={value!r}"
            for name, value in keyword.items()
            if name not in defaults or (defaults[name].default is not value and defaults[name].default != value)
        ]
        return f"{type(self).__name__}({', '.join(shown)})"


def _constructor(cls: type[Configurable]) -> Mapping[str, inspect.Parameter]:
    """The parameters of a class's constructor by name; looked up once, for that takes longer than most uses of it."""
    found: Mapping[str, inspect.Parameter] | None = cls.__dict__.get("_constructor_parameters")
    if found is None:
        found = inspect.signature(cls.__init__).parameters
        cls._constructor_parameters = found
    return found


def class_name(cls: type[Configurable]) -> str:
    """The name of a class in model files: "xpnn.layers.Dense" for one of xpnn's, "your.module.Scale" for one of yours.

    So a class of yours may have the name of one of xpnn's, and two of your modules may each have a class Scale.
    """
    package = cls.__module__.split(".")[:2]
    return ".".join((*package, cls.__name__)) if package[0] == "xpnn" else f"{cls.__module__}.{cls.__qualname__}"


def encode(value: Any) -> Any:
    """`value` as JSON data. Raises ConfigError for what has no description (a function, an array).

    An object that occurs twice is described once; later places refer to it by its number, so that layers which share
    their parameters still do when they are built again.
    """
    return _encode(value, {})


def _encode(value: Any, seen: dict[int, tuple[int, Configurable]]) -> Any:
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, (list, tuple)):
        return [_encode(item, seen) for item in value]
    if isinstance(value, dict):
        return {"dict": [[_encode(key, seen), _encode(item, seen)] for key, item in value.items()]}
    if isinstance(value, Configurable):
        if id(value) in seen:
            return {"same": seen[id(value)][0]}
        # The object is kept as well: were it freed, another one could get its id.
        seen[id(value)] = (len(seen), value)
        positional, keyword = value.arguments()
        return {
            "class": class_name(type(value)),
            "positional": [_encode(item, seen) for item in positional],
            "keyword": {name: _encode(item, seen) for name, item in keyword.items()},
        }
    raise ConfigError(
        f"{value!r} cannot be written into a model file: only numbers, strings, lists and xpnn objects can. "
        "Give the function a class of its own, a subclass of xpnn.Layer (or of xpnn.schedules.Schedule), to save it."
    )


def decode(data: Any, custom: Iterable[type[Configurable]] = ()) -> Any:
    """What `encode` wrote, built again.

    Classes are looked up in `custom`, by their bare names, then among all that are imported. A class of yours whose
    module has another name now (a script that has become a module) is found by its bare name if only one has it.

    Raises:
        ConfigError: a class is not known, or several have its name.
    """
    return _decode(data, tuple(custom), [])


def _find_class(name: str, custom: tuple[type[Configurable], ...]) -> type[Configurable]:
    bare = name.rpartition(".")[2]
    own = not name.startswith("xpnn.")
    for given in custom:
        if class_name(given) == name or (own and given.__name__ == bare):
            return given
    if name in Configurable._classes:
        return Configurable._classes[name]
    namesakes = [
        cls for known, cls in Configurable._classes.items() if own and cls.__name__ == bare and known[:5] != "xpnn."
    ]
    if len(namesakes) == 1:
        return namesakes[0]
    problem = "that xpnn does not know; import the module that defines it, or pass it"
    if namesakes:
        problem = f"and {', '.join(map(class_name, namesakes))} have its name; pass the right one"
    raise ConfigError(f"the file names a class {name!r} {problem}: Network.load(path, custom=[{bare}])")


def _decode(data: Any, custom: tuple[type[Configurable], ...], built: list[Any]) -> Any:
    if isinstance(data, list):
        return tuple(_decode(item, custom, built) for item in data)
    if isinstance(data, dict) and "dict" in data:
        return {_decode(key, custom, built): _decode(item, custom, built) for key, item in data["dict"]}
    if isinstance(data, dict) and "same" in data:
        return built[data["same"]]
    if isinstance(data, dict):
        cls = _find_class(data["class"], custom)
        number = len(built)
        built.append(None)  # numbers are given from the outside in, as `encode` does
        positional = [_decode(item, custom, built) for item in data["positional"]]
        keyword = {key: _decode(item, custom, built) for key, item in data["keyword"].items()}
        built[number] = cls(*positional, **keyword)
        return built[number]
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


def check_integer(name: str, value: Any, minimum: int = 1) -> int:
    """`value` as an int. Raises ConfigError if it is no integer, or smaller than `minimum`."""
    try:
        number = operator.index(value)
    except TypeError:
        number = None
    if number is None or isinstance(value, bool) or number < minimum:
        raise ConfigError(f"{name}={value!r} makes no sense; give an integer of at least {minimum}")
    return number


def check_number(name: str, value: Any, wanted: str, accept: Callable[[float], bool]) -> float:
    """`value` as a float. Raises ConfigError, which says what is `wanted`, unless it is a number and is accepted."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if isinstance(value, (bool, str)) or not accept(number):
        raise ConfigError(f"{name}={value!r} makes no sense; give {wanted}")
    return number


def classes_in(value: Any) -> Iterator[type]:
    """The class of each xpnn object inside `value`."""
    if isinstance(value, Configurable):
        yield type(value)
        yield from classes_in(value.arguments())
    elif isinstance(value, dict):
        yield from classes_in(tuple(value.values()))
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from classes_in(item)
