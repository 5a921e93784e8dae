"""Text measures of a caption column in a data frame: cuDF on a GPU, pandas or Arrow on a CPU.

    import cudf
    from danqing.engine.core.device import open_device
    from danqing.engine.select.frames import measure_captions

    with open_device("cuda") as device:
        frame = cudf.read_parquet("captions.parquet")
        frame = frame.assign(**measure_captions(frame["caption"], device))

The kernels read the column's own memory and write the measures on the same device, so nothing is copied between host
and device.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa

from danqing.engine.core import libcudf
from danqing.engine.core.batch_sizes import BATCH_SIZES
from danqing.engine.core.device import Device
from danqing.engine.core.strings import Strings
from danqing.engine.stages.dictionary import character_classes, open_dictionary
from danqing.kernels.text.captions import MEASURES, measure


def measure_captions(captions: Any, device: Device, user_dictionaries: tuple[Path, ...] = ()) -> dict[str, Any]:
    """Computes every measure of `kernels.text.captions.MEASURES` for every caption, without cleaning it first.

    Args:
        captions: strings (rows,): a cuDF series if the device is a GPU, else a pandas series, Arrow array or sequence
            of str. A missing caption counts as empty.
        device: where the measures are computed.
        user_dictionaries: see `engine.stages.dictionary.open_dictionary`.

    Returns:
        Measure → float32 (rows,), on the device.

    >>> from danqing.engine.core.device import open_device
    >>> with open_device("cpu") as device:
    ...     measure_captions(["一只橘猫趴在窗台上"], device)["words"].tolist()
    [4.0]
    """
    text, words, xp = strings_of(captions).on(device), open_dictionary(user_dictionaries), device.xp
    out = xp.empty((text.rows, len(MEASURES)), "float32")
    for start, part in text.parts(device, BATCH_SIZES[device.kind].frame_rows):
        out[start : start + part.rows] = measure(device, part, words, character_classes())
    device.wait()
    return {name: xp.ascontiguousarray(out[:, column]) for column, name in enumerate(MEASURES)}


def strings_of(captions: Any) -> Strings:
    """Makes `Strings` of a column of any library; the text itself is not copied."""
    if type(captions).__module__.partition(".")[0] == "cudf":
        return libcudf.strings_of(captions)
    if not isinstance(captions, pa.Array | pa.ChunkedArray):
        captions = pa.array(captions, from_pandas=True)
    if isinstance(captions, pa.ChunkedArray):
        captions = captions.combine_chunks()
    return Strings.of(captions.cast(pa.large_string()))
