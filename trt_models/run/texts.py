"""Runs a network on texts of any length."""

from __future__ import annotations

from typing import Any

import numpy as np

from danqing.kernels.portable import ArrayLauncher
from danqing.trt_models.card import TokenInput
from danqing.trt_models.run.session import Session
from danqing.trt_models.run.tokenizer import widths


def run_texts(
    session: Session, card: TokenInput, ids: Any, lengths: np.ndarray, device: ArrayLauncher
) -> dict[str, Any]:
    """Runs a network with one input, `tokens`, on texts.

    Texts are grouped by width, so that a row has the same output whatever other rows are in the batch, and short texts
    are not padded to the longest one.

    Args:
        session: the network.
        card: the tokenizer's section of the network's card.
        ids: int32 (texts, max_length), padded, on the device or the host; at least one text.
        lengths: int (texts,), tokens of each text, on the host.
        device: the device of the session.

    Returns:
        The outputs by name, (texts, …) each, on the device, in the order of `ids`.
    """
    wide = widths(lengths, card)
    groups = [(width, np.flatnonzero(wide == width)) for width in np.unique(wide).tolist()]
    parts = [session.run(tokens=ids[:, :width][rows]) for width, rows in groups]
    if len(parts) == 1:
        return parts[0]
    place = device.up(np.argsort(np.concatenate([rows for _, rows in groups])))
    return {name: device.xp.concatenate([part[name] for part in parts])[place] for name in parts[0]}
