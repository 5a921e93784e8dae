"""Records of CSV and JSON lines files.

They are read by Python's parsers. Arrow's readers are faster, but they infer types from the first block and refuse the
whole file at the first line that disagrees; here a broken line fails one row.
"""

from __future__ import annotations

import csv
import gzip
import io
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from danqing.engine.core.errors import DanqingError
from danqing.engine.sources.text import UTF8, SampleError, detect, parse_object

CSV_SUFFIXES = (".csv", ".csv.gz")
JSON_SUFFIXES = (".jsonl", ".jsonl.gz")
TEXT_SUFFIXES = (*CSV_SUFFIXES, *JSON_SUFFIXES)
MAX_LINE = 16 << 20
"""Longest line, in characters. A longer one is skipped and fails its row."""
BLOCK_CHARACTERS = 1 << 18
"""Characters of CSV that are parsed at once, as long as no record of them is damaged."""
CUT_OFF = (OSError, EOFError, zlib.error)
"""Exceptions of a truncated .gz file."""
DETECTED_BYTES = 1 << 20
"""The encoding of a table is detected from this many bytes, from the first one above 127 on."""

Record = tuple[dict[str, Any], str | None]
"""A row's fields, and a description of what is wrong with it or None."""


@dataclass(frozen=True)
class TextRows:
    """A whole table.

    Attributes:
        rows: each with a description of what is wrong with it, or None.
        damage: place and problem of parts that are not rows.
        encoding: the table's encoding.
    """

    rows: tuple[Record, ...]
    damage: tuple[tuple[str, str], ...]
    encoding: str


def read_records(path: Path, encoding: str = "") -> TextRows:
    """Reads a CSV or JSON lines file.

    Args:
        path: the file.
        encoding: empty: detected.

    Raises:
        DanqingError: the header cannot be read, or the table is in none of the known encodings.
    """
    with open_lines(path, encoding) as (_, lines):
        rows = tuple(_parse(path, lines))
    return TextRows(rows, (lines.damage,) if lines.damage else (), lines.encoding)


def _parse(path: Path, lines: Lines) -> Iterator[Record]:
    if not path.name.endswith(CSV_SUFFIXES):
        yield from read_json(lines)
        return
    for header, records, problem in read_csv(path, lines):
        for fields in records:
            yield dict(zip(header, fields, strict=True)), problem


class Lines:
    """Lines of a text file. A record may take several lines, and return all but its first."""

    def __init__(self, stream: io.TextIOWrapper, encoding: str) -> None:
        self.encoding = encoding
        self._stream = stream
        self._back: list[str] = []
        self._taken: list[str] = []
        self.start = 1
        self.damage: tuple[str, str] | None = None
        """Place and problem of the file's early end."""

    def __iter__(self) -> Lines:
        return self

    def __next__(self) -> str:
        try:
            line = self._back.pop() if self._back else self._read()
        except CUT_OFF as problem:  # the lines before are used
            self._note_damage(len(self._taken), problem)
            raise StopIteration from None
        self._taken.append(line)
        return line

    def _read(self) -> str:
        """Reads a line; of a line longer than `MAX_LINE`, only its first characters (`too_long`)."""
        line = self._stream.readline(MAX_LINE)
        if not line:
            raise StopIteration
        rest = line
        while len(rest) == MAX_LINE and not rest.endswith(("\n", "\r")):
            rest = self._stream.readline(MAX_LINE)
        return line

    def block(self) -> list[str]:
        """Returns lines up to `BLOCK_CHARACTERS`; call it where a record begins, while no line was returned."""
        lines, size = list[str](), 0
        try:
            while size < BLOCK_CHARACTERS:
                lines.append(self._read())
                size += len(lines[-1])
        except StopIteration:
            pass
        except CUT_OFF as problem:
            self._note_damage(len(lines), problem)
        return lines

    @property
    def has_returned(self) -> bool:
        """Whether the next line is one that was returned."""
        return bool(self._back)

    def give_back(self, lines: list[str]) -> None:
        """Returns lines, which are read again."""
        self._back.extend(reversed(lines))

    def _note_damage(self, taken: int, problem: Exception) -> None:
        self.damage = f"line {self.start + taken}", f"the file is cut off here: {problem}"

    @property
    def too_long(self) -> bool:
        """Whether a line of the current record is longer than `MAX_LINE`, or all of them together are."""
        return sum(map(len, self._taken)) >= MAX_LINE

    def next_record(self, block: int = 0) -> None:
        """Notes that all lines taken are read, or a block of the given number of lines."""
        self.start += len(self._taken) + block
        self._taken.clear()

    def return_lines(self) -> None:
        """Returns all lines of the current record but its first, because a quote that is never closed takes every
        line that follows."""
        self.give_back(self._taken[1:])
        del self._taken[1:]


@contextmanager
def open_lines(path: Path, encoding: str) -> Iterator[tuple[BinaryIO, Lines]]:
    """Opens a file as raw bytes and as lines; bytes that are not in the file's encoding become U+FFFD."""
    encoding = encoding or detect_encoding(path)
    with path.open("rb") as raw:
        content: Any = gzip.GzipFile(fileobj=raw) if path.suffix == ".gz" else raw
        python_name = "utf-8-sig" if encoding == UTF8 else encoding
        yield raw, Lines(io.TextIOWrapper(content, encoding=python_name, errors="replace", newline=""), encoding)


def detect_encoding(path: Path) -> str:
    """Detects the encoding of a table by the first bytes that are not ASCII.

    Raises:
        DanqingError: it is in none of the known encodings.
    """
    content = b""
    with path.open("rb") as raw, suppress(OSError, EOFError, zlib.error):
        file: Any = gzip.GzipFile(fileobj=raw) if path.suffix == ".gz" else raw
        while data := file.read(DETECTED_BYTES):
            content = data
            if not data.isascii():
                content += file.read(DETECTED_BYTES)
                break
    if content.isascii():
        return UTF8
    name = detect(content[: content.rfind(b"\n") + 1] or content)
    if name is None:
        raise DanqingError(
            f"{path}: in none of the encodings UTF-8, UTF-16, GB18030, Big5; name another with --encoding"
        )
    return UTF8 if name == "utf-8-sig" else name


def read_csv(path: Path, lines: Lines) -> Iterator[tuple[list[str], Sequence[Sequence[str | None]], str | None]]:
    """Yields the header, some records, and what is wrong with them; a damaged record is yielded alone, without values.

    Records are parsed many at once, and one by one where one of them is damaged.
    """
    reader = csv.reader(lines, strict=True)  # not strict, it reads a stray quote as part of the text
    try:
        header = next(reader, [])
    except csv.Error as error:
        raise DanqingError(f"{path}: the header cannot be read: {error}") from None
    if len(set(header)) < len(header):
        duplicate = next(name for name in header if header.count(name) > 1)
        raise DanqingError(f"{path}: the header names {duplicate!r} twice")
    while True:
        lines.next_record()
        if not lines.has_returned:
            block = lines.block()
            if (records := _records(block, len(header))) is not None:
                yield header, records, None
                lines.next_record(len(block))
                if not block:
                    break
                continue
            lines.give_back(block)
        problem = None
        try:
            fields = next(reader, None)
        except csv.Error as error:
            fields, problem = [], str(error)
        if fields is None:
            break
        if lines.too_long:
            problem = problem or f"longer than {MAX_LINE:,} characters"
        if fields and len(fields) != len(header):
            problem = f"{len(fields)} fields where the header has {len(header)}"
        if problem is not None:
            lines.return_lines()
            yield header, [[None] * len(header)], f"line {lines.start}: {problem}"
        elif fields:  # an empty line is not a row
            yield header, [fields], None


def _records(lines: list[str], fields: int) -> list[list[str]] | None:
    """Parses lines of CSV; None if a record is damaged, too long, or goes on after the lines."""
    if sum(map(len, lines)) >= MAX_LINE:
        return None
    try:
        records = list(filter(None, csv.reader(lines, strict=True)))  # an empty line is not a row
    except csv.Error:
        return None
    return records if {fields}.issuperset(map(len, records)) else None


def read_json(lines: Lines) -> Iterator[Record]:
    for line in lines:
        if line.strip():
            try:
                if lines.too_long:
                    raise SampleError(f"longer than {MAX_LINE:,} characters")
                record, problem = parse_object(line), None
            except SampleError as reason:
                record, problem = {}, f"line {lines.start}: {reason}"
            yield record, problem
        lines.next_record()
