"""The report's section on recaptions: outcomes, the gain in alignment, and pairs with both captions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from markupsafe import Markup

from danqing.engine.core.similarity import similarity_of
from danqing.engine.report.figures import Figure, Plot, Series, choose_scale, histogram, number
from danqing.engine.report.galleries import Place
from danqing.engine.report.section import Section
from danqing.engine.report.tiles import MAX_CAPTION, Tile
from danqing.engine.report.view import View
from danqing.engine.run.folder import RECAPTIONED, Run
from danqing.engine.run.recaptions import ALIGNMENT_DISTANCE, RECAPTION_ALIGNMENT, are_current, recaptions_table
from danqing.engine.run.tables import scores_schema, scores_table
from danqing.engine.write.output import verdicts_digest

MAX_RECAPTION = 3 * MAX_CAPTION
"""Characters of a recaption that are shown."""
LEAD = (
    "Captions that a vision-language model wrote of the kept pictures. Alignment is the cosine of the embeddings of "
    "picture and text under the run's towers."
)


@dataclass(frozen=True)
class RecaptionedPair:
    """A pair with both captions.

    Attributes:
        tile: picture and caption.
        text: the recaption, cut; empty if there is none.
        outcome: what came of the question.
        before, after: cosine of the picture with the caption and with the recaption; empty if unknown.
    """

    tile: Tile
    text: str
    outcome: str
    before: str
    after: str


@dataclass(frozen=True)
class RunRecaptions:
    """The recaptions of a run as the section shows them.

    Attributes:
        facts: names and values.
        gain: histogram of the gain in alignment; None without text tower.
        note: its mean, and the share of pairs that improved.
        pairs: a sample.
    """

    facts: Sequence[tuple[str, str]]
    gain: Markup | None
    note: str
    pairs: Sequence[RecaptionedPair]


def recaptions_section(views: Sequence[View]) -> Section | None:
    """The section; None if no run has recaptions of its present verdicts."""
    shown = [_recaptions_of(view) if are_current(view.run, verdicts_digest(view.verdicts)) else None for view in views]
    if not any(shown):
        return None
    gains = [found.gain if found else None for found in shown]
    notes = [found.note if found else "" for found in shown]
    figures = [Figure("recaption-gain", "Gain in alignment", gains, notes)] if any(gains) else []
    return Section("recaptions", "Recaptions", LEAD, figures, "recaptions.html", shown)


def _recaptions_of(view: View) -> RunRecaptions:
    places = view.numbers.galleries.kept.places
    records: dict[Place, dict[str, Any]] = {}
    cosines = [(np.empty(0), np.empty(0))]
    for shard in view.run.shards:
        table = _with_cosines(view.run, shard.number)
        good = table.filter(pc.equal(table["outcome"], "success"))
        cosines.append((good["before"].to_numpy(), good["after"].to_numpy()))
        rows = pa.array([row for number_of_shard, row in places if number_of_shard == shard.number], pa.int32())
        chosen = table.filter(pc.is_in(table["row"], value_set=rows))
        records |= {(shard.number, record["row"]): record for record in chosen.to_pylist()}
    gain, note = _gain(*(np.concatenate(parts) for parts in zip(*cosines, strict=True)))
    pairs = [_pair(view.tiles.tile(place), records[place]) for place in places if place in records]
    return RunRecaptions(_facts(view.run.manifest[RECAPTIONED]), gain, note, pairs)


def _facts(noted: Mapping[str, Any]) -> list[tuple[str, str]]:
    total = max(sum(noted["outcomes"].values()), 1)
    outcomes = ", ".join(f"{count:,} {name} ({count / total:.1%})" for name, count in noted["outcomes"].items())
    facts = [
        ("Model", noted["model"]),
        ("Prompt", f"hash {noted['prompt_hash']}"),
        ("Outcomes", outcomes or "none"),
        ("Tokens", f"{noted['prompt_tokens']:,} of prompts, {noted['completion_tokens']:,} of answers"),
    ]
    if seconds := noted.get("seconds"):
        pictures, tokens = noted["asked"] / seconds, noted["asked_tokens"] / seconds
        facts.append(("Rate", f"{pictures:,.1f} pictures/s, {tokens:,.1f} tokens of answers/s"))
    return facts


def _with_cosines(run: Run, number_of_shard: int) -> pa.Table:
    """The recaptions of a shard, and the cosines `before` and `after`: float64, null if unknown."""
    table = recaptions_table(run, number_of_shard, ["row", "recaption", "outcome", RECAPTION_ALIGNMENT])
    before = after = pa.nulls(len(table), pa.float64())
    if RECAPTION_ALIGNMENT in table.column_names:
        after = table[RECAPTION_ALIGNMENT].cast(pa.float64())
    if ALIGNMENT_DISTANCE in scores_schema(run, number_of_shard).names:
        scores = scores_table(run, number_of_shard, [ALIGNMENT_DISTANCE])
        before = similarity_of(scores[ALIGNMENT_DISTANCE]).take(table["row"]).cast(pa.float64())
    return table.append_column("before", before).append_column("after", after)


def _gain(before: np.ndarray, after: np.ndarray) -> tuple[Markup | None, str]:
    known = np.isfinite(before) & np.isfinite(after)
    before, after = before[known], after[known]
    if not len(before):
        return None, ""
    gain = after - before
    scale, edges = choose_scale(gain, (0.0,))
    counts = np.histogram(gain.clip(edges[0], edges[-1]), edges)[0]
    plot = Plot("Gain in alignment", "cosine with the recaption − cosine with the caption", "pairs")
    drawing = histogram(plot, scale, edges, [Series("pairs", "kept", counts.tolist())])
    return drawing, (
        f"{len(gain):,} pairs; mean {number(float(gain.mean()))}, from {number(float(before.mean()))} to "
        f"{number(float(after.mean()))}; the recaption is nearer to the picture in {float((gain > 0).mean()):.1%}"
    )


def _pair(tile: Tile, record: dict[str, Any]) -> RecaptionedPair:
    text = record["recaption"] or ""
    shown = text if len(text) <= MAX_RECAPTION else f"{text[: MAX_RECAPTION - 1]}…"
    before, after = (f"{value:.3f}" if value is not None else "" for value in (record["before"], record["after"]))
    return RecaptionedPair(tile, shown, record["outcome"], before, after)
