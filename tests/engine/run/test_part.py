"""Parts: tasks that score and write one run at once, and what the others may do meanwhile."""

from __future__ import annotations

import json
import shutil
import threading
from pathlib import Path
from typing import Any

import pytest

from danqing.engine.cli.main import main
from danqing.engine.core.errors import DanqingError
from danqing.engine.core.files import LOCK
from danqing.engine.phases import curate, write_run
from danqing.engine.recipe.reading import Recipe
from danqing.engine.run.folder import Run
from danqing.engine.run.lock import lock_folder
from danqing.engine.run.part import TaskPart
from danqing.engine.run.settings import Settings
from danqing.engine.write.output import WriteOptions
from tests.engine.score.test_run import crawl, samples, tree

__all__ = ["crawl"]


def products(folder: Path) -> dict[str, bytes]:
    texts = ("damaged.json", "README.md", "shards/sizes.json", "funnel.json")
    return tree(folder) | {name: (folder / name).read_bytes() for name in texts}


@pytest.mark.parametrize("text", ["3", "3/3", "-1/3", "0/0", "1/3/5", "a/b", "0/16 ", "²/3"])
def test_a_wrong_part_is_named(text: str) -> None:
    with pytest.raises(DanqingError, match="write I/N with I from 0 to N - 1"):
        TaskPart.parse(text)


def test_every_shard_is_in_one_part() -> None:
    parts = [TaskPart(number, 4) for number in range(4)]
    assert [part.number for shard in range(6) for part in parts if part.holds(shard)] == [0, 1, 2, 3, 0, 1]
    assert [part.block(range(6)) for part in parts] == [range(1), range(1, 3), range(3, 4), range(4, 6)]
    assert [list(part.block(range(1))) for part in parts] == [[], [], [], [0]]


def test_parts_make_what_one_process_makes(
    crawl: list[str], make_shard: Any, plain_recipe: Recipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    last = make_shard(samples(30, 9), "00003.tar")
    last.write_bytes(last.read_bytes()[:-12000])  # damaged
    inputs, options = [*crawl, str(last)], WriteOptions(shard_size=4)
    curate(inputs, tmp_path / "one", plain_recipe, Settings(), options)
    out = str(tmp_path / "out")
    score = ["score", *inputs, "-o", out, "--recipe", str(tmp_path / "plain.yaml"), "--strict", "--part"]
    capsys.readouterr()
    assert main([*score, "0/3"]) == 3  # with the damaged shard
    assert "part 0/3 is scored; 2 shards of other parts have no scores yet" in capsys.readouterr().out
    assert main(["decide", out]) == 2
    assert capsys.readouterr().err.endswith(
        "2 shards have no scores yet, of 4: 00001, 00002; finish `danqing score --part` of 1/3, 2/3\n"
    )
    assert main(["explain", out, "none"]) == 2
    assert (
        "key or uid 'none' in the scored shards; 2 shards have no scores yet, of 4: 00001, 000"
        in capsys.readouterr().err
    )
    assert main([*score, "1/3"]) == 0 and main([*score, "1/3", "--json"]) == 0
    printed = capsys.readouterr().out
    assert json.loads(printed[printed.index("{") :])["unscored"] == 1
    assert not Run.open(tmp_path / "out").manifest["counts"]
    assert main([*score, "2/3"]) == 3  # the last one finishes the run, and knows all damage
    assert Run.open(tmp_path / "out").manifest["counts"] == {"scored_shards": 4}
    logs = [path.name for path in sorted((tmp_path / "out").glob("run-*.log"))]
    assert logs == ["run-0-of-3.log", "run-1-of-3.log", "run-2-of-3.log"]
    assert main(["decide", out]) == 0
    run, small = Run.open(tmp_path / "out"), ["--shard-size", "4"]
    assert main(["write", out, *small, "--shuffle", "1", "--part", "0/2"]) == 2
    assert "--shuffle: one process copies all pairs" in capsys.readouterr().err
    assert main(["write", out, *small, "--part", "1/2"]) == 0
    assert "part 1/2 is written; shards of other parts are missing" in capsys.readouterr().out
    assert not (tmp_path / "out" / "README.md").exists()
    assert main(["write", out, *small, "--part", "0/2"]) == 0 and "pairs in" in capsys.readouterr().out
    assert products(tmp_path / "one") == products(tmp_path / "out") and (tmp_path / "out" / "report.html").exists()
    before = (tmp_path / "out" / "run.json").read_bytes()
    for number in range(2):  # written again by mistake
        write_run(run, options, part=TaskPart(number, 2))
    assert (tmp_path / "out" / "run.json").read_bytes() == before
    smaller = WriteOptions(shard_size=3)  # other shards in place of the earlier ones
    assert "written" not in _manifest_after(run, smaller, TaskPart(0, 2))
    assert "written" in _manifest_after(run, smaller, TaskPart(1, 2))
    write_run(Run.open(tmp_path / "one"), smaller)
    assert products(tmp_path / "one") == products(tmp_path / "out")


def test_the_parts_of_one_writing_have_the_same_options(
    crawl: list[str], plain_recipe: Recipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    curate(crawl, out, plain_recipe, Settings(), WriteOptions(shard_size=3))
    whole = tree(out)
    shutil.rmtree(out / "shards")
    write = ["write", str(out), "--part"]
    assert main([*write, "0/2", "--shard-size", "3"]) == 0
    before, found = tree(out), []
    for other in (["--shard-size", "4"], ["--shard-size", "3", "--licence", "mit", "--output-format", "parquet"]):
        assert main([*write, "1/2", *other]) == 2
        found.append(capsys.readouterr().err.replace("\n", " "))
    assert "parts are being written with --shard-size 3, and part 1/2 has --shard-size 4; give all" in found[0]
    assert "with --output-format webdataset --licence other, and part 1/2 has --output-format parquet" in found[1]
    assert tree(out) == before
    for part in ("1/3", "2/3"):  # another number of parts is no other writing
        assert main([*write, part, "--shard-size", "3"]) == 0
    assert tree(out) == whole and not (out / "shards" / "writing.json").exists()
    assert main([*write, "0/2", "--shard-size", "4"]) == 0  # the earlier writing is finished
    assert (out / "shards" / "writing.json").exists()
    assert main(["write", str(out), "--shard-size", "3"]) == 0  # one process needs no agreement
    assert tree(out) == whole and not (out / "shards" / "writing.json").exists()
    assert main([*write, "0/2", "--shard-size", "4"]) == 0
    assert main(["decide", str(out), "--set", "words.max=9"]) == 0
    assert main([*write, "0/2", "--shard-size", "2"]) == 0  # the verdicts are others
    shutil.rmtree(out / "shards")
    assert main([*write, "0/2", "--shard-size", "5"]) == 0


def _manifest_after(run: Run, options: WriteOptions, part: TaskPart) -> dict[str, Any]:
    write_run(run, options, part=part)
    return Run.open(run.folder).manifest


def test_shards_are_divided_by_parts_or_by_ray(
    crawl: list[str], plain_recipe: Recipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    score = ["score", *crawl, "-o", str(out), "--recipe", str(tmp_path / "plain.yaml")]
    curate(crawl, tmp_path / "one", plain_recipe, Settings())
    for command in (score, ["write", str(tmp_path / "one")]):
        assert main([*command, "--part", "0/2", "--ray", "local"]) == 2
        assert "--part 0/2 and --ray local: both divide the shards" in capsys.readouterr().err
    assert not out.exists()


def test_decide_finishes_what_the_last_task_could_not(crawl: list[str], plain_recipe: Recipe, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run, _, _ = curate(crawl, out, plain_recipe, Settings())
    before = products_of(out)
    run.manifest["counts"] = {}
    run.save()
    shutil.rmtree(out / "verdicts")
    assert main(["decide", str(out)]) == 0
    assert products_of(out) == before and Run.open(out).manifest["counts"] == {"scored_shards": 3}


def products_of(folder: Path) -> dict[str, bytes]:
    return {name: content for name, content in tree(folder).items() if name.startswith(("scores", "verdicts"))}


def test_parts_run_together_but_beside_no_other_command(
    crawl: list[str], plain_recipe: Recipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    recipe = ["--recipe", str(tmp_path / "plain.yaml")]
    score = ["score", *crawl, "-o", str(out), *recipe]
    assert main([*score, "--part", "1/2"]) == 0

    def in_use(command: list[str]) -> bool:
        status = main(command)
        return status == 2 and f"{out}: in use by process " in capsys.readouterr().err

    found: list[bool] = []

    def others() -> None:
        found.extend(in_use([*score, *more]) for more in ([], ["--part", "0/2"]))
        found.append(in_use(["decide", str(out)]))
        with lock_folder(out, TaskPart(1, 2)):
            found.append(True)

    with Run.open(out).locked(TaskPart(0, 2)):
        thread = threading.Thread(target=others)  # which holds none of this thread's locks
        thread.start()
        thread.join()
    assert found == [True] * 4 and (out / LOCK).exists()  # it may be another task's
    assert main([*score, "--part", "0/2", "--set", "words.max=9"]) == 2  # not started again by a part
    assert "scored differently" in capsys.readouterr().err
    assert main(score) == 0 and not list(out.glob(f"{LOCK}*"))
