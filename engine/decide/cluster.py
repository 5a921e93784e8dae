"""DECIDE's search for near rows on a Ray cluster: its workers do the tasks of `engine.decide.tasks`."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from danqing.engine.core.device import kind_of, open_device
from danqing.engine.core.progress import Progress
from danqing.engine.decide.tasks import TaskList, run_task
from danqing.engine.run.cluster import Job, Worker, WorkerSpec, device_name, resources_of, run_on_cluster
from danqing.engine.run.folder import Run
from danqing.engine.run.work import Names

TASKS = 36
"""Tasks of a search by default: eight blocks. A task holds the features of two."""
SEARCH_TASKS = Names("task", "comparisons")


class NeighbourSearcher(Worker):
    """A worker that does tasks of a list.

    Args:
        folder: the run's folder.
        criterion: whose list it is.
        device: among those that Ray shows the worker.
        threads: of the host.
        neighbours: index of the search, or `auto` (`choose_index`).
    """

    def __init__(self, folder: Path, criterion: str, device: str, threads: int, neighbours: str) -> None:
        self._folder, self._criterion, self._neighbours = folder, criterion, neighbours
        self._device, self._threads = device, threads
        self._open = ExitStack()

    def open(self) -> str:
        """Opens the device and reads the list."""
        self._run = Run.open(self._folder)
        tasks = TaskList.read(self._run, self._criterion)
        assert tasks is not None
        self._tasks, self._opened = tasks, self._open.enter_context(open_device(self._device, self._threads))
        return device_name(self._device)

    def work(self, number: int) -> None:
        """Does a task, unless it is done."""
        run_task(self._run, self._tasks, number, self._opened, neighbours=self._neighbours)


@dataclass(frozen=True)
class RaySearch:
    """Settings of a search on a Ray cluster.

    Attributes:
        address: of the cluster, see `connected`.
        device: of every worker.
        threads: cores of a worker; None: see `resources_of`.
        workers_per_gpu: number of workers that share a GPU.
        tasks: least number of tasks of a search.
    """

    address: str
    device: str = "cpu"
    threads: int | None = None
    workers_per_gpu: int = 1
    tasks: int = TASKS


@dataclass(frozen=True)
class NeighbourCluster:
    """A Ray cluster that does the tasks of a decision.

    Attributes:
        ray: the module, from `connected`.
        how: address, workers and tasks.
        neighbours: index of the search, or `auto` (`choose_index`).
        progress: receives the comparisons of all workers, task by task.
    """

    ray: Any
    how: RaySearch
    neighbours: str
    progress: Progress

    def search(self, run: Run, tasks: TaskList) -> None:
        """Does the tasks of a list that are not done.

        Args:
            run: the run folder. It has the same path on every node.
            tasks: its list.

        Raises:
            DanqingError: a worker raised it, or tasks were given up; names them.
        """
        missing = tasks.missing(run)
        self.progress.expect(sum(tasks.comparisons(number) for number in missing), 0)

        def finished(number: int, _: None) -> int:
            self.progress.advance(tasks.comparisons(number))
            return tasks.comparisons(number)

        def given_up(lost: list[int]) -> str:
            return (
                f"tasks of {tasks.criterion} of {run.folder}: {', '.join(map(str, lost))}; all others are done. Find "
                "the cause (memory: more --neighbour-tasks), then run the command again"
            )

        how = self.how
        resources = resources_of(how.device, how.threads, how.workers_per_gpu, self.ray.nodes())
        threads = max(int(resources["CPU"]), 1)
        arguments = run.folder.resolve(), tasks.criterion, kind_of(how.device), threads, self.neighbours
        spec = WorkerSpec(NeighbourSearcher, arguments, resources)
        run_on_cluster(self.ray, Job(how.address, spec, missing, finished, given_up, SEARCH_TASKS), self.progress)
