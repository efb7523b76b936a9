"""Classes by name, so that a model is declared once: its class statement is all that saving and loading need."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from types import CodeType, FunctionType
from typing import Any, Protocol, TypeVar

T = TypeVar("T")


class UnknownKindError(ValueError):
    """Raised for the name of a class that no imported module has."""


class Configured(Protocol):
    """An object that returns the arguments of its constructor."""

    def config(self) -> dict[str, Any]:
        """The constructor's arguments, as values that JSON can represent."""


def register(kinds: dict[str, type[T]], name: str, cls: type[T]) -> None:
    """Add a class to the classes of its kind.

    The same definition may be run again, as by a notebook, `importlib.reload`, or a function that contains it; its last
    class counts.

    Args:
        kinds: The classes by name.
        name: The name of the class, by which its objects are saved.
        cls: The class.

    Raises:
        TypeError: If another class has the name.
    """
    other = kinds.get(name, cls)
    if other is not cls and not _of_one_definition(other, cls):
        raise TypeError(
            f"{cls.__module__}.{cls.__qualname__} has the name {name!r} of {other.__module__}.{other.__qualname__}; "
            f"give it another: class {cls.__name__}(..., kind=...)"
        )
    kinds[name] = cls


def find(kinds: Mapping[str, type[T]], name: object) -> type[T]:
    """The class that has a name; raises an `UnknownKindError` that lists the known names if there is none."""
    if isinstance(name, str) and name in kinds:
        return kinds[name]
    raise UnknownKindError(
        f"no class called {name!r} is imported; import its module first. There are: {', '.join(kinds)}"
    )


def whole_config(configured: Configured) -> dict[str, Any]:
    """An object's ``config()``, which must have every argument of its constructor.

    Raises:
        ValueError: If one is missing; an object made of the configuration would have its default and be another.
    """
    cls, config = type(configured), configured.config()
    for name, parameter in inspect.signature(cls).parameters.items():
        if name not in config and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            raise ValueError(f"{cls.__qualname__}.config() lacks {name!r}, an argument of the constructor")
    return config


def _of_one_definition(one: type, other: type) -> bool:
    if (one.__module__, one.__qualname__) != (other.__module__, other.__qualname__):
        return False
    return "<locals>" not in one.__qualname__ or (bool(_code(one)) and _code(one) == _code(other))


def _code(cls: type) -> dict[str, CodeType]:
    """The compiled methods of a class, which are equal if their place in the source is the same."""
    return {name: value.__code__ for name, value in vars(cls).items() if isinstance(value, FunctionType)}
