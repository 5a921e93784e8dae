"""fastText's language identification: hashed character n-grams, averaged, and a tree of logistic classifiers."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from danqing.engine.core.strings import Strings
from danqing.kernels.portable import ArrayLauncher, inlined, kernel, resident, workspace
from danqing.kernels.text.captions import ALPHANUMERIC, DIGIT
from danqing.kernels.text.utf8 import decode_one

LABELS = 5
"""Maximum number of labels of a row."""
MIN_PROBABILITY = 0.01
"""Subtrees of labels with a smaller probability are not visited."""
PROBABILITY_OFFSET = np.float32(1e-5)  # fastText adds it to each factor of a probability, and to the minimum
LABEL_PREFIX = np.frombuffer(b"__label__", np.uint8)
NO_LABEL = -1

NOTHING, WHOLE, EAST_ASIAN = range(3)
"""Parts of a row: none, all of it, all but its words of other scripts than Han, kana and hangul."""
HAN_PER_WORD = 0.5
"""Minimum number of Han characters per word of another script, for the East Asian part to decide the language."""
SURELY_HAN = 0.5
"""Share of Han among a text's letters from which that holds without counting, since every word has a letter."""

HASH_BASIS, HASH_PRIME = 2166136261, 16777619  # 32-bit FNV-1a
BEGIN_OF_WORD, END_OF_WORD = 60, 62  # "<", ">"
RIGHT_QUOTE = 0x2019


class LanguageModel(NamedTuple):
    """A fastText classifier with hierarchical softmax (`trt_models.run.fasttext_file`).

    Attributes:
        sizes: int64 (5,): minimum and maximum number of characters of an n-gram, number of buckets of their hashes,
            bytes of the longest word, row of the end of a line.
        slots: int32 (2^k,), hash table of the words with open addressing; unused slots are -1.
        begins: int32 (words + 1,), positions in `letters`.
        letters: uint8, the words in UTF-8.
        kept: uint8, a bit per bucket of n-grams, the lowest first: whether it has a vector. Few have one, and the bits
            fit into a cache of the CPU: 2.6 times as fast as reading `buckets` for each n-gram.
        buckets: int32, row of each bucket, or -1.
        vectors: float32 (rows, dimensions), of words and n-grams.
        nodes: int32 (nodes, 3), the tree in preorder: each node's depth, the number of the first node after its
            subtree, and its label, or -1.
        weights: float32 (nodes, dimensions), the classifier of each inner node; a positive result is its right branch.
    """

    sizes: np.ndarray
    slots: np.ndarray
    begins: np.ndarray
    letters: np.ndarray
    kept: np.ndarray
    buckets: np.ndarray
    vectors: np.ndarray
    nodes: np.ndarray
    weights: np.ndarray


def predict(device: ArrayLauncher, text: Strings, parts: Any, model: LanguageModel, classes: np.ndarray) -> Any:
    """Finds the most probable labels of each row, equal to those of fastText for k = `LABELS`.

    Args:
        device: holds the text.
        text: the rows. A line end ends a row.
        parts: uint8 (rows,), on the device: the part of each row that is judged.
        model: in host memory.
        classes: uint16 (CODE_POINTS,), character classes, in host memory.

    Returns:
        int16 (rows, LABELS), the labels by descending probability, then -1; and float32 (rows, LABELS), their
        probabilities, then 0. On the device.
    """
    xp = device.xp
    width = model.vectors.shape[1] + int(model.nodes[:, 0].max()) + 1
    work = workspace(device, "language", text.rows * width, np.float32)[: text.rows * width].reshape(text.rows, width)
    labels, probabilities = xp.empty((text.rows, LABELS), np.int16), xp.empty((text.rows, LABELS), np.float32)
    tables = resident(device, model), resident(device, classes)
    predict_rows.launch(device, text.rows, text, parts, *tables, work, labels, probabilities)
    return labels, probabilities


@kernel
def predict_rows(first, last, step, text, parts, model, classes, work, labels, probabilities):
    """The kernel of `predict`.

    Args:
        text, parts, model, classes: see `predict`.
        work: float32 (rows, dimensions + depth of the tree + 1), scratch.
        labels, probabilities: outputs, see `predict`.
    """
    for row in range(first, last, step):
        for rank in range(LABELS):
            labels[row, rank], probabilities[row, rank] = NO_LABEL, 0
        if parts[row] == NOTHING:
            continue
        size = model.vectors.shape[1]
        hidden, pending = work[first, :size], work[first, size:]
        begin, stop = np.int64(text.offsets[row]), np.int64(text.offsets[row + 1])
        average_vectors(text.data, begin, stop, parts[row] == EAST_ASIAN, model, classes, hidden)
        rank_labels(model, hidden, pending, labels[row], probabilities[row])


@inlined
def average_vectors(data, at, stop, is_east_asian_only, model, classes, hidden):
    """Averages the vectors of the words and n-grams of a line, data[at:stop], in `hidden`."""
    for number in range(hidden.size):
        hidden[number] = 0
    count = 0
    while at < stop and data[at] != 10:
        if is_space(data[at]):
            at += 1
            continue
        end = at
        if is_east_asian_only:
            end = end_of_other_word(data, at, stop, classes)
            if end > at:
                at = end
                continue
            while end < stop and not is_space(data[end]):
                code, size = decode_one(data, end, stop)
                if is_other_letter(code, classes):
                    break
                end += size
        else:
            while end < stop and not is_space(data[end]):
                end += 1
        if not is_label(data, at, end):
            word = find_word(data, at, end, model)
            if word == model.sizes[4]:  # the text has the word "</s>", which ends a line
                break
            if word >= 0:
                add_vector(model.vectors, word, hidden)
                count += 1
            count += add_ngrams(data, at, end, model, hidden)
        at = end
    add_vector(model.vectors, model.sizes[4], hidden)
    share = np.float32(1.0 / (count + 1))
    for number in range(hidden.size):
        hidden[number] *= share


@inlined
def is_space(byte):
    """Whether a byte separates words: a space, an ASCII control character that moves the cursor, or NUL."""
    return byte == 32 or 9 <= byte <= 13 or byte == 0


@inlined
def is_label(data, begin, end):
    """Whether a word begins with `LABEL_PREFIX`: in training data it is a label."""
    at = 0
    while at < LABEL_PREFIX.size and begin + at < end and data[begin + at] == LABEL_PREFIX[at]:
        at += 1
    return at == LABEL_PREFIX.size


@inlined
def add_to_hash(hashed, byte):
    """Adds a byte to a 32-bit FNV-1a hash. As in fastText, bytes are signed numbers."""
    signed = np.int64(byte) | (np.int64(byte) >> 7) * 0xFFFFFF00
    return ((hashed ^ signed) * HASH_PRIME) & 0xFFFFFFFF


@inlined
def find_word(data, begin, end, model):
    """Returns the number of the word data[begin:end], or -1."""
    if end - begin > model.sizes[3]:
        return np.int64(-1)
    hashed = np.int64(HASH_BASIS)
    for at in range(begin, end):
        hashed = add_to_hash(hashed, data[at])
    slot = hashed & (model.slots.size - 1)
    while model.slots[slot] >= 0:
        word = np.int64(model.slots[slot])
        start = np.int64(model.begins[word])
        size = model.begins[word + 1] - start
        at = 0
        while at < size and size == end - begin and model.letters[start + at] == data[begin + at]:
            at += 1
        if at == end - begin:
            return word
        slot = (slot + 1) & (model.slots.size - 1)
    return np.int64(-1)


@inlined
def add_ngrams(data, begin, end, model, hidden):
    """Adds to `hidden` the vectors of the n-grams of "<word>", for the word data[begin:end]; returns their number."""
    shortest, longest, buckets = model.sizes[0], model.sizes[1], np.uint64(model.sizes[2])
    count = 0
    start = begin - 1  # of "<"
    while start < end:
        hashed = np.int64(HASH_BASIS)
        at = start
        size = 1
        while size <= longest and at <= end:
            if at < begin:
                hashed = add_to_hash(hashed, BEGIN_OF_WORD)
            elif at == end:
                hashed = add_to_hash(hashed, END_OF_WORD)
            else:
                hashed = add_to_hash(hashed, data[at])
            at += 1
            while at < end and data[at] & 0xC0 == 0x80:
                hashed = add_to_hash(hashed, data[at])
                at += 1
            if size >= shortest and (size > 1 or start >= begin):
                bucket = np.uint64(hashed) % buckets
                if model.kept[bucket >> np.uint64(3)] >> (bucket & np.uint64(7)) & np.uint64(1):
                    add_vector(model.vectors, model.buckets[bucket], hidden)
                    count += 1
            size += 1
        start += 1
        while start < end and data[start] & 0xC0 == 0x80:
            start += 1
    return count


@inlined
def add_vector(vectors, row, hidden):
    """Adds a row of `vectors` to `hidden`."""
    for number in range(hidden.size):
        hidden[number] += vectors[row, number]


@inlined
def rank_labels(model, hidden, pending, labels, probabilities):
    """Finds the most probable labels, depth first.

    The probability of a label is the product of those of the branches on its path.

    Args:
        model: the model.
        hidden: float32 (dimensions,), the average vector.
        pending: float32 (depth + 1,), scratch: probability of the right branch of the current path at each depth.
        labels, probabilities: outputs, see `predict`.
    """
    nodes, weights = model.nodes, model.weights
    least = np.float32(MIN_PROBABILITY) + PROBABILITY_OFFSET
    probability = np.float32(1)
    node = np.int64(0)
    while node < nodes.shape[0]:
        if probability < least or probability < probabilities[LABELS - 1]:
            node = np.int64(nodes[node, 1])
        elif nodes[node, 2] >= 0:
            insert(np.int16(nodes[node, 2]), probability, labels, probabilities)
            node += 1
        else:
            total = np.float32(0)
            for number in range(hidden.size):
                total += weights[node, number] * hidden[number]
            right = np.float32(1 / (1 + math.exp(-total)))
            pending[nodes[node, 0] + 1] = probability * (right + PROBABILITY_OFFSET)
            probability *= (np.float32(1) - right) + PROBABILITY_OFFSET
            node += 1
            continue
        if node < nodes.shape[0]:
            probability = pending[nodes[node, 0]]


@inlined
def insert(label, probability, labels, probabilities):
    """Inserts a label at its rank; the last one is dropped."""
    rank = LABELS - 1
    while rank > 0 and probabilities[rank - 1] < probability:
        labels[rank], probabilities[rank] = labels[rank - 1], probabilities[rank - 1]
        rank -= 1
    labels[rank], probabilities[rank] = label, probability


@kernel
def choose_parts(first, last, step, text, han, foreign, classes, parts):
    """Chooses the part of each row by which its language is judged.

    Args:
        text: `Strings`.
        han, foreign: float32 (rows,), shares of Han, and of kana and hangul, among the letters.
        classes: uint16 (CODE_POINTS,), character classes.
        parts: uint8 (rows,), output. `NOTHING` if the part of interest has no letters but Han.
    """
    for row in range(first, last, step):
        parts[row] = WHOLE
        if han[row] <= 0:
            continue
        begin, stop = np.int64(text.offsets[row]), np.int64(text.offsets[row + 1])
        if han[row] >= SURELY_HAN or has_han_per_word(text.data, begin, stop, classes):
            parts[row] = EAST_ASIAN if foreign[row] > 0 else NOTHING


@inlined
def has_han_per_word(data, at, stop, classes):
    """Whether data[at:stop] has at least `HAN_PER_WORD` Han characters per word of another script."""
    han, words = 0, 0
    while at < stop:
        end = end_of_other_word(data, at, stop, classes)
        if end > at:
            words += 1
            at = end
        else:
            code, size = decode_one(data, at, stop)
            han += 0x3400 <= code <= 0x9FFF
            at += size
    return han >= HAN_PER_WORD * words


@inlined
def end_of_other_word(data, at, stop, classes):
    """Returns the position after a word of another script that begins at data[at], or `at`.

    A word is a sequence of letters; an apostrophe or a hyphen may join two.
    """
    end = at
    begin = at
    while True:
        position = begin
        while position < stop:
            code, size = decode_one(data, position, stop)
            if not is_other_letter(code, classes):
                break
            position += size
        if position == begin:
            return end
        end = position
        if position == stop:
            return end
        code, size = decode_one(data, position, stop)
        if code != 39 and code != RIGHT_QUOTE and code != 45:
            return end
        begin = position + size


@inlined
def is_other_letter(code, classes):
    """Whether a code point is a letter or numeral, but no digit, of another script than Han, kana and hangul."""
    if classes[code] & ALPHANUMERIC == 0 or classes[code] & DIGIT:
        return False
    return not is_east_asian(code)


@inlined
def is_east_asian(code):
    """Whether a code point is in the blocks of Han, kana and hangul (syllables)."""
    if code < 0xA000:
        is_kana = 0x3040 <= code <= 0x30FF or 0x31F0 <= code <= 0x31FF
        return code >= 0x3400 or is_kana or 0x3005 <= code <= 0x3007
    return 0xAC00 <= code <= 0xD7AF or 0xF900 <= code <= 0xFAFF or code >= 0x20000
