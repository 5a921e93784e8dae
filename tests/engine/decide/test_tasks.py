"""The search for near rows as tasks: the verdicts without them, whatever the blocks, the order and the index."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

import danqing.engine.decide.cluster
import danqing.engine.run.cluster
from danqing.engine.cli.main import main
from danqing.engine.core.device import Device
from danqing.engine.core.errors import DanqingError
from danqing.engine.core.progress import Silent
from danqing.engine.decide.cluster import NeighbourCluster, RaySearch
from danqing.engine.decide.dedup import faiss_index
from danqing.engine.decide.merging import merge
from danqing.engine.decide.reference import with_references
from danqing.engine.decide.tasks import TaskList, latest_list, run_task
from danqing.engine.decide.verdicts import decide, list_tasks
from danqing.engine.recipe.reading import Recipe
from danqing.engine.run.folder import Run
from tests.engine.decide.runs import make_run, on_circle
from tests.engine.decide.test_dedup import crowd
from tests.engine.decide.test_verdicts import columns, recipe_of
from tests.engine.score.test_cluster import StubRay

ROWS = 240
RECIPE = """
recipe: r
models: {image_embedding: efficientnet-lite0-conse}
criteria:
  words: {min: 2}
  redundancy: {within: 0.02, prefer: survivors, max_diameter: 0.018, keep_at_most: 2}
  again: {within: 0.015}
  unsafe_image: {max: 0.5}
  wider: {within: 0.1, "keep": "highest:words"}
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    return recipe_of(tmp_path, RECIPE)


@pytest.fixture
def run(recipe: Recipe, tmp_path: Path) -> Run:
    """240 rows in shards of 50, with groups, and a crowd of 30 copies over all shards."""
    chance, features = np.random.default_rng(3), crowd(3, ROWS)
    features[::8] = features[0]
    scores = {"words": chance.integers(0, 9, ROWS).tolist(), "unsafe_image": chance.random(ROWS).tolist()}
    return make_run(tmp_path / "run", recipe, features, columns(ROWS, **scores), [50, 50, 50, 50, 40])


@pytest.fixture
def expected(run: Run, recipe: Recipe, device: Device) -> dict[str, bytes]:
    """What a decision without tasks writes."""
    other = Run.open(shutil.copytree(run.folder, run.folder.with_name("plain")))
    assert 0 < decide(other, recipe, device).kept < ROWS
    return written(other)


def written(run: Run) -> dict[str, bytes]:
    paths = [run.folder / "funnel.json", run.folder / "saved.parquet", *(run.folder / "verdicts").iterdir()]
    return {path.name: path.read_bytes() for path in paths}


def search(
    run: Run, recipe: Recipe, device: Device, count: int, index: str, order: Callable[[range], Iterable[int]] = iter
) -> list[TaskList]:
    """Lists and does the tasks of one criterion after the other."""
    done = []
    while tasks := list_tasks(run, recipe, count, device, neighbours=index):
        for number in order(range(len(tasks.pairs))):
            run_task(run, latest_list(run), number, device, neighbours=index)
        done.append(tasks)
    return done


@pytest.mark.parametrize("index", ["tiles", "faiss", "lists"])
@pytest.mark.parametrize("count", [1, 3, 10])
def test_verdicts_are_those_without_tasks(
    run: Run,
    recipe: Recipe,
    device: Device,
    expected: dict[str, bytes],
    monkeypatch: pytest.MonkeyPatch,
    index: str,
    count: int,
) -> None:
    monkeypatch.setattr(faiss_index, "NEAREST", (4, 9))  # fewer than there are copies
    done = search(run, recipe, device, count, index)
    assert [(tasks.criterion, len(tasks.pairs)) for tasks in done] == [("redundancy", count), ("wider", count)]
    assert done[0].rows > done[1].rows > 0  # `again` needs no search of its own: its distance is not larger
    decide(run, recipe, device)
    assert written(run) == expected and run.manifest["neighbours"]["redundancy"] == "tasks"


def test_a_cluster_that_was_stopped_does_the_other_tasks(
    run: Run, recipe: Recipe, device: Device, expected: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    done, stops = list[int](), [4]

    def run_task_or_stop(run: Run, tasks: TaskList, number: int, device: Device, **named: str) -> None:
        if number in stops:
            stops.remove(number)
            raise DanqingError("stopped")
        done.append(number)
        run_task(run, tasks, number, device, **named)

    monkeypatch.setattr(danqing.engine.decide.cluster, "run_task", run_task_or_stop)
    monkeypatch.setattr(danqing.engine.run.cluster, "records_to", lambda send: nullcontext())  # the worker is here
    how = RaySearch("auto", tasks=5)
    cluster = NeighbourCluster(StubRay([{"Alive": True, "Resources": {"CPU": 1.0}}]), how, "auto", Silent())
    with pytest.raises(DanqingError, match=r"worker 0 on .*: stopped"):
        decide(run, recipe, device, cluster=cluster)
    assert len(latest_list(run).missing(run)) == 2
    decide(run, recipe, device, cluster=cluster)
    assert done == [*range(6), *range(6)] and written(run) == expected  # `wider` has six more
    assert not (run.folder / "neighbours").exists()
    decide(run, recipe_of(Path(run.folder).parent, RECIPE, "redundancy.recall=0.9"), device, cluster=cluster)
    assert run.manifest["neighbours"]["redundancy"] != "tasks" and run.manifest["neighbours"]["wider"] == "tasks"


def test_tasks_can_be_done_twice_and_in_any_order(
    run: Run, recipe: Recipe, device: Device, expected: dict[str, bytes]
) -> None:
    done = search(run, recipe, device, 5, "tiles", lambda numbers: [*reversed(numbers), *numbers])
    assert [len(tasks.pairs) for tasks in done] == [6, 6]
    path = done[0].path(run, 4)
    forest = path.read_bytes()
    path.unlink()
    run_task(run, done[0], 4, device)
    assert path.read_bytes() == forest and np.load(path).shape[0] == 2
    assert list_tasks(run, recipe, 3, device) is None
    decide(run, recipe, device)
    assert written(run) == expected


def test_a_missing_task_is_named_and_a_damaged_one_is_done_again(
    run: Run, recipe: Recipe, device: Device, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["decide", str(run.folder), "--recipe", str(tmp_path / "r.yaml"), "--device", "cpu"]
    task = ["decide", str(run.folder), "--device", "cpu", "--neighbour-task"]
    assert main([*task, "0"]) == 2 and "no list of tasks; write it first" in capsys.readouterr().err
    assert main([*command, "--neighbour-tasks", "3"]) == 0
    printed = capsys.readouterr().out
    assert "3 tasks of redundancy over" in printed and "0 to 2" in printed
    for number in "02":
        assert main([*task, number, "--json"]) == 0 and '"tasks": 3' in capsys.readouterr().out
    assert main(command) == 2
    assert "1 of 3 tasks of redundancy are not done: 1; run `danqing decide" in capsys.readouterr().err
    assert main([*task, "3"]) == 2 and "has the tasks 0 to 2" in capsys.readouterr().err
    assert main([*task, "1"]) == 0 and main(command) == 0  # `wider` was not listed, so it is searched here
    tasks = latest_list(run)
    path = tasks.path(run, 1)
    path.write_bytes(path.read_bytes()[:-8])
    assert main([*command, "--set", "words.max=99"]) == 2
    assert f"{path}: damaged" in (error := capsys.readouterr().err) and "--neighbour-task 1" in error
    assert main([*task, "1", "--set", "words.min=3"]) == 2 and "with another recipe" in capsys.readouterr().err


def test_a_list_of_another_decision_is_refused(run: Run, recipe: Recipe, device: Device, tmp_path: Path) -> None:
    tasks = list_tasks(run, recipe, 1, device)
    assert tasks is not None
    run_task(run, tasks, 0, device)
    for setting, words in (
        ("redundancy.within=0.03", "within 0.02 there, 0.03 here"),
        ("words.min=5", f"{tasks.rows} rows reach redundancy with recipe {tasks.recipe_hash} there"),
    ):
        with pytest.raises(DanqingError, match=f"listed for another decision: {words}.*delete that folder"):
            decide(run, recipe_of(tmp_path, RECIPE, setting), device)
    with pytest.raises(DanqingError, match=r"tasks compare all pairs, but it asks for a recall of 0\.9"):
        list_tasks(run, recipe_of(tmp_path, RECIPE, "redundancy.recall=0.9"), 1, device)
    later = recipe_of(tmp_path, RECIPE, "unsafe_image.max=0.4", "redundancy.prefer=null")
    decide(run, later, device)  # the same rows are compared
    again = list_tasks(run, recipe_of(tmp_path, RECIPE, "words.min=5"), 3, device)
    assert again is not None and again.rows < tasks.rows and not tasks.path(run, 0).exists()
    with pytest.raises(DanqingError, match="write the list again"):  # a task that began before the list was replaced
        run_task(run, tasks, 0, device)
    table = pq.read_table(run.scores_path(0)).replace_schema_metadata({b"danqing.features": b"another"})
    pq.write_table(table, run.scores_path(0))
    with pytest.raises(DanqingError, match="was scored again, so list the tasks again"):
        run_task(run, again, 0, device)
    run_task(run, again, 5 - 3, device)  # of the last blocks, whose shards are as they were
    with pytest.raises(DanqingError, match="the scores changed since"):
        decide(run, recipe_of(tmp_path, RECIPE, "words.min=5"), device)


def test_other_runs_are_compared_as_without_tasks_and_a_merge_has_none(
    recipe: Recipe, device: Device, tmp_path: Path
) -> None:
    other = make_run(tmp_path / "other", recipe, on_circle(0, 90), columns(2), first_uid=1000)
    decide(other, recipe, device)
    run = make_run(tmp_path / "run", recipe, on_circle(1, 2, 50, 52, 91), columns(5))
    both = with_references(recipe, [other.folder], [other.folder], 0.001)
    assert [tasks.rows for tasks in search(run, both, device, 3, "tiles")] == [2, 1]  # the others are excluded before
    assert decide(run, both, device).kept == 1
    merged, _ = merge([other.folder], tmp_path / "all", device)
    with pytest.raises(DanqingError, match="is a merge"):
        list_tasks(merged, recipe, 1, device)


def test_no_rows_are_one_task(recipe: Recipe, device: Device, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", recipe, on_circle(0, 1), columns(2, words=[0, 0]), [2, 0])
    assert [(tasks.rows, len(tasks.pairs)) for tasks in search(run, recipe, device, 6, "tiles")] == [(0, 1)] * 2
    assert decide(run, recipe, device).kept == 0
