"""Selects from one Parquet file: by the engine, or by a script of the usual libraries. Run as a file, not as a module,
so that `PYTHONPATH` says which version of the engine it is.

    PYTHONPATH=CHECKOUT python profiling/bench/select_once.py engine urls.parquet FOLDER THREADS
"""

from __future__ import annotations

import sys
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import pyarrow as pa
import pyarrow.parquet as pq

import danqing

LEFT_OUT = ("blocked_source", "unknown_tokens")
"""Criteria that need a list of the user, or the text tower."""


def text_recipe() -> danqing.Recipe:
    recipe = danqing.load_recipe("embedded")
    return replace(recipe, criteria=tuple(c for c in recipe.criteria if c.name not in LEFT_OUT))


def by_engine(path: str, folder: str, threads: int) -> None:
    danqing.select(path, folder, text_recipe(), device="cpu", threads=threads)


def by_libraries(path: str, folder: str, threads: int) -> None:
    """pyarrow, jieba, OpenCC, fastText, row by row; no further work on a row that fails. Uses one core."""
    from danqing.profiling.bench.plain import Script, Texts
    from danqing.trt_models.card import load_card

    recipe = text_recipe()
    script, texts = Script(recipe, (), 1, False), Texts(recipe, load_card(recipe.models["text_embedding"]))
    texts.pieces = cast(Any, SimpleNamespace(encode=lambda text: []))  # without the encoder's tokens
    kept, clean = [], []
    table = pq.read_table(path)
    for row, (url, caption) in enumerate(zip(table["url"].to_pylist(), table["caption"].to_pylist(), strict=True)):
        pair = {"url": url, "caption": caption, "image": b""}
        texts.raw(pair)
        if script.passes(pair):
            texts.refined(pair)
            if script.passes(pair):
                kept.append(row)
                clean.append(pair["text_clean"])
    chosen = table.take(pa.array(kept, pa.int64()))
    pq.write_table(chosen.append_column("text_clean", pa.array(clean, pa.string())), folder)


if __name__ == "__main__":
    how, path, folder, threads = sys.argv[1:]
    {"engine": by_engine, "libraries": by_libraries}[how](path, folder, int(threads))
