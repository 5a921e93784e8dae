"""The text measures of a column that lies in a frame already: cuDF's on a GPU, pandas' or Arrow's on a CPU.

    import cudf
    from danqing.engine.core.device import open_device
    from danqing.engine.select.frames import measure_captions

    with open_device("cuda") as device:
        frame = cudf.read_parquet("captions.parquet")
        frame = frame.assign(**measure_captions(frame["caption"], device))

The kernels read the column where it lies and leave the measures there: nothing is copied either way.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa

from danqing.engine.core.batch_sizes import BATCH_SIZES
from danqing.engine.core.device import Device
from danqing.engine.stages.dictionary import character_classes, open_dictionary
from danqing.kernels.text.captions import MEASURES, measure
from danqing.kernels.text.strings import Strings


def measure_captions(captions: Any, device: Device, user_dictionaries: tuple[Path, ...] = ()) -> dict[str, Any]:
    """Every measure of `kernels.text.captions.MEASURES` of every caption, as it came; a missing one counts as empty.

    Args:
        captions: a column of strings: a cuDF series (with a `cuda` device), or a pandas series, Arrow array or
            sequence of str.
        user_dictionaries: see `engine.stages.dictionary.open_dictionary`.

    Returns:
        Measure → float32 (rows,), of the device.
    """
    text, words, xp = strings_of(captions).on(device), open_dictionary(user_dictionaries), device.xp
    out = xp.empty((text.rows, len(MEASURES)), "float32")
    for start, part in text.parts(device, BATCH_SIZES[device.kind].frame_rows):
        out[start : start + part.rows] = measure(device, part, words, character_classes())
    device.wait()
    return {name: xp.ascontiguousarray(out[:, column]) for column, name in enumerate(MEASURES)}


def strings_of(captions: Any) -> Strings:
    """The column's own memory, whosever it is."""
    if type(captions).__module__.partition(".")[0] == "cudf":
        return Strings.of_cudf(captions)
    if not isinstance(captions, pa.Array | pa.ChunkedArray):
        captions = pa.array(captions, from_pandas=True)
    if isinstance(captions, pa.ChunkedArray):
        captions = captions.combine_chunks()
    return Strings.of(captions.cast(pa.large_string()))
