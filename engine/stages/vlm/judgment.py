"""The stage that asks a vision-language model a recipe's question about every picture.

Answers are stored in OUT/answers, a file for each batch and shard, so that an interrupted shard repeats no question: a
question costs more than all other stages together.
"""

from __future__ import annotations

import hashlib
import json
import re
from itertools import groupby
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from danqing.engine.core.batch import Batch
from danqing.engine.core.columns import ENCODED
from danqing.engine.core.errors import DanqingError
from danqing.engine.core.files import commit
from danqing.engine.recipe.criteria import Judgment
from danqing.engine.stages.base import Context, Stage
from danqing.engine.stages.vlm.chat import Answer, Question, json_of, read_answer
from danqing.engine.stages.vlm.client import MAX_GIVEN_UP, Reply

FOLDER = "answers"
INSTRUCTIONS = {
    "number": 'Answer with JSON only: {"answer": NUMBER}',
    "yes-no": 'Answer with JSON only: {"answer": "yes"} or {"answer": "no"}',
}
"""Sent after the recipe's prompt, in a line of its own."""
MAX_TOKENS = 64
BATCHES_OF_THREADS = 4
"""Rows of a batch per concurrent request: a batch ends with its slowest answer, so larger ones wait less often."""
MAX_SHOWN = 60
"""Characters of an answer that an error shows."""
MAX_NUMBER = 2.0**24
"""Magnitude of an answer: scores are float32, which has all whole numbers up to here."""
NO = frozenset(("no", "false", "否", "没有", "沒有", "不是", "不对", "不對", "不", "无", "無"))
YES = frozenset(("yes", "true", "是", "是的", "有", "有的", "对", "對", "对的", "對的"))
_NUMBER = re.compile(
    r"([-+]?\d+(?:\.\d+)?)\s*(?:分|points?|(?:/|out of|分/)\s*(\d+)\s*(?:分|points?)?)?", re.IGNORECASE
)
_CLAUSE = re.compile(r"[.,;:!，。；：！、（(\n]|\s[-–—]")
_MARKS = " \t\n*_`'\"“”‘’「」"
_ANSWER = '"answer"'


def stage_of(criterion: Judgment) -> type[Stage]:
    """Makes the stage of a criterion."""
    return type(
        "CriterionJudge",
        (Judge,),
        {"name": f"vlm {criterion.name}", "produces": {criterion.name: criterion.output}, "criterion": criterion},
    )


class Judge(Stage):
    """The model's answer: the number, or 1 for yes and 0 for no. A row without such an answer has an error.

    Attributes:
        is_usable: some answer had a value.
        unusable: answers without one.
    """

    needs = ("shard", "row", "image_hash", ENCODED)
    criterion: ClassVar[Judgment]

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        if context.vlm is None:
            raise DanqingError(no_endpoint(self.criterion))
        self.client = context.vlm.open()
        prompt = f"{self.criterion.prompt}\n{INSTRUCTIONS[self.criterion.answer]}"
        question = Question(prompt, self.client.model, MAX_TOKENS, max_pixels=context.max_pixels)
        self.body = question.body()
        self.answers = Answers(context.vlm.answers, question)
        self.is_usable, self.unusable = False, 0

    @property
    def capacity(self) -> int:
        return BATCHES_OF_THREADS * self.client.concurrency

    def __call__(self, batch: Batch) -> None:
        pictures, shards, values = batch["image_hash"], batch["shard"], np.full(len(batch), np.nan)
        new = []
        for row, (shard, picture) in enumerate(zip(shards.tolist(), pictures, strict=True)):
            values[row] = self.answers.of(shard).get(picture, np.nan)
            if np.isnan(values[row]):
                new.append(row)
        try:
            for row, reply in self.client.ask(new, lambda row: self.body(batch[ENCODED][row]), self.context.stopped):
                values[row], batch["error"][row] = self._read(reply)
        finally:
            for shard, rows in groupby(filter(lambda row: not np.isnan(values[row]), new), lambda row: shards[row]):
                own = [*rows]
                self.answers.add(int(shard), int(batch["row"][own[0]]), [pictures[row] for row in own], values[own])
        batch[self.criterion.name] = values.astype(np.float32)

    def _read(self, reply: Reply) -> tuple[float, str | None]:
        """The value and the error of a row.

        Raises:
            DanqingError: the first `MAX_GIVEN_UP` answers have no value.
        """
        answer = read_answer(reply)
        value = value_of(answer.text, self.criterion.answer) if answer.outcome == "success" and answer.text else None
        if value is not None:
            self.is_usable = True
            return value, None
        problem = f"{self.criterion.name}: {_problem(answer, self.criterion.answer)}"
        self.unusable += 1
        if self.unusable >= MAX_GIVEN_UP and not self.is_usable:
            raise DanqingError(
                f"{self.unusable} answers one after the other have no value, the last one: {problem}. Correct the "
                "prompt or take another model"
            )
        return np.nan, problem


def no_endpoint(criterion: Judgment) -> str:
    """The message that a criterion needs an endpoint."""
    return (
        f"criterion {criterion.name!r} asks a vision-language model: name its endpoint, "
        "--vlm-endpoint http://HOST:PORT/v1"
    )


def value_of(text: str, kind: str) -> float | None:
    """The value of an answer; None if it has none, or could have several.

    Args:
        text: JSON with the field `answer`, a number and nothing else, or words that begin with a plain yes or no.
        kind: `number` or `yes-no`.

    >>> value_of('{"answer": "yes"}', "yes-no"), value_of("No, there is none.", "yes-no"), value_of("没有", "yes-no")
    (1.0, 0.0, 0.0)
    >>> value_of('```json\\n{"answer": 7.5}\\n```', "number"), value_of("8/10分", "number")
    (7.5, 8.0)
    >>> value_of("对不起，看不清", "yes-no"), value_of("没有办法判断", "yes-no")  # neither yes nor no
    (None, None)
    """
    if "<think>" in text:  # the model's thoughts have no end
        return None
    found: Any = text
    if "{" in text:
        content = json_of(text)
        found = content.get("answer") if isinstance(content, dict) and text.count(_ANSWER) == 1 else None
    if kind == "yes-no":
        return float(found) if isinstance(found, bool) else _yes_or_no(found) if isinstance(found, str) else None
    if isinstance(found, str):
        return _number(found)
    is_number = isinstance(found, int | float) and not isinstance(found, bool)
    return float(found) if is_number and abs(found) <= MAX_NUMBER else None


def _number(words: str) -> float | None:
    number = _NUMBER.fullmatch(words.strip(_MARKS + ".。!！"))
    if number is None:
        return None
    value, scale = float(number[1]), number[2]
    return value if abs(value) <= MAX_NUMBER and (scale is None or value <= float(scale)) else None


def _yes_or_no(words: str) -> float | None:
    clauses = [clause.strip(_MARKS).lower() for clause in _CLAUSE.split(words.strip(_MARKS))]
    values = {float(clause in YES) for clause in clauses if clause in YES or clause in NO}
    return values.pop() if len(values) == 1 and clauses[0] in YES | NO else None


def _problem(answer: Answer, kind: str) -> str:
    if answer.error:
        return answer.error
    if answer.outcome == "blocked":
        return "a content filter has blocked the answer"
    text = answer.text or ""
    shown = text if len(text) <= MAX_SHOWN else f"{text[: MAX_SHOWN - 1]}…"
    if answer.outcome == "truncated":
        return f"the answer has more than {MAX_TOKENS} tokens: {shown!r}"
    return f"the answer is no {'number' if kind == 'number' else 'yes or no'}: {shown!r}"


class Answers:
    """Answers to one question by hash of the picture, in files named by shard and first row.

    Pairs of the input may have equal uids, which are its own.

    Args:
        folder: of the run's answers; None: nothing is stored.
        question: answers to another one are in another folder.
    """

    def __init__(self, folder: Path | None, question: Question) -> None:
        identity = json.dumps(question.identity, sort_keys=True).encode()
        self._folder = folder / hashlib.sha256(identity).hexdigest()[:16] if folder else None
        self._known: dict[int, dict[str, float]] = {}

    def of(self, shard: int) -> dict[str, float]:
        """The answers of a shard that an earlier process stored: hash of the picture → value."""
        if shard not in self._known:
            paths = sorted(self._folder.glob(f"{shard:05d}-*.parquet")) if self._folder else []
            tables = [pq.read_table(path) for path in paths]
            self._known = {number: known for number, known in self._known.items() if number == shard - 1}
            self._known[shard] = {
                picture: value for table in tables for picture, value in zip(*table.to_pydict().values(), strict=True)
            }
        return self._known[shard]

    def add(self, shard: int, first: int, pictures: list[str], values: np.ndarray) -> None:
        """Stores answers; `first` is the row of the first one."""
        if self._folder:
            with commit(self._folder / f"{shard:05d}-{first}.parquet") as file:
                pq.write_table(pa.table({"image_hash": pictures, "value": values}), file)
