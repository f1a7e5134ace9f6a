"""Named parts that are written in one file and registered in one line: compression methods, tasks, formats of models.

    METHODS: Registry[Method] = Registry("compression method", ("lmforge.compress.quantize",))
    METHODS.register("toy", Toy())              in the part's own file, inside the package or outside it
    METHODS["toy"]                              anywhere; imports what may register "toy" only when it is asked for

An installed distribution adds its parts by naming the module that registers them as an entry point of the group
`lmforge.plugins` (Python packaging, "Entry points specification"); nobody needs to import it.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import entry_points
from typing import Any, TypeVar

from lmforge.errors import InputError

ENTRY_POINTS = "lmforge.plugins"
T = TypeVar("T")


class Registry(Mapping[str, T]):
    """Parts of one kind by name, in the order of their registration.

    `plugins` are dotted names of the modules that register the package's own parts. They are imported when a name is
    asked for that is not there yet, or all names are: what stands above a part in the order of folders finds it without
    importing it, and what needs no part pays for none.
    """

    def __init__(self, kind: str, plugins: Sequence[str] = ()) -> None:
        """`kind` is what an error calls a part: "compression method"."""
        self.kind = kind
        self._plugins = tuple(plugins)
        self._parts: dict[str, T] = {}
        self._imported = False

    def register(self, name: str, part: T) -> T:
        """Add a part, and return it. Registering the same object again changes nothing.

        Raises:
            ValueError: another part has that name.
        """
        if self._parts.setdefault(name, part) is not part:
            raise ValueError(f"{self.kind} {name!r} is registered already; give the new one another name")
        return part

    def __getitem__(self, name: str) -> T:
        """The part of that name.

        Raises:
            InputError: there is none; names those there are, the nearest first.
        """
        if name not in self._parts:
            self._import()
        if name not in self._parts:
            near = difflib.get_close_matches(name, self._parts, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else "."
            raise InputError(f"{self.kind} {name!r} is not known{hint} Known: {', '.join(self._parts) or 'none'}")
        return self._parts[name]

    def get(self, name: str, default: Any = None) -> Any:
        """The part of that name, or `default`."""
        return self._parts[name] if name in self else default

    def __contains__(self, name: object) -> bool:
        if name not in self._parts:
            self._import()
        return name in self._parts

    def __iter__(self) -> Iterator[str]:
        self._import()
        return iter(tuple(self._parts))

    def __len__(self) -> int:
        self._import()
        return len(self._parts)

    def _import(self) -> None:
        """Import everything that may register parts, once."""
        if self._imported:
            return
        self._imported = True  # before the imports, which may ask for names themselves
        for module in self._plugins:
            importlib.import_module(module)
        for plugin in entry_points(group=ENTRY_POINTS):
            try:
                plugin.load()
            except Exception as error:
                self._imported = False  # the next call tells the same
                raise InputError(
                    f"plug-in {plugin.name} ({plugin.value}): cannot be imported: {error}; mend it or uninstall it"
                ) from error
