"""Published architectures as transformers builds them, with random weights, saved in the published layout."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

SPREAD = 0.02
"""Standard deviation of the random weights, of the order of trained ones."""
BERT = {"vocab_size": 21128, "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12,
        "intermediate_size": 3072, "max_position_embeddings": 512, "pad_token_id": 0}  # fmt: skip
LARGE_BERT = BERT | {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096}


def mend_torchvision() -> None:
    """Makes torchvision importable with a PyTorch that it was not compiled for. Call it before timm is imported.

    timm imports torchvision, and transformers does if it is installed, but neither uses its compiled operators here.
    Without them the import fails at the description of two operators, so these are declared.
    """
    try:
        import torchvision
    except RuntimeError:
        for name in ("nms", "qnms"):
            torch.library.define(f"torchvision::{name}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            del sys.modules[name]
        import torchvision  # noqa: F401


def randomised(model: torch.nn.Module, seed: int = 0, spread: float = 0.2) -> torch.nn.Module:
    """Makes every parameter random, so that norms of one and biases of zero hide no error."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(0, spread, generator=generator)
            if "norm" in name.lower() and name.endswith("weight"):
                parameter.add_(1)
    return model.eval()


def save(model: Any, folder: Path, form: str = "safetensors") -> Path:
    """Writes config.json and the weights, as `model.safetensors` or (form `bin`) as `pytorch_model.bin`."""
    model.save_pretrained(folder)
    if form == "bin":
        for path in folder.glob("model*.safetensors*"):
            path.unlink()
        torch.save(model.state_dict(), folder / "pytorch_model.bin")
    return folder


def vision(width: int, layers: int, heads: int, side: int, patch: int) -> dict[str, int]:
    """Configuration of a vision transformer; `side` and `patch` in pixels."""
    return {"hidden_size": width, "intermediate_size": 4 * width, "num_hidden_layers": layers,
            "num_attention_heads": heads, "image_size": side, "patch_size": patch}  # fmt: skip


def build_chinese_clip(text: dict[str, Any], picture: dict[str, int], dimension: int) -> Any:
    from transformers import ChineseCLIPConfig, ChineseCLIPModel

    return ChineseCLIPModel(ChineseCLIPConfig(text_config=text, vision_config=picture, projection_dim=dimension))


def build_siglip(picture: dict[str, int]) -> Any:
    from transformers import SiglipConfig, SiglipModel

    text = {key: picture[key] for key in ("hidden_size", "intermediate_size", "num_hidden_layers")}
    text |= {"num_attention_heads": picture["num_attention_heads"], "vocab_size": 256_000, "pad_token_id": 0}
    return SiglipModel(SiglipConfig(text_config=text | {"bos_token_id": 2, "eos_token_id": 1}, vision_config=picture))


def build_masked_bert(text: dict[str, Any]) -> Any:
    from transformers import BertConfig, BertForMaskedLM

    return BertForMaskedLM(BertConfig(**text))


TOWERS: dict[str, Callable[[], Any]] = {
    "chinese-clip-vit-b-16": lambda: build_chinese_clip(BERT, vision(768, 12, 12, 224, 16), 512),
    "chinese-clip-vit-l-14": lambda: build_chinese_clip(BERT, vision(1024, 24, 16, 224, 14), 768),
    "chinese-clip-vit-l-14-336": lambda: build_chinese_clip(BERT, vision(1024, 24, 16, 336, 14), 768),
    "chinese-clip-vit-h-14": lambda: build_chinese_clip(LARGE_BERT, vision(1280, 32, 16, 224, 14), 1024),
    "language-model": lambda: build_masked_bert(BERT),
    "siglip2-b-32-256": lambda: build_siglip(vision(768, 12, 12, 256, 32)),
    "siglip2-b-16-256": lambda: build_siglip(vision(768, 12, 12, 256, 16)),
    "siglip2-l-16-256": lambda: build_siglip(vision(1024, 24, 16, 256, 16)),
}
"""Name of a pair of towers, or of the language model → its model at the published size."""
