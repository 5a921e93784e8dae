"""Properties of a run's pairs: sizes, formats, sources, languages and words, of all rows and of the kept ones."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from markupsafe import Markup

from danqing.engine.report.figures import (
    Bar,
    Figure,
    Plot,
    Scale,
    Series,
    bars,
    choose_scale,
    heat_map,
    histogram,
    number,
)
from danqing.engine.report.rows import Sample, are_integers
from danqing.engine.report.word_cloud import word_cloud
from danqing.engine.report.words import words_of
from danqing.engine.stages.hosts import host_of

DOMAINS_SHOWN, WORDS_SHOWN, CLOUD_WORDS, CATEGORIES_SHOWN = 40, 20, 120, 12
SEGMENTED_CAPTIONS = 20_000
"""Maximum number of kept captions of the sample whose words are counted."""
MAP_BINS = 36
"""Columns and rows of the map of widths and heights."""


Values = Callable[[Sample, bool], np.ndarray]
"""The finite numbers of a sample: of all rows, or of the kept ones."""


def characteristics(samples: Sequence[Sample]) -> list[Figure]:
    """The figures of sizes, captions, sources, formats and languages."""
    found = [
        _sizes(samples),
        _histogram("shortest-edge", "Shortest edge", "pixels", samples, _column("shortest_edge")),
        _histogram("aspect-ratio", "Aspect ratio", "width ÷ height", samples, _column("aspect_ratio")),
        _histogram("words", "Words of a caption", "words", samples, _column("words")),
        _histogram("characters", "Characters of a caption", "characters", samples, _characters),
        _histogram("jpeg-quality", "JPEG quality", "estimated libjpeg quality", samples, _jpeg_quality),
        _ranked("formats", "Formats", samples, lambda s, kept: Counter(s.texts("decode_format", kept))),
        _ranked("languages", "Languages", samples, lambda s, kept: Counter(s.texts("language", kept))),
        _ranked("domains", "Registered domains", samples, _domains, DOMAINS_SHOWN),
    ]
    return [figure for figure in found if figure]


def text_quality(samples: Sequence[Sample]) -> list[Figure]:
    """The figures of the words of the kept captions."""
    share, perplexity = _column("content_word_share"), _column("text_perplexity")
    found = [
        _histogram("content-words", "Content words", "share of nouns, verbs and adjectives", samples, share),
        _histogram("perplexity", "Perplexity", "pseudo-perplexity of the clean caption", samples, perplexity),
        *_words(samples),
    ]
    return [figure for figure in found if figure]


def _column(name: str) -> Values:
    return lambda sample, kept: sample.numbers(name, kept)


def _characters(sample: Sample, kept: bool) -> np.ndarray:
    column = "text_clean" if "text_clean" in sample.table.column_names else "caption"
    if column not in sample.table.column_names:
        return np.empty(0)
    texts = sample.table[column].filter(pa.array(sample.kept)) if kept else sample.table[column]
    lengths: np.ndarray = pc.utf8_length(texts.drop_null()).to_numpy()
    return lengths.astype(float)


def _jpeg_quality(sample: Sample, kept: bool) -> np.ndarray:
    if not {"jpeg_quality", "decode_format"} <= set(sample.table.column_names):
        return np.empty(0)
    table = sample.table.filter(pa.array(sample.kept)) if kept else sample.table
    table = table.filter(pc.fill_null(pc.equal(table["decode_format"], "JPEG"), False))
    values: np.ndarray = table["jpeg_quality"].drop_null().to_numpy().astype(float)
    return values


def _histogram(name: str, title: str, across: str, samples: Sequence[Sample], values: Values) -> Figure | None:
    found = [(values(sample, False), values(sample, True)) for sample in samples]
    together = np.concatenate([every for every, _ in found])
    if not len(together):
        return None
    scale, edges = choose_scale(together, integers=are_integers(together))
    drawings, notes, numbers = [], [], []
    for every, kept in found:
        counts = [np.histogram(part.clip(edges[0], edges[-1]), edges)[0] for part in (kept, every)]
        series = [
            Series("kept", "kept", counts[0].tolist()),
            Series("dropped", "other", (counts[1] - counts[0]).tolist()),
        ]
        up = "pairs" if all(sample.is_whole for sample in samples) else "pairs of the sample"
        drawings.append(histogram(Plot(f"{title}: histogram of {across}", across, up), scale, edges, series))
        notes.append(
            "; ".join(f"{which}: {_summary(part)}" for which, part in (("kept", kept), ("all", every)) if len(part))
        )
        numbers.append(
            {"edges": edges.tolist(), "kept": counts[0].tolist(), "all": counts[1].tolist(), "summary": _moments(kept)}
        )
    return Figure(name, title, drawings, notes, numbers)


def _moments(values: np.ndarray) -> dict[str, float]:
    if not len(values):
        return {}
    return {"mean": round(float(values.mean()), 6), "median": float(np.median(values)), "rows": len(values)}


def _summary(values: np.ndarray) -> str:
    return f"median {number(float(np.median(values)))}, mean {number(float(values.mean()))}"


def _sizes(samples: Sequence[Sample]) -> Figure | None:
    found = []
    for sample in samples:
        if not {"width", "height"} <= set(sample.table.column_names):
            return None
        table = sample.table.filter(pa.array(sample.kept)) if sample.kept.any() else sample.table
        table = table.select(["width", "height"]).drop_null()
        pairs = np.stack([table[name].to_numpy().astype(float) for name in ("width", "height")], 1)
        found.append(pairs[(pairs > 0).all(1)])
    together = np.concatenate(found)
    if not len(together):
        return None
    low, high = np.percentile(together, 0.2), np.percentile(together, 99.8)
    scale = Scale(float(low) / 1.1, float(high) * 1.1, log=True)
    edges = scale.edges(MAP_BINS)
    drawings, numbers = [], []
    for pairs in found:
        width, height = pairs.clip(edges[0], edges[-1]).T
        counts = np.histogram2d(width, height, bins=[edges, edges])[0]
        plot = Plot(
            "Width and height of the kept pictures: number of pictures by size",
            "width (pixels)",
            "height (pixels)",
            300,
        )
        drawings.append(heat_map(plot, scale, scale, counts))
        numbers.append({"edges": edges.tolist(), "counts": counts.astype(int).tolist()})
    return Figure(
        "sizes", "Width and height", drawings, ["kept pictures; a stronger colour means more"] * len(found), numbers
    )


def _ranked(
    name: str,
    title: str,
    samples: Sequence[Sample],
    count: Callable[[Sample, bool], Counter[str]],
    shown: int = CATEGORIES_SHOWN,
) -> Figure | None:
    """Ranked categories of the kept rows, or of all rows if none is kept."""
    drawings: list[Markup | None] = []
    notes, numbers = [], []
    for sample in samples:
        kept = bool(sample.kept.any())
        found = count(sample, kept)
        total = found.total()
        ranked = sorted(found.items(), key=lambda entry: (-entry[1], entry[0]))
        rows = [Bar(label, value, f"{value:,} {_percent(value / total)}") for label, value in ranked[:shown]]
        drawings.append(
            bars(f"{title}: share of pairs", rows, longest=total if shown < 20 else 0, label_pixels=150)
            if rows
            else None
        )
        more = f"; {len(ranked) - shown:,} more" if len(ranked) > shown else ""
        notes.append(f"{'kept' if kept else 'all'} pairs{more}" if rows else "no data")
        numbers.append(dict(ranked[: max(shown, DOMAINS_SHOWN)]))
    return Figure(name, title, drawings, notes, numbers) if any(drawings) else None


def _percent(share: float) -> str:
    return f"({share:.1%})" if share >= 0.0995 else f"({share:.2%})"


@cache
def _suffixes() -> Any:
    from publicsuffixlist import PublicSuffixList

    return PublicSuffixList()


def _domains(sample: Sample, kept: bool) -> Counter[str]:
    hosts = Counter(map(host_of, sample.texts("url", kept)))
    hosts.pop("", None)
    found: Counter[str] = Counter()
    for host, times in hosts.items():
        found[registered_domain(host)] += times
    return found


def registered_domain(host: str) -> str:
    """The domain that was registered, by the public suffix list; an address is its own.

    >>> registered_domain("img.shop.example.com.cn"), registered_domain("10.0.0.1"), registered_domain("com")
    ('example.com.cn', '10.0.0.1', 'com')
    """
    if host.startswith("[") or host.rpartition(".")[2].isdigit():
        return host
    return _suffixes().privatesuffix(host) or host


def _words(samples: Sequence[Sample]) -> list[Figure]:
    """The most frequent words of the kept captions: ranked, and as a cloud."""
    drawn: list[Markup | None] = []
    clouds: list[Markup | None] = []
    notes, numbers = [], []
    for sample in samples:
        captions = sample.texts("text_clean", True) or sample.texts("caption", True)
        chosen = np.linspace(0, len(captions) - 1, min(SEGMENTED_CAPTIONS, len(captions))).astype(int)
        found = Counter(word for words in words_of([captions[at] for at in chosen.tolist()]) for word in words)
        ranked = sorted(found.items(), key=lambda entry: (-entry[1], entry[0]))
        total = max(found.total(), 1)
        rows = [Bar(word, times, f"{times:,} {_percent(times / total)}") for word, times in ranked[:WORDS_SHOWN]]
        drawn.append(bars("Most frequent content words of the kept captions", rows, label_pixels=110) if rows else None)
        cloud = word_cloud("Words of the kept captions, larger for more frequent ones", ranked[:CLOUD_WORDS])
        clouds.append(cloud if rows else None)
        notes.append(f"{len(found):,} different nouns, verbs and adjectives in {len(chosen):,} kept captions")
        numbers.append({"captions": len(chosen), "words": len(found), "most_frequent": dict(ranked[:CLOUD_WORDS])})
    if not any(drawn):
        return []
    return [
        Figure("frequent-words", "Most frequent words", drawn, notes, numbers),
        Figure("word-cloud", "Word cloud", clouds, wide=True),
    ]
