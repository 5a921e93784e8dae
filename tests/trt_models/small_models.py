"""Small models with random weights, made by the libraries that publish the architectures, and inputs for them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
import yaml
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    ChineseCLIPConfig,
    ChineseCLIPModel,
    CLIPConfig,
    CLIPModel,
    SiglipConfig,
    SiglipModel,
    TimmWrapperConfig,
    TimmWrapperForImageClassification,
)

from danqing.profiling.bench.published import randomised, save
from danqing.trt_models.card import CARDS
from tests.engine.score.test_run import GOOD

SMALL = {"hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 96}
VISION = SMALL | {"image_size": 32, "patch_size": 8}
WORDS = 120
TEXT = SMALL | {"vocab_size": WORDS, "bos_token_id": None, "eos_token_id": None, "pad_token_id": 0}
DIMENSION = 24
"""Dimension of the embeddings of the CLIP models."""
CAPTION_VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *sorted(set(GOOD + "，第张照片0123456789"))]
CAPTION_TEXT = TEXT | {"vocab_size": len(CAPTION_VOCABULARY), "max_position_embeddings": 128}
"""For the captions of `tests.engine.score.test_run`."""
LABELS = {0: "safe", 1: "unsafe"}
LEVELS = ("neutral", "low", "medium", "high")
PIXELS = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)

Settings = dict[str, Any]
"""A section of config.json."""


def chinese_clip(text: Settings = TEXT, vision: Settings = VISION, seed: int = 0, spread: float = 0.2) -> Any:
    config = ChineseCLIPConfig(
        text_config={"max_position_embeddings": 32} | text, vision_config=vision, projection_dim=DIMENSION
    )
    return randomised(ChineseCLIPModel(config), seed, spread)


def clip(text: Settings = TEXT, vision: Settings = VISION, seed: int = 4, spread: float = 0.2) -> Any:
    sections: Any = {"text_config": text, "vision_config": vision | {"projection_dim": DIMENSION}}
    return randomised(CLIPModel(CLIPConfig(**sections, projection_dim=DIMENSION)), seed, spread)


def siglip(text: Settings = TEXT, seed: int = 1) -> Any:
    config = SiglipConfig(text_config={"max_position_embeddings": 16} | text, vision_config=VISION)
    return randomised(SiglipModel(config), seed)


def bert(text: Settings = TEXT, labels: dict[int, str] = LABELS, seed: int = 2, spread: float = 0.2) -> Any:
    ids = {name: number for number, name in labels.items()}
    config = BertConfig(**{"max_position_embeddings": 32} | text, id2label=labels, label2id=ids)
    return randomised(BertForSequenceClassification(config), seed, spread)


def masked_bert(text: Settings = TEXT, seed: int = 6, spread: float = 0.2) -> Any:
    return randomised(BertForMaskedLM(BertConfig(**{"max_position_embeddings": 32} | text)), seed, spread)


def masked_tokens() -> dict[str, np.ndarray]:
    """Inputs of a masked language model, (4, 9) each: the second token of each text, or its only one, is masked."""
    tokens, rows, places = ragged_tokens(), np.arange(4), np.array([1, 1, 1, 0])
    targets = np.full_like(tokens, -1)
    targets[rows, places] = tokens[rows, places]
    tokens[rows, places] = 3
    return {"tokens": tokens, "targets": targets}


def eva(
    size: int = 70, layers: int = 2, width: int = 128, names: Any = LEVELS, seed: int = 3, spread: float = 0.2
) -> Any:
    settings = {"embed_dim": width, "depth": layers, "num_heads": width // 64, "img_size": size}
    labels = dict(enumerate(names))
    config = TimmWrapperConfig(architecture="eva02_base_patch14_448", model_args=settings, id2label=labels)
    return randomised(TimmWrapperForImageClassification(config), seed, spread)


class Predictor(torch.nn.Module):
    """As published: github.com/christophschuhmann/improved-aesthetic-predictor, simple_inference.py."""

    def __init__(self, width: int = DIMENSION) -> None:
        super().__init__()
        linear, dropout = torch.nn.Linear, torch.nn.Dropout
        self.layers = torch.nn.Sequential(
            linear(width, 1024), dropout(0.2), linear(1024, 128), dropout(0.2), linear(128, 64), dropout(0.1),
            linear(64, 16), linear(16, 1),
        )  # fmt: skip


def publish(model: Any, folder: Path, vocabulary: list[str], form: str = "safetensors") -> Path:
    """Saves a model and a vocabulary as a published checkpoint."""
    save(model, folder, form)
    for name in ("vocab.txt", "tokenizer.model"):
        (folder / name).write_text("\n".join(vocabulary) + "\n", encoding="utf-8")
    return folder


def own_card(name: str, folder: Path, **changes: Any) -> str:
    """Writes a copy of a built-in card without its `shapes`, for a small checkpoint; returns its path."""
    content = yaml.safe_load((CARDS / f"{name}.yaml").read_text(encoding="utf-8")) | changes
    content.pop("shapes", None)
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(content, allow_unicode=True), encoding="utf-8")
    return str(path)


def ragged_tokens() -> np.ndarray:
    """int32 (4, 9): texts of 9, 5, 2 and 1 tokens, padded with 0."""
    tokens = np.random.default_rng(1).integers(1, WORDS, (4, 9), dtype=np.int32)
    for row, length in enumerate((9, 5, 2, 1)):
        tokens[row, length:] = 0
    return tokens


def run(model: onnx.ModelProto, **inputs: np.ndarray) -> np.ndarray:
    """Runs a model in ONNX Runtime; returns its only output."""
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (output,) = session.run(None, inputs)
    return output  # type: ignore[no-any-return]
