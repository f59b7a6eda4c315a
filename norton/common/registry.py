"""Named methods: a file in the folder registers what it defines, and the folder imports all its files."""

import importlib
import pkgutil
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from norton.common.errors import InputError

Method = TypeVar("Method")


class Registry:
    """Maps the names of one kind of method (criterion, decomposition, ...) to the methods."""

    def __init__(self, kind: str):
        self.kind = kind
        self._methods: dict[str, object] = {}

    def register(self, name: str) -> Callable[[Method], Method]:
        """Decorator that makes a function or class known under `name`."""

        def add(method: Method) -> Method:
            if name in self._methods:
                raise ValueError(f"{self.kind} {name!r} is registered twice")
            self._methods[name] = method
            return method

        return add

    def __getitem__(self, name: str) -> Any:
        try:
            return self._methods[name]
        except KeyError:
            raise InputError(f"unknown {self.kind} {name!r}; choose one of {', '.join(sorted(self))}") from None

    def __iter__(self) -> Iterator[str]:
        return iter(self._methods)

    def __contains__(self, name: str) -> bool:
        return name in self._methods


def import_submodules(package: str) -> None:
    """Import every module of a package, so that each registers its methods: adding a file is enough."""
    for module in pkgutil.iter_modules(importlib.import_module(package).__path__):
        importlib.import_module(f"{package}.{module.name}")
