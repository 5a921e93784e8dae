"""Runs a network on texts of any length."""

from __future__ import annotations

from typing import Any

import numpy as np

from danqing.kernels.portable import ArrayLauncher
from danqing.trt_models.run.session import Session
from danqing.trt_models.run.tokenizer import AnyTokenizer, widths


def run_texts(
    session: Session, tokenizer: AnyTokenizer, ids: list[np.ndarray], device: ArrayLauncher
) -> dict[str, Any]:
    """Runs a network with one input, `tokens`, on texts.

    Texts are grouped by width, so that a row has the same output whatever other rows are in the batch, and short texts
    are not padded to the longest one.

    Args:
        session: the network.
        tokenizer: pads the texts.
        ids: int32 (tokens,) of each text; at least one text.
        device: the device of the session.

    Returns:
        The outputs by name, (texts, …) each, on the device, in the order of `ids`.
    """
    wide = widths(ids, tokenizer.card)
    groups = [np.flatnonzero(wide == width) for width in np.unique(wide)]
    parts = [session.run(tokens=tokenizer.pad([ids[row] for row in rows], int(wide[rows[0]]))) for rows in groups]
    if len(parts) == 1:
        return parts[0]
    place = device.up(np.argsort(np.concatenate(groups)))
    return {name: device.xp.concatenate([part[name] for part in parts])[place] for name in parts[0]}
