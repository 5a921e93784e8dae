"""report.html: the funnel, histograms of the scores with their thresholds, and pictures, in one self-contained file."""

from __future__ import annotations

import base64
import html
import io
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image

from danqing.engine.core.escape import escaped
from danqing.engine.core.files import commit
from danqing.engine.decide.funnel import Funnel
from danqing.engine.recipe.criteria import Threshold
from danqing.engine.recipe.reading import Recipe, recipe_from_dict
from danqing.engine.report.topic_map import topic_galleries, topic_section
from danqing.engine.report.topics import Topics
from danqing.engine.run.folder import Run
from danqing.engine.run.tables import scores_table, verdicts_table
from danqing.engine.score.settling import describe_engines
from danqing.engine.sources import open_shard
from danqing.engine.stages.header import read_header
from danqing.engine.stages.opening import open_picture
from danqing.engine.write.output import InputVerdicts, decision_digest, max_pixels, read_verdicts
from danqing.engine.write.products import stamp

KEPT_SHOWN, DROPPED_SHOWN = 48, 8
"""Number of kept pairs shown, and of dropped pairs per criterion."""
THUMBNAIL_PIXELS = 160
"""Longest side of a picture."""

STYLE = """
body{font:14px/1.5 system-ui,sans-serif;max-width:70rem;margin:2rem auto;padding:0 1rem;color:#1d2430}
table{border-collapse:collapse;width:100%} td,th{padding:.2rem .6rem;text-align:left} td.n{text-align:right;
font-variant-numeric:tabular-nums} tr:nth-child(even){background:#f5f7fa} .bar{background:#2f6fde;height:.7rem}
.row{display:flex;flex-wrap:wrap;gap:.8rem} figure{margin:0;width:160px} figure img{max-width:160px;max-height:160px}
figcaption{font-size:12px;color:#4a5568;overflow-wrap:anywhere} h2{margin-top:2.2rem} svg{background:#f5f7fa}
"""


def write_report(run: Run, verdicts: list[InputVerdicts] | None = None) -> None:
    """Writes report.html for a decided run.

    Args:
        run: the run; its topics are shown if they have been found.
        verdicts: its verdicts (`read_verdicts`), if they have been read.
    """
    recipe = recipe_from_dict(run.manifest["decided"]["recipe"], "run.json")
    funnel = Funnel.of(run)
    verdicts = read_verdicts(run) if verdicts is None else verdicts
    topics = Topics.of(run, verdicts)
    shown = topic_galleries(run, topics) | _sample(run)
    pictures = _pictures(run, {position for positions in shown.values() for position in positions})
    parts = [
        f"<h1>{html.escape(run.folder.resolve().name)}</h1>",
        f"<p>{funnel.kept:,} of {funnel.collected:,} pairs kept with the recipe <b>{html.escape(recipe.name)}</b>.</p>",
        *(
            f"<p>Scored by several engines: {html.escape(line)}.</p>"
            for line in describe_engines(run.manifest.get("engines", {}))
        ),
        _funnel(funnel),
        "<h2>Scores and thresholds</h2><p>All pairs that have the score; the kept interval is shaded.</p>",
        "<div class=row>" + "".join(_histograms(run, recipe)) + "</div>",
        *topic_section(run, topics),
        *(_gallery(name, pictures, positions) for name, positions in shown.items()),
        stamp(decision_digest(run, verdicts)),
    ]
    write_page(run.folder / "report.html", "DanQing report", parts)


def write_page(path: Path, title: str, parts: Iterable[str]) -> None:
    """Writes an HTML page that loads no other files.

    Args:
        path: the file.
        title: shown by the browser.
        parts: the body, in HTML. Control characters are replaced by escapes, other text is escaped by the caller.
    """
    head = f"<meta charset=utf-8><title>{html.escape(title)}</title><style>{STYLE}</style>"
    body = escaped("\n".join(parts))
    with commit(path, "w") as file:
        file.write(f"<!doctype html><html lang=en>{head}{body}</html>\n")


def _funnel(funnel: Funnel) -> str:
    rows = [
        f"<tr><td>{html.escape(line.section)}<td>{html.escape(line.step)}<td>{html.escape(line.measured_rule)}"
        f"<td class=n>{line.left:,}<td class=n>{line.dropped:,}<td class=n>{line.share:.2%}"
        f"<td style='width:20%'><div class=bar style='width:{100 * line.left / max(funnel.collected, 1):.1f}%'></div>"
        for line in funnel.lines
    ]
    head = "<tr><th>section<th>step<th>rule<th>pairs left<th>dropped<th>share<th>"
    return f"<h2>Funnel</h2><table>{head}{''.join(rows)}</table>"


def _histograms(run: Run, recipe: Recipe) -> Iterable[str]:
    for criterion in recipe.criteria:
        if not isinstance(criterion, Threshold):
            continue
        columns = [scores_table(run, s.number, [criterion.column]) for s in run.shards]
        values = pa.concat_tables(columns)[criterion.column].cast(pa.float64()).drop_null().to_numpy()
        if len(np.unique(values)) > 1:
            yield _histogram(criterion, values)


def _histogram(criterion: Threshold, values: np.ndarray) -> str:
    """Draws an SVG of 40 bins from the 0.5th to the 99.5th percentile; the kept interval is shaded."""
    width, height = 320, 110
    low, high = np.percentile(values, [0.5, 99.5])
    if low == high:
        low, high = values.min(), values.max()
    counts, _ = np.histogram(values.clip(low, high), 40)

    def across(value: float) -> float:
        return float(np.clip((value - low) / (high - low), 0, 1)) * width

    grid = np.linspace(low, high, 400)
    inside = grid[criterion.interval.holds(grid)]
    shade = ""
    if len(inside):
        left, right = across(inside[0]), across(inside[-1])
        shade = f"<rect x={left:.1f} y=0 width={max(right - left, 1):.1f} height={height} fill='#d5e8d4'/>"
    bars = "".join(
        f"<rect x={i * width / 40:.1f} y={height - h:.1f} width={width / 40 - 1:.1f} height={h:.1f} fill='#2f6fde'/>"
        for i, h in enumerate(counts / counts.max() * (height - 8))
    )
    label = f"{html.escape(criterion.name)} <small>{html.escape(criterion.rule)}; axis {low:.4g} … {high:.4g}</small>"
    return f"<div>{label}<br><svg width={width} height={height}>{shade}{bars}</svg></div>"


def _sample(run: Run) -> dict[str, list[int]]:
    """Chooses the rows with the smallest uids, which is random but the same in every report; reads a shard at a time.

    Returns:
        Heading → positions of the rows in the run.
    """
    found: dict[str | None, list[tuple[str, int]]] = defaultdict(list)
    start = 0
    for shard in run.shards:
        verdicts = verdicts_table(run, shard.number, ["uid", "dropped_by"])
        verdicts = verdicts.append_column("position", pa.array(np.arange(start, start + len(verdicts))))
        start += len(verdicts)
        for reason in verdicts["dropped_by"].unique().to_pylist():
            has_reason = pc.is_null(pc.field("dropped_by")) if reason is None else pc.field("dropped_by") == reason
            first = verdicts.filter(has_reason).sort_by("uid")[: DROPPED_SHOWN if reason else KEPT_SHOWN]
            found[reason] += zip(first["uid"].to_pylist(), first["position"].to_pylist(), strict=True)
            found[reason] = sorted(found[reason])[: DROPPED_SHOWN if reason else KEPT_SHOWN]
    order = sorted(found, key=lambda reason: (reason is not None, found[reason]))
    return {f"dropped by {reason}" if reason else "kept": [row for _, row in found[reason]] for reason in order}


def _pictures(run: Run, wanted: set[int]) -> dict[int, str]:
    """Makes the HTML figures, with picture and caption, of the wanted rows: row → figure."""
    figures: dict[int, str] = {}
    start, limit = 0, max_pixels(run)
    for shard in run.shards:
        rows = len(verdicts_table(run, shard.number, ["uid"]))
        here = {position - start for position in wanted if start <= position < start + rows}
        if here:
            records = scores_table(run, shard.number, ["key", "caption", "error"]).to_pylist()
            for row, sample in enumerate(open_shard(shard, run.layout)):
                if row in here:
                    figures[start + row] = _figure(sample.image, records[row], limit)
        start += rows
    return figures


def _figure(image: bytes, record: dict[str, Any], max_pixels: int) -> str:
    try:
        with open_picture(image, max_pixels) as opened:
            opened.draft("RGB", (THUMBNAIL_PIXELS, THUMBNAIL_PIXELS))
            opened.thumbnail((THUMBNAIL_PIXELS, THUMBNAIL_PIXELS))
            picture = opened.convert("RGBA")
        white = Image.new("RGBA", picture.size, "white")
        buffer = io.BytesIO()
        Image.alpha_composite(white, picture).convert("RGB").save(buffer, "JPEG", quality=80)
        shown = f"<img src='data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}'>"
    except Exception:  # some of these rows were dropped because their picture is broken
        problem = record["error"] or read_header(image, max_pixels).error or "cannot be decoded"
        shown = f"<i>{html.escape(problem)}</i>"
    caption = html.escape((record["caption"] or "")[:120])
    return f"<figure>{shown}<figcaption>{caption}<br><small>{html.escape(record['key'])}</small></figcaption></figure>"


def _gallery(title: str, pictures: dict[int, str], positions: list[int]) -> str:
    figures = "".join(pictures[p] for p in positions if p in pictures)
    return f"<h2>{html.escape(title)}</h2><div class=row>{figures}</div>"
