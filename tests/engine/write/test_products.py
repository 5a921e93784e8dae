"""Output shards over the borders of input shards, and which products are there, stale or lost."""

from __future__ import annotations

import doctest
import json
import re
import shutil
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
import yaml

from danqing.api import open_run
from danqing.engine.cli.main import main
from danqing.engine.core import schemas
from danqing.engine.core.errors import DanqingError
from danqing.engine.core.files import commit
from danqing.engine.decide.contents import hash_file, verdicts_hash
from danqing.engine.phases import curate, decide_run, write_run
from danqing.engine.recipe.reading import Recipe, load_recipe
from danqing.engine.run.folder import Run, finished_work
from danqing.engine.run.settings import Settings
from danqing.engine.write import card, formats, order, output, products, writing
from danqing.engine.write.output import WriteOptions
from tests.conftest import RECIPE_WITHOUT_NETWORKS, picture

GOOD = "公園的草地上有一隻可愛的小貓在曬太陽"
ROWS = (4, 3, 5)
SMALL = WriteOptions(shard_size=5)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder `tests` with inputs, a recipe and a written run, and its copy `kept`.

    The inputs are three Parquet files with the same keys, fields of changing type, one NaN, and uids of their own.
    """
    folder = tmp_path_factory.mktemp("products") / "tests"
    folder.mkdir()
    for number, rows in enumerate(ROWS):
        columns: dict[str, Any] = {
            "image": [picture(10 * number + i, form="JPEG" if number else "PNG") for i in range(rows)],
            "text": [f"{GOOD}第{number}{i}张{'照片' * i}" for i in range(rows)],
            "key": [f"k.{i}" for i in range(rows)],
            "uid": [f"{10 * number + i:032x}" for i in range(rows)],
            "score": [float("nan")] * rows if number == 0 else list(range(rows)),
            "note": pa.nulls(rows) if number == 0 else [{"deep": [float("inf"), 1.5]}] * rows,
        }
        pq.write_table(pa.table(columns), folder / f"{number}.parquet")
    (folder / "plain.yaml").write_text(RECIPE_WITHOUT_NETWORKS)
    paths = [str(folder / f"{number}.parquet") for number in range(len(ROWS))]
    curate(paths, folder / "out", load_recipe(folder / "plain.yaml"), Settings(), SMALL)
    shutil.copytree(folder, folder.with_name("kept"))
    return folder


@pytest.fixture
def inputs(built: Path) -> list[str]:
    """The inputs, beside the run, as they were before other tests changed them. A run names its inputs' full paths."""
    shutil.rmtree(built)
    shutil.copytree(built.with_name("kept"), built)
    return [str(built / f"{number}.parquet") for number in range(len(ROWS))]


@pytest.fixture
def run(inputs: list[str]) -> Run:
    return Run.open(Path(inputs[0]).parent / "out")


def stricter(run: Run, fewer: int) -> Recipe:
    """A recipe that allows fewer words than the longest caption, which is the last of the last input shard, has.

    With 1 it drops this pair only; with 2 also one of the first input shard.
    """
    longest = max(pq.read_table(run.scores_path(2))["words"].to_pylist())
    return load_recipe(run.folder.parent / "plain.yaml", [f"words.max={longest - fewer}"])


def products_of(run: Run) -> dict[str, tuple[int, bytes]]:
    """Products → inode and content."""
    found = [*(run.folder / "shards").glob("*"), *(run.folder / name for name in ("report.html", "README.md"))]
    files = [*found, run.folder / "kept_uids.npy"]
    return {path.name: (path.stat().st_ino, path.read_bytes()) for path in files if path.exists()}


def members(tar: Path) -> dict[str, bytes]:
    with tarfile.open(tar) as opened:
        names = opened.getnames()
        assert len(set(names)) == len(names)
        return {m.name: opened.extractfile(m).read() for m in opened}  # type: ignore[union-attr]


def written_uids(run: Run) -> list[list[int]]:
    """The uids of each shard, read from its tar, after a comparison with its table."""
    out = []
    for number in products.shard_files(run):
        found = members(run.tar_path(number))
        records = [json.loads(found[name]) for name in found if name.endswith(".json")]
        table = pq.read_table(run.table_path(number)).to_pylist()
        assert [r["uid"] for r in records] == [r["uid"] for r in table]
        pictures = [content for name, content in found.items() if name.endswith((".jpg", ".png"))]
        assert pictures == [picture(u, form="JPEG" if u > 9 else "PNG") for u in (int(r["uid"], 16) for r in records)]
        out.append([int(r["uid"], 16) for r in records])
    return out


def test_output_shards_are_full_and_in_input_order(run: Run) -> None:
    assert written_uids(run) == [[0, 1, 2, 3, 10], [11, 12, 20, 21, 22], [23, 24]]
    sizes = json.loads((run.folder / "shards" / "sizes.json").read_text())
    assert sizes == {"00000.tar": 5, "00001.tar": 5, "00002.tar": 2}
    # The keys k.0, k.1 … of the input shards meet in one output shard.
    names = [name.split(".")[0] for name in members(run.tar_path(1)) if name.endswith(".txt")]
    assert names == ["k%2E1", "k%2E2", "k%2E0", "k%2E1_1", "k%2E2_1"]


@pytest.mark.parametrize("output_format", ["webdataset", "parquet"])
def test_a_shuffle_is_a_permutation_that_the_seed_decides(run: Run, output_format: str) -> None:
    options = WriteOptions(output_format, shard_size=5, shuffle=7)
    uids = [int(uid, 16) for s in run.shards for uid in pq.read_table(run.scores_path(s.number))["uid"].to_pylist()]
    expected = [uids[place] for place in np.random.RandomState(7).permutation(len(uids))]
    assert write_run(run, options) == len(uids)
    tables = [pq.read_table(run.table_path(number)) for number in range(3)]
    assert [int(uid, 16) for table in tables for uid in table["uid"].to_pylist()] == expected != uids
    if output_format == "webdataset":
        assert [uid for shard in written_uids(run) for uid in shard] == expected
    else:
        images = [record["bytes"] for table in tables for record in table["image"].to_pylist()]
        assert images == [picture(uid, form="JPEG" if uid > 9 else "PNG") for uid in expected]
    before = products_of(run)
    run.table_path(1).unlink()
    write_run(Run.open(run.folder), options)
    assert {name: content for name, (_, content) in products_of(run).items()} == {
        name: content for name, (_, content) in before.items()
    }
    assert [path for path in run.folder.iterdir() if path.name.startswith(("tmp", "."))] == []


def test_options_out_of_range_are_refused() -> None:
    with pytest.raises(DanqingError, match="--shard-size 0"):
        WriteOptions(shard_size=0)
    with pytest.raises(DanqingError, match="--shuffle -1"):
        WriteOptions(shuffle=-1)


def test_members_are_json_and_all_tables_have_one_schema(run: Run) -> None:
    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    for number in range(3):
        for name, content in members(run.tar_path(number)).items():
            if name.endswith(".json"):
                json.loads(content, parse_constant=refuse)
    record = json.loads(members(run.tar_path(1))["k%2E1.json"])
    assert record["note"] == {"deep": [None, 1.5]} and record["score"] == 1.0
    assert len({str(pq.read_schema(path).remove_metadata()) for path in (run.folder / "shards").glob("*.parquet")}) == 1
    whole = ds.dataset(sorted((run.folder / "shards").glob("*.parquet"))).to_table()
    assert len(whole) == sum(ROWS)


def test_lost_products_are_made_again_and_the_others_stay(run: Run) -> None:
    before = products_of(run)
    tar = run.tar_path(0).read_bytes()
    for damage in (
        lambda: run.tar_path(0).unlink(),
        lambda: run.tar_path(0).write_bytes(tar[: len(tar) // 2]),
        lambda: run.table_path(0).unlink(),
        lambda: (run.folder / "kept_uids.npy").write_bytes(b""),
        lambda: (run.folder / "report.html").unlink(),
        lambda: (run.folder / "README.md").unlink(),
        lambda: (run.folder / "shards" / "README.md").unlink(),
    ):
        damage()
        assert write_run(Run.open(run.folder), SMALL) == sum(ROWS)
        after = products_of(run)
        assert {name: content for name, (_, content) in after.items()} == {
            name: content for name, (_, content) in before.items()
        }
        assert after["00001.tar"] == before["00001.tar"]  # the very file


def test_products_of_earlier_verdicts_are_moved_aside_and_come_back(
    run: Run, plain_recipe: Recipe, capsys: pytest.CaptureFixture[str]
) -> None:
    before = products_of(run)
    (run.folder / "topics.json").write_text('{"verdicts": "others"}')
    decide_run(run, plain_recipe)  # nothing changes, so nothing but the topics of other verdicts is touched
    assert products_of(run) == before and not (run.folder / "topics.json").exists()
    assert decide_run(run, stricter(run, 2)).kept == 9
    said = " ".join(capsys.readouterr().err.split())
    assert "moved shards, kept_uids.npy, report.html, README.md of the earlier verdicts to" in said
    assert f"`danqing write {run.folder}` makes them again" in said
    assert products_of(run) == {} and "written" not in Run.open(run.folder).manifest
    decide_run(run, plain_recipe)
    write_run(run, SMALL)
    after = products_of(run)
    assert {name: content for name, (_, content) in after.items()} == {
        name: content for name, (_, content) in before.items()
    }
    assert after["00002.tar"] == before["00002.tar"] and not (run.folder / "stale").exists()  # moved back, not copied


def test_verdicts_elsewhere_do_not_touch_a_shard(run: Run) -> None:
    before = products_of(run)
    decide_run(run, stricter(run, 1))
    assert products_of(run) == {name: before[name] for name in ("00000.parquet", "00000.tar")}
    assert write_run(run, SMALL) == 11
    assert products_of(run)["00000.tar"] == before["00000.tar"] and written_uids(run)[2] == [23]


def test_a_shard_that_is_no_longer_needed_is_removed(run: Run) -> None:
    write_run(run, WriteOptions(shard_size=2))
    assert len(list(run.tar_path(0).parent.glob("*.tar"))) == 6
    write_run(run)
    assert {path.name for path in run.tar_path(0).parent.iterdir()} == {
        "00000.tar", "00000.parquet", "sizes.json", "README.md",
    }  # fmt: skip
    assert Run.open(run.folder).manifest["written"]["shards"] == 1


def test_nothing_kept_is_no_shard(inputs: list[str], tmp_path: Path, plain_recipe: Recipe) -> None:
    recipe = load_recipe(tmp_path / "plain.yaml", ["words.min=59"])
    run, funnel, _ = curate(inputs, tmp_path / "none", recipe, Settings(), WriteOptions(shuffle=1))
    assert funnel.kept == 0 and products.shard_files(run) == {}
    assert len(np.load(run.folder / "kept_uids.npy")) == 0


@pytest.mark.parametrize("output_format", ["webdataset", "parquet"])
def test_nothing_kept_is_an_empty_dataset_with_the_written_columns(
    run: Run, capsys: pytest.CaptureFixture[str], output_format: str
) -> None:
    write_run(run, WriteOptions(output_format))
    schema = open_run(run.folder).kept().schema
    decide_run(run, load_recipe(run.folder.parent / "plain.yaml", ["words.min=59"]))
    with pytest.raises(DanqingError, match="no written shards yet"):
        open_run(run.folder).kept()
    assert main(["write", str(run.folder), "--output-format", output_format]) == 0
    assert "nothing was kept, so there are no shards" in capsys.readouterr().out
    kept = open_run(run.folder).kept()
    assert kept.count_rows() == 0 and kept.schema.equals(schema)


class KilledError(BaseException):
    """Stands for a process that ends."""


@pytest.mark.parametrize("name", ["00000.tar", "00000.parquet", "00001.tar", "00001.parquet", "kept_uids.npy"])
def test_an_interrupted_write_in_another_format_is_noticed(
    run: Run, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    before = {name: content for name, (_, content) in products_of(run).items()}
    options = WriteOptions("parquet", shard_size=4)

    def killed(path: Path, mode: str = "wb") -> Any:
        if path.name == name:
            # What is on disk says that the run is not written, before any product was replaced.
            assert "written" not in json.loads((run.folder / "run.json").read_text())
            raise KilledError
        return commit(path, mode)

    with monkeypatch.context() as broken:
        for module in (formats, writing):
            broken.setattr(module, "commit", killed)
        if name.endswith(".tar"):
            options = WriteOptions(shard_size=4)
        with pytest.raises(KilledError):
            (run.folder / "kept_uids.npy").unlink()
            write_run(Run.open(run.folder), options)
    assert write_run(Run.open(run.folder), SMALL) == sum(ROWS)
    assert {name: content for name, (_, content) in products_of(run).items()} == before


@pytest.mark.parametrize("options", [WriteOptions("parquet"), WriteOptions(shard_size=2), WriteOptions(shuffle=1)])
@pytest.mark.parametrize("number", [0, 2])
def test_a_missing_or_changed_input_leaves_everything_as_it_was(
    run: Run, inputs: list[str], options: WriteOptions, number: int
) -> None:
    before, written = products_of(run), run.manifest["written"]
    table = pq.read_table(inputs[number])
    pq.write_table(table.slice(1), inputs[number])
    with pytest.raises(DanqingError, match=rf"{number}\.parquet: has {ROWS[number] - 1} samples, {ROWS[number]} were"):
        write_run(run, options)
    Path(inputs[number]).unlink()
    with pytest.raises(DanqingError, match=rf"{number}\.parquet: is missing"):
        write_run(run, options)
    assert products_of(run) == before and Run.open(run.folder).manifest["written"] == written


def test_a_stopped_write_says_that_the_run_is_scored_and_decided(
    run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stopped(*_: Any) -> None:
        raise KeyboardInterrupt

    assert finished_work(run.folder) == f"{run.folder} is scored, decided and written"
    monkeypatch.setattr(formats, "_check_tar", stopped)
    assert main(["write", str(run.folder), "--shard-size", "2"]) == 130
    said = capsys.readouterr().err
    assert f"interrupted; {run.folder} is scored and decided, not yet written; the same command" in said
    del run.manifest["decided"]
    run.manifest.pop("written", None)
    run.save()
    assert finished_work(run.folder) == f"3 of 3 shards of {run.folder} are scored"


def test_an_input_that_no_missing_shard_needs_may_be_missing(run: Run, inputs: list[str]) -> None:
    Path(inputs[2]).unlink()
    run.tar_path(0).unlink()
    assert write_run(run, SMALL) == sum(ROWS)


@pytest.mark.parametrize("options", [WriteOptions("parquet", 3), WriteOptions(shard_size=3)])
def test_summaries_do_not_stay_beside_shards_of_two_sets(
    run: Run, monkeypatch: pytest.MonkeyPatch, options: WriteOptions
) -> None:
    before = products_of(run)
    suffix = "parquet" if options.output_format == "parquet" else "tar"

    def write_until(name: str) -> None:
        """Writes on a disk that is full when a file is opened."""

        def full(path: Path, mode: str = "wb") -> Any:
            if path.name == name:
                raise OSError(28, "No space left on device", str(path))
            return commit(path, mode)

        monkeypatch.setattr(formats, "commit", full)
        with pytest.raises(OSError, match="No space"):
            write_run(Run.open(run.folder), options)

    write_until(f"00000.{suffix}")
    assert products_of(run) == before  # nothing was replaced
    write_until(f"00001.{suffix}")
    assert not {"README.md", "sizes.json", "kept_uids.npy"} & {*products_of(run)}
    monkeypatch.undo()
    write_run(Run.open(run.folder), SMALL)
    assert {name: content for name, (_, content) in products_of(run).items()} == {
        name: content for name, (_, content) in before.items()
    }


def test_an_exchanged_picture_is_noticed_though_its_uid_is_the_same(run: Run, inputs: list[str]) -> None:
    table = pq.read_table(inputs[1])
    images = table["image"].to_pylist()
    images[1:] = images[:0:-1]
    pq.write_table(table.set_column(0, "image", pa.array(images)), inputs[1])
    with pytest.raises(DanqingError, match=r"1\.parquet: row 1 \(.*\) was changed since it was scored"):
        write_run(run)


@pytest.mark.parametrize("rows", [2, 4])
def test_an_input_with_other_rows_is_noticed(make_shard: Any, tmp_path: Path, plain_recipe: Recipe, rows: int) -> None:
    samples = [{f"{i}.jpg": picture(i), f"{i}.txt": GOOD} for i in range(4)]
    shard = str(make_shard(samples[0] | samples[1] | samples[2]))
    run, _, _ = curate([shard], tmp_path / "out", plain_recipe, Settings())
    make_shard({name: content for sample in samples[:rows] for name, content in sample.items()})
    with pytest.raises(DanqingError, match=rf"00000\.tar: has {rows} samples, 3 were scored"):
        write_run(run, SMALL)


@pytest.mark.parametrize("output_format", ["webdataset", "parquet"])
def test_a_file_that_reads_back_differently_is_refused(
    run: Run, monkeypatch: pytest.MonkeyPatch, output_format: str
) -> None:
    check = {"webdataset": "_check_tar", "parquet": "check_table"}[output_format]
    original = getattr(formats, check)

    def flipped(file: Path, *rest: Any) -> None:
        """One bit of a picture changes between writing and reading."""
        data = bytearray(file.read_bytes())
        data[data.index(picture(20)[:400]) + 300] ^= 1
        file.write_bytes(data)
        original(file, *rest)

    monkeypatch.setattr(formats, check, flipped)
    with pytest.raises(DanqingError, match="what was read back differs from what was written"):
        write_run(run, WriteOptions(output_format, shard_size=12))
    assert list((run.folder / "shards").glob(".*")) == []


def test_the_verdicts_are_read_once(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    read = []

    def counted(path: Path, remedy: str) -> str:
        read.append(path)
        return hash_file(path, remedy)

    monkeypatch.setattr(output, "hash_file", counted)
    write_run(run, SMALL)
    assert read == [run.verdicts_path(shard.number) for shard in run.shards]
    assert run.manifest["written"]["verdicts"] == verdicts_hash(run)


def test_the_check_sees_every_kind_of_difference(tmp_path: Path) -> None:
    path = tmp_path / "00000.tar"

    def tar(*names: str) -> None:
        with tarfile.open(path, "w") as out:
            for name in names:
                formats._add(out, name, b"{}")

    def check(size: int = 2) -> None:
        formats._check_tar(path, [("a.json", size)], path, hash_file(path, ""))

    tar("a.json")
    check()
    with pytest.raises(DanqingError, match="members"):
        check(3)
    with pytest.raises(DanqingError, match="other bytes"):
        formats._check_tar(path, [("a.json", 2)], path, "0" * 32)
    for names in ((), ("b.json",), ("a.json", "a.json")):
        tar(*names)
        with pytest.raises(DanqingError, match="members"):
            check()
    table = pa.table({"uid": ["a", "b"], "x": [1.0, float("nan")]})
    formats.write_table(table, path)
    digest = hash_file(path, "")
    for other, words in (
        (table.slice(0, 1), "2 rows, 1 were written"),
        (table.take([1, 0]), "other rows"),
        (table.append_column("y", table["x"]), "columns are missing"),
    ):
        with pytest.raises(DanqingError, match=words):
            formats.check_table(path, other, path, digest)
    with pytest.raises(DanqingError, match="other bytes"):
        formats.check_table(path, table, path, "0" * 32)


def test_the_card_names_data_licence_and_decision(run: Run) -> None:
    write_run(run, WriteOptions(shard_size=5, licence="cc-by-4.0"))
    for folder, pattern in ((run.folder, "shards/*.tar"), (run.folder / "shards", "*.tar")):
        text = (folder / "README.md").read_text(encoding="utf-8")
        matter = yaml.safe_load(text.split("---\n")[1])
        assert matter["license"] == "cc-by-4.0" and matter["language"] == ["zh"]
        assert matter["configs"][0]["data_files"] == [{"split": "train", "path": pattern}]
        types = {field["name"]: field for field in matter["dataset_info"]["features"]}
        assert types["jpg"]["dtype"] == types["png"]["dtype"] == "image" and "bin" not in types
        fields = {field["name"]: field for field in types["json"]["struct"]}
        assert fields["note"]["struct"] == [{"name": "deep", "list": "float64"}]
        assert fields["score"]["dtype"] == "int64" and "error" not in fields
        assert "| collected | | 12 | | |" in text and "jionlp-pornography" in text
    write_run(run, WriteOptions("parquet"))
    matter = yaml.safe_load((run.folder / "README.md").read_text(encoding="utf-8").split("---\n")[1])
    assert matter["configs"][0]["data_files"][0]["path"] == "shards/*.parquet" and "dataset_info" not in matter
    (run.folder / "README.md").write_text("my own")
    decide_run(run, stricter(run, 2))
    write_run(run)
    assert (run.folder / "README.md").read_text() == "my own"


@pytest.mark.parametrize("output_format", ["webdataset", "parquet"])
def test_hugging_face_datasets_reads_the_pairs_that_verdicts_name(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, output_format: str
) -> None:
    datasets = pytest.importorskip("datasets")
    write_run(run, WriteOptions(output_format, shard_size=5))
    kept = sorted(f"{high:016x}{low:016x}" for high, low in np.load(run.folder / "kept_uids.npy"))
    for number, folder in enumerate((run.folder, run.folder / "shards")):
        found = datasets.load_dataset(str(folder), split="train", cache_dir=str(tmp_path / f"hf{number}"))
        records = found["json"] if output_format == "webdataset" else list(found)
        assert sorted(record["uid"] for record in records) == kept
        assert {record["note"] and tuple(record["note"]) for record in records} == {None, ("deep",)}


def test_webdataset_reads_the_pairs_that_verdicts_name(run: Run) -> None:
    webdataset = pytest.importorskip("webdataset")
    found = webdataset.WebDataset(sorted(map(str, run.tar_path(0).parent.glob("*.tar"))), shardshuffle=False).decode()
    uids = [sample["json"]["uid"] for sample in found]
    assert sorted(uids) == sorted(f"{high:016x}{low:016x}" for high, low in np.load(run.folder / "kept_uids.npy"))


def test_the_report_has_the_same_bytes_every_time(tmp_path: Path, plain_recipe: Recipe, make_shard: Any) -> None:
    broken = {"x.jpg": b"junk", "x.txt": GOOD, "y.txt": GOOD, "z.jpg": picture(1)[:900], "z.txt": GOOD}
    shard = str(make_shard(broken))
    recipe = load_recipe(tmp_path / "plain.yaml", ["words.max=8"])  # dropped before the pictures are looked at
    pages = []
    for place in ("a", "b"):
        run, _, _ = curate([shard], tmp_path / place / "run", recipe, Settings())
        page = (run.folder / "report.html").read_text(encoding="utf-8")
        pages.append(re.sub(r"<dt>(Scored|Time of scoring)</dt><dd>.*?</dd>", "", page))
    assert pages[0] == pages[1] and " at 0x" not in pages[0]
    assert ">no picture</span>" in pages[0] and "not a picture: " in pages[0]


@pytest.mark.parametrize("module", [card, formats, output, schemas])
def test_examples_run(module: object) -> None:
    assert doctest.testmod(module).failed == 0  # type: ignore[arg-type]


def test_ranges_may_be_read_in_any_order(run: Run) -> None:
    from danqing.engine.write.output import read_verdicts

    pairs = order.InputOrder(run, read_verdicts(run))

    def uids(first: int, last: int) -> list[int]:
        return [int(sample.uid, 16) for sample in pairs.samples(first, last)]

    assert uids(3, 6) == [3, 10, 11] and uids(6, 8) == [12, 20] and uids(0, 2) == [0, 1] and uids(11, 12) == [24]
    assert next(pairs.samples(5, 9)).uid == f"{11:032x}"  # left before its end
    assert uids(9, 10) == [22] and uids(5, 7) == [11, 12]


def test_missing_verdicts_are_named(run: Run) -> None:
    run.verdicts_path(1).unlink()
    with pytest.raises(DanqingError, match=r"00001\.parquet: no verdicts; run `danqing decide"):
        write_run(run)
