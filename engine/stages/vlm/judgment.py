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
from typing import ClassVar

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
from danqing.engine.stages.vlm.client import Reply

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
_NO = re.compile(r"\W*(?:(?:no|not|none|false)\b|[否没無无]|不(?!错|錯)|非(?!常))", re.IGNORECASE)
_YES = re.compile(r"\W*(?:(?:yes|true)\b|是(?!否)|有|[对對](?!不起))", re.IGNORECASE)
_NUMBER = re.compile(r"(?<![A-Za-z0-9_.])[-+]?\d+(?:\.\d+)?")


def stage_of(criterion: Judgment) -> type[Stage]:
    """Makes the stage of a criterion."""
    return type(
        "CriterionJudge",
        (Judge,),
        {"name": f"vlm {criterion.name}", "produces": {criterion.name: criterion.output}, "criterion": criterion},
    )


class Judge(Stage):
    """The model's answer: the number, or 1 for yes and 0 for no. A row without such an answer has an error."""

    needs = ("shard", "row", "uid", ENCODED)
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

    @property
    def capacity(self) -> int:
        return BATCHES_OF_THREADS * self.client.concurrency

    def __call__(self, batch: Batch) -> None:
        uids, shards, values = batch["uid"], batch["shard"], np.full(len(batch), np.nan)
        new = []
        for row, (shard, uid) in enumerate(zip(shards.tolist(), uids, strict=True)):
            values[row] = self.answers.of(shard).get(uid, np.nan)
            if np.isnan(values[row]):
                new.append(row)
        try:
            for row, reply in self.client.ask(new, lambda row: self.body(batch[ENCODED][row]), self.context.stopped):
                values[row], batch["error"][row] = self._read(reply)
        finally:
            for shard, rows in groupby(filter(lambda row: not np.isnan(values[row]), new), lambda row: shards[row]):
                own = [*rows]
                self.answers.add(int(shard), int(batch["row"][own[0]]), [uids[row] for row in own], values[own])
        batch[self.criterion.name] = values.astype(np.float32)

    def _read(self, reply: Reply) -> tuple[float, str | None]:
        answer = read_answer(reply)
        value = value_of(answer.text, self.criterion.answer) if answer.text is not None else None
        if value is not None and answer.outcome in ("success", "truncated"):
            return value, None
        return np.nan, f"{self.criterion.name}: {_problem(answer, self.criterion.answer)}"


def no_endpoint(criterion: Judgment) -> str:
    """The message that a criterion needs an endpoint."""
    return (
        f"criterion {criterion.name!r} asks a vision-language model: name its endpoint, "
        "--vlm-endpoint http://HOST:PORT/v1"
    )


def value_of(text: str, kind: str) -> float | None:
    """The value of an answer; None if it has none.

    Args:
        text: JSON with the field `answer`, or words.
        kind: `number` or `yes-no`.

    >>> value_of('{"answer": "yes"}', "yes-no"), value_of("No, there is none.", "yes-no"), value_of("没有", "yes-no")
    (1.0, 0.0, 0.0)
    >>> value_of('```json\\n{"answer": 7.5}\\n```', "number"), value_of("我给8分", "number"), value_of("?", "number")
    (7.5, 8.0, None)
    >>> value_of("对不起，看不清", "yes-no"), value_of("非常清晰", "yes-no")  # neither yes nor no
    (None, None)
    """
    found = json_of(text)
    if isinstance(found, dict) and found:
        found = found.get("answer", next(iter(found.values())))
    if isinstance(found, bool):
        return float(found) if kind == "yes-no" else None
    words = text if found is None else str(found)
    if kind == "number":
        number = _NUMBER.search(words)
        return float(number[0]) if number else None
    return 0.0 if _NO.match(words) else 1.0 if _YES.match(words) else None


def _problem(answer: Answer, kind: str) -> str:
    if answer.error:
        return answer.error
    if answer.outcome == "blocked":
        return "a content filter has blocked the answer"
    text = answer.text or ""
    shown = text if len(text) <= MAX_SHOWN else f"{text[: MAX_SHOWN - 1]}…"
    return f"the answer is no {'number' if kind == 'number' else 'yes or no'}: {shown!r}"


class Answers:
    """Answers to one question by uid, in files named by shard and first row.

    Args:
        folder: of the run's answers; None: nothing is stored.
        question: answers to another one are in another folder.
    """

    def __init__(self, folder: Path | None, question: Question) -> None:
        identity = json.dumps(question.identity, sort_keys=True).encode()
        self._folder = folder / hashlib.sha256(identity).hexdigest()[:16] if folder else None
        self._known: dict[int, dict[str, float]] = {}

    def of(self, shard: int) -> dict[str, float]:
        """The answers of a shard that an earlier process stored: uid → value."""
        if shard not in self._known:
            paths = sorted(self._folder.glob(f"{shard:05d}-*.parquet")) if self._folder else []
            tables = [pq.read_table(path) for path in paths]
            self._known = {number: known for number, known in self._known.items() if number == shard - 1}
            self._known[shard] = {
                uid: value for table in tables for uid, value in zip(*table.to_pydict().values(), strict=True)
            }
        return self._known[shard]

    def add(self, shard: int, first: int, uids: list[str], values: np.ndarray) -> None:
        """Stores answers; `first` is the row of the first one."""
        if self._folder:
            with commit(self._folder / f"{shard:05d}-{first}.parquet") as file:
                pq.write_table(pa.table({"uid": uids, "value": values}), file)
