"""Compares cleaning by kernels with plain Python and OpenCC on many random texts.

pytest tests/slow/cleaning.py        TEXTS (100,000) and TEXTS_SEED choose how many and which
"""

from __future__ import annotations

import os

from danqing.engine.core.device import Device
from tests.kernels.text.test_cleaning import assert_equal_to_plain_python
from tests.kernels.text.texts import random_markup, random_texts, random_words

TEXTS, SEED = int(os.environ.get("TEXTS", 100_000)), int(os.environ.get("TEXTS_SEED", 1))


def test_words_of_opencc(device: Device) -> None:
    assert_equal_to_plain_python(device, random_words(TEXTS, SEED))


def test_markup(device: Device) -> None:
    assert_equal_to_plain_python(device, random_markup(TEXTS, SEED))


def test_captions(device: Device) -> None:
    assert_equal_to_plain_python(device, random_texts(TEXTS, SEED))
