"""Compares the verdicts of a run over the demo crawl with the planted defects."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from rich import box
from rich.table import Table

from danqing.engine.demo.crawl import CLEAN, MISMATCH
from danqing.engine.report.terminal import console
from danqing.engine.run.folder import Run


@dataclass
class Tally:
    """Counts of one kind of pair.

    Attributes:
        expected: the criterion that should drop the pairs; None for clean pairs.
        planted: number of pairs.
        dropped: number of pairs dropped.
        as_expected: number of pairs dropped by the expected criterion.
        wrong: defects that were kept and clean pairs that were dropped, described.
    """

    expected: str | None = None
    planted: int = 0
    dropped: int = 0
    as_expected: int = 0
    wrong: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Judgement:
    """Result of the comparison.

    Attributes:
        kinds: the counts by kind of defect.
        clean: the counts of the clean pairs.
        auc: probability that a clean pair has a smaller alignment distance than one with a wrong caption.
    """

    kinds: dict[str, Tally]
    clean: Tally
    auc: float

    @property
    def caught(self) -> float:
        """Share of the defects that were dropped, without mismatched captions."""
        others = [tally for kind, tally in self.kinds.items() if kind != MISMATCH]
        return sum(t.dropped for t in others) / sum(t.planted for t in others)

    @property
    def clean_kept(self) -> float:
        """Share of the clean pairs that were kept."""
        return 1 - self.clean.dropped / self.clean.planted


def judge(run: Run) -> Judgement:
    """Compares a decided run's verdicts with the planted defects.

    Any member of a group of near-duplicates may be kept. If a copy is kept instead of its original, the original counts
    as the dropped copy and the copy as the clean pair.
    """
    records = [record for shard in run.shards for record in _records(run, shard.number)]
    by_uid = {record["uid"]: record for record in records if record["keep"]}
    for record in records:
        copy = by_uid.get(record["kept_instead"])
        if record["planted"] == CLEAN and copy and copy["photo"] == record["photo"] and copy["planted"] != CLEAN:
            for name in ("planted", "expected"):
                record[name], copy[name] = copy[name], record[name]
    tallies: dict[str, Tally] = defaultdict(Tally)
    for record in records:
        tally = tallies[record["planted"]]
        tally.expected = record["expected"]
        tally.planted += 1
        tally.dropped += not record["keep"]
        tally.as_expected += record["dropped_by"] is not None and record["dropped_by"] == record["expected"]
        if record["keep"] == (record["planted"] != CLEAN):
            tally.wrong.append(f"{record['key']} {record['photo']} {record['dropped_by'] or 'kept'}")
    clean = tallies.pop(CLEAN)
    distances = {
        kind: [r["alignment_distance"] for r in records if r["planted"] == kind and r["alignment_distance"] is not None]
        for kind in (CLEAN, MISMATCH)
    }
    return Judgement(dict(tallies), clean, roc_area(distances[CLEAN], distances[MISMATCH]))


def roc_area(lower: list[float], higher: list[float]) -> float:
    """Computes P(a < b) + P(a = b) / 2 for a in `lower`, b in `higher`: the area under the ROC curve (Mann–Whitney U).

    >>> roc_area([1, 2], [3, 4])
    1.0
    """
    a, b = np.array(lower)[:, None], np.array(higher)[None, :]
    return float(((a < b) + 0.5 * (a == b)).mean()) if a.size and b.size else float("nan")


def _records(run: Run, number: int) -> list[dict[str, Any]]:
    names = ["uid", "key", "photo", "planted", "expected", "alignment_distance"]
    scores = pq.read_table(run.scores_path(number), columns=names).to_pylist()
    verdicts = pq.read_table(run.verdicts_path(number), columns=["keep", "dropped_by", "kept_instead"]).to_pylist()
    return [score | verdict for score, verdict in zip(scores, verdicts, strict=True)]


def print_judgement(judgement: Judgement, order: list[str]) -> None:
    """Prints the table of defects, the share of clean pairs kept, and the clean pairs dropped.

    Args:
        order: names of the recipe's criteria, which order the rows.
    """
    table = Table(box=box.SIMPLE_HEAD, title="planted defects", title_justify="left")
    table.add_column("criterion")
    table.add_column("defect")
    for name in ("planted", "dropped", "by its criterion", "missed"):
        table.add_column(name, justify="right")
    tallies = sorted(judgement.kinds.items(), key=lambda item: order.index(item[1].expected or order[-1]))
    for kind, t in tallies:
        counts = (t.planted, t.dropped, t.as_expected, t.planted - t.dropped)
        table.add_row(t.expected, kind, *map(str, counts))
    console.print(table)
    clean = judgement.clean
    console.print(
        f"clean pairs kept: {clean.planted - clean.dropped} of {clean.planted} ({judgement.clean_kept:.1%}); "
        f"defects dropped, without mismatched captions: {judgement.caught:.1%}\n"
        f"alignment distance of correct and mismatched captions: area under the ROC curve {judgement.auc:.3f}"
    )
    for line in clean.wrong:
        console.print(f"  clean pair dropped: {line}", markup=False)
