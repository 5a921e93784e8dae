"""Measures the engine on a GPU, step by step, within time limits; prints a table.

    python -m danqing.profiling.bench.gpu --output FOLDER            # all steps, the most valuable ones first
    python -m danqing.profiling.bench.gpu networks pictures          # these steps
    python -m danqing.profiling.bench.gpu --device cpu --minutes 9   # tries the steps without a GPU, at small sizes

Steps: tests (tests/gpu), pictures (decode, resize), kernels (parity with the CPU, captions a second), networks (an
image tower of random weights in every runtime that is installed), end-to-end (shards to scores), workers (one and two
processes on the GPU), neighbours (near-duplicates by every index), tables (SELECT, captions of a cuDF column),
perplexity (of captions), train (SigLIP 2 on tensors and from shards), evaluate (both towers), balance (k-means).

Each is a process with a time limit; if one fails or hangs, the others still run, and the exit status is 1. The folder
receives STEP.json with each figure as it is measured, STEP.log with all that the step printed, and results.md. The
models are exported in the background while the first steps run.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from argparse import Namespace
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

from rich import box
from rich.markup import escape
from rich.table import Table

from danqing.engine.core.files import write_json
from danqing.profiling.bench import harness
from danqing.profiling.bench.gpu.material import SMALL, Figure, Job, export_models, link_cache

PACKAGES = ("onnxruntime-gpu", "onnxruntime", "tensorrt-cu13", "torch", "nvidia-nvimgcodec-cu13", "nvidia-dali-cuda130",
            "cupy-cuda13x", "numba-cuda", "cudf-cu13", "faiss-gpu", "faiss-gpu-cuvs")  # fmt: skip
EXPORT = "export"
STEPS = {
    "tests": ("tests:measure", 180),
    "pictures": ("pictures:measure", 60),
    "kernels": ("columns:measure_kernels", 100),
    "networks": ("tower:measure_networks", 180),
    "end-to-end": ("tower:measure_end_to_end", 150),
    "workers": ("tower:measure_workers", 150),
    "neighbours": ("columns:measure_neighbours", 150),
    "tables": ("columns:measure_tables", 90),
    "perplexity": ("texts:measure_perplexity", 90),
    "train": ("train:measure", 240),
    "evaluate": ("texts:measure_evaluation", 60),
    "balance": ("columns:measure_balance", 30),
}
"""Name → the function of this package that yields its figures, and its time limit in seconds on a GPU."""
MAX_ERROR, SHOWN_ERROR = 20_000, 600
"""Characters of a step's output that are kept as its error, and shown in the table; STEP.log has all."""
CPU_LIMIT = 420
"""Time limit of a step on a CPU in seconds."""


def figures(step: str, job: Job) -> Iterator[Figure]:
    """Runs a step in this process."""
    found: Iterator[Figure] = resolve_name(f"danqing.profiling.bench.gpu.{STEPS[step][0]}")(job)
    return found


def main() -> int:
    options = _options()
    if options.one:
        _run_one(options.one[0], _job(options, Path(options.one[1])))
        return 0
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that `timeout` ends the steps, too
    return harness.main(_run, options, PACKAGES) or int(options.failed)


def _options() -> Namespace:
    parser = harness.new_parser(__doc__)
    parser.add_argument("steps", nargs="*", metavar="STEP", help=f"default: all; of {', '.join(STEPS)}")
    parser.add_argument("--device", default="cuda", help="cuda, cuda:N or cpu (default: cuda)")
    parser.add_argument("--minutes", type=float, default=10, help="time limit of all steps together (default: 10)")
    parser.add_argument("--tower", help="default: chinese-clip-vit-l-14; on a CPU a tower of two layers")
    parser.add_argument("--captions", type=Path, metavar="PARQUET", help="column 'text' (default: the demo's captions)")
    parser.add_argument("--rows", type=int, help="captions and vectors (default: 1,000,000; on a CPU 10,000)")
    parser.add_argument("--pairs", type=int, help="pairs end to end (default: 8,000; on a CPU 32)")
    parser.add_argument(
        "--output", type=Path, metavar="DIR", help="keep results.md, and STEP.json and STEP.log of every step, there"
    )
    parser.add_argument("--work", type=Path, metavar="DIR", help="keep models and engines there for the next call")
    options = parser.parse_args()
    if unknown := [step for step in options.steps if step not in STEPS]:
        parser.error(f"no step {', '.join(unknown)}; there are {', '.join(STEPS)}")
    on_cpu = options.device == "cpu"
    options.tower = options.tower or (SMALL if on_cpu else "chinese-clip-vit-l-14")
    options.rows = options.rows or (10_000 if on_cpu else 1_000_000)
    options.pairs = options.pairs or (32 if on_cpu else 8_000)
    options.failed = False
    return options


def _job(options: Namespace, scratch: Path) -> Job:
    work = options.work or scratch
    return Job(options.device, scratch, work, options.tower, options.captions, options.rows, options.pairs)


def _run(options: Namespace, scratch: Path) -> None:
    """Runs every step in a process of its own, and the export of the models at the same time."""
    output, deadline = options.output or scratch / "results", time.monotonic() + 60 * options.minutes
    job = _job(options, scratch)
    for folder in (output, job.work):
        folder.mkdir(parents=True, exist_ok=True)
    environment = os.environ | {"DANQING_CACHE": str(link_cache(job.work))}
    (job.work / "export.failed").unlink(missing_ok=True)
    results = []
    with _started(EXPORT, scratch, job.work / "export.log", environment):
        for name in options.steps or STEPS:
            left = deadline - time.monotonic()
            result = _result(name, error="no time left")
            if left > 0:
                limit = CPU_LIMIT if options.device == "cpu" else STEPS[name][1]
                result = _run_step(name, scratch, output, min(limit, left), environment)
            write_json(output / f"{name}.json", result)
            results.append(result)
            (output / "results.md").write_text(_to_markdown(results), encoding="utf-8")
            harness.console.print(f"{name}: {result['error'] or 'done'} in {result['seconds']:.0f} s", style="dim")
    harness.console.print(_to_table(results, bars=options.device != "cpu"))
    options.failed = any(result["error"] for result in results)


def _result(step: str, seconds: float = 0.0, figures: Sequence[Figure] = (), error: str = "") -> dict[str, Any]:
    """A step's result as its JSON file has it; `error`: why it ended early."""
    return {"step": step, "seconds": seconds, "figures": list(map(asdict, figures)), "error": error}


def _to_table(results: Iterable[dict[str, Any]], bars: bool) -> Table:
    """A table of all steps, one row per figure; with the bars, which are those of a GPU, or without."""
    table = Table(box=box.SIMPLE_HEAD)
    for heading in ("step", "figure", "value", "unit", "bar"):
        table.add_column(heading, justify="right" if heading == "value" else "left", overflow="fold")
    for result in results:
        name = f"{result['step']} ({result['seconds']:.0f} s)"
        for figure in (Figure(**fields) for fields in result["figures"]):
            table.add_row(name, figure.name, escape(figure.text), figure.unit, figure.bar if bars else "")
            name = ""
        if result["error"]:
            table.add_row(name, escape(result["error"][-SHOWN_ERROR:]), "failed", "", "", style="red")
        table.add_section()
    return table


def _to_markdown(results: Iterable[dict[str, Any]]) -> str:
    """The machine, and a table per step."""
    lines = [", ".join((*_gpus(), harness.machine(("numpy", "numba", "pyarrow", *PACKAGES))))]
    for result in results:
        lines += ["", f"**{result['step']}** ({result['seconds']:.0f} s)", "", "| | |", "|---|---:|"]
        figures = (Figure(**fields) for fields in result["figures"])
        lines += [f"| {_in_cell(figure.name)} | {_in_cell(f'{figure.text} {figure.unit}')} |" for figure in figures]
        if result["error"]:
            lines += ["", "```text", result["error"], "```"]
    return "\n".join(lines) + "\n"


def _in_cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())


def _gpus() -> list[str]:
    """Names of the GPUs, with memory and driver; empty without nvidia-smi."""
    query = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    with suppress(OSError, subprocess.SubprocessError):
        return subprocess.run(query, capture_output=True, text=True, timeout=20).stdout.splitlines()
    return []


def _command(step: str, scratch: Path) -> list[str]:
    return [sys.executable, "-m", "danqing.profiling.bench.gpu", *sys.argv[1:], "--one", step, str(scratch)]


def _run_step(name: str, scratch: Path, output: Path, limit: float, environment: dict[str, str]) -> dict[str, Any]:
    started, log, written = time.monotonic(), output / f"{name}.log", scratch / f"{name}.json"
    status = None
    with _started(name, scratch, log, environment) as step, suppress(subprocess.TimeoutExpired):
        status = step.wait(limit)
    seconds = time.monotonic() - started
    found = json.loads(written.read_text(encoding="utf-8")) if written.exists() else _result(name)
    if status == 0:
        return found
    last_output = log.read_text(encoding="utf-8", errors="replace").strip()[-MAX_ERROR:]
    ending = f"stopped after {limit:.0f} s, its limit" if status is None else f"ended with {status}"
    return found | {"seconds": seconds, "error": f"{ending}:\n{last_output}" if last_output else ending}


@contextmanager
def _started(step: str, scratch: Path, log: Path, environment: dict[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    """Starts a step; at the end of the `with` block kills it and all that it has started, which could hold the GPU."""
    with log.open("wb") as file:
        command = _command(step, scratch)
        process = subprocess.Popen(command, stdout=file, stderr=file, env=environment, start_new_session=True)
        try:
            yield process
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _run_one(step: str, job: Job) -> None:
    """Runs one step, or the export of the models, in this process."""
    started, found = time.monotonic(), []
    if step == EXPORT:
        try:
            export_models(job)
        except BaseException:
            (job.work / "export.failed").touch()
            raise
        return
    for figure in figures(step, job):  # written one by one, so that a later failure loses none
        found.append(figure)
        write_json(job.scratch / f"{step}.json", _result(step, round(time.monotonic() - started, 1), found))


if __name__ == "__main__":
    sys.exit(main())
