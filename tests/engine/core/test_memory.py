"""Scoring keeps to a memory limit, and has the same result."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil
import pytest
from PIL import Image

from danqing.engine.cli.main import main
from danqing.engine.core.batch import pack
from danqing.engine.core.batch_sizes import BATCH_SIZES
from danqing.engine.core.errors import DanqingError
from danqing.engine.core.memory import (
    BATCHES_IN_FLIGHT,
    DECODE_BYTES_PER_PIXEL,
    MIN_ENCODED_BYTES,
    RUNTIME_RESERVE_BYTES,
    Memory,
    read_size,
    text_bytes,
)
from danqing.engine.phases import curate
from danqing.engine.recipe.reading import Recipe
from danqing.engine.run.settings import Settings
from danqing.engine.score.loop import batches_of, pack_weight
from danqing.engine.sources import Sample, Shard
from danqing.engine.stages import Stage
from tests.engine.score.test_run import GOOD, crawl, tree

__all__ = ["crawl"]


@pytest.mark.parametrize(
    ("text", "size"), [("4G", 4 << 30), ("1.5GiB", 3 << 29), ("900m", 900 << 20), ("12kb", 12 << 10), ("1000", 1000)]
)
def test_sizes_are_read_in_common_notations(text: str, size: int) -> None:
    assert read_size(text) == size


@pytest.mark.parametrize("text", ["", "G", "-1G", "0", "4 apples"])
def test_other_text_is_refused_as_a_size(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError):
        read_size(text)
    assert main(["score", "x.tar", "-o", "out", f"--memory-limit={text}"]) == 2
    assert "--memory-limit" in capsys.readouterr().err


def test_the_free_memory_is_shared_between_encoded_bytes_and_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    taken = 500 << 20
    monkeypatch.setattr(psutil.Process, "memory_info", lambda _: type("Info", (), {"rss": taken}))
    plenty, usual = Memory(64 << 30, 10_000_000), Memory()
    plenty.settle()
    assert (plenty.encoded, plenty.pixels) == (usual.encoded, usual.pixels)
    for room in (1 << 20, 50 << 20, 200 << 20, 500 << 20):
        largest = 10_000_000
        fixed = taken + RUNTIME_RESERVE_BYTES
        limit = fixed + BATCHES_IN_FLIGHT * MIN_ENCODED_BYTES + DECODE_BYTES_PER_PIXEL * largest + room
        memory = Memory(limit, largest)
        memory.settle()
        most = max(memory.pixels, largest)
        assert fixed + BATCHES_IN_FLIGHT * memory.encoded + DECODE_BYTES_PER_PIXEL * most <= limit
        assert MIN_ENCODED_BYTES <= memory.encoded <= usual.encoded and largest <= memory.pixels <= usual.pixels
    with pytest.raises(DanqingError, match=r"models and libraries take 756M.*use --memory-limit 972M$"):
        Memory(800 << 20, 10_000_000).settle()


def test_a_gpu_has_larger_batches_if_the_limit_allows(monkeypatch: pytest.MonkeyPatch) -> None:
    taken = 500 << 20
    monkeypatch.setattr(psutil.Process, "memory_info", lambda _: type("Info", (), {"rss": taken}))
    sizes = BATCH_SIZES["cuda"]
    for limit, enough in ((None, True), (64 << 30, True), (2 << 30, False)):
        memory = Memory.of("cuda", limit, 10_000_000)
        memory.settle()
        assert ((memory.encoded, memory.pixels) == (sizes.encoded_bytes, sizes.pixels)) == enough
    assert Memory.of("cpu", None, 0) == Memory()


def test_batches_are_bounded_by_captions_and_metadata_too() -> None:
    large = "字" * 100_000
    samples = [
        Sample(str(n), b"", "", large if n % 2 else "", {} if n % 2 else {"alt": [{"text": large}]}) for n in range(20)
    ]
    each = [text_bytes(sample.caption, sample.metadata) for sample in samples]
    assert min(each) > 200_000
    bound = 2_000_000
    batches = list(batches_of(Shard(0, "s", Path("s"), 0), samples, Memory(encoded=bound)))
    assert len(batches) > 1 and sum(map(len, batches)) == 20
    assert all(batch["text_bytes"].sum() <= bound for batch in batches)
    stage = SimpleNamespace(capacity=1e9, weights=Stage.weights, context=SimpleNamespace(memory=Memory(encoded=bound)))
    packed = list(pack(batches, 1.0, lambda batch: pack_weight(stage, batch)))  # type: ignore[arg-type]
    assert len(packed) > 1 and all(batch["text_bytes"].sum() <= bound for batch in packed)


def test_a_limit_changes_no_byte(crawl: list[str], plain_recipe: Recipe, tmp_path: Path) -> None:
    curate(crawl, tmp_path / "free", plain_recipe, Settings(max_pixels=4_000_000))
    limit = psutil.Process().memory_info().rss + (400 << 20)
    curate(crawl, tmp_path / "held", plain_recipe, Settings(max_pixels=4_000_000, memory_limit=limit))
    assert tree(tmp_path / "free") == tree(tmp_path / "held")


def large_pictures(count: int) -> dict[str, bytes | str]:
    """Pictures of 4 megapixels with alpha and 5 MB: large as files, and the largest when decoded."""
    noise = np.random.default_rng(0).integers(0, 256, (2000, 2000, 4), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise // 64 * 64).save(buffer, "PNG", compress_level=1)
    names = [(f"{number:03d}", kind) for number in range(count) for kind in ("png", "txt")]
    return {f"{name}.{kind}": buffer.getvalue() if kind == "png" else GOOD for name, kind in names}


def test_a_run_of_large_pictures_stays_within_its_limit(make_shard: Any, plain_recipe: Recipe, tmp_path: Path) -> None:
    shard = make_shard(large_pictures(48))

    def peak(*options: str) -> float:
        """Scores the shard in a process; returns its peak resident memory in MiB."""
        program = (
            "import re, sys; from danqing.engine.cli.main import main; status = main(sys.argv[1:]);"
            r"print(re.search(r'VmHWM:\s*(\d+) kB', open('/proc/self/status').read())[1]); sys.exit(status)"
        )
        command = [sys.executable, "-c", program, "score", str(shard), "-o", str(tmp_path / "".join(("run", *options)))]
        command += ["--recipe", str(tmp_path / "plain.yaml"), "--max-pixels", "5000000", "--threads", "2"]
        done = subprocess.run([*command, *options], capture_output=True, text=True, check=True, timeout=240)
        return int(done.stdout.split()[-1]) / 1024

    free = peak()  # first, because it compiles the kernels that are not cached yet
    assert peak("--memory-limit", "720M") <= 720 < 760 < free
