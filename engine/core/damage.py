"""Damage: places of an input that cannot be read. They do not stop the run."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from danqing.engine.core.escape import printable
from danqing.engine.core.files import write_json

DAMAGED = "damaged.json"
"""Name of the file in a run's folder that lists all damage of its inputs."""
METADATA = b"danqing.damage"
"""Key in the metadata of a shard's scores: the damage found when the shard was read."""
MAX_PRINTED = 5


@dataclass(frozen=True)
class Damage:
    """One place of an input that holds no rows, or fewer than it should.

    Attributes:
        file: the input file, or the entry of an input folder.
        place: where in the file: a byte, a line, a member; empty for the whole file.
        problem: what is wrong, and what follows from it.

    >>> str(Damage("a.tar", "byte 1024", "no tar header"))
    'a.tar, byte 1024: no tar header'
    """

    file: str
    place: str
    problem: str

    def __str__(self) -> str:
        return f"{self.file}, {self.place}: {self.problem}" if self.place else f"{self.file}: {self.problem}"

    @classmethod
    def at(cls, file: Path | str, place: str, problem: object) -> Damage:
        """Makes damage from names and problems with any characters; its texts can be stored and printed."""
        return cls(printable(file), printable(place), printable(problem))


def to_metadata(damage: Iterable[Damage]) -> dict[bytes, bytes]:
    """Returns the entry of a schema's metadata that holds the damage; an empty dict without damage."""
    found = [asdict(entry) for entry in damage]
    return {METADATA: json.dumps(found).encode()} if found else {}


def from_metadata(metadata: dict[bytes, bytes] | None) -> list[Damage]:
    """Reads the damage that `to_metadata` stored."""
    return [Damage(**entry) for entry in json.loads((metadata or {}).get(METADATA, b"[]"))]


def write_damage(folder: Path, damage: list[Damage]) -> None:
    """Writes the run's damaged.json; removes it if there is no damage."""
    path = folder / DAMAGED
    if damage:
        write_json(path, [asdict(entry) for entry in damage])
    else:
        path.unlink(missing_ok=True)


def read_damage(folder: Path) -> list[Damage]:
    """Reads a run's damaged.json; without the file there is no damage."""
    path = folder / DAMAGED
    return [Damage(**entry) for entry in json.loads(path.read_text(encoding="utf-8"))] if path.exists() else []


def summary(folder: Path, damage: list[Damage]) -> list[str]:
    """Returns lines for the terminal: the number of damaged places, and the first ones."""
    if not damage:
        return []
    places = "1 place" if len(damage) == 1 else f"{len(damage):,} places"
    lines = [f"Damaged input, {places} (all in {folder / DAMAGED}):", *(f"  {entry}" for entry in damage[:MAX_PRINTED])]
    return [*lines, "  …"] if len(damage) > MAX_PRINTED else lines
