"""What WRITE makes of the kept pairs, whatever kind of input they came from."""

from __future__ import annotations

import datetime
import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from danqing.engine.core.errors import DanqingError
from danqing.engine.phases import curate, write_run
from danqing.engine.recipe.reading import Recipe
from danqing.engine.run.folder import Run
from danqing.engine.run.settings import Settings
from danqing.engine.sources import Layout, Sample, find_shards, open_shard
from danqing.engine.write.formats import image_extension
from danqing.engine.write.output import WEBDATASET, WriteOptions
from danqing.engine.write.writing import WRITERS
from tests.conftest import picture

GOOD = "公園的草地上有一隻可愛的小貓在曬太陽"
CLEAN = "公园的草地上有一只可爱的小猫在晒太阳"
SETTINGS = Settings(layout=Layout(caption_keys=("caption",)))
FORMS = ("JPEG", "PNG", "WEBP", "BMP")
KEPT = [picture(i, form=form) for i, form in enumerate(FORMS)]


def as_parquet(folder: Path) -> Path:
    day = datetime.date(2026, 1, 2)
    table = pa.table(
        {
            "image": [*KEPT, b"<html>"],
            "caption": [GOOD] * 5,
            "text": ["不是这一列"] * 5,
            "day": [day] * 5,
        }
    )
    pq.write_table(table, folder / "pairs.parquet")
    return folder / "pairs.parquet"


def as_table(folder: Path) -> Path:
    (folder / "in").mkdir()
    for number, data in enumerate(KEPT):
        (folder / "in" / f"p.{number}.jpg").write_bytes(data)
    names = [*(f"in/p.{number}.jpg" for number in range(4)), "in/none.jpg"]
    lines = [json.dumps({"file_name": name, "caption": GOOD, "n": 1}, ensure_ascii=False) for name in names]
    (folder / "metadata.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return folder


def as_folder(folder: Path) -> Path:
    for number, data in enumerate([*KEPT, b"%PDF"]):
        (folder / f"{number}.png").write_bytes(data)
        (folder / f"{number}.caption").write_text(GOOD, encoding="utf-8")
    return folder


@pytest.mark.parametrize("make", [as_parquet, as_table, as_folder])
@pytest.mark.parametrize("output_format", sorted(WRITERS))
def test_every_kind_of_input_becomes_every_kind_of_output(
    tmp_path: Path, plain_recipe: Recipe, make: Callable[[Path], Path], output_format: str
) -> None:
    (tmp_path / "in").mkdir()
    given = str(make(tmp_path / "in"))
    run, funnel, _ = curate([given], tmp_path / "out", plain_recipe, SETTINGS, WriteOptions(output_format))
    assert (funnel.collected, funnel.kept) == (5, 4)
    assert run.tar_path(0).exists() == (output_format == WEBDATASET)
    # What was written is input again, with the clean captions and the very bytes.
    (shard,) = find_shards([str(run.folder / "shards")])
    samples = list(open_shard(shard, Layout()))
    assert [s.image for s in samples] == KEPT and {s.caption for s in samples} == {CLEAN}
    again, funnel, _ = curate([str(run.folder / "shards")], tmp_path / "again", plain_recipe, Settings())
    assert (funnel.collected, funnel.kept) == (4, 4)
    assert all("data:image/jpeg" in (r.folder / "report.html").read_text() for r in (run, again))


def test_pictures_without_a_name_get_their_formats_extension(tmp_path: Path, plain_recipe: Recipe) -> None:
    run, _, _ = curate([str(as_parquet(tmp_path))], tmp_path / "out", plain_recipe, SETTINGS)
    with tarfile.open(run.tar_path(0)) as tar:
        names = tar.getnames()
        record = json.load(tar.extractfile("000000000.json"))  # type: ignore[arg-type]
    assert [name for name in names if not name.endswith((".txt", ".json"))] == [
        "000000000.jpg", "000000001.png", "000000002.webp", "000000003.bmp",
    ]  # fmt: skip
    assert record["day"] == "2026-01-02"


def test_extensions_that_no_reader_takes_for_a_picture_become_the_formats(tmp_path: Path, plain_recipe: Recipe) -> None:
    icon = picture(9, (120, 120), "ICO")
    names, pictures = ["a.123", "b.heic", "c.com", "d.jpe", "e"], [*KEPT, icon]
    for name, data in zip(names, pictures, strict=True):
        (tmp_path / name).write_bytes(data)
    (tmp_path / "t.csv").write_text("file_name,text\n" + "".join(f"{name},{GOOD}\n" for name in names), "utf-8")
    run, _, _ = curate([str(tmp_path / "t.csv")], tmp_path / "out", plain_recipe, Settings())
    with tarfile.open(run.tar_path(0)) as tar:
        assert tar.getnames()[::3] == ["a.jpg", "b.png", "c.webp", "d.jpe", "e.ico"]
    (shard,) = find_shards([str(run.folder / "shards")])
    assert [sample.image for sample in open_shard(shard, Layout())] == pictures


def test_keys_never_lead_out_of_a_tar_and_have_one_dot(tmp_path: Path, plain_recipe: Recipe) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "cat.1.jpg").write_bytes(picture(1))
    (tmp_path / "a" / "t.csv").write_text(f"file_name,text\n../cat.1.jpg,{GOOD}\n", encoding="utf-8")
    settings = Settings(layout=Layout(follow_links=True))
    run, _, _ = curate([str(tmp_path / "a" / "t.csv")], tmp_path / "out", plain_recipe, settings)
    with tarfile.open(run.tar_path(0)) as tar:
        assert tar.getnames() == ["cat%2E1.jpg", "cat%2E1.txt", "cat%2E1.json"]


def test_parquet_is_as_hugging_face_reads_it(tmp_path: Path, plain_recipe: Recipe) -> None:
    run, _, _ = curate([str(as_parquet(tmp_path))], tmp_path / "out", plain_recipe, SETTINGS, WriteOptions("parquet"))
    schema = pq.read_schema(run.table_path(0))
    assert json.loads(schema.metadata[b"huggingface"])["info"]["features"]["image"] == {"_type": "Image"}
    first = pq.read_table(run.table_path(0)).to_pylist()[0]
    assert first["image"] == {"bytes": KEPT[0], "path": "000000000.jpg"} and first["text"] == CLEAN
    assert first["input_text"] == "不是这一列" and first["words"] > 5


def test_the_format_can_be_changed_without_scoring_again(tmp_path: Path, plain_recipe: Recipe) -> None:
    given = [str(as_parquet(tmp_path))]
    run, _, _ = curate(given, tmp_path / "out", plain_recipe, SETTINGS)
    assert write_run(run, WriteOptions("parquet")) == 4 and not run.tar_path(0).exists()
    written = run.table_path(0).stat().st_mtime_ns
    assert (
        write_run(Run.open(run.folder), WriteOptions("parquet")) == 4
        and run.table_path(0).stat().st_mtime_ns == written
    )
    assert write_run(run) == 4 and "image" not in pq.read_schema(run.table_path(0)).names


def test_large_shards_are_written_in_parts(
    tmp_path: Path, plain_recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("danqing.engine.write.formats.ROW_GROUP", 3)
    run, _, _ = curate([str(as_parquet(tmp_path))], tmp_path / "out", plain_recipe, SETTINGS, WriteOptions("parquet"))
    assert pq.read_metadata(run.table_path(0)).num_row_groups == 2
    assert [row["bytes"] for row in pq.read_table(run.table_path(0))["image"].to_pylist()] == KEPT


def test_an_input_that_changed_is_refused(tmp_path: Path, plain_recipe: Recipe) -> None:
    out = tmp_path.parent / f"{tmp_path.name}-out"
    run, _, _ = curate([str(as_folder(tmp_path))], out, plain_recipe, SETTINGS)
    (tmp_path / "1.png").write_bytes(picture(77))
    with pytest.raises(DanqingError, match=r"row 1 \(1\) was changed since it was scored"):
        write_run(Run.open(run.folder), WriteOptions("parquet"))


def test_a_broken_picture_is_no_reason_to_fail_where_pictures_do_not_matter(tmp_path: Path) -> None:
    assert image_extension(Sample("k", b"junk", "", ""), 81) == "bin"
    buffer = io.BytesIO()
    Image.new("L", (9, 9)).save(buffer, "TIFF")
    assert image_extension(Sample("k", buffer.getvalue(), "", ""), 81) == "tif"
    assert image_extension(Sample("k", buffer.getvalue(), "", ""), 80) == "bin"


def test_curate_takes_the_format_from_the_command_line(tmp_path: Path, plain_recipe: Recipe, capsys: Any) -> None:
    from danqing.engine.cli.main import main

    recipe = str(tmp_path / "plain.yaml")
    given, out = str(as_parquet(tmp_path)), str(tmp_path / "out")
    assert (
        main(["curate", given, "-o", out, "--recipe", recipe, "--output-format", "parquet", "--caption-key", "caption"])
        == 0
    )
    assert "4 pairs in" in capsys.readouterr().out and not (tmp_path / "out" / "shards" / "00000.tar").exists()
    assert main(["write", out, "--output-format", "webdatset"]) == 2
    assert "no 'webdatset' is installed; did you mean 'webdataset'?" in capsys.readouterr().err
    assert main(["write", out, "--output-format", "webdataset", "--shard-size", "3", "--shuffle", "1"]) == 0
    assert (tmp_path / "out" / "shards" / "00001.tar").exists()
    (tmp_path / "out" / "report.html").unlink()
    assert main(["report", out]) == 0 and (tmp_path / "out" / "report.html").exists()
    assert main(["write", out, "--shuffle", "-1"]) == 2 and "--shuffle -1: give a seed" in capsys.readouterr().err
