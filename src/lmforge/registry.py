"""Named parts that are written in one file and registered in one line: compression methods, tasks, formats of models.

    METHODS: Registry[Method] = Registry("compression method", ("lmforge.compress.quantize",))
    METHODS.register("toy", Toy())              in the part's own file, inside the package or outside it
    METHODS["toy"]                              anywhere; imports what may register "toy" only when it is asked for

An installed distribution adds its parts by naming the module that registers them as an entry point of the group
`lmforge.plugins` (Python packaging, "Entry points specification"); nobody needs to import it.

A part's settings in the recipe are a pydantic section that a registry of sections knows by the part's name:

    steps: tuple[Annotated[Section, Selected(SECTIONS, "method")], ...]      [[compress.steps]] method = "toy"
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import entry_points
from typing import Any, TypeVar

from pydantic import BaseModel, GetCoreSchemaHandler, GetJsonSchemaHandler, ValidationError
from pydantic_core import CoreSchema, InitErrorDetails, PydanticCustomError, core_schema

from lmforge.errors import InputError

ENTRY_POINTS = "lmforge.plugins"
T = TypeVar("T")


class Registry(Mapping[str, T]):
    """Parts of one kind by name: the package's own in the order of `plugins`, then others as they were registered.

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

    def remove(self, name: str) -> T:
        """Take a registered part out, and return it.

        Raises:
            KeyError: nothing is registered under that name.
        """
        return self._parts.pop(name)

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
        # in the order that is declared, whichever module happened to be imported first
        self._parts = dict(sorted(self._parts.items(), key=lambda item: self._place(item[1])))

    def _place(self, part: T) -> int:
        module = getattr(part, "__module__", None) or type(part).__module__
        if module in self._plugins:
            return self._plugins.index(module)
        return -1 if module.startswith("lmforge.") else len(self._plugins)


class Selected:
    """In an annotation of a recipe's field: a section chosen among the registered ones by the value of its `key`, as a
    discriminated union that may grow after the recipe's class is made. A problem's location has the value in it, as
    pydantic's own unions have: compress.steps.0.quantize.bits. With `default`, a section may leave its key out."""

    def __init__(self, sections: Registry[type[BaseModel]], key: str, default: str | None = None) -> None:
        self.sections, self.key, self.default = sections, key, default

    def validate(self, value: Any) -> BaseModel:
        """The section that `value`, a table or a section already, is.

        Raises:
            ValidationError: its key is missing or not registered, or the section refuses what it holds.
        """
        known = self.sections
        if isinstance(value, BaseModel):
            name = getattr(value, self.key, None)
            if isinstance(name, str) and known.get(name) is type(value):
                return value
            raise ValueError(f"{type(value).__name__} is not a registered {known.kind}")
        if not isinstance(value, Mapping):
            raise ValueError(f"a table is needed, with {self.key} = one of {', '.join(known)}")
        name = value.get(self.key, self.default)
        if not isinstance(name, str) or name not in known:
            near = difflib.get_close_matches(str(name), known, n=1)
            hint = f" did you mean '{near[0]}'?" if near else ""
            cause = f"a {known.kind} is needed, one of: {', '.join(known)};{hint}".rstrip(";")
            raise self._refusal((self.key,), PydanticCustomError("selected", "{cause}", {"cause": cause}), name)
        try:
            return known[name].model_validate(value)
        except ValidationError as error:
            problems = [
                InitErrorDetails(
                    type=PydanticCustomError(problem["type"], "{cause}", {"cause": problem["msg"]}),
                    loc=(name, *problem["loc"]),
                    input=problem["input"],
                )
                for problem in error.errors()
            ]
            raise ValidationError.from_exception_data(known.kind, problems) from error

    def _refusal(self, location: tuple[str, ...], cause: PydanticCustomError, given: Any) -> ValidationError:
        problem = InitErrorDetails(type=cause, loc=location, input=given)
        return ValidationError.from_exception_data(self.sections.kind, [problem])

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(self.validate)

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {"anyOf": [section.model_json_schema() for section in self.sections.values()]}
