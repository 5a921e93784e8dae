"""Times a published checkpoint in PyTorch, to compare models with. Its outputs are not used."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from danqing.engine.core.errors import DanqingError
from danqing.trt_models.card import Card

BATCH_ROWS = 8


def torch_rate(card: Card, folder: Path, inputs: list[dict[str, np.ndarray]], threads: int) -> float:
    """Measures the rows per second of a checkpoint under `torch.compile`, without the time to compile.

    Args:
        card: the model exported from the checkpoint.
        folder: the checkpoint.
        inputs: the model's inputs, batch by batch.
        threads: number of CPU threads.

    Raises:
        DanqingError: PyTorch or transformers is not installed, or transformers cannot read the checkpoint.
    """
    ((name, _),) = inputs[0].items()
    by_shape: dict[tuple[int, ...], list[np.ndarray]] = {}
    for batch in inputs:
        by_shape.setdefault(batch[name].shape[1:], []).append(batch[name])  # texts come in several widths
    groups = [{name: np.concatenate(arrays)} for arrays in by_shape.values()]
    run = torch_job(card, folder, groups, threads, compiled=True)
    run()
    started = time.perf_counter()
    run()
    return sum(len(group[name]) for group in groups) / (time.perf_counter() - started)


def torch_job(
    card: Card, folder: Path, groups: Iterable[dict[str, np.ndarray]], threads: int, compiled: bool = False
) -> Callable[[], None]:
    """Makes a function that runs transformers' model of a checkpoint on all rows, in float32.

    Args:
        card, folder, threads: see `torch_rate`.
        groups: the model's inputs by name, rows first, of each shape; a batch has `BATCH_ROWS` rows.
        compiled: whether to use `torch.compile`.

    Raises:
        DanqingError: see `torch_rate`.
    """
    try:
        import torch
        import transformers
    except ImportError as problem:
        raise DanqingError(f"timing PyTorch needs the packages torch and transformers: {problem}") from None
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
    tensors = [_tensors(group, torch) for group in groups]

    def run() -> None:
        torch.set_num_threads(threads)
        with torch.inference_mode():
            for group in tensors:
                for start in range(0, len(next(iter(group.values()))), BATCH_ROWS):
                    call(**{name: tensor[start : start + BATCH_ROWS] for name, tensor in group.items()})

    return run


def _tensors(rows: dict[str, np.ndarray], torch: Any) -> dict[str, Any]:
    if "pixels" in rows:
        pixels = torch.from_numpy(rows["pixels"]).permute(0, 3, 1, 2)
        return {"pixel_values": (pixels.float() / 127.5 - 1).contiguous()}  # the values do not change the time
    tokens = torch.from_numpy(rows["tokens"]).long()
    return {"input_ids": tokens, "attention_mask": (tokens != 0).long()}
