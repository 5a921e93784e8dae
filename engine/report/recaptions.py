"""The recaptions of a run as its report shows them: outcomes, the gain in alignment, and pairs with both captions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow.compute as pc
from markupsafe import Markup

from danqing.engine.core.similarity import similarity_of
from danqing.engine.report.figures import Plot, Series, choose_scale, histogram, number
from danqing.engine.report.galleries import Place
from danqing.engine.report.tiles import MAX_CAPTION, Tile, Tiles
from danqing.engine.run.folder import RECAPTIONED, Run
from danqing.engine.run.recaptions import recaptions_table
from danqing.engine.run.tables import scores_schema, scores_table

ALIGNMENTS = ("recaption_alignment", "alignment_distance")
SHOWN_SHARE = 3
"""Characters of a recaption that are shown, in units of those of a caption."""


@dataclass(frozen=True)
class Recaptioned:
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
class RecaptionView:
    """The section of recaptions.

    Attributes:
        facts: names and values.
        gain: histogram of the gain in alignment; None without text tower.
        gain_note: its mean, and the share of pairs that improved.
        pairs: a sample.
    """

    facts: Sequence[tuple[str, str]]
    gain: Markup | None
    gain_note: str
    pairs: Sequence[Recaptioned]


def recaption_view(run: Run, tiles: Tiles, places: Sequence[Place]) -> RecaptionView:
    """Makes the section.

    Args:
        run: a run with recaptions of its present verdicts.
        tiles: those of the rows to show.
        places: these rows.
    """
    noted = run.manifest[RECAPTIONED]
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
    before, after = _alignments(run)
    gain, note = _gain(before, after)
    return RecaptionView(facts, gain, note, _pairs(run, tiles, places))


def _alignments(run: Run) -> tuple[np.ndarray, np.ndarray]:
    """The cosines of the pictures with captions and with recaptions that are a success: float64 (pairs,) each."""
    found = [(np.empty(0), np.empty(0))]
    for shard in run.shards:
        table = recaptions_table(run, shard.number, ["row", "outcome", ALIGNMENTS[0]])
        if ALIGNMENTS[0] not in table.column_names or ALIGNMENTS[1] not in scores_schema(run, shard.number).names:
            continue
        table = table.filter(pc.equal(table["outcome"], "success"))
        captions = similarity_of(scores_table(run, shard.number, [ALIGNMENTS[1]])[ALIGNMENTS[1]]).take(table["row"])
        found.append((captions.to_numpy().astype(float), table[ALIGNMENTS[0]].to_numpy().astype(float)))
    before, after = (np.concatenate(parts) for parts in zip(*found, strict=True))
    known = np.isfinite(before) & np.isfinite(after)
    return before[known], after[known]


def _gain(before: np.ndarray, after: np.ndarray) -> tuple[Markup | None, str]:
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


def _pairs(run: Run, tiles: Tiles, places: Sequence[Place]) -> list[Recaptioned]:
    records: dict[Place, dict[str, Any]] = {}
    for number_of_shard in sorted({shard for shard, _ in places}):
        table = recaptions_table(run, number_of_shard, ["row", "recaption", "outcome", ALIGNMENTS[0]])
        distance = {}
        if ALIGNMENTS[1] in scores_schema(run, number_of_shard).names:
            distance = dict(enumerate(similarity_of(scores_table(run, number_of_shard, [ALIGNMENTS[1]]).column(0))))
        for record in table.to_pylist():
            place = number_of_shard, record["row"]
            if place in places:
                before = distance.get(record["row"])
                records[place] = record | {"before": before.as_py() if before is not None else None}
    return [_pair(tiles.tile(place), records[place]) for place in places if place in records]


def _pair(tile: Tile, record: dict[str, Any]) -> Recaptioned:
    text, most = record["recaption"] or "", SHOWN_SHARE * MAX_CAPTION
    shown = text if len(text) <= most else f"{text[: most - 1]}…"
    before, after = (
        f"{value:.3f}" if value is not None else "" for value in (record["before"], record.get(ALIGNMENTS[0]))
    )
    return Recaptioned(tile, shown, record["outcome"], before, after)
