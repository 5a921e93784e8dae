"""Content words of captions: nouns, verbs and adjectives without stop words, as jieba segments and tags them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from danqing.engine.core.device import open_device
from danqing.engine.core.strings import Strings
from danqing.engine.stages.dictionary import open_dictionary
from danqing.kernels.text.captions import content_words

SEGMENT_ROWS = 10_000
"""Captions that are segmented in one call."""


def words_of(captions: Sequence[str]) -> Iterator[list[str]]:
    """Yields the content words of each caption."""
    with open_device() as host:
        for start in range(0, len(captions), SEGMENT_ROWS):
            yield from content_words(host, Strings.of(list(captions[start : start + SEGMENT_ROWS])), open_dictionary())
