"""Criteria that count matches of regular expressions: their counts, and runs with them."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from danqing.engine.cli.main import main
from danqing.engine.core.device import Device, open_device
from danqing.engine.core.errors import DanqingError
from danqing.engine.core.text_column import TextColumn
from danqing.engine.recipe.reading import load_recipe, recipe_from_dict
from danqing.engine.run.folder import Run
from danqing.engine.stages.columns import known_columns
from danqing.engine.stages.patterns import open_counter
from danqing.engine.stages.regexes import DiffersError, for_libcudf
from tests.conftest import picture
from tests.kernels.text.texts import DIFFICULT_TEXTS, random_texts

Make = Callable[..., Path]

PHONE = r"1[3-9]\d{9}"
PATTERNS = [
    PHONE, r"(?i)(?:微信|v信|wx|qq)号?[:：]?\s*[a-z0-9_-]{2,20}", r"¥\s*\d+(?:\.\d+)?|\d+(?:\.\d+)?元",
    r"\d{4}[年/.-]\d{1,2}[月/.-]\d{1,2}日?", r"(?i)\.(?:jpe?g|png|gif|webp)", r"\p{Han}{2,}", r"[^a-z\s]+?x?", r"\w+",
    r"[[:alpha:]\]-]{2}", r"a|ab|abc", r"(?:ab|a)(?:c|bcd)?", r"\x{4e00}+|\.", r"[^\x00-\x7f]", "😀", r"\W\D\S", r".a",
    r"(?:a+b)+", r"(?P<two>\d\d)", "ſ", "(?i)k", r"\{\d\}", "[a-c-]{1,3}",
]  # fmt: skip
TEXTS = [
    "微信:abc_12，电话13812345678 QQ 99", "IMG_2019-07-01.JPG img.jpeg", "¥ 12.50 或 3元", "aabab abcd aaab", "ſkK",
    "\0a\0", "一一。二\n三\ta", "{1}[a-c]", "١٢٣ 123", "a\u0301 é\u00a0x", "2019年7月1日 2020/1/1",
    *DIFFICULT_TEXTS, *random_texts(200),
]  # fmt: skip


def count(pattern: str, texts: list[str | None], device: Device) -> list[int]:
    found: list[int] = open_counter(device, pattern).count(TextColumn.of(texts)).tolist()
    return found


@pytest.mark.parametrize(
    ("pattern", "text", "matches"),
    [
        (PHONE, "13812345678 1381234567 113812345678", 2), ("aa", "aaaa aaa", 3), ("^a", "aaa", 1), (r"\Aa", "a\na", 1),
        (r"\bqq", "qqqq qq", 2), (r"(?m)^a", "a\nab\nba", 2), (r"a\b", "a aa\u4e00 ab", 2), (r"a$", "aa\n", 0),
        (r"a$", "aa", 1),
        ("猫", "一只猫和一只猫", 2), (r"\p{Han}", "a一b二", 2), (r"\d", "1١１", 1),
        ("(?i)WX", "wx Wx", 2), (".", "中\n😀", 2),
        ("a", "", 0), ("a", None, 0), (r"\bа", None, 0), ("\ufffd", "\ud800坏\udfff", 2), (r"^.", "\ud800", 1),
    ],
)  # fmt: skip
def test_matches_that_do_not_overlap_are_counted(pattern: str, text: str | None, matches: int, device: Device) -> None:
    assert count(pattern, [text, "", None, text], device) == [matches, 0, 0, matches]


def test_every_thread_counts_a_part_of_the_rows() -> None:
    with open_device("cpu", threads=3) as device:
        for rows in (0, 1, 700, 2001):
            assert count(r"\bb", ["b" * (row % 3) for row in range(rows)], device) == [
                row % 3 > 0 for row in range(rows)
            ]


@pytest.mark.parametrize("pattern", PATTERNS)
def test_patterns_for_libcudf_have_res_meaning(pattern: str, device: Device) -> None:
    """Python's `re` stands in for libcudf: for literals and explicit classes, both have the rules of Perl."""
    rewritten = re.compile(for_libcudf(pattern))
    assert not re.search(r"\\[a-zA-Z]|\(\?[^:]|\0", rewritten.pattern)
    valid = TextColumn.of(TEXTS).to_pylist()
    assert count(pattern, TEXTS, device) == [len(rewritten.findall(text)) for text in valid]


@pytest.mark.parametrize(
    ("pattern", "part"),
    [
        ("^a", "'^'"), ("a$", "'$'"), (r"\bqq", r"\b"), (r"\Ba", r"\B"), (r"a\z", r"\z"), ("(?m)a", "(?m)"),
        ("a(?i)b", "(?i)"), ("(?s).", "(?s)."), ("a|", "an empty alternative"), ("a(?:|b)", "an empty alternative"),
        ("(?:a?)+b", "+ after a group that matches the empty text"), (r"\Qa.b\E", r"\Q"), (r"\Ca", r"\C"),
        ("a{2}{3}", "'{'"), ("\0", r"'\x00'"), ("(" * 21 + "a" + ")" * 21, "more than 20 groups in each other"),
        ("(?:ab){3}" * 100, "more than 500 characters and classes"),
        ("(?:a{60}){60}b", "more than 500 characters and classes"),
    ],
)  # fmt: skip
def test_patterns_that_libcudf_may_read_differently_are_left_to_re2(pattern: str, part: str) -> None:
    with pytest.raises(DiffersError) as caught:
        for_libcudf(pattern)
    assert str(caught.value) == part


@pytest.mark.parametrize(
    ("name", "text", "matches"),
    [
        ("phone", "电话13812345678", 1), ("phone", "编号 23812345678", 0),
        ("wechat", "加V信：abc_123，微信号 shop-8888", 2),
        ("wechat", "微信公众号", 0), ("prices", "原价￥99.5，现价 80元", 2), ("file_name", "IMG_0001.JPG", 1),
        ("file_name", "图片 1.jpg", 0), ("date", "2019年7月1日至2020-01-02", 2), ("date", "12-3", 0),
        ("thumbnail", "https://x.example/thumbs/120x80.jpg", 2), ("thumbnail", "https://x.example/a.jpg", 0),
    ],
)  # fmt: skip
def test_the_examples_of_the_documentation_find_what_they_should(
    name: str, text: str, matches: int, tmp_path: Path, device: Device
) -> None:
    page = (Path(__file__).parents[3] / "docs" / "recipes.md").read_text(encoding="utf-8")
    lines = page.partition("### Matches of a pattern")[2].partition("```yaml\n")[2].partition("```")[0]
    path = tmp_path / "r.yaml"
    path.write_text("recipe: r\ncriteria:\n" + "".join(f"  {line}\n" for line in lines.splitlines()), encoding="utf-8")
    criterion = next(c for c in load_recipe(path, columns=known_columns()).patterns if c.name == name)
    assert sum(count(pattern, [text], device)[0] for pattern in criterion.patterns) == matches


RECIPE = r"""
recipe: contacts
criteria:
  phone: {pattern: '1[3-9]\d{9}', in: text_clean, max: 0, section: spam}
  sizes: {pattern: ['\d+x\d+', '(?i)\.gif$'], in: url, below: 2}
  few_phones: {column: phone, max: 3}
  words: {min: 1}
"""


@pytest.fixture
def recipe(tmp_path: Path) -> str:
    path = tmp_path / "contacts.yaml"
    path.write_text(RECIPE)
    return str(path)


def test_recipes_with_patterns_are_read_and_stored(recipe: str) -> None:
    found = load_recipe(recipe, columns=known_columns())
    assert recipe_from_dict(found.to_dict(), "run.json", columns=known_columns()) == found
    assert found.columns == ("phone", "sizes", "words") and len(found.patterns) == 2
    assert found.criteria[0].rule == r"phone ≤ 0: matches of 1[3-9]\d{9} in text_clean"
    assert found.criteria[1].rule == r"sizes < 2: matches of \d+x\d+ | (?i)\.gif$ in url"
    changed = load_recipe(recipe, ["phone.pattern=[a, b+]", "phone.max=2", "also=[phone]"], known_columns())
    assert changed.patterns[0].patterns == ("a", "b+") and changed.hash != found.hash
    assert any("phone.pattern: ['a', 'b+'] there" in line for line in found.differences(changed))


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("phone.pattern=a(", r"phone: 'a(': Invalid regular expression: missing ): a(; patterns have RE2's syntax"),
        (r"phone.pattern=(?<=a)b", "invalid"), ("phone.pattern=(a{1000}){9}", "invalid repetition size"),
        (r'phone.pattern="\ud800"', "surrogates not allowed"), ("phone.pattern=(?:QQ)?", "matches the empty text"),
        (r"phone.pattern=\b", "matches the empty text"), (r"phone.pattern=QQ|\B", "matches the empty text"),
        ("phone.pattern=a|(?m)$", "matches the empty text"),
        ("phone.pattern=110", "phone.pattern must be text, not 110"), ("phone.pattern=[]", "not an empty list"),
        ("phone.pattern=[a, [b]]", "a value of phone.pattern must be text"),
        ("phone.in=captoin", "did you mean 'caption'?"),
        ("phone.in=language", "'in' is a column of text"), ("phone.column=words", "takes no 'column'"),
        ("phone.within=1", "which takes no 'pattern'"), ("phone.max=-1", "drops every pair"),
        ("words={pattern: a, in: url, max: 0}", "'words' is a column of another kind; give the criterion another name"),
        ("words.pattern=a", "'pattern' needs 'in', the text to search: caption, text_clean, url"),
        ("few_phones.column=phones", "did you mean 'phone'?"),
    ],
)  # fmt: skip
def test_patterns_that_cannot_be_counted_are_refused(recipe: str, setting: str, message: str) -> None:
    with pytest.raises(DanqingError) as caught:
        load_recipe(recipe, [setting], known_columns())
    assert message in str(caught.value)
    assert str(caught.value).startswith((f"--set {setting}: ", f"{recipe}:"))


@pytest.mark.parametrize("name", ["caption", "url", "row", "keep", "file", "usable", "text", "sha256", "features"])
def test_patterns_take_no_name_of_another_column(tmp_path: Path, name: str) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(f"recipe: r\ncriteria:\n  {name}: {{pattern: a, in: caption, max: 1}}\n")
    with pytest.raises(DanqingError, match=rf"r\.yaml:3: {name}: '{name}' is a column of another kind"):
        load_recipe(path, columns=known_columns())


def test_a_run_counts_patterns(
    make_shard: Make, recipe: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = {
        "good": ("公园里的小猫", "https://x.example/640x480.jpg"),
        "phone": ("小猫电话１３８12345678", "https://x.example/a.jpg"),
        "gif": ("公园的小猫在晒太阳", "https://x.example/10x10/5x5.GIF"),
        "none": ("草地上的小猫", None),
    }
    members = {}
    for number, (key, (caption, url)) in enumerate(rows.items()):
        members |= {f"{key}.jpg": picture(number), f"{key}.txt": caption, f"{key}.json": {"url": url, "phone": "input"}}
    shard, out = make_shard(members), tmp_path / "out"
    assert main(["curate", str(shard), "-o", str(out), "--recipe", recipe, "--score-everything", "--quiet"]) == 0
    scores = pq.read_table(out / "scores" / "00000.parquet")
    assert dict(zip(scores["key"].to_pylist(), scores["phone"].to_pylist(), strict=True))["phone"] == 1
    assert scores["phone"].to_pylist() == [0, 1, 0, 0] and scores["sizes"].to_pylist() == [1, 0, 3, 0]
    assert scores.schema.field("sizes").type == pa.int32() and scores["input_phone"].to_pylist() == ["input"] * 4
    written = pq.read_table(next((out / "shards").glob("*.parquet")))
    assert written["phone"].to_pylist() == [0, 0] and "matches of" in (out / "report.html").read_text()

    assert main(["decide", str(out), "--set", "phone.max=1", "--set", "sizes.below=4", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["kept"] == 4
    assert main(["explain", str(out), "gif"]) == 0
    assert re.search(r"sizes +3 +sizes < 4", capsys.readouterr().out)
    assert main(["decide", str(out), "--set", r"phone.pattern=\d{11}"]) == 2
    said = capsys.readouterr().err
    assert r"phone: the recipe asks for the matches of \d{11} in text_clean, the run has the matches of 1[3-9]" in said
    assert "danqing score" in said
    other = tmp_path / "other.yaml"
    other.write_text(RECIPE.replace("  words", "  prices: {pattern: 元, in: caption, max: 1}\n  words"))
    assert main(["decide", str(out), "--recipe", str(other)]) == 2
    assert (
        "prices: the recipe asks for the matches of 元 in caption, the run has no such column"
        in capsys.readouterr().err
    )
    assert main(["curate", str(shard), "-o", str(out), "--recipe", str(other)]) == 2
    assert "prices: only here" in capsys.readouterr().err
    assert Run.open(out).recipe.patterns[0].patterns == (PHONE,)
    assert main(["diff", str(out), str(out)]) == 0 and "phone" in capsys.readouterr().out


def test_a_selection_counts_patterns(recipe: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = {"url": [f"https://x.example/{n}x{n}/1x1.jpg" for n in range(2)] + ["https://x.example/a"] * 2}
    table["caption"] = ["小猫", "小狗", "小猫13812345678", "窗台上的小猫"]
    pq.write_table(pa.table(table), tmp_path / "t.parquet")
    arguments = ["select", str(tmp_path / "t.parquet"), "-o", str(tmp_path / "out"), "--recipe", recipe]
    assert main([*arguments, "--quiet"]) == 0
    found = pq.read_table(tmp_path / "out" / "verdicts" / "00000.parquet")
    assert found["dropped_by"].to_pylist() == ["sizes", "sizes", "phone", None]
    assert found["phone"].to_pylist() == [0, 0, 1, 0] and found["sizes"].to_pylist()[:2] == [2, 2]
    assert main([*arguments, "--set", "phone.pattern=a"]) == 2 and "phone.pattern: 1[3-9]" in capsys.readouterr().err
