"""The kinds of criteria. A recipe is an ordered list of criteria; nothing else decides whether a pair is kept.

A kind is one class: the keys it has in a recipe, the columns it reads, the check of both before any work, and `judge`,
which DECIDE calls. To add a kind, write the class and add it to `KINDS`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from danqing.engine.core.carried import RESERVED
from danqing.engine.core.columns import COLUMNS, FEATURES, FLAG, Column
from danqing.engine.core.device import Device
from danqing.engine.core.errors import did_you_mean
from danqing.engine.core.progress import Progress
from danqing.engine.recipe.interval import BOUNDS, Interval
from danqing.engine.recipe.outcome import Outcome, positions_of

MAX_BITS = 8
"""Perceptual hashes of different pictures differ in 10 bits and more (`tests/engine/score/test_study.py`)."""

MAX_JACCARD = 0.5
"""At 0.5, 108 bands are searched; the number grows as 1 / (1 - distance)⁴ (`engine.decide.dedup.captions`)."""

CAPTION_COLUMNS = ("caption_hash", "text_clean")

SURVIVORS = "survivors"
"""Value of `prefer`."""

TEXTS = ("caption", "text_clean", "url")
"""Columns in which patterns can be counted."""

SELECT_COLUMNS = frozenset({"file", "usable"})
"""Columns of a selection's verdicts that `RESERVED` does not have."""

MAX_PATTERN = 40
"""Characters of a pattern that `rule` shows."""

EMPTY_MATCH_TEXTS = ("", "a b中1", " a", "\n1\n", "-_.")
"""Texts in which a pattern must not match between characters, as `\\b` does."""

ANSWERS = ("number", "yes-no")
"""Kinds of answers of a vision-language model."""


class FieldError(ValueError):
    """A value of a recipe that cannot be used; `key` says which."""

    def __init__(self, key: str, problem: str) -> None:
        super().__init__(problem)
        self.key = key


class Scores(Protocol):
    """The scores of a run, as `judge` sees them (`engine.decide.scores`)."""

    def __getitem__(self, column: str) -> np.ndarray:
        """float64 (rows,): the column's numbers, NaN where there is none."""
        ...

    def known(self, column: str) -> np.ndarray:
        """Boolean (rows,): the rows that have a value in the column."""
        ...

    def group_duplicates(
        self, criterion: Redundancy, rows: np.ndarray, device: Device, progress: Progress | None
    ) -> Outcome:
        """Groups the near-duplicates among the rows; of each group, at most `keep_at_most` rows pass."""
        ...

    def compare_with_run(
        self, criterion: Exclusion, rows: np.ndarray, device: Device, progress: Progress | None
    ) -> Outcome:
        """Drops the rows that are near a row of another run."""
        ...


@dataclass(frozen=True)
class Criterion(ABC):
    """One line of a recipe.

    Attributes:
        name: the key of the line.
        section: the heading that reports show it under.
        step: what reports call it; empty for the name.
        marker: the key that makes a line this kind; empty for the kind that needs none.
        kind: the kind in messages.
        keys: the kind's keys in a recipe, besides the labels → type of the value: str, float, tuple for a text or a
            list of texts, or dict for texts by key.
        run_folders: folders of other runs that `judge` reads.
        judges_rows_alone: whether a row's outcome is the same whatever other rows of the run are judged.
    """

    name: str
    section: str = field(default="", kw_only=True)
    step: str = field(default="", kw_only=True)

    marker: ClassVar[str] = ""
    kind: ClassVar[str]
    keys: ClassVar[dict[str, type]]
    judges_rows_alone: ClassVar[bool] = False

    @classmethod
    @abstractmethod
    def read(cls, name: str, values: Mapping[str, Any], section: str = "", step: str = "") -> Criterion:
        """Makes the criterion from its line.

        Args:
            values: those of `keys` that the line has.
            section, step: see `Criterion`.

        Raises:
            ValueError: values that cannot be used; a `FieldError` names the key.
        """

    @abstractmethod
    def to_dict(self) -> dict[str, Any]:
        """The inverse of `read`: `keys` with their values, without defaults."""

    @property
    @abstractmethod
    def columns(self) -> tuple[str, ...]:
        """The columns that stages must compute for the criterion."""

    @property
    @abstractmethod
    def rule(self) -> str:
        """The criterion in words or mathematics."""

    @property
    def run_folders(self) -> tuple[str, ...]:
        return ()

    @abstractmethod
    def check(self, columns: Mapping[str, Column]) -> None:
        """Checks the criterion against the columns that a recipe can name.

        Raises:
            FieldError: an unknown column, one of the wrong type, or values outside its range.
        """

    def can_judge(self, scores: Scores) -> np.ndarray:
        """Boolean (rows,): the rows that have what the criterion needs."""
        return np.logical_and.reduce([scores.known(column) for column in self.columns])

    @abstractmethod
    def judge(self, scores: Scores, alive: np.ndarray, device: Device, progress: Progress | None = None) -> Outcome:
        """Decides which rows pass.

        Args:
            scores: of the whole run.
            alive: boolean (rows,), the rows to judge: no earlier criterion has dropped them, and `can_judge` is true.
            device: computes the search for near-duplicates.
            progress: counts its comparisons.
        """


class RowCriterion(Criterion):
    """A criterion that judges each row by itself, so that SCORE can use it as a gate."""

    judges_rows_alone = True

    @abstractmethod
    def passes(self, columns: Any) -> Any:
        """Boolean (rows,): the rows that pass.

        Args:
            columns: `columns[name]` is an array (rows,) of numbers on the host, NaN where there is none.
        """

    def judge(self, scores: Scores, alive: np.ndarray, device: Device, progress: Progress | None = None) -> Outcome:
        return Outcome(np.flatnonzero(alive & self.passes(scores)))


@dataclass(frozen=True)
class Threshold(RowCriterion):
    """A row passes if its score in `column` lies in `interval`.

    >>> Threshold("edge", "shortest_edge", Interval(above=100)).rule
    'shortest_edge > 100'
    """

    column: str
    interval: Interval

    kind = "a threshold of one score"
    keys = {"column": str, **dict.fromkeys(BOUNDS, float)}

    @classmethod
    def read(cls, name: str, values: Mapping[str, Any], section: str = "", step: str = "") -> Threshold:
        return cls(name, values.get("column", name), Interval.read(values), section=section, step=step)

    def to_dict(self) -> dict[str, Any]:
        return {"column": self.column} | self.interval.to_dict()

    @property
    def columns(self) -> tuple[str, ...]:
        return (self.column,)

    @property
    def rule(self) -> str:
        return self.interval.around(self.column)

    def check(self, columns: Mapping[str, Column]) -> None:
        column = _score_column(self.column, columns, "column")
        if self.interval.excludes(column.range):
            raise ValueError(f"{self.rule} drops every pair, since values are {column.range_text}")
        low, high = column.range
        if low is None or high is None or not self.interval.includes(column.range):
            return
        if any(not low <= bound <= high for bound in self.interval.bounds):
            raise ValueError(
                f"{self.rule} drops no pair, since values are {column.range_text}; give a bound between these, "
                "or remove the criterion"
            )

    def passes(self, columns: Any) -> Any:
        return self.interval.holds(columns[self.column])


class OwnColumn(Threshold):
    """A threshold of a column that SCORE computes for this criterion and that has its name.

    DECIDE can change the bounds, and only them.
    """

    @staticmethod
    @abstractmethod
    def column_named(name: str) -> Column:
        """The column of a criterion of this kind."""

    @property
    @abstractmethod
    def meaning(self) -> str:
        """The column in words."""

    @property
    @abstractmethod
    def definition(self) -> tuple[Any, ...]:
        """The definition of the score. Criteria with equal definitions have equal scores."""

    @property
    def output(self) -> Column:
        """The column of the scores."""
        return self.column_named(self.name)

    @property
    def narrowed(self) -> Column:
        """The column with the range that this criterion's scores have."""
        return self.output

    @property
    def rule(self) -> str:
        return f"{super().rule}: {self.meaning}"

    def check(self, columns: Mapping[str, Column]) -> None:
        if self.name in RESERVED | SELECT_COLUMNS or columns.get(self.name, self.output) != self.output:
            raise ValueError(f"{self.name!r} is a column of another kind; give the criterion another name")
        super().check({self.name: self.narrowed})


@dataclass(frozen=True)
class Pattern(OwnColumn):
    """A threshold of the number of matches of regular expressions in a text.

    Attributes:
        patterns: in RE2's syntax; the matches of several are added. Matches of one pattern do not overlap.
        source: the column of the text.

    >>> Pattern("phone", "phone", Interval(maximum=0), (r"1[3-9]\\d{9}",), "caption").rule
    'phone ≤ 0: matches of 1[3-9]\\\\d{9} in caption'
    """

    patterns: tuple[str, ...]
    source: str

    marker = "pattern"
    kind = "a number of matches"
    keys = {"pattern": tuple, "in": str, **dict.fromkeys(BOUNDS, float)}

    @classmethod
    def read(cls, name: str, values: Mapping[str, Any], section: str = "", step: str = "") -> Pattern:
        if "in" not in values:
            raise FieldError("pattern", f"'pattern' needs 'in', the text to search: {', '.join(TEXTS)}")
        interval = Interval.read(values)
        return cls(name, name, interval, values["pattern"], values["in"], section=section, step=step)

    def to_dict(self) -> dict[str, Any]:
        pattern = self.patterns[0] if len(self.patterns) == 1 else [*self.patterns]
        return {"pattern": pattern, "in": self.source} | self.interval.to_dict()

    @staticmethod
    def column_named(name: str) -> Column:
        return Column(name, pa.int32(), "matches of the recipe's pattern", (0, None), "matches")

    @property
    def meaning(self) -> str:
        patterns = " | ".join(self.patterns)
        shown = patterns if len(patterns) <= MAX_PATTERN else f"{patterns[: MAX_PATTERN - 1]}…"
        return f"matches of {shown} in {self.source}"

    @property
    def definition(self) -> tuple[tuple[str, ...], str]:
        return self.patterns, self.source

    def check(self, columns: Mapping[str, Column]) -> None:
        if self.source not in TEXTS:
            raise FieldError("in", f"'in' is a column of text; {did_you_mean(self.source, TEXTS)}")
        for pattern in self.patterns:
            if problem := _pattern_problem(pattern):
                raise FieldError("pattern", problem)
        super().check(columns)


def _pattern_problem(pattern: str) -> str:
    """Says why RE2 cannot search for a pattern, or why its number of matches would mean nothing; empty if it can."""
    try:
        pc.count_substring_regex(pa.array([""]), pattern=pattern)
        marked = pc.replace_substring_regex(pa.array(EMPTY_MATCH_TEXTS), pattern=pattern, replacement=r"<\0>")
    except (pa.ArrowInvalid, UnicodeEncodeError) as problem:
        return f"'{pattern}': {problem}; patterns have RE2's syntax, https://github.com/google/re2/wiki/Syntax"
    empty = any(b"<>" in text for text in marked.cast(pa.binary()).to_pylist())  # \B splits characters
    return f"'{pattern}' matches the empty text, so its number of matches means nothing" if empty else ""


@dataclass(frozen=True)
class Judgment(OwnColumn):
    """A threshold of what a vision-language model answers to a question about the picture.

    The score is the number, or 1 for yes and 0 for no. `engine.stages.vlm` asks.

    Attributes:
        prompt: the question.
        answer: `number` or `yes-no`.

    >>> Judgment("watermark", "watermark", Interval(maximum=0), "Is there a watermark?", "yes-no").rule
    "watermark ≤ 0: answer (yes-no) to 'Is there a watermark?'"
    """

    prompt: str
    answer: str

    marker = "vlm"
    kind = "a question to a vision-language model"
    keys = {"vlm": dict, **dict.fromkeys(BOUNDS, float)}

    @classmethod
    def read(cls, name: str, values: Mapping[str, Any], section: str = "", step: str = "") -> Judgment:
        asked = values["vlm"]
        if set(asked) != {"prompt", "answer"} or asked["answer"] not in ANSWERS or not asked["prompt"].strip():
            raise FieldError("vlm", f"'vlm' has the keys 'prompt', a text, and 'answer', {' or '.join(ANSWERS)}")
        return cls(name, name, Interval.read(values), **asked, section=section, step=step)

    def to_dict(self) -> dict[str, Any]:
        return {"vlm": {"prompt": self.prompt, "answer": self.answer}} | self.interval.to_dict()

    @staticmethod
    def column_named(name: str) -> Column:
        meaning = "answer of a vision-language model to the recipe's prompt: a number, or 1 for yes"
        return Column(name, pa.float32(), meaning)

    @property
    def meaning(self) -> str:
        shown = self.prompt if len(self.prompt) <= MAX_PATTERN else f"{self.prompt[: MAX_PATTERN - 1]}…"
        return f"answer ({self.answer}) to {shown!r}"

    @property
    def definition(self) -> tuple[str, str]:
        return self.prompt, self.answer

    @property
    def narrowed(self) -> Column:
        return replace(self.output, range=FLAG) if self.answer == ANSWERS[1] else self.output


@dataclass(frozen=True)
class Redundancy(Criterion):
    """Of each group of near-duplicates, at most `keep_at_most` rows pass.

    Two rows are joined if the cosine distance of their features is below `within`; if their hashes (`column`) differ
    in at most `within` bits; if the Jaccard distance of their clean captions is at most `within`; or, in any other
    column, if their values are equal (`within` is 0). Groups are the connected components (Union-Find).

    Attributes:
        column: what is compared.
        keep: the representative, the first one among equals: the row nearest to the group's `centroid` (features only,
            and their default), the `first` row, or the row with the highest value of a column, `highest:<column>`.
        prefer: `survivors` chooses among the members that pass every later criterion that judges rows alone, if there
            are any; empty: among all members.
        keep_at_most: number of rows of a group that pass: the representative, then that of the others, and so on.
        max_diameter: members farther than this from the representative leave the group and are grouped again.
        recall: least share of near pairs that the search must find; below 1 the search is faster, and the share that
            it found is measured.
    """

    within: float
    column: str = FEATURES
    keep: str = ""
    prefer: str = ""
    max_diameter: float | None = None
    recall: float = 1.0
    keep_at_most: int = 1

    marker = "within"
    kind = "a redundancy criterion"
    keys = {
        "column": str, "within": float, "keep": str, "keep_at_most": int, "prefer": str, "max_diameter": float,
        "recall": float,
    }  # fmt: skip

    def __post_init__(self) -> None:
        if not self.keep:
            object.__setattr__(self, "keep", "centroid" if self.column == FEATURES else "first")
        allowed = ("centroid", "first") if self.column == FEATURES else ("first",)
        if self.keep not in allowed and not self.highest:
            raise FieldError("keep", f"'keep' is {', '.join(allowed)} or highest:<column>, not {self.keep!r}")
        if self.prefer not in ("", SURVIVORS):
            raise FieldError("prefer", f"'prefer' is {SURVIVORS} or is left out, not {self.prefer!r}")
        if self.keep_at_most < 1:
            raise FieldError("keep_at_most", f"'keep_at_most' is a number of rows from 1, not {self.keep_at_most}")
        if self.column == FEATURES:
            _check_distance("within", self.within)
            if self.max_diameter is not None:
                _check_distance("max_diameter", self.max_diameter)
            if not 0 < self.recall <= 1:
                raise FieldError("recall", f"'recall' is a share above 0, at most 1, not {self.recall:g}")
            return
        if self.max_diameter is not None:
            raise FieldError("max_diameter", f"'max_diameter' is a distance of features; {self.column} has none")
        if self.recall != 1:
            raise FieldError("recall", f"'recall' is for features; remove it from a criterion of {self.column}")

    @classmethod
    def read(cls, name: str, values: Mapping[str, Any], section: str = "", step: str = "") -> Redundancy:
        return cls(name, **values, section=section, step=step)

    def to_dict(self) -> dict[str, Any]:
        default = Redundancy(self.name, self.within, self.column)
        chosen = {key: getattr(self, key) for key in ("keep", "keep_at_most", "prefer", "max_diameter", "recall")}
        column = {} if self.column == FEATURES else {"column": self.column}
        return (
            column
            | {"within": self.within}
            | {key: value for key, value in chosen.items() if value != getattr(default, key)}
        )

    @property
    def highest(self) -> str | None:
        """The column whose highest value chooses the representative."""
        return self.keep.partition("highest:")[2] or None

    @property
    def compares_captions(self) -> bool:
        """Whether rows are compared by their captions, not by their pictures."""
        return self.column in CAPTION_COLUMNS

    @property
    def columns(self) -> tuple[str, ...]:
        return (self.column, self.highest) if self.highest else (self.column,)

    @property
    def rule(self) -> str:
        if self.column == FEATURES:
            near = f"cosine distance < {self.within:g}"
        else:
            near = _near_values(self.column, self.within)
        diameter = f", ≤ {self.max_diameter:g} from it" if self.max_diameter is not None else ""
        kept = "" if self.keep in ("centroid", "first") else f", {self.keep.replace(':', ' ')} is kept"
        recall = "" if self.recall == 1 else f", recall ≥ {self.recall:g}"
        preferred = ", survivors preferred" if self.prefer else ""
        count = "one" if self.keep_at_most == 1 else f"at most {self.keep_at_most}"
        return f"{count} of each group, {near}{diameter}{kept}{preferred}{recall}"

    def check(self, columns: Mapping[str, Column]) -> None:
        column = _stored_column(self.column, columns, "column")
        _check_within(column, self.within, MAX_BITS if column.distance == "bits" else 0)
        if self.highest:
            _score_column(self.highest, columns, "keep")

    def can_judge(self, scores: Scores) -> np.ndarray:
        return scores.known(self.column)

    def judge(self, scores: Scores, alive: np.ndarray, device: Device, progress: Progress | None = None) -> Outcome:
        return scores.group_duplicates(self, positions_of(alive), device, progress)


@dataclass(frozen=True)
class Exclusion(Criterion):
    """A row passes unless it is near a row of another run.

    Rows are near if the cosine distance of their features is below `within`; if the Jaccard distance of their clean
    captions is at most `within`; or, in any other column, if their values are equal (`within` is 0).

    Attributes:
        folder: the other run; its kept rows are compared, or all rows if it has no verdicts.
        column: what is compared.
    """

    within: float
    folder: str
    column: str = FEATURES

    marker = "not_near"
    kind = "a distance to another run"
    judges_rows_alone = True
    keys = {"within": float, "not_near": str, "column": str}

    def __post_init__(self) -> None:
        if self.column == FEATURES:
            _check_distance("within", self.within)

    @classmethod
    def read(cls, name: str, values: Mapping[str, Any], section: str = "", step: str = "") -> Exclusion:
        if "within" not in values:
            raise FieldError("not_near", "'not_near' needs 'within', a cosine distance, for example within: 0.1")
        column = values.get("column", FEATURES)
        return cls(name, values["within"], values["not_near"], column, section=section, step=step)

    def to_dict(self) -> dict[str, Any]:
        column = {} if self.column == FEATURES else {"column": self.column}
        return {"within": self.within, "not_near": self.folder} | column

    @property
    def columns(self) -> tuple[str, ...]:
        return (self.column,)

    @property
    def rule(self) -> str:
        other = Path(self.folder).name
        if self.column == FEATURES:
            return f"cosine distance ≥ {self.within:g} to all of {other}"
        return f"none of {other} with {_near_values(self.column, self.within)}"

    @property
    def run_folders(self) -> tuple[str, ...]:
        return (self.folder,)

    def check(self, columns: Mapping[str, Column]) -> None:
        _check_within(_stored_column(self.column, columns, "column"), self.within, 0)

    def judge(self, scores: Scores, alive: np.ndarray, device: Device, progress: Progress | None = None) -> Outcome:
        return scores.compare_with_run(self, positions_of(alive), device, progress)


KINDS: tuple[type[Criterion], ...] = (Exclusion, Redundancy, Pattern, Judgment, Threshold)
"""Every kind of criterion; a line of a recipe is of the first kind whose marker it has."""


def _check_distance(key: str, value: float) -> None:
    if not 0 < value < 2:
        raise FieldError(key, f"'{key}' is a cosine distance between 0 and 2, not {value:g}")


def _check_within(column: Column, within: float, max_bits: int) -> None:
    if column.distance == "cosine":  # checked when the criterion was made
        return
    if column.distance == "Jaccard":
        if not 0 <= within <= MAX_JACCARD:
            allowed = f"a Jaccard distance from 0 (equal) to {MAX_JACCARD:g}"
            raise FieldError("within", f"'within' of {column.name} is {allowed}, not {within:g}")
    elif within not in range(max_bits + 1):
        bits = f"a number of bits from 0 to {max_bits}" if max_bits else "0: its values are equal or not"
        raise FieldError("within", f"'within' of {column.name} is {bits}, not {within:g}")


def _near_values(column: str, within: float) -> str:
    """Describes when values other than features are near."""
    if not within:
        return f"equal {column}"
    jaccard = column in COLUMNS and COLUMNS[column].distance == "Jaccard"
    return f"{column}: Jaccard distance ≤ {within:g}" if jaccard else f"{column}: ≤ {within:g} bits differ"


def _stored_column(name: str, columns: Mapping[str, Column], key: str) -> Column:
    stored = [column.name for column in columns.values() if column.type is not None]
    if name not in columns:
        raise FieldError(key, f"no stage computes a column {name!r}; {did_you_mean(name, stored)}")
    if name not in stored:
        raise FieldError(key, f"the column {name!r} is not stored, so that DECIDE cannot read it")
    return columns[name]


def _score_column(name: str, columns: Mapping[str, Column], key: str) -> Column:
    """The column if it holds numbers that can be compared with a bound."""
    scores = [column.name for column in columns.values() if column.is_score]
    if name not in columns:
        raise FieldError(key, f"no stage computes a column {name!r}; {did_you_mean(name, scores)}")
    column = columns[name]
    if column.is_score:
        return column
    if column.distance:
        example = {"cosine": "within: 0.1", "bits": "within: 4", "Jaccard": "within: 0.2"}[column.distance]
        use = f"compare it with 'within', for example {{column: {name}, {example}}}"
    else:
        use = f"columns of numbers: {', '.join(sorted(scores))}"
    raise FieldError(key, f"the column {name!r} holds {column.content}, and a threshold needs numbers; {use}")
