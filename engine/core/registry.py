"""Parts of the engine that other packages can add: stages, sources, writers, runtimes and indexes.

A package adds a part by an entry point of the part's group:

    [project.entry-points."danqing.stages"]
    exclamations = "my_package:Exclamations"

The engine's own parts are entry points, too, and load in the same way. They are listed in code, not in pyproject.toml:
the engine also runs from a source tree, where installed metadata is missing or older than the code.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib.metadata import EntryPoint, entry_points
from typing import TypeVar

from danqing.engine.core.errors import DanqingError, did_you_mean

Part = TypeVar("Part")


class Registry(Mapping[str, Part]):
    """The parts of one group, by name; a part is imported when it is first read.

    The order is that of `builtin`, then other packages' parts by package and name, then registered ones.

    Args:
        group: the group of entry points, `danqing.stages`.
        builtin: name → `module:attribute` of the engine's own parts.
        option: the command line's option that names a part, for messages.
    """

    def __init__(self, group: str, builtin: Mapping[str, str], option: str = "") -> None:
        self.group, self.option = group, option
        self._builtin = builtin
        self._entries: dict[str, EntryPoint] | None = None
        self._parts: dict[str, Part] = {}
        self._registered: dict[str, Part] = {}

    def register(self, name: str, part: Part) -> None:
        """Adds a part to this process only, for notebooks and tests; the same name again replaces it.

        Processes that the engine starts (several devices) do not have the part; they need an entry point.

        Raises:
            DanqingError: an entry point has this name.
        """
        if name in self._found():
            raise DanqingError(f"{self.group}: {name!r} is already an entry point; register it under another name")
        self._registered[name] = part

    def named(self, name: str) -> Part:
        """Returns a part.

        Raises:
            DanqingError: no part has this name, or it cannot be imported; names the package and the entry point.
        """
        if name not in self:
            raise DanqingError(f"{self.option or self.group}: no {name!r} is installed; {did_you_mean(name, self)}")
        return self[name]

    def __getitem__(self, name: str) -> Part:
        if name in self._registered:
            return self._registered[name]
        if name not in self._parts:
            self._parts[name] = self._import(self._found()[name])
        return self._parts[name]

    def __iter__(self) -> Iterator[str]:
        return iter([*self._found(), *self._registered])

    def __len__(self) -> int:
        return len(self._found()) + len(self._registered)

    def __contains__(self, name: object) -> bool:
        return name in self._registered or name in self._found()

    def _found(self) -> dict[str, EntryPoint]:
        """Name → entry point; installed packages are searched once, at the first call (0.1 s)."""
        if self._entries is None:
            found = {name: EntryPoint(name, value, self.group) for name, value in self._builtin.items()}
            for entry in sorted(entry_points(group=self.group), key=lambda entry: (_package(entry), entry.name)):
                if entry.name in found:
                    raise DanqingError(
                        f"{self.group}: the packages {_package(found[entry.name])} and {_package(entry)} both have an "
                        f"entry point {entry.name!r}; uninstall one of them"
                    )
                found[entry.name] = entry
            self._entries = found
        return self._entries

    def _import(self, entry: EntryPoint) -> Part:
        try:
            part: Part = entry.load()
        except Exception as problem:  # a module can raise anything while it is imported
            if entry.dist is None:
                raise
            raise DanqingError(
                f"{self.group}: the entry point {entry.name!r} of the package {_package(entry)} cannot be loaded "
                f"({entry.value}: {type(problem).__name__}: {problem}); repair or uninstall the package"
            ) from problem
        return part


def _package(entry: EntryPoint) -> str:
    """Name and version of the distribution that has the entry point."""
    return f"{entry.dist.name} {entry.dist.version}" if entry.dist else "danqing-engine"
