"""Rules of a family's configuration that concern one key of theirs: what it means as fields of a GPTConfig, and back.

`families_rules` has those that read several keys at once.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Protocol

from lmforge.errors import InputError
from lmforge.model.config import GPTConfig

REQUIRED: Any = object()
Settings = Mapping[str, Any]


class Rule(Protocol):
    """What some keys of theirs mean."""

    def read(self, settings: Settings, context: int) -> dict[str, Any]:
        """Fields of a GPTConfig that reads `context` tokens.

        Raises:
            InputError: a key is missing, or says what ours does not compute.
        """

    def write(self, config: GPTConfig) -> dict[str, Any]:
        """Their keys. What they cannot say is found by reading them again (`Family.settings`)."""


@dataclasses.dataclass(frozen=True)
class Key:
    """One key of theirs that is one field of ours. `default`: what theirs means where it is missing or null (REQUIRED:
    it has to be there); `names`: values that are called otherwise there."""

    ours: str
    theirs: str
    default: Any = REQUIRED
    names: Mapping[Any, Any] | None = None

    def read(self, settings: Settings, context: int) -> dict[str, Any]:
        """See `Rule`."""
        value = settings.get(self.theirs)
        if value is None:
            value = self.default
        if value is REQUIRED:
            raise InputError(f"config.json: {self.theirs} is missing; save the checkpoint with transformers again")
        if self.names is not None:
            if value not in self.names:
                known = ", ".join(map(str, self.names))
                raise InputError(f"config.json: {self.theirs} = {value!r}: ours computes {known} there")
            value = self.names[value]
        return {self.ours: value}

    def write(self, config: GPTConfig) -> dict[str, Any]:
        """See `Rule`."""
        value = getattr(config, self.ours)
        if self.names is not None:
            value = next((name for name, own in self.names.items() if own == value), None)
        return {self.theirs: value}


@dataclasses.dataclass(frozen=True)
class Always:
    """Fields of ours that are the same in all networks of a family."""

    fields: Mapping[str, Any]

    def read(self, settings: Settings, context: int) -> dict[str, Any]:
        """See `Rule`."""
        return dict(self.fields)

    def write(self, config: GPTConfig) -> dict[str, Any]:
        """See `Rule`."""
        return {}


@dataclasses.dataclass(frozen=True)
class Only:
    """Keys of theirs of which ours computes some values alone; the first is the one that a missing key means."""

    values: Mapping[str, tuple[Any, ...]]

    def read(self, settings: Settings, context: int) -> dict[str, Any]:
        """See `Rule`."""
        for key, allowed in self.values.items():
            if settings.get(key, allowed[0]) not in allowed:
                raise InputError(
                    f"config.json: {key} = {settings[key]!r}: this network cannot be imported, ours does not compute "
                    "that"
                )
        return {}

    def write(self, config: GPTConfig) -> dict[str, Any]:
        """See `Rule`."""
        return {}


@dataclasses.dataclass(frozen=True)
class Same:
    """One key of theirs that is several fields of ours."""

    ours: tuple[str, ...]
    theirs: str
    default: Any = REQUIRED

    def read(self, settings: Settings, context: int) -> dict[str, Any]:
        """See `Rule`."""
        value = Key("", self.theirs, self.default).read(settings, context)[""]
        return dict.fromkeys(self.ours, value)

    def write(self, config: GPTConfig) -> dict[str, Any]:
        """See `Rule`."""
        return {self.theirs: getattr(config, self.ours[0])}


@dataclasses.dataclass(frozen=True)
class Times:
    """One key of theirs that is one field of ours; where it is missing or null, `times` another one of theirs."""

    ours: str
    theirs: str
    times: int
    other: str

    def read(self, settings: Settings, context: int) -> dict[str, Any]:
        """See `Rule`."""
        other = Key("", self.other).read(settings, context)[""]
        return Key(self.ours, self.theirs, self.times * other).read(settings, context)

    def write(self, config: GPTConfig) -> dict[str, Any]:
        """See `Rule`."""
        return {self.theirs: getattr(config, self.ours)}


@dataclasses.dataclass(frozen=True)
class Power:
    """A field of ours that is a power of a key of theirs. `derived`: of one that says something else, too."""

    ours: str
    theirs: str
    power: float
    default: Any = REQUIRED
    derived: bool = False

    def read(self, settings: Settings, context: int) -> dict[str, Any]:
        """See `Rule`."""
        return {self.ours: Key("", self.theirs, self.default).read(settings, context)[""] ** self.power}

    def write(self, config: GPTConfig) -> dict[str, Any]:
        """See `Rule`."""
        if self.derived or not getattr(config, self.ours):
            return {}
        value = float(f"{getattr(config, self.ours) ** (1 / self.power):.12g}")
        return {self.theirs: int(value) if value.is_integer() else value}


@dataclasses.dataclass(frozen=True)
class Equal:
    """A key of theirs that ours computes only where it is missing, or equal to another one."""

    theirs: str
    other: str

    def read(self, settings: Settings, context: int) -> dict[str, Any]:
        """See `Rule`."""
        Only({self.theirs: (settings.get(self.other), None)}).read(settings, context)
        return {}

    def write(self, config: GPTConfig) -> dict[str, Any]:
        """See `Rule`."""
        return {}
