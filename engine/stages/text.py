"""Cleans captions and measures them: words, parts of speech, language, entropy, unsafe terms.

A caption goes through three steps: `normalize` (HTML, compatibility characters), `clean` (emoji, special characters,
space) and `simplify` (Traditional to Simplified, by OpenCC). Kernels (`kernels.text`) measure it.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import opencc
import pyarrow.compute as pc

from danqing.engine.core.batch import Batch
from danqing.engine.core.batch_sizes import BATCH_SIZES
from danqing.engine.core.columns import produced
from danqing.engine.core.strings import Strings, TextColumn
from danqing.engine.stages.base import Context, Stage
from danqing.engine.stages.dictionary import character_classes, open_dictionary, unified_forms
from danqing.engine.stages.language import languages
from danqing.engine.stages.markup import remove_markup
from danqing.kernels.text import captions as kernels
from danqing.kernels.text.captions import MEASURES
from danqing.trt_models.run.classifier import TextClassifier


class CaptionStage(Stage):
    """Packs batches by text length, since the kernels use about thirty bytes of working memory per byte of text."""

    @property
    def capacity(self) -> float:
        return BATCH_SIZES[self.context.device.kind].caption_bytes

    @staticmethod
    def weights(batch: Batch) -> np.ndarray:
        return batch["caption"].lengths() + 32.0


class Caption(CaptionStage):
    """Measures of the caption as read (but see `normalize`): `words`, and the text classifier's `unsafe_text`.

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
        captions = normalize(self.context, batch["caption"])
        measures = measure_captions(self.context, captions)
        batch["caption_measures"] = measures
        batch["words"] = measures[:, MEASURES.index("words")].astype(np.int32)
        if self.unsafe:
            batch["unsafe_text"] = self.unsafe(TextColumn.made(captions, self.context.device))


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
        originals = clean(self.context, batch["caption"])
        texts = simplify(originals)
        measures = batch["caption_measures"]
        changed = np.flatnonzero(pc.not_equal(texts.arrow(), batch["caption"].arrow()))
        measures[changed] = measure_captions(self.context, texts.take(changed).strings(self.context.device))
        columns = dict(zip(MEASURES, measures.T, strict=True))
        batch["text_clean"] = texts
        batch["language"], batch["chinese_confidence"] = languages(texts.to_pylist(), originals.to_pylist(), columns)
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


def normalize(context: Context, captions: TextColumn) -> Strings:
    """Removes HTML (`markup.remove_markup`) and replaces compatibility characters by ideographs; on the device."""
    lines = captions.to_pylist()
    plain = remove_markup(lines)
    text = captions if plain is lines else TextColumn.of(plain)
    return kernels.unify(context.device, text.strings(context.device), unified_forms())


def clean(context: Context, captions: TextColumn) -> TextColumn:
    """Normalizes captions and removes emoji, special characters and surplus space; on the device."""
    device = context.device
    return TextColumn.made(kernels.clean(device, normalize(context, captions), character_classes()), device)


def simplify(captions: TextColumn) -> TextColumn:
    """Converts captions without line ends to Simplified Chinese (OpenCC t2s)."""
    # One call for all captions. Captions in Simplified characters are converted, too: some characters change only
    # within a word (沈醉 to 沉醉).
    lines = captions.to_pylist()
    return TextColumn.of(_converter().convert("\n".join(lines)).split("\n") if lines else [])


@cache
def _converter() -> opencc.OpenCC:
    return opencc.OpenCC("t2s")
