"""A published checkpoint as PyTorch runs it, to time models against: what it answers is not looked at."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from danqing.engine.core.errors import DanqingError
from danqing.trt_models.card import Card

BATCH = 8


def torch_rate(card: Card, folder: Path, inputs: list[dict[str, np.ndarray]], threads: int) -> float:
    """Rows a second of the checkpoint under `torch.compile`, without the time to compile.

    Args:
        inputs: what the model was given, batch by batch.

    Raises:
        DanqingError: PyTorch or transformers is not installed, or transformers cannot read the checkpoint.
    """
    rows = {name: np.concatenate([batch[name] for batch in inputs]) for name in inputs[0]}
    run = torch_job(card, folder, rows, threads, compiled=True)
    run()
    started = time.perf_counter()
    run()
    return len(next(iter(rows.values()))) / (time.perf_counter() - started)


def torch_job(
    card: Card, folder: Path, rows: dict[str, np.ndarray], threads: int, compiled: bool = False
) -> Callable[[], None]:
    """A job that puts all rows through transformers' own model of a checkpoint, `BATCH` at a time, in float32."""
    try:
        import torch
        import transformers
    except ImportError as problem:
        raise DanqingError(f"timing PyTorch needs it installed, and transformers: {problem}") from None
    classes = {
        "image_classifier": transformers.AutoModelForImageClassification,
        "text_classifier": transformers.AutoModelForSequenceClassification,
    }
    try:
        model: Any = classes.get(card.task, transformers.AutoModel).from_pretrained(folder).eval()
    except (OSError, ValueError) as problem:
        raise DanqingError(f"{folder}: transformers cannot read this checkpoint: {problem}") from None
    embeds = {"image_embedding": "get_image_features", "text_embedding": "get_text_features"}
    call = getattr(model, embeds.get(card.task, "forward"))
    call = torch.compile(call) if compiled else call
    if "pixels" in rows:
        pixels = torch.from_numpy(rows["pixels"]).permute(0, 3, 1, 2)
        given = {"pixel_values": (pixels.float() / 127.5 - 1).contiguous()}  # their mean and spread cost all the same
    else:
        tokens = torch.from_numpy(rows["tokens"]).long()
        given = {"input_ids": tokens, "attention_mask": (tokens != 0).long()}

    def run() -> None:
        torch.set_num_threads(threads)
        with torch.inference_mode():
            for at in range(0, len(next(iter(given.values()))), BATCH):
                call(**{name: tensor[at : at + BATCH] for name, tensor in given.items()})

    return run
