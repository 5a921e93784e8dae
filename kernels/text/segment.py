"""Chinese word segmentation, exactly as jieba cuts.

Jieba splits a text into blocks, finds each block's most probable path through its dictionary, and hands runs of
single characters to a hidden Markov model (`HMM=True`, its default). Both are dynamic programs over the characters.
Sums are formed in jieba's order in float64 and ties fall as Python's tuples do, so cuts are equal, not just alike.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from danqing.kernels.portable import inlined
from danqing.kernels.text.trie import EMPTY, VALUE, Index, child, find

NOUN, VERB, ADJECTIVE, STOP_WORD, NEVER_GUESSED = 1, 2, 4, 8, 16
"""What is known of a word: its part of speech, whether it is a stop word, and jieba's forced splits."""
KINDS, KIND_BITS = 31, 5
"""A word's value in the trie: number of its weight << 5 | kinds. Number 0: no word, only the beginning of some."""
HAN_FIRST, HAN_LAST = 0x4E00, 0x9FD5
"""The Han characters jieba knows."""
IMPOSSIBLE = -3.14e100
"""Jieba's logarithm of zero."""

# ASCII characters of jieba's blocks (letters, digits and + # & . _ % -), one bit each.
_BLOCK_LOW = sum(1 << ord(c) for c in "0123456789+#&.%-")
_BLOCK_HIGH = sum(1 << ord(c) - 64 for c in "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz_")
BLOCK_LOW, BLOCK_HIGH = np.uint64(_BLOCK_LOW), np.uint64(_BLOCK_HIGH)


class Dictionary(NamedTuple):
    """Jieba's tables as arrays of a device; `engine.stages.dictionary` makes them.

    `roots`, `entries`: the trie of all words. `weights`: float64, the different values of log(frequency) -
    log(total); the first, that of unknown characters, is -log(total). Hidden Markov model, states B M E S, logarithms:
    `start` float64 (4,), `change` float64 (4, 4), `emit` float64 (Han, 4).
    """

    roots: np.ndarray
    entries: np.ndarray
    weights: np.ndarray
    start: np.ndarray
    change: np.ndarray
    emit: np.ndarray


class Scratch(NamedTuple):
    """Working memory of a batch: for each row as many entries as it has bytes, and one more.

    `chars` int32: code points. `route` float64, `reach` int32: the best path. `back` uint8: the model's steps.
    `cut` uint8: 1 where a token starts. `kind` uint8: what the dictionary knows of that token.
    """

    chars: np.ndarray
    route: np.ndarray
    reach: np.ndarray
    back: np.ndarray
    cut: np.ndarray
    kind: np.ndarray


@inlined
def is_han(code):
    return HAN_FIRST <= code <= HAN_LAST


@inlined
def is_ascii_alphanumeric(code):
    return 48 <= code <= 57 or 65 <= code <= 90 or 97 <= code <= 122


@inlined
def in_block(code):
    if code >= 128:
        return is_han(code)
    if code >= 64:
        return (BLOCK_HIGH >> np.uint64(code - 64)) & np.uint64(1) == np.uint64(1)
    return (BLOCK_LOW >> np.uint64(code)) & np.uint64(1) == np.uint64(1)


@inlined
def kinds_of(node):
    return node & KINDS if node != EMPTY else 0


@inlined
def segment(chars, count, words, hmm, route, reach, back, cut, kind):
    """Cuts chars[:count] into tokens: fills `cut` and `kind` (see `Scratch`; all views begin at the row)."""
    for at in range(count):
        cut[at] = 0
    at = 0
    while at < count:
        code = chars[at]
        if in_block(code):
            stop = at + 1
            while stop < count and in_block(chars[stop]):
                stop += 1
            best_path(chars, at, stop, words, route, reach, kind)
            if hmm:
                cut_with_model(chars, at, stop, words, reach, back, cut, kind)
            else:
                cut_by_dictionary(chars, at, stop, words, reach, cut, kind)
            at = stop
        else:  # every other character stands alone, but for one kind of line end
            cut[at] = 1
            kind[at] = kinds_of(words.roots[code]) if code <= 0xFFFF else 0
            at += 2 if code == 13 and at + 1 < count and chars[at + 1] == 10 else 1


@inlined
def best_path(chars, start, stop, words, route, reach, kind):
    """From right to left, the best word to begin at each character: where it ends, and its kind."""
    roots, entries, weights = words.roots, words.entries, words.weights
    route[Index(stop)] = 0.0
    for first in range(stop - 1, start - 1, -1):
        best = -np.inf
        best_end, best_kind = first, 0
        at = first
        here = roots[Index(chars[Index(first)])]
        while here != EMPTY:
            number = (here & VALUE) >> KIND_BITS
            if number != 0:
                value = weights[Index(number)] + route[Index(at + 1)]
                if value >= best:  # of equals the longer, as the larger tuple wins in Python
                    best, best_end, best_kind = value, at + 1, here & KINDS
            at += 1
            if at == stop:
                break
            here = child(entries, here, chars[Index(at)])
        if best_end == first:
            best, best_end = weights[0] + route[Index(first + 1)], first + 1
            best_kind = kinds_of(roots[Index(chars[Index(first)])])  # no word of jieba's, but maybe a stop word
        route[Index(first)], reach[Index(first)], kind[Index(first)] = best, best_end, best_kind


@inlined
def cut_by_dictionary(chars, start, stop, words, reach, cut, kind):
    """`HMM=False`: the path as it is, single letters and digits joined."""
    at = start
    run = -1
    while at < stop:
        end = reach[at]
        if end - at == 1 and is_ascii_alphanumeric(chars[at]):
            if run < 0:
                run = at
                cut[at] = 1
        else:
            if run >= 0 and at - run > 1:
                kind[run] = kinds_of(find(words, chars, run, at))
            run = -1
            cut[at] = 1
        at = end
    if run >= 0 and stop - run > 1:
        kind[run] = kinds_of(find(words, chars, run, stop))


@inlined
def cut_with_model(chars, start, stop, words, reach, back, cut, kind):
    """`HMM=True`: words of the path; runs of single characters are cut anew."""
    at = start
    run = -1
    while at < stop:
        end = reach[at]
        if end - at == 1:
            if run < 0:
                run = at
        else:
            if run >= 0:
                cut_run(chars, run, at, words, back, cut, kind)
                run = -1
            cut[at] = 1
        at = end
    if run >= 0:
        cut_run(chars, run, stop, words, back, cut, kind)


@inlined
def cut_run(chars, start, stop, words, back, cut, kind):
    """A run of single characters: left alone if it is a word that the path refused, else guessed."""
    if stop - start == 1:
        cut[start] = 1
        return
    whole = find(words, chars, start, stop)
    if whole != EMPTY and whole & VALUE >= 1 << KIND_BITS:
        for at in range(start, stop):
            cut[at] = 1
        return
    at = start
    while at < stop:
        first = at
        if is_han(chars[at]):
            while at < stop and is_han(chars[at]):
                at += 1
            guess(chars, first, at, words, back, cut)
        elif is_ascii_alphanumeric(chars[at]):  # letters and digits, then maybe a fraction, then maybe a percent sign
            while at < stop and is_ascii_alphanumeric(chars[at]):
                at += 1
            if at + 1 < stop and chars[at] == 46 and 48 <= chars[at + 1] <= 57:
                at += 2
                while at < stop and 48 <= chars[at] <= 57:
                    at += 1
            if at < stop and chars[at] == 37:
                at += 1
            cut[first] = 1
        else:
            while at < stop and not is_han(chars[at]) and not is_ascii_alphanumeric(chars[at]):
                at += 1
            cut[first] = 1
    at = start
    while at < stop:
        end = at + 1
        while end < stop and cut[end] == 0:
            end += 1
        if end - at > 1:  # a new token: the path had found its first character only
            guessed = kinds_of(find(words, chars, at, end))
            if guessed & NEVER_GUESSED:
                for single in range(at, end):
                    cut[single] = 1
            else:
                kind[at] = guessed
        at = end


@inlined
def guess(chars, start, stop, words, back, cut):
    """Viterbi over the states B(egin) M(iddle) E(nd) S(ingle); a token starts at B and S."""
    emit, change = words.emit, words.change
    to_begin_a, to_begin_b, to_middle_a, to_middle_b = change[2, 0], change[3, 0], change[0, 1], change[1, 1]
    to_end_a, to_end_b, to_single_a, to_single_b = change[0, 2], change[1, 2], change[2, 3], change[3, 3]
    row = chars[start] - HAN_FIRST
    begin, middle = words.start[0] + emit[row, 0], words.start[1] + emit[row, 1]
    end, single = words.start[2] + emit[row, 2], words.start[3] + emit[row, 3]
    for at in range(start + 1, stop):
        row = chars[at] - HAN_FIRST
        # Two states can come before each; of equals the later letter wins: E < S, B < M, B < M, E < S.
        begin_a = end + to_begin_a + emit[row, 0]
        begin_b = single + to_begin_b + emit[row, 0]
        middle_a = begin + to_middle_a + emit[row, 1]
        middle_b = middle + to_middle_b + emit[row, 1]
        end_a = begin + to_end_a + emit[row, 2]
        end_b = middle + to_end_b + emit[row, 2]
        single_a = end + to_single_a + emit[row, 3]
        single_b = single + to_single_b + emit[row, 3]
        back[at] = (
            (begin_b >= begin_a) | (middle_b >= middle_a) << 1 | (end_b >= end_a) << 2 | (single_b >= single_a) << 3
        )
        begin, middle = max(begin_a, begin_b), max(middle_a, middle_b)
        end, single = max(end_a, end_b), max(single_a, single_b)
    state = 3 if single >= end else 2
    for at in range(stop - 1, start, -1):
        opens = 0b1001 >> state & 1  # B and S
        cut[at] = opens
        state = 2 * opens + (back[at] >> state & 1)  # before B or S comes E or S, before M or E comes B or M
    cut[start] = 1
