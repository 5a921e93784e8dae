"""`danqing select` on tables of URLs and captions."""

from __future__ import annotations

import gzip
import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import danqing
import danqing.engine.select.ledger
import danqing.engine.select.libcudf_tables
import danqing.engine.select.parts
import danqing.engine.select.selection
import danqing.engine.select.verdicts
from danqing.engine.cli.main import main
from danqing.engine.core.columns import TABLE_COLUMNS
from danqing.engine.core.device import open_device
from danqing.engine.core.errors import DanqingError
from danqing.engine.phases import curate
from danqing.engine.recipe.plan import decidable, make_plan
from danqing.engine.recipe.reading import Recipe, load_recipe
from danqing.engine.run.settings import Settings
from danqing.engine.select.ledger import Judged
from danqing.engine.select.selection import Selection, select
from danqing.engine.select.text_plan import CLEAN, before_download
from danqing.engine.sources import Shard
from danqing.engine.sources.tables import Columns, find_tables, name_columns, part_of, read_parts
from danqing.engine.stages import CATALOGUE
from tests.conftest import picture
from tests.engine.score.test_run import rows_of

GOOD = "公园的草地上有一只可爱的小猫在晒太阳"
CAPTIONS = {
    GOOD: None,
    "公園的草地上有一隻可愛的小貓在曬太陽 😀": None,
    "小猫": "words",
    "": "words",
    "是的 我 和 你 他 的 了 在": "nouns",
    "海边的日落，金色的阳光洒在平静的海面上": None,
    "the quick brown fox jumps over the lazy dog": "nouns",
}


def write(path: Path, **columns: Any) -> str:
    pq.write_table(pa.table(columns), path)
    return str(path)


def urls(count: int) -> list[str]:
    return [f"https://x.example/{i}.jpg" for i in range(count)]


def verdicts(chosen: Selection) -> list[dict[str, Any]]:
    return [row for path in sorted((chosen.folder / "verdicts").iterdir()) for row in pq.read_table(path).to_pylist()]


def kept(chosen: Selection) -> list[dict[str, Any]]:
    return [row for path in sorted(chosen.urls.iterdir()) for row in pq.read_table(path).to_pylist()]


def tree(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture
def table(tmp_path: Path) -> str:
    """A table with a row per caption and further columns."""
    rows = range(len(CAPTIONS))
    return write(
        tmp_path / "t.parquet", url=urls(len(CAPTIONS)), caption=list(CAPTIONS), language=["xx" for _ in rows],
        uid=[f"{i:032x}" for i in rows], tags=[[f"tag{i}"] for i in rows], width=list(rows),
    )  # fmt: skip


def test_only_criteria_without_pictures_are_applied() -> None:
    recipe = load_recipe("danqing")
    names = [criterion.name for criterion in decidable(recipe, CATALOGUE, TABLE_COLUMNS).criteria]
    assert names == [
        "unsafe_text", "blocked_source", "words", "chinese_confidence", "stop_word_share", "nouns", "unknown_tokens",
        "text_entropy", "unsafe_caption",
    ]  # fmt: skip
    early = before_download(recipe)
    assert set(early.models) == {"text_embedding", "text_safety", "caption_safety"}
    assert [step.stage.name for step in make_plan(early, CATALOGUE, TABLE_COLUMNS).steps][-1] == "tokens"


def test_kept_rows_have_all_columns_and_the_clean_caption(table: str, plain_recipe: Recipe, tmp_path: Path) -> None:
    chosen = select([table], tmp_path / "out", plain_recipe)
    rows = kept(chosen)
    assert [row["width"] for row in rows] == [0, 1, 5]
    assert rows[1] == {
        "url": "https://x.example/1.jpg", "caption": list(CAPTIONS)[1], "language": "xx", "uid": f"{1:032x}",
        "tags": ["tag1"], "width": 1, "text_clean": GOOD,
    }  # fmt: skip
    found = verdicts(chosen)
    assert [row["row"] for row in found] == list(range(7)) and found[3]["uid"] == f"{3:032x}"
    assert {row["file"] for row in found} == {table}
    assert [(row["url"], row["caption"]) for row in found] == list(zip(urls(7), CAPTIONS, strict=True))
    assert [(row["keep"], row["dropped_by"]) for row in found] == [(d is None, d) for d in CAPTIONS.values()]
    assert found[2]["words"] == 1 and found[2]["nouns"] is None  # dropped by a gate before the later stage
    assert chosen.funnel.collected == 7 and chosen.funnel.kept == 3
    assert {line.criterion: line.dropped for line in chosen.funnel.lines} == {
        "usable": 0, "unsafe_text": 0, "words": 2, "nouns": 2,
    }  # fmt: skip
    assert chosen.deferred_criteria == ("downloaded", "readable", "aspect_ratio", "decodable", "laplacian_variance")


def test_verdicts_equal_those_of_score_and_decide(
    make_shard: Callable[..., Path], table: str, plain_recipe: Recipe, tmp_path: Path
) -> None:
    members: dict[str, bytes | str] = {}
    for i, caption in enumerate(CAPTIONS):
        members |= {f"{i}.jpg": picture(i), f"{i}.txt": caption}
    run, _, _ = curate([str(make_shard(members))], tmp_path / "run", plain_recipe, Settings())
    by_decide, scores = rows_of(run, "verdicts"), rows_of(run)
    for row in verdicts(select([table], tmp_path / "out", plain_recipe)):
        key = str(row["row"])
        assert (row["keep"], row["dropped_by"]) == (by_decide[key]["keep"], by_decide[key]["dropped_by"])
        shared = row.keys() & scores[key].keys() - {"row", "uid", "url"}
        assert {"words", "nouns", "chinese_confidence", "language"} <= shared
        assert {name: row[name] for name in shared} == {name: scores[key][name] for name in shared}


@pytest.mark.parametrize("name", ["t.csv", "t.csv.gz", "t.jsonl", "t.jsonl.gz"])
def test_a_broken_row_costs_one_row(name: str, plain_recipe: Recipe, tmp_path: Path) -> None:
    if ".csv" in name:
        text = (
            f'\ufeffurl,caption,n\nu0,{GOOD},1\nu1,"one,two\nu2,"{GOOD}\n两行",2\nu3,{GOOD}\n\n'
            f'u4,"a "stray" quote",3\n,{GOOD},4\nu6,{GOOD},5\nu7,"never closed\nu8,{GOOD},7\n'
        )
        text = re.sub(r"u(\d)", r"http://u\1", text)
        wrong = {1: "line 3: ", 3: "line 6: 2 fields", 4: "line 8: ", 5: "no URL", 7: "line 11: unexpected end"}
        numbers: list[Any] = ["1", "2", "5", "7"]  # all values of a CSV are text
    else:
        lines = [
            {"url": "http://u0", "caption": GOOD, "n": 1}, "{broken", {"url": "http://u2", "caption": GOOD, "n": 2},
            ["no object"], "", {"url": "http://u4", "caption": 7}, {"url": None, "caption": GOOD},
            {"url": "http://u6", "caption": GOOD, "n": 5}, {"url": "http://u7"},
            {"url": "http://u8", "caption": GOOD + "\ud83d", "n": 7},
        ]  # fmt: skip
        text = "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines)
        wrong = {1: "line 2: not valid JSON", 3: "line 4: a JSON list", 4: "line 6: 'caption' is not text", 5: "no URL"}
        wrong |= {7: "no caption"}
        numbers = [1, 2, 5, 7]
    path = tmp_path / name
    path.write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
    chosen = select([str(path)], tmp_path / "out", plain_recipe)
    found = verdicts(chosen)
    assert [row["n"] for row in kept(chosen)] == numbers
    assert len(found) == chosen.funnel.collected == 9
    errors = {row["row"]: row["error"] for row in found if row["error"] is not None}
    assert errors.keys() == wrong.keys()
    assert all(errors[row].startswith(text) for row, text in wrong.items()), errors
    assert {row["dropped_by"] for row in found if row["error"]} == {"usable"}
    assert chosen.funnel.lines[0].dropped == 5


def test_what_cannot_be_downloaded_is_no_url(plain_recipe: Recipe, tmp_path: Path) -> None:
    good = [
        "http://x.example/a.jpg",
        " HTTPS://例子.中国/图 片.jpg",
        "http:\\\\x.example\\a",
        "https://[::1]:80/a?b#c",
        "http://@x.example/a",
        "http://us er:p@w@x.example/a@b",
    ]
    bad = [
        "not a url",
        "x.example/a.jpg",
        "//x.example/a",
        "file:///etc/passwd",
        "ftp://x.example/a",
        "http://",
        "http:///",
        "https://:80/",
        "https://@/",
        "https://@:80/",
        "https://user@/",
        "https://user:p@ss@?@x.example",
        "https://user@",
    ]
    chosen = select([write(tmp_path / "t.parquet", url=good + bad, caption=[GOOD] * 19)], tmp_path / "o", plain_recipe)
    assert [row["error"] for row in verdicts(chosen)] == [None] * 6 + [f"not a URL of the web: {url}" for url in bad]


@pytest.mark.parametrize("names", [("URL", "TEXT"), ("Image_URL", "alt_text"), ("url", "Text")])
@pytest.mark.parametrize("form", ["parquet", "csv"])
def test_the_usual_columns_are_found(names: tuple[str, str], form: str, plain_recipe: Recipe, tmp_path: Path) -> None:
    url, caption = names
    path = tmp_path / f"t.{form}"
    if form == "csv":
        path.write_text(f"id,{url},alt,{caption}\n" + "".join(f"0,{u},,{GOOD}\n" for u in urls(2)))
    else:
        write(path, **{"id": [0, 1], url: urls(2), "alt": ["", ""], caption: [GOOD, GOOD]})
    chosen = select([str(path)], tmp_path / "out", plain_recipe)
    assert (chosen.columns.url, chosen.columns.caption) == names and chosen.funnel.kept == 2
    command = shlex.split(chosen.download_command())
    options = dict(zip(command[1::2], command[2::2], strict=True))
    assert (options["--url_col"], options["--caption_col"]) == names
    assert json.loads(options["--save_additional_columns"]) == ["id", "alt"]


@pytest.mark.parametrize(
    ("columns", "url", "caption"),
    [
        (("uid", "url", "text", "original_width", "sha256"), "url", "text"),  # DataComp
        (("id", "url", "text", "width", "image_phash"), "url", "text"),  # COYO
        (("SAMPLE_ID", "URL", "TEXT", "LICENSE", "NSFW"), "URL", "TEXT"),  # LAION
        (("Url", "Title", "Content", "ImageUrl", "ImageQuery"), "ImageUrl", "Title"),  # Zero; Url is the page's
        (("link", "words"), "url", "caption"),  # neither: the message names these
    ],
)
def test_the_columns_of_public_tables_are_named(columns: tuple[str, ...], url: str, caption: str) -> None:
    assert name_columns(columns, Columns("", "")) == Columns(url, caption)
    assert name_columns(columns, Columns("link", "")).url == "link"


def test_what_cannot_be_read_is_listed_and_strict_ends_with_3(
    plain_recipe: Recipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, recipe = tmp_path / "in", str(tmp_path / "plain.yaml")
    folder.mkdir()
    (folder / "a.jsonl").write_text(f'{{"url": "http://a", "caption": "{GOOD}"}}\n{{broken\n')
    write(tmp_path / "b.parquet", url=urls(1), caption=[GOOD])
    (folder / "b.parquet").symlink_to(tmp_path / "b.parquet")
    command = ["select", str(folder), "--recipe", recipe, "--strict", "-o"]
    for _ in range(2):  # the second finds the selection finished
        assert main([*command, str(tmp_path / "out")]) == 3
        assert "Damaged input, 2 places" in capsys.readouterr().out
    link, row = json.loads((tmp_path / "out" / "damaged.json").read_text())
    assert link["file"] == str(folder / "b.parquet") and "a link to a file outside" in link["problem"]
    assert row == {"file": str(folder / "a.jsonl"), "place": "line 2", "problem": row["problem"]}
    assert row["problem"].startswith("not valid JSON")
    (folder / "a.jsonl").write_text(f'{{"url": "http://a", "caption": "{GOOD}"}}\n{{"url": null, "caption": "x"}}\n')
    assert main([*command, str(tmp_path / "followed"), "--follow-links", "--json"]) == 0  # no URL is no damage
    found = json.loads(capsys.readouterr().out)
    assert found["damaged"] == 0 and found["kept"] == 2 and not (tmp_path / "followed" / "damaged.json").exists()


def test_all_types_of_parquet_text_are_read(plain_recipe: Recipe, tmp_path: Path) -> None:
    captions = [GOOD, None, GOOD]
    inputs = [
        write(tmp_path / f"{i}.parquet", url=urls(3), caption=pa.array(captions).cast(kind))
        for i, kind in enumerate([pa.large_string(), pa.binary(), pa.dictionary(pa.int32(), pa.string())])
    ]
    views = pa.array(captions, pa.string_view())
    inputs.append(write(tmp_path / "view.parquet", url=urls(3), caption=views, more=views))
    inputs.append(write(tmp_path / "bytes.parquet", url=urls(3), caption=views.cast(pa.binary_view())))
    inputs.append(write(tmp_path / "null.parquet", url=urls(2), caption=pa.nulls(2)))
    inputs.append(write(tmp_path / "empty.parquet", url=pa.array([], pa.string()), caption=pa.array([], pa.string())))
    (tmp_path / "empty.csv").touch()
    (tmp_path / "empty.jsonl").touch()
    chosen = select([*inputs, *(str(tmp_path / f"empty.{s}") for s in ("csv", "jsonl"))], tmp_path / "o", plain_recipe)
    assert chosen.funnel.collected == 17 and chosen.funnel.kept == 10
    nothing = select([str(tmp_path / "empty.*")], tmp_path / "nothing", plain_recipe)
    assert nothing.funnel.collected == nothing.funnel.kept == 0


def test_text_that_is_not_utf_8_is_replaced(plain_recipe: Recipe, tmp_path: Path) -> None:
    latin = pa.array([b"https://x.example/\xe9.jpg", b"\xff\xfe", None]).view(pa.string())
    inputs = [
        write(tmp_path / "url.parquet", url=latin, caption=[GOOD] * 3),
        write(tmp_path / "rest.parquet", url=urls(3), caption=latin, note=latin),
    ]
    chosen = select(inputs, tmp_path / "o", plain_recipe)
    found = verdicts(chosen)
    assert [row["url"] for row in found[:3]] == ["https://x.example/\ufffd.jpg", "\ufffd\ufffd", None]
    assert found[1]["error"] == "not a URL of the web: \ufffd\ufffd" and found[4]["caption"] == "\ufffd\ufffd"
    assert [row["url"] for row in kept(chosen)] == ["https://x.example/\ufffd.jpg"]


def test_parts_are_bounded_and_gates_change_nothing(
    table: str, plain_recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = select([table], tmp_path / "whole", plain_recipe)
    monkeypatch.setattr(danqing.engine.select.selection, "PART_ROWS", 2)
    monkeypatch.setattr(danqing.engine.select.ledger, "BATCH_ROWS", 1)
    parts = select([table], tmp_path / "parts", plain_recipe)
    assert [pq.read_metadata(p).num_rows for p in sorted((tmp_path / "parts/verdicts").iterdir())] == [2, 2, 2, 1]
    assert len(list(parts.urls.iterdir())) == 4
    assert verdicts(parts) == verdicts(whole) and kept(parts) == kept(whole) and parts.funnel == whole.funnel


def test_parts_do_not_depend_on_row_groups(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    words = pa.array([str(i) for i in range(10)]).dictionary_encode()
    pq.write_table(pa.table({"url": words, "caption": words}), path, row_group_size=3)
    parts = list(read_parts(find_tables([str(path)])[0], Columns(), 4))
    assert [(part.first, len(part.table)) for part in parts] == [(0, 4), (4, 4), (8, 2)]
    assert [url for part in parts for url in part.urls.to_pylist()] == [str(i) for i in range(10)]
    for skipped in (1, 2):
        rest = list(read_parts(find_tables([str(path)])[0], Columns(), 4, 4 * skipped))
        assert [(part.first, part.table) for part in rest] == [(part.first, part.table) for part in parts[skipped:]]
        chunks = [[len(chunk) for chunk in part.table["url"].chunks] for part in rest]  # the files' pages follow them
        assert chunks == [[len(chunk) for chunk in part.table["url"].chunks] for part in parts[skipped:]]


def test_an_interrupted_selection_is_resumed(
    table: str, plain_recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(danqing.engine.select.selection, "PART_ROWS", 2)
    monkeypatch.setattr(danqing.engine.select.ledger, "BATCH_ROWS", 1)
    whole = tmp_path / "whole"
    select([table], whole, plain_recipe)
    real, calls = danqing.engine.select.verdicts.walk, []

    def stop_at_the_third(*arguments: Any) -> Any:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(danqing.engine.select.verdicts, "walk", stop_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        select([table], tmp_path / "out", plain_recipe)
    assert len(list((tmp_path / "out/verdicts").iterdir())) == 2 and not (tmp_path / "out/funnel.json").exists()
    read: list[int] = []

    def read_and_note(*arguments: Any) -> Any:
        for part in read_parts(*arguments):
            read.append(part.first)
            yield part

    monkeypatch.setattr(danqing.engine.select.libcudf_tables, "read_parts", read_and_note)
    select([table], tmp_path / "out", plain_recipe)
    assert len(calls) == 5 and read == [4, 6]  # the two complete parts were neither read nor decided again
    assert tree(tmp_path / "out") == tree(whole)


@pytest.mark.parametrize("writes", [1, 2, 3])
def test_a_selection_that_stops_between_two_files_is_resumed(
    writes: int, table: str, plain_recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(danqing.engine.select.selection, "PART_ROWS", 4)
    select([table], tmp_path / "whole", plain_recipe)
    real, paths = danqing.engine.select.parts.commit, []

    def stop(path: Path) -> Any:
        if len(paths) == writes:
            raise KeyboardInterrupt
        paths.append(path)
        return real(path)

    with monkeypatch.context() as patch:
        patch.setattr(danqing.engine.select.parts, "commit", stop)
        with pytest.raises(KeyboardInterrupt):
            select([table], tmp_path / "out", plain_recipe)
    select([table], tmp_path / "out", plain_recipe)
    assert tree(tmp_path / "out") == tree(tmp_path / "whole")


def test_a_finished_selection_is_not_changed(table: str, plain_recipe: Recipe, tmp_path: Path) -> None:
    out = tmp_path / "out"
    select([table], out, plain_recipe)
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    later = load_recipe(tmp_path / "plain.yaml", ["aspect_ratio.max=3"])  # applied after the download
    for recipe in (plain_recipe, later):
        assert not select([table], out, recipe).spans
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before
    with pytest.raises(DanqingError, match=r"words\.max: 60\.0 there, 40\.0 here"):
        select([table], out, load_recipe(tmp_path / "plain.yaml", ["words.max=40"]))
    with pytest.raises(DanqingError, match="inputs: "):
        select([write(tmp_path / "other.parquet", url=["http://u"], caption=[GOOD])], out, plain_recipe)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").touch()
    with pytest.raises(DanqingError, match="not empty and not a selection"):
        select([table], tmp_path / "full", plain_recipe)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "t.csv",
            b"link,caption\nu,c\n",
            r"no column 'url'; choose one with --url-col\. The table has: link, caption$",
        ),
        ("t.jsonl", b'{"url": "u", "captions": "c"}', r"no column 'caption'; choose one with --caption-col\."),
        ("t.csv", b"url,caption,url\nu,c,u\n", "names 'url' twice"),
        ("t.parquet", b"PAR1 but not really", r"t\.parquet: cannot be read as Parquet"),
        ("t.tsv", b"url\tcaption\n", "not a table this command reads"),
        ("t.csv", None, "no such file"),
    ],
)
def test_bad_tables_are_refused(
    name: str, content: bytes | None, message: str, plain_recipe: Recipe, tmp_path: Path
) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DanqingError, match=message):
        select([str(path)], tmp_path / "out", plain_recipe)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("head", ['{"url": "http://x.example/a"}\n', "{broken\n"])
def test_json_lines_may_lack_a_field_in_the_first_rows(head: str, plain_recipe: Recipe, tmp_path: Path) -> None:
    path, good = tmp_path / "t.jsonl", json.dumps({"url": "http://x.example/z", "caption": GOOD})
    path.write_text(head * 1200 + good)
    chosen = select([str(path)], tmp_path / "o", plain_recipe)
    assert chosen.funnel.collected == 1201 and [row["caption"] for row in kept(chosen)] == [GOOD]
    path.write_text("{broken\n" * 1200 + good.replace("caption", "TEXT"))
    assert select([str(path)], tmp_path / "named", plain_recipe).funnel.kept == 1
    path.write_text("{broken\n" * 3)
    assert select([str(path)], tmp_path / "broken", plain_recipe).funnel.collected == 3
    path.write_text(head * 1200 + good.replace("caption", "words"))
    with pytest.raises(DanqingError, match="no column 'caption'"):
        select([str(path)], tmp_path / "wrong", plain_recipe)


def test_captions_that_are_numbers_are_refused(plain_recipe: Recipe, tmp_path: Path) -> None:
    table = write(tmp_path / "t.parquet", url=urls(2), caption=[1, 2])
    with pytest.raises(DanqingError, match="column 'caption' holds int64, not text; choose another with --caption-col"):
        select([table], tmp_path / "out", plain_recipe)


def test_a_truncated_gz_file_keeps_its_complete_rows(plain_recipe: Recipe, tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl.gz"
    lines = "".join(json.dumps({"url": url, "caption": GOOD + url}) + "\n" for url in urls(2000))
    path.write_bytes(gzip.compress(lines.encode())[:-2000])
    chosen = select([str(path)], tmp_path / "out", plain_recipe)
    assert 0 < chosen.funnel.kept < 2000
    assert "cut off here" in verdicts(chosen)[-1]["error"]


def test_the_command(table: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], plain_recipe: Recipe) -> None:
    blocked = tmp_path / "blocked.txt"
    blocked.write_text("x.example\n")
    out, recipe = tmp_path / "out", tmp_path / "r.yaml"
    recipe.write_text((tmp_path / "plain.yaml").read_text() + "  blocked_source: {max: 0}\n")
    assert main(["select", table, "-o", str(out), "--recipe", str(recipe)]) == 0
    shown = capsys.readouterr().out
    assert "3 URLs in" in shown and "usable ≥ 1" in shown and "Judged after the download: downloaded" in shown
    command = shlex.split(next(line for line in shown.splitlines() if line.startswith("  img2dataset")))
    options = dict(zip(command[1::2], command[2::2], strict=True))
    assert options["--url_list"] == str(out / "urls") and options["--caption_col"] == "caption"
    assert json.loads(options["--save_additional_columns"]) == ["language", "uid", "tags"]  # width is img2dataset's
    assert main(["select", table, "-o", str(out), "--recipe", str(recipe)]) == 0
    assert "nothing to do" in capsys.readouterr().out
    assert main(["select", table, "-o", str(out), "--recipe", str(recipe), "--blocklist", str(blocked)]) == 2
    assert "blocklist: null there" in capsys.readouterr().err
    other = str(tmp_path / "other")
    assert main(["select", table, "-o", other, "--recipe", str(recipe), "--blocklist", str(blocked)]) == 0
    shown = capsys.readouterr().out
    assert "0 URLs in" in shown
    assert f"danqing curate {other}/images -o curated --recipe {recipe} --blocklist {blocked}" in shown
    spaced = tmp_path / "my words.txt"
    spaced.write_text("小猫\n")
    given = ["--recipe", str(recipe), "--set", "words.min=1", "--user-dict", str(spaced)]
    assert main(["select", table, "-o", str(tmp_path / "more"), *given]) == 0
    assert shlex.split(capsys.readouterr().out.splitlines()[-1])[5:] == given
    assert main(["select", "--help"]) == 0
    assert "--caption-col title" in capsys.readouterr().out


def test_the_printed_caption_column_is_the_caption_as_read(plain_recipe: Recipe, tmp_path: Path) -> None:
    caption = "公园的草地上有一只可爱的小猫在晒太阳"
    rows = {"url": ["http://a.example/1"], "text_clean": [f"<b>{caption}</b>"], "other": ["x"]}
    pq.write_table(pa.table(rows), tmp_path / "t.parquet")
    found = select([str(tmp_path / "t.parquet")], tmp_path / "out", plain_recipe, Columns("", "text_clean"))
    words = shlex.split(found.download_command())
    name = words[words.index("--caption_col") + 1]
    assert name == "input_text_clean" and json.loads(words[-1]) == ["other"]
    assert pq.read_table(found.urls)[name].to_pylist() == rows["text_clean"]


def test_selections_can_be_chained_and_read_as_one_dataset(plain_recipe: Recipe, tmp_path: Path) -> None:
    captions = ["公园的草地上有一只可爱的小猫在晒太阳"] * 2
    first = {"url": ["http://a.example/1"] * 2, "caption": captions, "text_clean": ["mine"] * 2, "size": [None, None]}
    pq.write_table(pa.table(first), tmp_path / "a.parquet")
    (tmp_path / "b.jsonl").write_text(
        f'{{"url": "http://a.example/2", "caption": "{captions[0]}", "size": 1.5, "input_text_clean": "x"}}\n'
    )
    folder = tmp_path / "s0"
    select([str(tmp_path / "a.parquet"), str(tmp_path / "b.jsonl")], folder, plain_recipe)
    for number in (1, 2, 3):
        previous, folder = folder, tmp_path / f"s{number}"
        select([str(previous / "urls")], folder, plain_recipe)
    assert len(pd.read_parquet(folder / "urls")) == len(pd.read_parquet(folder / "verdicts")) == 3
    rows = pq.read_table(folder / "urls").to_pydict()
    assert list(rows) == ["url", "caption", "input_text_clean", "size", "input_input_text_clean", "text_clean"]
    assert rows["text_clean"] == [captions[0]] * 3 and rows["size"] == [None, None, 1.5]
    assert rows["input_text_clean"] == ["mine", "mine", None]
    assert rows["input_input_text_clean"] == [None, None, "x"]


def test_the_function_takes_what_the_command_takes(plain_recipe: Recipe, tmp_path: Path) -> None:
    table = tmp_path / "t.csv"
    table.write_bytes(f"url,caption\nhttp://a.example,{GOOD}\n".encode("gb18030"))
    given: dict[str, Any] = {"encoding": "gb18030", "force": True, "follow_links": True, "device": "cpu"}
    chosen = danqing.select(table, tmp_path / "out", plain_recipe, **given)
    assert chosen.funnel.kept == 1 and chosen.columns.encoding == "gb18030"
    with pytest.raises(DanqingError, match="columns: "):
        danqing.select(table, tmp_path / "out", plain_recipe, device="cpu", url_col="url", caption_col="caption")


def test_a_kept_row_can_lack_the_clean_caption_if_an_earlier_stage_failed() -> None:
    table = pa.table({"url": [f"https://x.example/{row}.jpg" for row in range(3)], "caption": ["a", "b", "c"]})
    with open_device("cpu") as device:
        part = part_of(Shard(0, "frame", Path("frame"), 0), 0, table, Columns())
        judged = Judged(0, part, {CLEAN: pa.string()}, device)
        (batch,) = judged.batches()
        failed, clean = batch.slice(0, 1), batch.slice(1, 3)
        failed["error"], clean[CLEAN] = ["not a number"], clean["caption"]
        judged.enter(failed)
        judged.enter(clean)
    assert judged.text_of(CLEAN, np.arange(3)).to_pylist() == [None, "b", "c"]
    assert judged.text_of(CLEAN, np.array([2])).to_pylist() == ["c"]
    assert len(judged.text_of(CLEAN, np.arange(0))) == 0


def test_a_limit_of_memory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DanqingError, match="memory_limit: select has no limit of memory"):
        select(["a.parquet"], tmp_path / "out", load_recipe("danqing"), settings=Settings(memory_limit=1 << 30))
