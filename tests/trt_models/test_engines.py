"""Engines: compiled, verified, activated, rolled back, refused; also for GPUs that this machine lacks."""

from __future__ import annotations

import json
import re
import shlex
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime
import pyarrow.parquet as pq
import pytest
import torch
from rich.console import Console

import danqing.trt_models.engines
import danqing.trt_models.run.session
from danqing.engine.cli.main import main
from danqing.engine.core import files
from danqing.engine.core.device import Device
from danqing.engine.core.errors import DanqingError
from danqing.engine.demo.crawl import build_crawl
from danqing.engine.phases import curate
from danqing.engine.recipe.reading import Recipe
from danqing.engine.run.settings import Settings
from danqing.engine.score.ledger import ENGINES, Ledger
from danqing.engine.score.metrics import RefusedEngines
from danqing.engine.sources import Shard
from danqing.profiling.parity import (
    _RecordingSession,
    agreement,
    aligned,
    comparison,
    read_samples,
    similarity,
    verify,
)
from danqing.trt_models.card import Card, load_card
from danqing.trt_models.compile.compilers import compile_engine
from danqing.trt_models.compile.quantise import quantise_statically
from danqing.trt_models.engines import DIFFERENCE, Engine, Engines, Parity, open_active, runtime_version
from danqing.trt_models.model_set import ModelSet
from danqing.trt_models.run.texts import run_texts
from danqing.trt_models.store import onnx_path
from tests.engine.score.test_run import samples as pairs
from tests.trt_models import small_models
from tests.trt_models.small_models import CAPTION_TEXT, CAPTION_VOCABULARY, VISION, own_card, publish

pytestmark = pytest.mark.usefixtures("store")
Make = Callable[..., Path]
RECIPE = """
recipe: network
models: {text_safety: text-safety-1m}
criteria:
  unsafe_text: {max: 0.5}
  words: {min: 5}
  downloaded: {column: image_bytes, min: 1}
"""


@pytest.fixture
def shards(make_shard: Make) -> list[str]:
    return [str(make_shard(pairs(20 * i, 20), f"{i:05d}.tar")) for i in range(3)]


def test_the_commands_from_checkpoint_to_active_engine(
    checkpoint: Path, shards: list[str], tmp_path: Path, recipe: Recipe, capsys: Any, caplog: pytest.LogCaptureFixture
) -> None:
    asked = ["--recipe", str(tmp_path / "network.yaml"), "--data", *shards]
    out = str(tmp_path / "out")
    assert main(["curate", *shards, "-o", out, "--recipe", str(tmp_path / "network.yaml")]) == 2
    assert "danqing models export text-safety-1m --from FOLDER" in capsys.readouterr().err
    assert main(["models", "export", "text-safety-1m", "--from", str(checkpoint)]) == 0
    assert main(["models", "compile", "text-safety-1m", "--precision", "int8", "--target", "cpu"]) == 0
    assert "root" not in {record.name for record in caplog.records}  # ONNX Runtime's advice
    assert main(["models", "activate", "text-safety-1m"]) == 2
    (engine,) = Engines(load_card("text-safety-1m")).all()
    verify_line = f"danqing models verify text-safety-1m {engine.name} --data INPUT"
    assert f"parity was never measured; run `{verify_line}` first" in capsys.readouterr().err
    assert main(["models", "verify", "text-safety-1m", *asked, "--min-cosine", "1"]) == 1
    assert "failed" in capsys.readouterr().out
    assert main(["models", "activate", "text-safety-1m"]) == 2
    assert "parity is not enough (mean 1 - |difference| 0." in capsys.readouterr().err
    assert main(["models", "verify", "text-safety-1m", *asked, "--min-cosine", "0.9", "--max-flips", "1"]) == 0
    assert main(["models", "activate", "text-safety-1m"]) == 0
    capsys.readouterr()
    assert main(["models", "verify", "text-safety-1m", *asked, "--min-cosine", "1"]) == 1
    back = "models activate text-safety-1m --rollback --target cpu"
    assert f"is still in use on cpu; to take it out of use: danqing {back}" in capsys.readouterr().out
    assert main(["models", "verify", "text-safety-1m", *asked, "--min-cosine", "0.9", "--max-flips", "1"]) == 0
    (engine,) = Engines(load_card("text-safety-1m")).all()
    assert main(["models", "list"]) == 0
    assert f" {engine.name} (in use)" in capsys.readouterr().out
    assert main(["curate", *shards, "-o", out, "--recipe", str(tmp_path / "network.yaml")]) == 0
    used = json.loads(pq.read_schema(Path(out) / "scores" / "00000.parquet").metadata[ENGINES])
    assert used == {"text_safety": engine.sha256}
    assert json.loads((Path(out) / "run.json").read_text())["engines"] == {"text_safety": {engine.sha256: 3}}
    assert main(["models", "activate", "text-safety-1m", "--rollback", "--target", "cpu"]) == 0
    assert "the model itself is in use again" in capsys.readouterr().out
    assert main(["models", "activate", "text-safety-1m", "--rollback", "--target", "cpu"]) == 2


def passing(engine: Engine) -> Engine:
    """Adds a parity within the limits."""
    return replace(engine, parity=Parity(9, 1, 1, 0, 1, 1, "r", engine.target, engine.runtime_version))


def two_activated(card: Card, engines: Engines) -> tuple[Engine, Engine]:
    """Activates an engine for the CPU, then another one, whose file cannot be opened."""
    first = passing(compile_engine(card, "int8", "cpu"))
    second = passing(engines.add(replace(first, precision="int9"), lambda file: file.write_bytes(b"other") and None))
    for engine in (first, second):
        engines.note(engine)
        engines.activate(engine)
    return first, second


def test_a_run_uses_a_new_active_engine_from_its_next_shard_on(
    card: Card, shards: list[str], recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = compile_engine(card, "int8", "cpu")
    engines = Engines(card)
    engines.note(passing(engine))
    announce = Ledger.expect

    def expect(self: Ledger, shard: Shard, *facts: Any) -> None:
        announce(self, shard, *facts)
        if shard.number == 1:  # while the second shard is read
            engines.activate(engines.named("newest"))

    monkeypatch.setattr(Ledger, "expect", expect)
    run, _, _ = curate(shards, tmp_path / "out", recipe, Settings())
    used = [json.loads(pq.read_schema(run.scores_path(n)).metadata[ENGINES])["text_safety"] for n in range(3)]
    assert used == [engines.onnx, engines.onnx, engine.sha256]
    assert run.manifest["engines"] == {"text_safety": {engine.sha256: 1, engines.onnx: 2}}
    assert "Scored by several engines: text_safety: " in (run.folder / "report.html").read_text(encoding="utf-8")
    monkeypatch.undo()
    monkeypatch.setenv("DANQING_CACHE", str(tmp_path / "store"))
    again, _, _ = curate(shards, tmp_path / "again", recipe, Settings())
    for number in range(3):  # the engine of the other shards has no effect
        left, right = (pq.read_table(r.scores_path(number))["unsafe_text"].to_pylist() for r in (run, again))
        assert (left == right) == (number == 2)


def test_a_broken_engine_is_replaced_with_a_warning(card: Card, device: Device, capsys: Any) -> None:
    engines = Engines(card)
    engine = compile_engine(card, "int8", "cpu")
    engines.note(passing(engine))
    engines.activate(engines.named("newest"))
    digest = open_active(card, device).sha256
    assert digest == engine.sha256
    engines.path(engine).write_bytes(b"junk")
    digest = open_active(card, device).sha256
    warning = capsys.readouterr().err
    assert digest == engines.onnx and "does not open: " in warning and "; the one before it runs instead" in warning
    with pytest.raises(DanqingError, match=r"not the file that engine\.json names; refusing to load it"):
        engines.activate(engines.named("newest"))


def test_a_run_reports_an_engine_that_does_not_open(
    card: Card, device: Device, shards: list[str], recipe: Recipe, tmp_path: Path, capsys: Any
) -> None:
    engines = Engines(card)
    engine = compile_engine(card, "int8", "cpu")
    engines.note(passing(engine))
    engines.activate(engines.named("newest"))
    engines.path(engine).write_bytes(b"junk")
    asked = ["curate", shards[0], "--recipe", str(tmp_path / "network.yaml")]
    assert main([*asked, "-o", str(tmp_path / "strict"), "--strict-engines"]) == 2
    assert f"the engine {engine.name} does not open" in capsys.readouterr().err
    assert main([*asked, "-o", str(tmp_path / "out")]) == 0
    report = f"Scored without an engine that is in use: text-safety-1m: the engine {engine.name} does not open"
    assert report in capsys.readouterr().out.replace("\n", " ")
    noted = json.loads((tmp_path / "out" / "run.json").read_text())
    assert list(noted["refused_engines"]) == ["text_safety"] and noted["engines"] == {"text_safety": {engines.onnx: 1}}
    models = ModelSet({"text_safety": "text-safety-1m"})
    models.session("text_safety", device)
    (gauge,) = RefusedEngines(models).collect()
    assert [(sample.labels, sample.value) for sample in gauge.samples] == [({"role": "text_safety"}, 1)]
    engines.rollback("cpu")
    models.reopen(device)
    models.session("text_safety", device)
    (gauge,) = RefusedEngines(models).collect()
    assert [sample.value for sample in gauge.samples] == [0] and not models.refused


def test_rollback_activates_the_previous_engine(card: Card) -> None:
    engines = Engines(card)
    first, second = two_activated(card, engines)
    assert [e.name for e in engines.active("cpu")] == [second.name, first.name]
    assert engines.rollback("cpu") == first and engines.rollback("cpu") is None


def test_an_engine_that_two_commands_ask_for_is_compiled_once(
    card: Card, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    class OfSeveralProcesses(dict[Path, threading.Lock]):  # threads of one process wait without a message
        def setdefault(self, folder: Path, lock: threading.Lock) -> threading.Lock:
            return lock

    monkeypatch.setattr(files, "_builders", OfSeveralProcesses())
    told: list[str] = []
    monkeypatch.setattr(files, "say", told.append)  # reading what is printed would lose lines of another thread
    compiling, compiled = threading.Event(), []
    add = Engines.add

    def slow(self: Engines, engine: Engine, write: Callable[[Path], None]) -> Engine:
        compiled.append(engine.precision)
        compiling.set()
        deadline = time.monotonic() + 240
        while not told:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        return add(self, engine, write)

    monkeypatch.setattr(Engines, "add", slow)
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(compile_engine, card, "int8", "cpu")
        assert compiling.wait(240)
        assert compile_engine(card, "int8", "cpu") == first.result()
    assert compiled == ["int8"] and "was compiled meanwhile" in capsys.readouterr().err
    assert told[0].startswith("waits for this engine of text-safety-1m, which process ")
    assert not list(Engines(card).folder.glob(".*"))


def test_an_identical_engine_keeps_its_parity(card: Card, device: Device) -> None:
    engines = Engines(card)
    engines.note(passing(compile_engine(card, "int8", "cpu")))
    engines.activate(engines.named("newest"))
    again = compile_engine(card, "int8", "cpu")
    assert again.parity is not None and engines.active("cpu") == [again]
    assert open_active(card, device).sha256 == again.sha256


def test_an_engine_can_be_compiled_twice_concurrently(card: Card) -> None:
    engines, both = Engines(card), threading.Barrier(2, timeout=240)
    first = compile_engine(card, "int8", "cpu")
    folders: list[Path] = []

    def write(path: Path) -> None:
        folders.append(path.parent)
        path.write_bytes(b"plan")
        both.wait()

    with ThreadPoolExecutor(2) as pool:
        made = list(pool.map(lambda _: engines.add(replace(first, precision="int9"), write), range(2)))
    assert made[0] == made[1] and engines.path(made[0]).read_bytes() == b"plan" and len(set(folders)) == 2
    with pytest.raises(ZeroDivisionError):
        engines.add(first, lambda path: path.write_bytes(bytes(1 // 0)) and None)
    assert not list(engines.folder.glob(".making-*")) and len(engines.all()) == 2


@pytest.mark.parametrize("content", ["{", "[]", '{"runtime": "abacus"}', '{"runtime": "onnxruntime"}', None])
def test_an_engine_with_damaged_json_is_replaced_with_a_warning(
    card: Card, device: Device, content: str | None, capsys: Any
) -> None:
    engines = Engines(card)
    first, second = two_activated(card, engines)
    note = engines.path(second).with_name("engine.json")
    note.unlink() if content is None else note.write_text(content)
    opened = open_active(card, device)
    assert opened.sha256 == first.sha256 and opened.refused is not None and f"{note}: " in opened.refused
    assert "compile the engine again" in capsys.readouterr().err
    with pytest.raises(DanqingError, match=f"the engine {second.name} does not open"):
        open_active(card, device, strict=True)
    models = ModelSet({"text_safety": card.name})
    models.session("text_safety", device)
    assert list(models.refused) == ["text_safety"] and not models.outdated(device)
    assert main(["models", "list"]) == 0
    assert f"{second.name} (in use, unreadable)" in capsys.readouterr().out
    assert engines.all() == [first] and engines.named("int8") == first
    if content is not None:
        with pytest.raises(DanqingError, match=re.escape(str(note))):
            engines.named("int9")


@pytest.mark.parametrize("content", ["{", "[]", '{"cpu": "name"}'])
def test_the_error_for_a_damaged_active_json_says_the_remedy(
    card: Card, device: Device, content: str, capsys: Any
) -> None:
    engines = Engines(card)
    engine = compile_engine(card, "int8", "cpu")
    (engines.folder / "active.json").write_text(content)
    with pytest.raises(DanqingError, match=r"active\.json: .*; remove it and .*danqing models activate text-safety-1m"):
        open_active(card, device)
    assert main(["models", "list"]) == 0
    shown = capsys.readouterr().out
    assert "active.json (unreadable)" in shown and engine.name in shown


def test_names_in_the_list_are_not_wrapped(card: Card, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    engine = compile_engine(card, "int8", "cpu")
    monkeypatch.setattr("danqing.engine.report.terminal.console", Console(width=40))
    assert main(["models", "list"]) == 0
    shown = capsys.readouterr().out
    assert engine.name in shown and "OFA-Sys/chinese-clip-vit-large-patch14-336px" in shown


def test_word_lists_are_not_compiled(capsys: Any) -> None:
    assert main(["models", "compile", "jionlp-advertising"]) == 2
    assert "jionlp-advertising is a word list; there is nothing to compile" in capsys.readouterr().err


def test_an_engine_of_another_runtime_or_model_is_refused(card: Card, checkpoint: Path, device: Device) -> None:
    engines = Engines(card)
    engine = passing(compile_engine(card, "int8", "cpu"))
    plan = replace(engine, runtime="tensorrt-rtx", runtime_version="1.0")
    engines.path(plan).parent.mkdir()
    engines.path(plan).write_bytes(engines.path(engine).read_bytes())
    with pytest.raises(DanqingError, match=r"compiled with tensorrt-rtx 1\.0, installed is"):
        engines.activate(plan)
    old = replace(engine, parity=replace(engine.parity, runtime_version="1.0"))  # type: ignore[type-var]
    with pytest.raises(DanqingError, match=r"parity was measured with onnxruntime 1\.0, installed is"):
        engines.activate(old)
    engines.activate(engine)
    engines.note(old)  # as after an upgrade of ONNX Runtime
    refused = open_active(card, device).refused
    assert refused is not None and "parity was measured with onnxruntime 1.0" in refused
    measured = replace(engine, parity=replace(engine.parity, target="sm_90"))  # type: ignore[type-var]
    with pytest.raises(DanqingError, match="parity was measured on sm_90"):
        engines.activate(measured)


def test_parity_measures_outputs_and_flips(
    card: Card, checkpoint: Path, shards: list[str], recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled: list[Any] = []
    monkeypatch.setattr(torch, "compile", lambda call: compiled.append(call) or call)  # takes 20 seconds
    engine = compile_engine(card, "int8", "cpu")
    strict = {"cosine_mean": 0.9, "flips": 0.0}
    scores = read_samples(card, shards, recipe, Settings(), 60)
    assert sum(len(batch["tokens"]) for batch in scores) == 60
    parity = verify(card, engine, shards, recipe, Settings(), 60, strict, checkpoint).parity
    assert parity is not None and parity.torch_rate and parity.rate and len(compiled) == 1
    assert parity.rows == 60 and parity.flips == 0 and 0.9 < parity.cosine_min < 1
    # With a threshold at a pair's score, or just below it, a difference in either direction flips the pair's verdict.
    run = pq.read_table(curate(shards, Path(shards[0]).parent / "x", recipe, Settings())[0].scores_path(0))
    score = np.float32(run["unsafe_text"][0].as_py())
    edges = []
    for maximum in (score, np.nextafter(score, np.float32(0))):
        interval = replace(recipe.criteria[0].interval, maximum=float(maximum))  # type: ignore[union-attr]
        edge = replace(recipe, criteria=(replace(recipe.criteria[0], interval=interval),))  # type: ignore[call-arg]
        edges.append(verify(card, engine, shards, edge, Settings(), 60, strict).parity)
    worst = max(edges, key=lambda parity: parity.flips if parity else 0)
    assert worst is not None and worst.flips > 0 and not worst.passed


def test_verify_refuses_other_models_and_targets(card: Card, shards: list[str], recipe: Recipe) -> None:
    engine = compile_engine(card, "int8", "cpu")
    with pytest.raises(DanqingError, match="does not use text-safety-1m"):
        verify(card, engine, shards, replace(recipe, models={}), Settings(), 9, {})
    with pytest.raises(DanqingError, match="is for sm_90, and this is cpu"):
        verify(card, replace(engine, target="sm_90"), shards, recipe, Settings(), 9, {})


def test_the_errors_of_compile_name_the_reason(card: Card) -> None:
    for arguments, words in (
        (("fp16", "cpu"), "on a CPU the model itself runs in fp32"),
        (("fp15", "cpu"), "did you mean 'fp16'"),
        (("fp16", "h100"), "write `cpu`, or a GPU's architecture"),
        (("fp16", "sm_61"), "TensorRT-RTX compiles for sm_120"),
        (("int8", "sm_80"), "needs real inputs"),
        (("fp16", "sm_90", (1, 8, 64), None, "tensort"), "did you mean 'tensorrt'"),
        (("fp16", "sm_90", (1, 8, 64), None, "tensorrt"), "tensorrt: not installed; .* onnxruntime needs none"),
        (("fp8", "sm_90", (1, 8, 64), None, "onnxruntime"), "ONNX Runtime computes in fp32, fp16 or bf16"),
    ):
        with pytest.raises(DanqingError, match=words):
            compile_engine(card, *arguments)
    with pytest.raises(DanqingError, match="--batch 8,4,2"):
        compile_engine(card, "int8", "cpu", (8, 4, 2))
    assert Engines(card).all() == []


CONVOLUTIONAL = ("efficientnet-lite0-conse", "open-nsfw")
DEFAULTS = (*CONVOLUTIONAL, "use-multilingual")


@pytest.fixture(scope="module")
def default_models() -> list[Path]:
    """Folders of the default models, built once in the cache of the test run: that takes ten seconds."""
    return [onnx_path(load_card(name)).parent for name in DEFAULTS]


@pytest.fixture
def every_network(default_models: list[Path], card: Card, tmp_path: Path, store: Path) -> list[Card]:
    """Small models of two exported architectures, and the default models in their full size."""
    for model in default_models:
        (store / "models" / model.name).symlink_to(model)
    vision = VISION | {"image_size": 224, "patch_size": 56}
    folder = publish(small_models.chinese_clip(CAPTION_TEXT, vision), tmp_path / "clip", CAPTION_VOCABULARY)
    towers = [own_card(f"chinese-clip-vit-l-14-{tower}", tmp_path) for tower in ("image", "text")]
    for name in towers:
        assert main(["models", "export", name, "--from", str(folder)]) == 0
    return [card, *map(load_card, (*towers, *DEFAULTS))]


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_every_network_compiles_without_a_gpu(every_network: list[Card], precision: str) -> None:
    for card in every_network:
        engine = compile_engine(card, precision, "sm_80", (1, 4, 16))
        engines = Engines(card)
        assert engines.checked(engine).stat().st_size > 1000
        assert (engine.runtime, engine.runtime_version) == ("tensorrt-rtx", runtime_version("tensorrt-rtx"))
        assert engines.all() == [engine] and engine.onnx == engines.onnx
        with pytest.raises(DanqingError, match="parity was never measured"):
            engines.activate(engine)


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_every_network_compiles_without_tensorrt(
    every_network: list[Card], precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed = {"tensorrt": None, "tensorrt-rtx": None}
    monkeypatch.setattr(
        "danqing.trt_models.compile.compilers.runtime_version", lambda name: installed.get(name, runtime_version(name))
    )
    for card in every_network:
        engines = Engines(card)
        if precision == "bf16" and card.name in CONVOLUTIONAL:
            with pytest.raises(DanqingError, match="ONNX Runtime has no bf16 convolution, use fp16"):
                compile_engine(card, precision, "sm_90")
            continue
        engine = compile_engine(card, precision, "sm_90", (1, 4, 16))
        assert (engine.runtime, engine.target, engines.path(engine).name) == ("onnxruntime", "sm_90", "engine.onnx")
        assert engines.all() == [engine] and engines.checked(engine).stat().st_size > 1000
        fused = engine.options["fused"]
        assert fused.get("MultiHeadAttention", 0) == (0 if card.name in DEFAULTS else 3)
        with pytest.raises(DanqingError, match="parity was never measured"):
            engines.activate(engine)
        elsewhere = replace(passing(engine), runtime_version="1.0")  # compiled with another version of ONNX Runtime
        engines.path(engine).parent.rename(engines.folder / elsewhere.name)
        engines.note(elsewhere)
        engines.activate(elsewhere)
        assert engines.active("sm_90") == [elsewhere]


def test_an_engine_for_a_gpu_opens_on_it(card: Card, device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is activated, opened by the models of a run, and rolled back like any engine."""
    opened: list[tuple[Any, ...]] = []
    monkeypatch.setattr(danqing.trt_models.run.session, "CudaOnnxSession", lambda *arguments: opened.append(arguments))
    gpu: Any = SimpleNamespace(kind="cuda", target="sm_90")
    models = ModelSet({"text_safety": card.name})
    models.session("text_safety", gpu)
    engine = compile_engine(card, "fp16", "sm_90", (1, 4, 16), runtime="onnxruntime")
    engines = Engines(card)
    engines.note(passing(engine))
    engines.activate(engines.named("newest"))
    assert models.outdated(gpu) == ["text_safety"]
    models.reopen(gpu)
    models.session("text_safety", gpu)
    assert [(path.name, *rest) for path, _, *rest in opened] == [
        ("model.onnx", 64, False),
        ("engine.onnx", 16, True),
    ]
    assert models.running == {"text_safety": engine.sha256}
    engines.rollback("sm_90")
    assert models.outdated(gpu) == ["text_safety"]


def test_compile_shows_the_fused_operators(card: Card, capsys: Any) -> None:
    asked = ["models", "compile", card.name, "--target", "sm_90", "--runtime", "onnxruntime"]
    assert main(asked) == 0
    shown = capsys.readouterr().out
    assert "118 nodes, 48 after fusing" in shown
    assert re.search(r"MultiHeadAttention +3 +fused", shown) and re.search(r"LayerNormalization +1 +left", shown)


def test_parity_of_classifiers_compares_probabilities() -> None:
    logits = np.array([[0.0, 2.0], [1.0, -1.0]])
    shares = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    moved = logits + np.array([[0.0, 0.1], [0.0, 0.0]])
    expected = 1 - abs(shares[0, 1] - 1 / (1 + np.exp(-2.1)))
    np.testing.assert_allclose(agreement(logits, moved), [expected, 1])
    np.testing.assert_allclose(agreement(shares, shares[:, ::-1]), 1 - abs(shares[:, 1] - shares[:, 0]))
    np.testing.assert_allclose(agreement(np.array([[0.2], [0.5]]), np.array([0.3, 0.5])), [0.9, 1])
    assert comparison("text_classifier") == (agreement, DIFFERENCE)
    # The cosine of these probabilities is near 1, although they lead to opposite verdicts.
    assert similarity(np.array([[0.9, 1.0]]), np.array([[1.0, 0.9]]))[0] > 0.99


def test_parity_pairs_the_rows_of_sessions_with_other_batch_sizes(card: Card, device: Device) -> None:
    class Session:
        batch = 8

        def run(self, tokens: np.ndarray) -> dict[str, np.ndarray]:
            return {"embedding": tokens[:, :2].astype(np.float32)}

    assert card.token_input is not None
    tokens = replace(card.token_input, max_length=32, fixed_length=False)
    rng = np.random.default_rng(0)
    lengths = rng.integers(3, 33, 24)
    ids = np.where(np.arange(32) < lengths[:, None], rng.integers(1, 99, (24, 32)), 0).astype(np.int32)
    passes = []
    for rows in (6, 24):
        kept = SimpleNamespace(inputs=[], outputs=defaultdict(list), keys=[], rows=0, seconds=0.0)
        session = _RecordingSession(Session(), kept, device)  # type: ignore[arg-type]
        for start in range(0, 24, rows):
            run_texts(session, tokens, ids[start : start + rows], lengths[start : start + rows], device)
        outputs = {name: np.concatenate(parts) for name, parts in kept.outputs.items()}
        passes.append(SimpleNamespace(keys=np.array(kept.keys, np.uint64), outputs=outputs))
    assert not np.array_equal(passes[0].outputs["embedding"], passes[1].outputs["embedding"])
    first, second = aligned(*passes)
    assert np.array_equal(first["embedding"], second["embedding"])
    passes[1].keys[0] += np.uint64(1)
    assert aligned(*passes) == (passes[0].outputs, passes[1].outputs)


def test_parity_of_language_models_compares_log_likelihoods() -> None:
    compare, measure = comparison("language_model")
    assert measure == DIFFERENCE
    np.testing.assert_allclose(compare(np.array([-9.0, -0.1]), np.array([-9.01, -0.3])), [0.99, 0.8])


def test_the_readmes_commands_compile_verify_and_activate(tmp_path: Path) -> None:
    """Runs the README's lines with fewer pairs."""
    shards = build_crawl(tmp_path / "crawl")
    readme = (Path(__file__).parents[2] / "docs" / "models.md").read_text(encoding="utf-8")
    lines = re.findall(r"^\./run (models (?:compile|verify|activate) open-nsfw.*?)(?: +#.*)?$", readme, re.MULTILINE)
    assert len(lines) == 4 and "demo/crawl/*.tar" in lines[0] and lines[-1].endswith("--rollback")
    for line in lines:
        words = [word.replace("demo/crawl/*.tar", shards[0]) for word in shlex.split(line)]
        assert main([*words, *(["--pairs", "8"] if "--data" in words else [])]) == 0, line


@pytest.mark.parametrize("precision", ["int8", "fp8"])
def test_eight_bits_compile_for_gpus_from_real_ranges(
    card: Card, shards: list[str], recipe: Recipe, precision: str, tmp_path: Path
) -> None:
    batches = read_samples(card, shards, recipe, Settings(), 30)
    engine = compile_engine(card, precision, "sm_89", (1, 4, 16), samples=batches)
    assert Engines(card).checked(engine).stat().st_size > 1000
    quantise_statically(onnx_path(card), tmp_path / "graph.onnx", batches, precision)  # the graph of the engine
    (expected,), (found,) = (
        onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"]).run(None, batches[0])
        for path in (onnx_path(card), tmp_path / "graph.onnx")
    )
    assert 0 < np.abs(found - expected).max() < 0.1


def test_a_changed_model_is_refused(card: Card) -> None:
    path = onnx_path(card)
    path.write_bytes(path.read_bytes() + b" ")
    with pytest.raises(DanqingError, match="refusing to load it"):
        onnx_path(card)
    assert danqing.trt_models.engines.is_gpu("sm_120") and not danqing.trt_models.engines.is_gpu("sm_x")
