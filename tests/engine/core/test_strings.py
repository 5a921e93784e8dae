"""Text columns: rows taken, sliced and joined on either side equal those of Arrow."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from danqing.engine.core.batch import Batch
from danqing.engine.core.device import Device
from danqing.engine.core.strings import Strings
from danqing.engine.core.text_column import TextColumn

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


def test_a_missing_text_is_an_empty_row_whatever_bytes_it_has(device: Device) -> None:
    offsets, data = pa.py_buffer(np.array([0, 1, 4, 5])), pa.py_buffer(b"abcde")
    array = pa.LargeStringArray.from_buffers(3, offsets, data, pa.py_buffer(b"\x05"))
    assert array.to_pylist() == ["a", None, "e"] and Strings.of(array).arrow().to_pylist() == ["a", "", "e"]
    assert TextColumn.of(array).lengths().tolist() == [1, 0, 1] and TextColumn.of(array).strings(device).size == 2


def test_only_the_rows_of_a_slice_are_copied(device: Device) -> None:
    rows = Strings.of(pa.array(VALID, pa.string()).slice(3, 2))
    assert rows.alone().offsets.tolist() == [0, 8, 12] and len(rows.alone().data) == 12
    assert rows.on_host(device).arrow().to_pylist() == rows.alone().arrow().to_pylist() == VALID[3:5]


def test_a_batch_holds_text_columns() -> None:
    batch = Batch({"row": np.arange(6)})
    batch["caption"] = TextColumn.of(TEXTS)
    assert batch.bytes(["caption"]) == sum(len((text or "").encode()) for text in VALID)
    joined = Batch.concat([batch.slice(0, 2), batch.take(np.array([False] * 3 + [True] * 3))])
    assert joined["caption"].to_pylist() == VALID[:2] + VALID[3:]
    on_host = joined.texts_on_host()["caption"]
    assert on_host is not joined["caption"] and on_host.to_pylist() == joined["caption"].to_pylist()
    assert joined.texts_on_host(["caption"])["caption"] is joined["caption"]
    with pytest.raises(ValueError, match="'url' has 5 rows"):
        batch["url"] = TextColumn.of(TEXTS[:5])
