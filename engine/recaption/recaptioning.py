"""RECAPTION: asks for a caption of every kept picture, and measures the answers like captions.

kept rows → vision-language model → the run's text stages and towers → recaptions/NNNNN.parquet

A shard whose file is there is not asked again, unless verdicts keep rows that the file lacks; then these are asked.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from danqing.engine.core.batch import Batch
from danqing.engine.core.columns import ENCODED, FEATURES, MEASURED
from danqing.engine.core.errors import DanqingError
from danqing.engine.core.escape import printable
from danqing.engine.core.progress import Progress
from danqing.engine.core.spans import Spans
from danqing.engine.core.storage import fetch_ahead
from danqing.engine.core.text_column import TextColumn
from danqing.engine.decide.feature_files import map_features
from danqing.engine.recaption.ledger import ANSWER, RecaptionLedger
from danqing.engine.recaption.prompts import FIELD
from danqing.engine.recipe.criteria import RowCriterion
from danqing.engine.recipe.plan import Plan, make_plan
from danqing.engine.recipe.reading import Recipe, recipe_from_dict
from danqing.engine.run.folder import RECAPTIONED, Run
from danqing.engine.run.part import TaskPart
from danqing.engine.run.recaptions import ALIGNMENT_DISTANCE, EMPTY, identity_of, recaptions_table
from danqing.engine.run.tables import scores_schema, scores_table, verdicts_table
from danqing.engine.score.loop import run_stages
from danqing.engine.sources import Shard
from danqing.engine.stages import CATALOGUE, Context
from danqing.engine.stages.vlm.chat import Answer, Question, field_of, read_answer
from danqing.engine.stages.vlm.client import Client
from danqing.engine.write.order import open_scored
from danqing.engine.write.output import read_verdicts, verdicts_digest
from danqing.trt_models.card import load_card

BATCH_ROWS = 256
"""Maximum number of answered rows that the stages get at once."""
STATUS_SECONDS = 30.0
"""Interval between status lines: queue, retries, errors, tokens."""
GIVEN = ("shard", "row", "uid", "caption", ENCODED, "image_bytes", "text_bytes", "error", ANSWER)
"""Columns of a batch of answered rows."""


@dataclass(frozen=True)
class KeptRow:
    """A row to ask about."""

    shard: int
    row: int
    uid: str
    image: bytes


@dataclass(frozen=True)
class Asking:
    """What is asked about which run, and with what the answers are measured.

    Attributes:
        run: a decided run.
        question: what is asked.
        client: asks it.
        context: opens the run's models.
        again: ask anew with another question or model; with the same, ask again where the outcome is an error.
        part: the input shards to do; None for all.
        outcomes: outcome → answers, as they arrive.
        tokens: `prompt` and `completion` → tokens of these.
    """

    run: Run
    question: Question
    client: Client
    context: Context
    again: bool = False
    part: TaskPart | None = None
    outcomes: Counter[str] = field(default_factory=Counter)
    tokens: Counter[str] = field(default_factory=Counter)

    def missing(self, number: int) -> tuple[pa.Table, np.ndarray]:
        """The recaptions of a shard that stay, and its rows to ask about: see `missing_rows`."""
        return missing_rows(self.run, number, self.question.identity, self.again)


def recaption(asking: Asking, progress: Progress, spans: Spans) -> bool:
    """Writes recaptions/NNNNN.parquet of a decided run; recaptions that are there stay.

    Args:
        asking: the run and the question.
        progress: receives the rows.
        spans: records the batches; the stage `read` is the model.

    Returns:
        Whether there are recaptions for all kept rows; False if those of other parts are missing.

    Raises:
        DanqingError: an input changed since it was scored, the run has recaptions of another question or model, or the
            endpoints are dead.
    """
    run, part = asking.run, asking.part
    with run.locked_manifest(part):
        are_any = any(run.recaptions_path(shard.number).exists() for shard in run.shards)
        _note_question(run, asking.question, asking.again or (part is None and not are_any))
    own = [shard for shard in run.shards if part is None or part.holds(shard.number)]
    waiting = [shard for shard in own if len(asking.missing(shard.number)[1])]
    spent = _ask(asking, waiting, progress, spans) if waiting else {}
    with run.locked_manifest(part):
        noted = run.manifest[RECAPTIONED]
        if spent:
            run.note(RECAPTIONED, **{name: round(noted.get(name, 0) + value, 3) for name, value in spent.items()})
        return _note_result(run, asking.question.identity)


def _ask(asking: Asking, shards: list[Shard], progress: Progress, spans: Spans) -> dict[str, float]:
    """Asks about the rows of shards, and measures the answers; returns pictures, tokens and seconds, to be noted."""
    run, started = asking.run, time.monotonic()
    plan, is_given = _plan(run, run.recipe)
    measured = {name: kind for name, kind in plan.scores.items() if name in (*MEASURED, ALIGNMENT_DISTANCE)}
    decided = recipe_from_dict(run.manifest["decided"]["recipe"], "run.json")
    criteria = tuple(c for c in decided.criteria if isinstance(c, RowCriterion) and measured.keys() >= {*c.columns})
    ledger = RecaptionLedger(run, asking.question.identity, measured, criteria, progress)
    batches = spans.timed("read", _answered(asking, _kept_rows(asking, shards, ledger), ledger, is_given))
    context = replace(asking.context, wanted=frozenset(plan.wanted))
    run_stages(batches, plan, context, ledger, spans, gated=False)
    asked, seconds = asking.outcomes.total(), time.monotonic() - started
    return {"asked": asked, "asked_tokens": asking.tokens["completion"], "seconds": seconds}


def note_verdicts(run: Run) -> None:
    """Notes, after another decision, that the recaptions are those of its verdicts, if no kept pair lacks one."""
    if noted := run.manifest.get(RECAPTIONED):
        _note_result(run, {name: noted.get(name) for name in Question("", "").identity})


def _note_question(run: Run, question: Question, again: bool) -> None:
    """Notes what is asked; refuses another question than that of the recaptions that are there."""
    noted: dict[str, Any] = run.manifest.get(RECAPTIONED, {})
    identity = question.identity
    differences = [
        f"{name}: {printable(noted.get(name))} there, {printable(value)} here"
        for name, value in identity.items()
        if noted and noted.get(name) != value
    ]
    if differences and not again:
        raise DanqingError(
            f"{run.folder} has recaptions that were asked for differently:\n  "
            + "\n  ".join(differences)
            + "\n--again asks for all of them anew"
        )
    if differences or not noted:
        run.manifest[RECAPTIONED] = {**identity, "prompt": question.prompt}
        run.save()


def missing_rows(
    run: Run, number: int, identity: Mapping[str, Any], again: bool = False
) -> tuple[pa.Table, np.ndarray]:
    """Compares a shard's recaptions with its verdicts.

    Args:
        run: a decided run.
        number: of the shard.
        identity: what recaptions must have been made by to stay (`Question.identity`).
        again: those whose outcome is an error do not stay.

    Returns:
        The recaptions that stay, and the kept rows without one: int64 (rows,).
    """
    kept = np.flatnonzero(verdicts_table(run, number, ["keep"])["keep"].to_numpy())
    table = recaptions_table(run, number) if identity_of(run, number) == identity else EMPTY
    if again:
        table = table.filter(pc.not_equal(table["outcome"], "error"))
    return table, np.setdiff1d(kept, table["row"].to_numpy())


def _plan(run: Run, recipe: Recipe) -> tuple[Plan, bool]:
    """The stages that measure recaptions as the run's captions were measured.

    Returns:
        The plan, and whether the image embedding is given: the run's features are it, unless the model has features of
        their own beside its embedding.
    """
    wanted = [name for name in (*MEASURED, ALIGNMENT_DISTANCE) if name in scores_schema(run, 0).names]
    is_given = ALIGNMENT_DISTANCE in wanted and FEATURES not in load_card(recipe.models["image_embedding"]).outputs
    columns = (*GIVEN, "image_embedding") if is_given else GIVEN
    return make_plan(replace(recipe, criteria=(), also=tuple(wanted)), CATALOGUE, columns), is_given


def _kept_rows(asking: Asking, shards: list[Shard], ledger: RecaptionLedger) -> Iterator[KeptRow]:
    """Reads the rows to ask about; announces each shard to the ledger.

    Raises:
        DanqingError: an input was changed since it was scored.
    """
    run = asking.run
    layout = run.layout
    for shard in fetch_ahead(shards, lambda shard: shard.path):
        known, missing = asking.missing(shard.number)
        names = [name for name in ("uid", "image_hash") if name in scores_schema(run, shard.number).names]
        scores = scores_table(run, shard.number, names)
        source = open_scored(shard, layout, len(scores))
        ledger.expect(shard.number, known, len(missing), shard.bytes)
        found = source.samples_at(missing.tolist())
        for (row, sample), record in zip(found, scores.take(pa.array(missing)).to_pylist(), strict=True):
            if sample.uid != record["uid"] or sample.image_hash != record.get("image_hash", sample.image_hash):
                raise DanqingError(f"{shard.path}: row {row} ({sample.key}) was changed since it was scored")
            yield KeptRow(shard.number, row, sample.uid, sample.image)


def _answered(asking: Asking, rows: Iterator[KeptRow], ledger: RecaptionLedger, is_given: bool) -> Iterator[Batch]:
    """Asks about rows, and yields those with a recaption in batches; enters the others in the ledger."""
    client, device, limit = asking.client, asking.context.device, asking.context.memory.encoded
    make, features = asking.question.body(), _Features(asking.run)
    waiting: list[_AnsweredRow] = []
    size, reported = 0, time.monotonic()
    for row, reply in client.ask(rows, lambda row: make(row.image), asking.context.stopped):
        answer = read_answer(reply)
        text = field_of(answer.text, FIELD) if answer.text else None
        if answer.text and text is None and answer.outcome == "success":
            answer = answer._replace(outcome="error", error=f"the answer is JSON without the field {FIELD!r}")
        asking.outcomes[answer.outcome] += 1
        asking.tokens["prompt"] += answer.prompt_tokens or 0
        asking.tokens["completion"] += answer.completion_tokens or 0
        ledger.progress.advance(1)
        if text is None:
            ledger.enter(_batch([(row, None, answer)]))
        else:
            waiting.append((row, text, answer))
            size += len(row.image)
        if waiting and (len(waiting) == BATCH_ROWS or size > limit or not client.waiting):
            batch = _batch(waiting)
            if is_given:
                batch["image_embedding"] = device.up(features.of([row for row, _, _ in waiting]))
            yield batch
            waiting, size = [], 0
        if time.monotonic() - reported > STATUS_SECONDS:
            reported = time.monotonic()
            ledger.progress.say(
                f"{client.waiting} pictures with the model, {client.retries} retries, "
                f"{asking.outcomes['error']} errors, {asking.tokens['completion']:,} tokens"
            )


_AnsweredRow = tuple[KeptRow, str | None, Answer]


def _batch(rows: Sequence[_AnsweredRow]) -> Batch:
    texts = [text for _, text, _ in rows]
    return Batch(
        {
            "shard": np.array([row.shard for row, _, _ in rows], np.int64),
            "row": np.array([row.row for row, _, _ in rows], np.int64),
            "uid": [row.uid for row, _, _ in rows],
            "caption": TextColumn.of(texts),
            ENCODED: [row.image for row, _, _ in rows],
            "image_bytes": np.array([len(row.image) for row, _, _ in rows], np.int64),
            "text_bytes": np.array([4 * len(text or "") for text in texts], np.int64),
            "error": [None] * len(rows),
            ANSWER: [(text, answer) for _, text, answer in rows],
        }
    )


class _Features:
    """The image embeddings of rows, from the run's features."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._shard = lru_cache(maxsize=3)(self._open)  # answers come from few shards at a time

    def _open(self, shard: int) -> tuple[np.ndarray, np.ndarray]:
        rows: np.ndarray = scores_table(self._run, shard, ["feature_row"])["feature_row"].to_numpy()
        return rows, map_features(self._run.features_path(shard))

    def of(self, rows: list[KeptRow]) -> np.ndarray:
        """float32 (rows, dimension), unit vectors."""
        opened = ((*self._shard(row.shard), row.row) for row in rows)
        vectors = (features[feature_row[row]].astype(np.float32) for feature_row, features, row in opened)
        return np.stack([vector / np.linalg.norm(vector) for vector in vectors])


def _note_result(run: Run, identity: Mapping[str, Any]) -> bool:
    """Notes outcomes and tokens, if all kept rows have a recaption; returns whether they do."""
    outcomes, tokens = Counter[str](), Counter[str]()
    for shard in run.shards:
        table, missing = missing_rows(run, shard.number, identity)
        if len(missing):
            return False
        keep = verdicts_table(run, shard.number, ["keep"])["keep"].to_numpy(zero_copy_only=False)
        table = table.filter(pa.array(keep[table["row"].to_numpy()], pa.bool_()))
        outcomes.update(table["outcome"].to_pylist())
        for kind in ("prompt_tokens", "completion_tokens"):
            tokens[kind] += sum(table[kind].drop_null().to_pylist())
    noted = {"verdicts": verdicts_digest(read_verdicts(run)), "outcomes": dict(sorted(outcomes.items())), **tokens}
    if run.manifest[RECAPTIONED] | noted != run.manifest[RECAPTIONED]:
        run.note(RECAPTIONED, **noted)
    return True
