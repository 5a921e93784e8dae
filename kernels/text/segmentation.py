"""Chinese word segmentation, equal to jieba's.

Jieba splits a text into blocks, finds each block's most probable path through its dictionary, and cuts sequences of
single characters with a hidden Markov model (`HMM=True`, its default). Both are dynamic programs over the characters.
Sums are formed in jieba's order in float64, and ties are decided like comparisons of Python's tuples, so the cuts are
identical.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from danqing.kernels.portable import inlined
from danqing.kernels.text.ascii import is_alphanumeric
from danqing.kernels.text.trie import EMPTY, VALUE, Index, child, find

# Kinds of words, bits: part of speech, stop word, and jieba's forced splits (a word that the model must not make).
NOUN, VERB, ADJECTIVE, STOP_WORD, FORCED_SPLIT = 1, 2, 4, 8, 16
# The value of a word in the trie is index of its weight << KIND_BITS | kinds. Index 0: no word, but a prefix of one.
KIND_BITS = 5
KIND_MASK = (1 << KIND_BITS) - 1
HAN_FIRST, HAN_LAST = 0x4E00, 0x9FD5  # the Han characters that jieba knows
IMPOSSIBLE = -3.14e100
"""Jieba's logarithm of zero."""

# ASCII characters of jieba's blocks (letters, digits and + # & . _ % -), one bit each.
_BLOCK_LOW = sum(1 << ord(c) for c in "0123456789+#&.%-")
_BLOCK_HIGH = sum(1 << ord(c) - 64 for c in "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz_")
BLOCK_LOW, BLOCK_HIGH = np.uint64(_BLOCK_LOW), np.uint64(_BLOCK_HIGH)


class Dictionary(NamedTuple):
    """Jieba's tables as arrays; `engine.stages.dictionary` makes them.

    Attributes:
        roots, entries: the trie of all words, see `kernels.text.trie`.
        weights: float64, the distinct values of log(frequency) - log(total); the first is -log(total), the weight of
            unknown characters.
        start, change, emit: float64 (4,), (4, 4) and (Han characters, 4), log probabilities of the hidden Markov model
            with states B(egin), M(iddle), E(nd), S(ingle).
    """

    roots: np.ndarray
    entries: np.ndarray
    weights: np.ndarray
    start: np.ndarray
    change: np.ndarray
    emit: np.ndarray


class SegmentScratch(NamedTuple):
    """Scratch memory of a batch: each row has one entry per byte and one more.

    Attributes:
        chars: int32, code points.
        route: float64, weight of the best path from each character to the block's end.
        reach: int32, end of the best path's first word.
        back: uint8, back pointers of the hidden Markov model, a bit per state.
        cut: uint8, output: 1 where a token begins.
        kind: uint8, output: kinds of the token that begins there, `NOUN` and so on.
    """

    chars: np.ndarray
    route: np.ndarray
    reach: np.ndarray
    back: np.ndarray
    cut: np.ndarray
    kind: np.ndarray


@inlined
def is_han(code):
    """Whether a code point is a Han character that jieba knows."""
    return HAN_FIRST <= code <= HAN_LAST


@inlined
def in_block(code):
    """Whether a character belongs to jieba's blocks: Han characters, ASCII letters and digits, and + # & . _ % -."""
    if code >= 128:
        return is_han(code)
    if code >= 64:
        return (BLOCK_HIGH >> np.uint64(code - 64)) & np.uint64(1) == np.uint64(1)
    return (BLOCK_LOW >> np.uint64(code)) & np.uint64(1) == np.uint64(1)


@inlined
def kinds_of(node):
    """Returns the kinds of the word of a trie's node."""
    return node & KIND_MASK if node != EMPTY else 0


@inlined
def segment(chars, count, words, hmm, route, reach, back, cut, kind):
    """Cuts chars[:count] into tokens.

    Args:
        chars, count: code points of a row.
        words: `Dictionary`.
        hmm: use the hidden Markov model.
        route, reach, back, cut, kind: the row's part of `SegmentScratch`.
    """
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
        else:  # any other character is a token, except that \r\n is one
            cut[at] = 1
            kind[at] = kinds_of(words.roots[code]) if code <= 0xFFFF else 0
            at += 2 if code == 13 and at + 1 < count and chars[at + 1] == 10 else 1


@inlined
def best_path(chars, start, stop, words, route, reach, kind):
    """Finds the best word that begins at each character, from right to left: fills `route`, `reach` and `kind`."""
    roots, entries, weights = words.roots, words.entries, words.weights
    route[Index(stop)] = 0.0
    for first in range(stop - 1, start - 1, -1):
        best = -np.inf
        best_end, best_kind = first, 0
        at = first
        here = roots[Index(chars[Index(first)])]
        while here != EMPTY:
            weight = (here & VALUE) >> KIND_BITS
            if weight != 0:
                value = weights[Index(weight)] + route[Index(at + 1)]
                if value >= best:  # of equal paths the longer word, since jieba takes the maximum of tuples
                    best, best_end, best_kind = value, at + 1, here & KIND_MASK
            at += 1
            if at == stop:
                break
            here = child(entries, here, chars[Index(at)])
        if best_end == first:
            best, best_end = weights[0] + route[Index(first + 1)], first + 1
            best_kind = kinds_of(roots[Index(chars[Index(first)])])  # not a word of jieba, but possibly a stop word
        route[Index(first)], reach[Index(first)], kind[Index(first)] = best, best_end, best_kind


@inlined
def cut_by_dictionary(chars, start, stop, words, reach, cut, kind):
    """Cuts by the path, with adjacent single letters and digits joined (`HMM=False`)."""
    at = start
    run = -1
    while at < stop:
        end = reach[at]
        if end - at == 1 and is_alphanumeric(chars[at]):
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
    """Cuts by the path, and sequences of single characters by the hidden Markov model (`HMM=True`)."""
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
    """Cuts a sequence of single characters: each one if the sequence is a word of the dictionary, else by the model."""
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
            run_viterbi(chars, first, at, words, back, cut)
        elif is_alphanumeric(chars[at]):  # letters and digits, an optional fraction, an optional percent sign
            while at < stop and is_alphanumeric(chars[at]):
                at += 1
            if at + 1 < stop and chars[at] == 46 and 48 <= chars[at + 1] <= 57:
                at += 2
                while at < stop and 48 <= chars[at] <= 57:
                    at += 1
            if at < stop and chars[at] == 37:
                at += 1
            cut[first] = 1
        else:
            while at < stop and not is_han(chars[at]) and not is_alphanumeric(chars[at]):
                at += 1
            cut[first] = 1
    at = start
    while at < stop:
        end = at + 1
        while end < stop and cut[end] == 0:
            end += 1
        if end - at > 1:  # a token of several of the path's characters: `kind` is that of the first
            found = kinds_of(find(words, chars, at, end))
            if found & FORCED_SPLIT:
                for single in range(at, end):
                    cut[single] = 1
            else:
                kind[at] = found
        at = end


@inlined
def run_viterbi(chars, start, stop, words, back, cut):
    """Fills `cut` with the most probable states B(egin), M(iddle), E(nd), S(ingle); a token begins at B and S."""
    emit, change = words.emit, words.change
    to_begin_a, to_begin_b, to_middle_a, to_middle_b = change[2, 0], change[3, 0], change[0, 1], change[1, 1]
    to_end_a, to_end_b, to_single_a, to_single_b = change[0, 2], change[1, 2], change[2, 3], change[3, 3]
    row = chars[start] - HAN_FIRST
    begin, middle = words.start[0] + emit[row, 0], words.start[1] + emit[row, 1]
    end, single = words.start[2] + emit[row, 2], words.start[3] + emit[row, 3]
    for at in range(start + 1, stop):
        row = chars[at] - HAN_FIRST
        # Each state has two possible predecessors; of equal ones the later letter wins: E < S, B < M, B < M, E < S.
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
        state = 2 * opens + (back[at] >> state & 1)  # E or S precedes B and S; B or M precedes M and E
    cut[start] = 1
