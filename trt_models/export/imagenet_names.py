"""Names of the ImageNet classes in English and Chinese, and their embeddings by the text tower."""

from __future__ import annotations

from functools import cache
from importlib import resources

import numpy as np
import onnxruntime

from danqing.engine.core.device import open_device
from danqing.engine.core.text_column import TextColumn
from danqing.trt_models.card import TokenInput
from danqing.trt_models.export import use_multilingual
from danqing.trt_models.package_files import package_file
from danqing.trt_models.run.tokenizer import SentencePiece

_BATCH_NAMES = 50


@cache
def class_names() -> tuple[tuple[str, str], ...]:
    """Returns the names (English, Simplified Chinese) of the 1000 classes, in the order of the classifier's outputs."""
    text = (resources.files("danqing.trt_models.export") / "imagenet_names.tsv").read_text(encoding="utf-8")
    rows = (line.split("\t") for line in text.splitlines())
    return tuple((english, chinese) for _, english, chinese in rows)


@cache
def class_embeddings() -> np.ndarray:
    """Embeds the class names.

    The mean of both languages is used, because a rare word in one is often a common word in the other.

    Returns:
        float32 (1000, 512): of each class, the mean of the uncentred unit embeddings of its two names.
    """
    card = TokenInput("sentencepiece", use_multilingual.TOKENIZER, use_multilingual.PACKAGE, begin=1, end=2)
    tokenizer = SentencePiece(card, package_file(card.package, card.file))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1  # so that sums, and with them the model, do not depend on the number of cores
    model = use_multilingual.build().SerializeToString()
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    names = [name for both in class_names() for name in both]
    parts = []
    with open_device("cpu", 1) as device:
        ids, lengths, _ = tokenizer.encode(TextColumn.of(names), device)
    for start in range(0, len(names), _BATCH_NAMES):
        some = slice(start, start + _BATCH_NAMES)
        parts.append(session.run(["embedding"], {"tokens": ids[some, : lengths[some].max()]})[0])
    embeddings: np.ndarray = np.concatenate(parts).reshape(-1, 2, 512).mean(axis=1)
    return embeddings
