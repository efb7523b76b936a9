"""Classes by name, so that a model is declared once: its class statement is all that saving and loading need."""

from __future__ import annotations

from typing import TypeVar

T = TypeVar("T")


def register(kinds: dict[str, type[T]], name: str, cls: type[T]) -> None:
    """Add a class to the classes of its kind.

    The same definition may be run again, as by a notebook or `importlib.reload`; its last class counts.

    Args:
        kinds: The classes by name.
        name: The name of the class, by which its objects are saved.
        cls: The class.

    Raises:
        TypeError: If another class has the name.
    """
    other = kinds.get(name, cls)
    same_definition = (other.__module__, other.__qualname__) == (cls.__module__, cls.__qualname__)
    if other is not cls and (not same_definition or "<locals>" in cls.__qualname__):
        raise TypeError(
            f"{cls.__module__}.{cls.__qualname__} has the name {name!r} of {other.__module__}.{other.__qualname__}; "
            f"give it another: class {cls.__name__}(..., kind=...)"
        )
    kinds[name] = cls
