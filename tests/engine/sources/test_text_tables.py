"""Tables in any encoding, with lines of any length."""

from __future__ import annotations

import gzip
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from danqing.engine.cli.main import main
from danqing.engine.core.errors import DanqingError
from danqing.engine.sources import Layout, Source, find_shards, open_shard, records
from tests.conftest import picture

CAPTIONS = ["公园的草地上有一只可爱的小猫", "湖边的木屋和远处的雪山风景"]
TRADITIONAL = ["公園的草地上有一隻可愛的小貓", "湖邊的木屋和遠處的雪山風景"]


def opened(path: Path, layout: Layout | None = None) -> Source:
    (shard,) = find_shards([str(path)], layout)
    return open_shard(shard, layout or Layout())


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "gb18030", "big5", "utf-16"])
@pytest.mark.parametrize("name", ["t.csv", "t.jsonl", "t.csv.gz"])
def test_tables_are_read_in_their_encoding(tmp_path: Path, encoding: str, name: str) -> None:
    captions = TRADITIONAL if encoding == "big5" else CAPTIONS
    (tmp_path / "a.jpg").write_bytes(picture(1))
    ascii_lines = 3000  # the encoding shows late
    rows = ["plain"] * ascii_lines + captions
    if "csv" in name:
        text = "file_name,text\n" + "".join(f"a.jpg,{row}\n" for row in rows)
    else:
        text = "".join(f'{{"file_name": "a.jpg", "text": "{row}"}}\n' for row in rows)
    data = text.encode(encoding)
    (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith("gz") else data)
    source = opened(tmp_path / name)
    assert [row.caption for row in source][ascii_lines:] == captions
    assert dict(source.encodings) == ({} if encoding.startswith("utf-8") else {encoding: 1})
    assert len({row.key for row in source}) == len(rows)


def test_an_encoding_can_be_named(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_bytes("file_name,text\na.jpg,café\n".encode("cp1252"))
    with pytest.raises(DanqingError, match=r"t\.csv: in none of the encodings .* --encoding"):
        find_shards([str(tmp_path / "t.csv")])
    assert [row.caption for row in opened(tmp_path / "t.csv", Layout(encoding="cp1252"))] == ["café"]
    for command in ("score", "select"):
        assert main([command, str(tmp_path / "t.csv"), "-o", str(tmp_path / "out"), "--encoding", "nonsense"]) == 2


def test_parquet_text_in_another_encoding_is_decoded(tmp_path: Path) -> None:
    cells = [CAPTIONS[0].encode("gbk"), None, b"plain", b"\xff\xff\x00"]
    text = pa.Array.from_buffers(pa.string(), 4, pa.array(cells, pa.binary()).buffers())
    pq.write_table(pa.table({"image": [b"x"] * 4, "text": text}), tmp_path / "a.parquet")
    found = list(opened(tmp_path / "a.parquet"))
    assert [row.caption for row in found] == [CAPTIONS[0], "", "plain", ""] and found[0].error is None
    assert "column 'text': in none of the encodings" in str(found[3].error)


def test_long_lines_and_captions_fail_their_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "MAX_LINE", 1000)
    long = "x" * 5000
    (tmp_path / "t.jsonl").write_text(
        "".join(f'{{"file_name": "a.jpg", "text": "{text}"}}\n' for text in ("one", long, "two")) + long
    )
    errors = [str(row.error) for row in opened(tmp_path / "t.jsonl")]
    assert "line 2: longer than 1,000 characters" in errors[1] and "line 4: longer" in errors[3]
    assert not any("longer" in errors[row] for row in (0, 2))
    (tmp_path / "t.csv").write_text(
        f'file_name,text\na.jpg,one\na.jpg,{long}\na.jpg,"{"y" * 600}\n{"y" * 600}"\na.jpg,two\n'
    )
    rows = list(opened(tmp_path / "t.csv"))
    assert "longer than 1,000 characters" in str(rows[1].error) and rows[-1].caption == "two"


def test_a_cut_table_is_damage(tmp_path: Path) -> None:
    text = "file_name,text\n" + "".join(f"a.jpg,{row} {'图' * (row % 50)}\n" for row in range(3000))
    (tmp_path / "t.csv.gz").write_bytes(gzip.compress(text.encode())[:-3000])
    source = opened(tmp_path / "t.csv.gz")
    (damage,) = source.damage
    assert damage.place.startswith("line ") and "the file is cut off here" in damage.problem
    assert 0 < len(source) < 3000
