"""Text columns: rows taken, sliced and joined on either side equal those of Arrow."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from danqing.engine.core.batch import Batch
from danqing.engine.core.device import Device
from danqing.engine.core.strings import Strings, TextColumn

TEXTS = ["一只橘猫", None, "", "窗台 a", "😀", "\ud800坏"]
VALID = ["一只橘猫", None, "", "窗台 a", "😀", "\ufffd坏"]


@pytest.mark.parametrize("rows", [[4, 0, 2], [], [1, 1], [5, 4, 3, 2, 1, 0], [0]])
def test_rows_are_taken_on_either_side(rows: list[int], device: Device) -> None:
    positions, column = np.array(rows, np.int64), TextColumn.of(TEXTS)
    assert column.take(positions).to_pylist() == [VALID[row] for row in rows]
    made = TextColumn.made(column.strings(device), device)
    assert made.take(positions).to_pylist() == [VALID[row] or "" for row in rows]
    assert made[1:].take(positions[positions < 5]).to_pylist() == [VALID[1:][row] or "" for row in rows if row < 5]


def test_columns_are_joined(device: Device) -> None:
    column = TextColumn.of(TEXTS)
    assert TextColumn.concat([column, column[3:], column[:0]]).to_pylist() == VALID + VALID[3:]
    strings = column.strings(device)
    parts = [strings, Strings.of(pa.array(["甲", "乙"], pa.string()).slice(1)).on(device)]
    joined = Strings.concat(parts, device)
    assert joined.arrow().to_pylist() == [text or "" for text in VALID] + ["乙"]
    assert joined.size == len(joined.data)


def test_a_batch_holds_text_columns() -> None:
    batch = Batch({"row": np.arange(6)})
    batch["caption"] = TextColumn.of(TEXTS)
    assert batch.bytes(["caption"]) == sum(len((text or "").encode()) for text in VALID)
    joined = Batch.concat([batch.slice(0, 2), batch.take(np.array([False] * 3 + [True] * 3))])
    assert joined["caption"].to_pylist() == VALID[:2] + VALID[3:]
    with pytest.raises(ValueError, match="'url' has 5 rows"):
        batch["url"] = TextColumn.of(TEXTS[:5])
