from __future__ import annotations

import gzip
import os
from collections.abc import Callable
from datetime import date, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from danqing.engine.core.errors import DanqingError
from danqing.engine.sources import Layout, Source, check_parts, find_shards, first_rows, open_shard
from danqing.engine.sources.inputs import expand
from tests.conftest import picture

Make = Callable[..., Path]
Patch = pytest.MonkeyPatch


def opened(path: Path, layout: Layout | None = None) -> Source:
    (shard,) = find_shards([str(path)], layout)
    return open_shard(shard, layout or Layout())


def as_parquet(path: Path, columns: dict[str, Any], **options: Any) -> Path:
    pq.write_table(pa.table(columns), path, **options)
    return path


def test_brace_ranges_and_lists_expand_as_in_the_shell() -> None:
    assert expand("a{08..11}.tar") == ["a08.tar", "a09.tar", "a10.tar", "a11.tar"]
    assert expand("a{8..10}.tar") == ["a8.tar", "a9.tar", "a10.tar"]
    assert expand("{x,y}/{0..1}.tar") == ["x/0.tar", "x/1.tar", "y/0.tar", "y/1.tar"]


def test_members_in_any_order_make_one_row_each(make_shard: Make) -> None:
    path = make_shard(
        {
            "b.txt": "二",
            "a.json": {"url": "https://x.example/a", "extra": [1, 2]},
            "b.webp": picture(2, form="WEBP"),
            "a.jpg": picture(1),
            "dir/c.PNG": picture(3, form="PNG"),
            "a.txt": "一",
        }
    )
    samples = list(opened(path))
    assert [s.key for s in samples] == ["b", "a", "dir/c"]
    assert [s.caption for s in samples] == ["二", "一", ""]
    assert [s.image_extension for s in samples] == ["webp", "jpg", "png"]
    assert samples[1].image == picture(1)
    assert samples[1].metadata == {"url": "https://x.example/a", "extra": [1, 2]}


def test_uid_is_the_inputs_own_or_a_hash_of_the_pair(make_shard: Make) -> None:
    own = "0123456789abcdef0123456789abcdef"
    path = make_shard(
        {"a.jpg": b"x", "a.txt": "t", "a.json": {"uid": own}, "b.jpg": b"x", "b.txt": "t", "c.jpg": b"x", "c.txt": "u"}
    )
    first, second, third = (s.uid for s in opened(path))
    assert first == own
    assert len(second) == 32 and second != third


def test_keys_can_be_chosen_and_captions_lie_in_json(make_shard: Make) -> None:
    path = make_shard({"a.img": b"x", "a.txt": "old", "a.alt": "new", "b.img": b"y", "b.json": {"alt": "json"}})
    first, second = opened(path, Layout(("img",), ("alt",)))
    assert (first.image, first.caption) == (b"x", "new")
    assert second.caption == "json"


def test_bad_metadata_is_carried_as_such(make_shard: Make) -> None:
    samples = list(opened(make_shard({"a.json": "{broken", "b.json": "[1]"})))
    assert ".json: not valid JSON" in samples[0].error
    assert samples[1].error == ".json: a JSON list, not an object" and samples[1].metadata == {}


def test_a_tar_cut_short_keeps_its_whole_members(make_shard: Make) -> None:
    path = make_shard({f"{i}.jpg": picture(i) for i in range(5)})
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    shard = opened(path)
    assert shard.damage and 0 < len(shard) < 5
    assert all(s.image == picture(int(s.key)) for s in shard)


def test_a_broken_header_is_no_end(make_shard: Make) -> None:
    path = make_shard({f"{n}.{e}": b"x" * 600 for n in range(5) for e in ("jpg", "txt")})
    raw = bytearray(path.read_bytes())
    third = raw.index(b"2.jpg")
    raw[third + 130] ^= 1
    path.write_bytes(raw)
    shard = open_shard(find_shards([str(path)])[0], Layout())
    assert [entry.place for entry in shard.damage] == [f"byte {third}"] and [sample.key for sample in shard] == [
        "0",
        "1",
    ]


def test_a_file_that_is_no_tar_is_named(tmp_path: Path) -> None:
    path = tmp_path / "x.tar"
    path.write_bytes(b"no tar at all" * 100)
    assert len(opened(path)) == 0 and "x.tar: cannot be read as a tar" in str(opened(path).damage[0])
    (tmp_path / "y.tar").write_bytes(gzip.compress(b"a tar"))
    assert "it is compressed with gzip; unpack it first" in str(opened(tmp_path / "y.tar").damage[0])
    with pytest.raises(DanqingError, match=r"no input can be read: .*x\.tar: cannot be read as a tar"):
        check_parts(find_shards([str(path)]), Layout())


def test_inputs_are_checked(tmp_path: Path, make_shard: Make) -> None:
    path = make_shard({"a.jpg": b"x"})
    assert [s.name for s in find_shards([str(tmp_path)])] == ["00000"]
    with pytest.raises(DanqingError, match="an input is empty"):
        find_shards([""])
    with pytest.raises(DanqingError, match="no input"):
        find_shards([])
    with pytest.raises(DanqingError, match="matches no file"):
        find_shards([str(tmp_path / "*.nothing")])
    with pytest.raises(DanqingError, match="no such file"):
        find_shards([str(tmp_path / "{00000..00001}.tar")])
    with pytest.raises(DanqingError, match="given twice"):
        find_shards([str(path), str(tmp_path)])


def test_equal_names_are_told_apart(tmp_path: Path) -> None:
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "00000.tar").write_bytes(b"")
    assert [s.name for s in find_shards([str(tmp_path / "{one,two}")])] == ["one/00000", "two/00000"]


def test_parquet_with_bytes_or_structs_or_names(tmp_path: Path) -> None:
    pictures = [picture(1), picture(2, form="PNG")]
    structs = [{"bytes": pictures[0], "path": "a/cat.jpg"}, {"bytes": pictures[1], "path": None}]
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "x.1.jpg").write_bytes(pictures[0])
    plain = as_parquet(tmp_path / "plain.parquet", {"image": pictures, "text": ["一", "二"], "n": [1, None]})
    struct = as_parquet(tmp_path / "struct.parquet", {"image": structs, "caption": ["一", None], "key": ["k1", "k2"]})
    named = as_parquet(tmp_path / "named.parquet", {"file_name": ["b/x.1.jpg", "b/none.jpg"], "text": ["一", "二"]})
    first, second = opened(plain)
    assert (first.image, first.caption, first.key, first.metadata) == (pictures[0], "一", "000000000", {"n": 1})
    assert (second.image, second.metadata) == (pictures[1], {"n": None})
    first, second = opened(struct)
    assert (first.image, first.image_extension, first.key) == (pictures[0], "jpg", "k1")
    assert (second.image, second.image_extension, second.caption) == (pictures[1], "", "")
    first, second = opened(named)
    assert (first.image, first.key, first.image_extension) == (pictures[0], "b/x.1", "jpg")
    assert second.image == b"" and "none.jpg: No such file" in second.error


def test_other_pictures_of_a_row_are_no_metadata(tmp_path: Path) -> None:
    more = [{"bytes": b"x", "path": None}]
    masks = pa.array([[("a", b"z")]], pa.map_(pa.string(), pa.binary()))
    others = {"mask": [b"y"], "more": more, "several": [more], "parts": [[None, b"z"]], "masks": masks, "n": [1]}
    path = as_parquet(tmp_path / "a.parquet", {"image": [b"x"], "text": ["一"], **others})
    assert next(iter(opened(path))).metadata == {"n": 1}


def test_times_that_python_does_not_have_are_text(tmp_path: Path) -> None:
    days = pa.array([10**7, 1], pa.date32())
    dated = pa.array([{"day": 10**7}, {"day": 1}], pa.struct([("day", pa.date32())]))
    columns = {"image": [b"x", b"y"], "text": ["一", "二"], "day": days, "dated": dated}
    samples = list(opened(as_parquet(tmp_path / "a.parquet", columns)))
    assert [(s.caption, str(s.metadata["day"]), s.metadata["dated"], s.error) for s in samples] == [
        ("一", "29349-01-26", {"day": "29349-01-26"}, None), ("二", "1970-01-02", {"day": date(1970, 1, 2)}, None),
    ]  # fmt: skip


@pytest.mark.parametrize("nested", [False, True])
def test_nanoseconds_are_datetimes_if_nothing_is_lost_and_else_text(tmp_path: Path, nested: bool) -> None:
    kind = pa.list_(pa.timestamp("ns")) if nested else pa.timestamp("ns")
    whole, exact = (pa.array([[time] if nested else time], kind) for time in (1_000, 1_001))
    path = as_parquet(tmp_path / "a.parquet", {"image": [b"x"], "text": ["一"], "whole": whole, "exact": exact})
    expected = {"whole": datetime(1970, 1, 1, microsecond=1), "exact": "1970-01-01 00:00:00.000001001"}
    (sample,) = opened(path)
    metadata = {name: value[0] if nested else value for name, value in sample.metadata.items()}
    assert metadata == expected and type(metadata["whole"]) is datetime  # not pandas' subclass


def test_bytes_are_left_out_of_carried_columns_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    columns = {"image": [b"x", b"y"], "text": ["一", "二"], "embedding": [b"1", None], "s": [{"b": b"1", "n": 1}] * 2}
    samples = list(opened(as_parquet(tmp_path / "a.parquet", columns)))
    assert [sample.metadata for sample in samples] == [{"s": {"n": 1}}] * 2
    assert "a.parquet: not carried, since they hold bytes: embedding, s\n" in caplog.text


def test_a_large_parquet_file_becomes_shards_of_whole_row_groups(tmp_path: Path, monkeypatch: Patch) -> None:
    monkeypatch.setattr("danqing.engine.sources.SHARD_ROWS", 5)
    columns = {"image": [bytes([i]) for i in range(17)], "text": [str(i) for i in range(17)]}
    shards = find_shards([str(as_parquet(tmp_path / "a.parquet", columns, row_group_size=3))])
    assert [(s.name, s.first, s.rows) for s in shards] == [("a-00000", 0, 6), ("a-00001", 6, 6), ("a-00002", 12, 5)]
    samples = [sample for shard in shards for sample in open_shard(shard, Layout())]
    assert [s.caption for s in samples] == columns["text"] and [s.image for s in samples] == columns["image"]
    assert samples[7].key == "000010001" and [len(open_shard(s, Layout())) for s in shards] == [6, 6, 5]


def test_a_broken_row_group_costs_its_own_rows(tmp_path: Path) -> None:
    columns = {"image": [picture(i) for i in range(9)], "text": [f"第{i}张" for i in range(9)]}
    path = as_parquet(tmp_path / "a.parquet", columns, row_group_size=3, compression="gzip", use_dictionary=False)
    chunk = pq.read_metadata(path).row_group(1).column(0)
    with path.open("r+b") as file:
        file.seek(chunk.data_page_offset + 60)
        file.write(b"\xff" * 40)
    samples = list(opened(path))
    assert [s.image == picture(i) for i, s in enumerate(samples)] == [True] * 3 + [False] * 3 + [True] * 3
    assert all("row group 1 is broken" in s.error for s in samples[3:6])


def test_tables_that_name_pictures(tmp_path: Path) -> None:
    (tmp_path / "cats").mkdir()
    (tmp_path / "cats" / "1.jpg").write_bytes(picture(1))
    (tmp_path / "metadata.csv").write_text('file_name,text,n\ncats/1.jpg,一,7\nonly\n../none.png,"二, 三",8\n')
    lines = [
        '{"file_name": "cats/1.jpg", "text": "一"}',
        "{broken",
        '{"file_name": "http://x.example/1.jpg", "text": 5}',
    ]
    (tmp_path / "other.jsonl").write_text("\n".join(lines))
    first, second, third = opened(tmp_path)  # Hugging Face's name for such a table speaks for its folder
    assert (first.image, first.caption, first.key, first.metadata) == (picture(1), "一", "cats/1", {"n": "7"})
    assert "line 3: 1 fields" in second.error and third.caption == "二, 三" and third.image == b""
    first, second, third = opened(tmp_path / "other.jsonl")
    assert first.image == picture(1) and "line 2: not valid JSON" in second.error
    assert "is not text but 5" in third.error


def test_a_table_without_the_columns_is_refused_at_once(tmp_path: Path) -> None:
    urls = as_parquet(tmp_path / "urls.parquet", {"url": ["u"], "text": ["t"]})
    with pytest.raises(DanqingError, match=r"no column for the picture .* --image-key\..*danqing select"):
        find_shards([str(urls)])
    with pytest.raises(DanqingError, match=r"no column for the caption .*: image, words\. Choose with --caption-key"):
        find_shards([str(as_parquet(tmp_path / "a.parquet", {"image": [b"x"], "words": ["t"]}))])
    with pytest.raises(DanqingError, match="column 'image' holds list"):
        find_shards([str(as_parquet(tmp_path / "b.parquet", {"image": [[1, 2]], "text": ["t"]}))])
    (tmp_path / "c.parquet").write_bytes(b"PAR1 nothing")
    with pytest.raises(DanqingError, match=r"c\.parquet: cannot be read as Parquet"):
        find_shards([str(tmp_path / "c.parquet")])


def test_a_folder_of_pictures_with_sidecars(tmp_path: Path, monkeypatch: Patch) -> None:
    for name, content in {
        "00000/a.jpg": picture(1), "00000/a.txt": "一".encode(), "00000/a.json": b'{"url": "u"}',
        "00001/b.1.PNG": picture(2, form="PNG"), "00001/b.1.txt": "二".encode(),
        "00001/c.jpg": picture(3), "00001/c.png": picture(4, form="PNG"), "00001/c.txt": "三".encode(),
        "00001/readme.txt": b"no pair", ".hidden/d.jpg": picture(5),
    }.items():  # fmt: skip
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    as_parquet(tmp_path / "00000.parquet", {"key": ["a"]})  # as img2dataset leaves it beside its folders
    monkeypatch.setattr("danqing.engine.sources.SHARD_ROWS", 3)
    shards = find_shards([str(tmp_path)])
    assert [(s.rows, s.name.removeprefix(tmp_path.name)) for s in shards] == [(3, "-00000"), (1, "-00001")]
    samples = [sample for shard in shards for sample in open_shard(shard, Layout())]
    assert [s.key for s in samples] == ["00000/a", "00001/b.1", "00001/c.jpg", "00001/c.png"]
    assert [s.caption for s in samples] == ["一", "二", "三", "三"]
    assert [s.image for s in samples] == [picture(1), picture(2, form="PNG"), picture(3), picture(4, form="PNG")]
    assert samples[0].metadata == {"url": "u"}


def test_folders_that_say_too_little_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DanqingError, match=r"a folder without \.tar shards, tables"):
        find_shards([str(tmp_path)])
    (tmp_path / "a.jpg").write_bytes(picture(1))
    (tmp_path / "captions.csv").write_text("file_name,text\na.jpg,一\n")
    with pytest.raises(DanqingError, match=r"holds pictures and tables \(captions\.csv\)"):
        find_shards([str(tmp_path)])


def test_what_is_no_file_is_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "t.csv").write_text("file_name,text\npipe.jpg,一\n/dev/zero,二\n")
    everywhere = Layout(follow_links=True)
    assert ["not a file" in str(s.error) for s in opened(tmp_path / "t.csv", everywhere)] == [True, True]
    assert ["--follow-links" in str(s.error) for s in opened(tmp_path / "t.csv")] == [False, True]


def test_a_limit_cuts_every_kind_of_input(make_shard: Make, tmp_path: Path) -> None:
    tar = make_shard({f"{row}.{kind}": b"x" for row in range(4) for kind in ("jpg", "txt")})
    columns = {"image": [b"x"] * 4, "caption": list("abcd")}
    parquet = as_parquet(tmp_path / "table.parquet", columns, row_group_size=3)
    (tmp_path / "table.csv").write_text("file_name,caption\n" + "x.jpg,a\n" * 4)
    folder = tmp_path / "pictures"
    folder.mkdir()
    for row in range(4):
        (folder / f"{row}.jpg").write_bytes(b"x")
    for path in (tar, parquet, tmp_path / "table.csv", folder):
        shards = find_shards([str(path)])
        whole = [sample.key for sample in open_shard(shards[0], Layout())]
        for limit in (1, 2, 4, 9):
            (shard,) = first_rows(shards, limit, Layout())
            source = open_shard(shard, Layout())
            assert [sample.key for sample in source] == whole[:limit] and len(source) == min(limit, 4)
    shards = find_shards([str(tar), str(parquet)])
    assert [shard.rows for shard in first_rows(shards, 6, Layout())] == [None, 2]
    assert first_rows(shards, 4, Layout()) == shards[:1] and first_rows(shards, None, Layout()) == shards
