"""Segmentation, compared with jieba."""

from __future__ import annotations

from pathlib import Path

import jieba
import jieba.posseg
import numpy as np
import pytest

from danqing.engine.core.device import Device
from danqing.engine.core.errors import DanqingError
from danqing.engine.core.strings import Strings
from danqing.engine.stages.dictionary import open_dictionary
from danqing.kernels.text.captions import tokens
from danqing.kernels.text.segmentation import ADJECTIVE, KIND_MASK, NOUN, STOP_WORD, VERB
from danqing.kernels.text.trie import EMPTY, VALUE, find
from tests.kernels.text.texts import DIFFICULT_TEXTS, random_texts

TEXTS = DIFFICULT_TEXTS + random_texts(3000)


@pytest.mark.parametrize("hmm", [False, True])
def test_cuts_equal_jiebas(device: Device, hmm: bool) -> None:
    cuts = tokens(device, Strings.of(TEXTS), open_dictionary(), hmm)
    for text, cut in zip(TEXTS, cuts, strict=True):
        assert cut == jieba.lcut(text, HMM=hmm)


@pytest.mark.parametrize("hmm", [False, True])
def test_cuts_with_a_user_dictionary_equal_jiebas(device: Device, tmp_path: Path, hmm: bool) -> None:
    path = tmp_path / "user.txt"
    path.write_text("橘猫趴 100 n\n杭研大厦\n长江大\n晒太 0\nC++语言 5 nz\n")
    other = jieba.Tokenizer()
    with path.open("rb") as file:
        other.load_userdict(file)
    forced = set(jieba.finalseg.Force_Split_Words)
    try:
        texts = [*TEXTS[:500], "学习C++语言和C语言", "晒太阳晒太"]
        cuts = tokens(device, Strings.of(texts), open_dictionary((path,)), hmm)
        assert jieba.finalseg.Force_Split_Words == forced
        for text, cut in zip(texts, cuts, strict=True):
            assert cut == other.lcut(text, HMM=hmm)
    finally:
        jieba.finalseg.Force_Split_Words.clear()


def test_the_error_for_a_wrong_user_dictionary_names_the_file(tmp_path: Path) -> None:
    with pytest.raises(DanqingError, match=r"none\.txt: cannot read"):
        open_dictionary((tmp_path / "none.txt",))
    (tmp_path / "bad.txt").write_bytes(b"\xff\xfe\xff")
    with pytest.raises(DanqingError, match=r"bad\.txt: .*has `word"):
        open_dictionary((tmp_path / "bad.txt",))


def test_parts_of_speech_equal_jiebas() -> None:
    words = open_dictionary()
    tagger = jieba.posseg.POSTokenizer()
    tagger.initialize()
    kinds = {"n": NOUN, "v": VERB, "a": ADJECTIVE}
    chosen = list(tagger.word_tag_tab.items())[::100]
    for word, tag in chosen:
        chars = np.frombuffer(word.encode("utf-32-le"), np.int32)
        with np.errstate(over="ignore"):  # NumPy warns when the hash overflows, which it does on purpose
            node = find(words, chars, 0, len(chars))
        assert node != EMPTY, word
        assert node & VALUE & KIND_MASK & ~STOP_WORD == kinds.get(tag[0], 0), word
