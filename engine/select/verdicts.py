"""The verdicts of a part's rows, by the rules of DECIDE."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from danqing.engine.core.device import Device
from danqing.engine.decide.columns import TableColumns
from danqing.engine.decide.scores import Scores
from danqing.engine.decide.verdicts import walk
from danqing.engine.recipe.reading import Recipe
from danqing.engine.select.ledger import Judged
from danqing.engine.select.text_plan import CLEAN


def decide(judged: Judged, recipe: Recipe, device: Device) -> np.ndarray:
    """Decides every row of a part as DECIDE does: int16 (rows,), the criterion that drops it, or -1.

    Args:
        judged: the part.
        recipe: the criteria, `USABLE` first.
        device: the criteria are judged on it.
    """
    rows = len(judged.part)
    error = np.zeros(rows, bool)
    error[list(judged.errors)] = True
    columns = {name: pa.chunked_array([pa.array(judged.columns[name], from_pandas=True)]) for name in recipe.columns}
    scores = Scores(error, TableColumns(columns | {"gated_at": pa.chunked_array([pa.nulls(rows)])}))
    return walk(scores, recipe, device).dropped_by


def verdict_columns(judged: Judged, dropped_by: np.ndarray, recipe: Recipe) -> dict[str, pa.Array]:
    """Returns what was found out about the rows of a part, as columns: verdict, scores and error.

    Args:
        judged: the part.
        dropped_by: int (rows,), from `decide`.
        recipe: the criteria, `USABLE` first.
    """
    names = pa.array([criterion.name for criterion in recipe.criteria], pa.string())
    found = {"keep": pa.array(dropped_by < 0), "dropped_by": names.take(pa.array(dropped_by, mask=dropped_by < 0))}
    for name, kind in judged.scores.items():
        if name == CLEAN:
            continue
        if name in judged.columns:
            values = judged.columns[name]
            found[name] = pa.array(values, mask=np.isnan(values)).cast(kind)
        else:
            found[name] = judged.text(name).cast(kind)
    return found | {"error": judged.problems()}
