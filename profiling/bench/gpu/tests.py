"""Runs the tests that need a GPU."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

import danqing
from danqing.engine.core.errors import DanqingError
from danqing.profiling.bench.gpu.material import Figure, Job

FOLDER, HANGING_SECONDS = "tests/gpu", 120


def measure(job: Job) -> Iterator[Figure]:
    """Yields the numbers of tests, and what failed or was skipped.

    Raises:
        DanqingError: a test failed, or none was found.
    """
    report = job.scratch / "tests.xml"
    # A test that hangs prints its stacks and ends pytest before the time limit of the step.
    options = ["-vv", "-o", f"faulthandler_timeout={HANGING_SECONDS}", "-p", "no:cacheprovider"]
    command = [sys.executable, "-m", "pytest", "-m", "gpu", FOLDER, *options]
    done = subprocess.run([*command, f"--junitxml={report}"], cwd=Path(danqing.__file__).resolve().parents[1])
    if not report.exists():
        raise DanqingError(f"pytest ended with {done.returncode}")
    tests = list(ElementTree.parse(report).iter("testcase"))
    found = [(test, outcome) for test in tests for outcome in test if outcome.tag in ("failure", "error", "skipped")]
    failed = [(test, outcome) for test, outcome in found if outcome.tag != "skipped"]
    yield Figure("tests passed", len(tests) - len(found))
    for test, outcome in failed:
        yield Figure(f"{test.get('classname')}.{test.get('name')}", f"{outcome.tag}: {outcome.get('message')}")
    for reason, count in Counter(outcome.get("message") for _, outcome in found if outcome.tag == "skipped").items():
        yield Figure(f"tests skipped: {reason}", count)
    if done.returncode:  # also if no test was collected
        raise DanqingError(f"pytest ended with {done.returncode}, {len(failed)} tests failed")
