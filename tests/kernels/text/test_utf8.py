"""UTF-8 and columns of text, compared with Python and Arrow."""

from __future__ import annotations

import random

import numpy as np
import pyarrow as pa
import pytest

from danqing.engine.core.device import Device
from danqing.engine.core.strings import Strings
from danqing.engine.stages.characters import character_classes
from danqing.engine.stages.dictionary import open_dictionary
from danqing.kernels.portable import Kernel
from danqing.kernels.text.captions import measure
from danqing.kernels.text.lexicon import Patterns, marks, weigh
from danqing.kernels.text.utf8 import decode, encode
from tests.kernels.text.texts import DIFFICULT_TEXTS, random_texts


def decoded(data: bytes) -> str:
    chars = np.empty(len(data) + 1, np.int32)
    count = decode(np.frombuffer(data, np.uint8), 0, len(data), chars)
    return chars[:count].tobytes().decode("utf-32-le")


def test_well_formed_text_is_decoded_and_encoded_as_in_python() -> None:
    for text in DIFFICULT_TEXTS + random_texts(300):
        data = text.encode()
        assert decoded(data) == text
        out, end = np.zeros(len(data) + 4, np.uint8), 0
        for character in text:
            end = encode(ord(character), out, end)
        assert out[:end].tobytes() == data


def test_bytes_that_are_not_utf8_are_replaced() -> None:
    assert decoded(b"\xff\xe4\xb8") == "\ufffd\ufffd\ufffd"
    assert decoded("一".encode()[:2] + "二".encode()) == "\ufffd\ufffd二"
    assert decoded(b"\xc0\x80a\xe0\x80\x80\xed\xa0\x80\xf4\x90\x80\x80\xf8") == (
        "\ufffd" * 2 + "a" + "\ufffd" * 11
    )  # overlong, surrogate, beyond Unicode
    chance = random.Random(0)
    for _ in range(3000):
        data = bytes(chance.choice(b"a\x80\xbf\xc3\xe4\xb8\xad\xf0\x9f\x98\xff") for _ in range(chance.randint(0, 12)))
        strict = decoded(data)
        assert strict.replace("\ufffd", "") == data.decode("utf-8", "ignore")


def test_strings_are_made_of_lists_and_without_a_copy_of_arrow() -> None:
    texts = ["一", None, "", "\ud800坏", "😀"]
    strings = Strings.of(texts)
    assert strings.arrow().to_pylist() == ["一", "", "", "\ufffd坏", "😀"]
    array = pa.array(["甲", "乙乙", "丙"], pa.string()).slice(1)
    sliced = Strings.of(array)
    assert sliced.arrow().to_pylist() == ["乙乙", "丙"]
    assert sliced.data.ctypes.data == array.buffers()[2].address


def test_parts_of_rows_have_their_size_in_bytes(device: Device) -> None:
    texts = ["甲", "", "乙乙", "b", "丙c"]
    for rows in (1, 2, 5, 9):
        parts = list(Strings.of(pa.array(["x", *texts]).slice(1)).parts(device, rows))
        assert [start for start, _ in parts] == list(range(0, 5, rows))
        assert [row for _, part in parts for row in part.arrow().to_pylist()] == texts
        assert all(part.size == sum(len(row.encode()) for row in part.arrow().to_pylist()) for _, part in parts)
    assert list(Strings.of([]).parts(device, 2)) == []


class DeviceArray:
    """An array in a GPU's memory, of which only the length can be read."""

    def __len__(self) -> int:
        return 3

    def astype(self, *kind: object, copy: bool) -> DeviceArray:
        return self


def test_memory_for_a_launch_is_allocated_without_reading_device_memory(
    device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    launched: list[str] = []
    monkeypatch.setattr(Kernel, "launch", lambda self, *arguments: launched.append(self.name))
    rows = Strings(DeviceArray(), DeviceArray(), 27)
    measure(device, rows, open_dictionary(), character_classes())
    weigh(device, rows, marks(), Patterns())
    assert launched == ["measure_rows", "weigh_rows"]
