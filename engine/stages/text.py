"""Cleans captions and measures them: words, parts of speech, language, entropy, unsafe terms.

Kernels (`kernels.text`) normalize captions (HTML, compatibility characters), clean them (emoji, special characters,
space, Traditional to Simplified) and measure them.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from danqing.engine.core.batch import Batch
from danqing.engine.core.batch_sizes import BATCH_SIZES
from danqing.engine.core.columns import ENCODED, produced
from danqing.engine.core.strings import Strings
from danqing.engine.core.text_column import TextColumn
from danqing.engine.stages.base import Context, Stage
from danqing.engine.stages.characters import character_classes, cleaning_tables
from danqing.engine.stages.dictionary import open_dictionary
from danqing.engine.stages.language import languages, open_identifier
from danqing.kernels.text import captions as kernels
from danqing.kernels.text.captions import MEASURES
from danqing.kernels.text.cleaning import clean, normalize
from danqing.trt_models.run.classifier import TextClassifier


class CaptionStage(Stage):
    """Packs batches by text length, since the kernels use about thirty bytes of working memory per byte of text."""

    @property
    def capacity(self) -> float:
        sizes = BATCH_SIZES[self.context.device.kind]
        return sizes.caption_bytes if ENCODED in self.context.wanted else sizes.table_bytes

    @staticmethod
    def weights(batch: Batch) -> np.ndarray:
        return batch["caption"].lengths() + 32.0


class Caption(CaptionStage):
    """Measures of the caption without markup (`normalize`): `words`, and the text classifier's `unsafe_text`.

    `caption_measures`: float32 (rows, measures), all measures; `Refine` uses them for captions that cleaning does not
    change.
    """

    name = "caption"
    role = "text_safety"
    model_columns = ("unsafe_text",)
    needs = ("caption",)
    produces = produced("words", "unsafe_text", "caption_measures")

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self.unsafe = open_classifier(context, self)

    def __call__(self, batch: Batch) -> None:
        device = self.context.device
        captions = normalize(device, batch["caption"].strings(device), cleaning_tables())
        measures = measure_captions(self.context, captions)
        batch["caption_measures"] = measures
        batch["words"] = measures[:, MEASURES.index("words")].astype(np.int32)
        if self.unsafe:
            batch["unsafe_text"] = self.unsafe(TextColumn.made(captions, device))


class Refine(CaptionStage):
    """The caption cleaned and in Simplified characters (`text_clean`), and its measures.

    For the measures see `kernels.text.captions.MEASURES`; for `language` and `chinese_confidence` see `languages`.
    """

    name = "refine"
    role = "caption_safety"
    model_columns = ("unsafe_caption",)
    needs = ("caption", "caption_measures")
    produces = produced(
        "text_clean", "language", "chinese_confidence", "stop_word_share", "nouns", "content_word_share",
        "text_entropy", "han_share", "kana_share", "latin_share", "digit_share", "symbol_share",
        "longest_repetition", "unsafe_caption",
    )  # fmt: skip

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self.unsafe = open_classifier(context, self)

    def __call__(self, batch: Batch) -> None:
        device = self.context.device
        cleaned = clean(device, batch["caption"].strings(device), cleaning_tables())
        texts = TextColumn.made(cleaned.text, device)
        measures = batch["caption_measures"]
        changed = np.flatnonzero(device.down(cleaned.changed))
        measures[changed] = measure_captions(self.context, texts.take(changed).strings(device))
        columns = dict(zip(MEASURES, measures.T, strict=True))
        batch["text_clean"] = texts
        codes, batch["chinese_confidence"] = languages(device, cleaned.text, cleaned.japanese)
        batch["language"] = TextColumn.of(open_identifier().names.take(pa.array(device.down(codes))))
        for name in self.produces.keys() & columns.keys():
            batch[name] = columns[name]
        if self.unsafe:
            batch["unsafe_caption"] = self.unsafe(texts)


def open_classifier(context: Context, stage: Stage) -> TextClassifier | None:
    """Opens a stage's text classifier; None if the recipe names none and needs none of its columns.

    Raises:
        DanqingError: the recipe needs a column of the classifier and names no model, or the model does not open.
    """
    needed = context.wanted.intersection(stage.model_columns or ())
    if stage.role is None or (stage.role not in context.models.names and not needed):
        return None
    return context.models.text_classifier(stage.role, context.device)


def measure_captions(context: Context, captions: Strings) -> np.ndarray:
    """Measures captions on the device.

    Args:
        context: the device and the user dictionaries.
        captions: on the device.

    Returns:
        float32 (rows, len(MEASURES)), on the host.
    """
    device, words = context.device, open_dictionary(context.user_dictionaries)
    return device.down(kernels.measure(device, captions, words, character_classes()))
