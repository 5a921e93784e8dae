"""Published architectures as their own libraries build them: random weights, saved in the published layout."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch

_UNREGISTERED = ("nms", "qnms")
_SCHEMA = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"


def mend_torchvision() -> None:
    """Lets torchvision be imported beside a PyTorch it was not compiled for.

    timm imports it, and transformers if it is installed, but neither uses its compiled operators here. Without them
    torchvision stops at describing two of them, so these are declared. Call it before either is imported.
    """
    try:
        import torchvision
    except RuntimeError:
        for name in _UNREGISTERED:
            torch.library.define(f"torchvision::{name}", _SCHEMA)
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            del sys.modules[name]
        import torchvision  # noqa: F401


def randomised(model: torch.nn.Module, seed: int = 0, spread: float = 0.2) -> torch.nn.Module:
    """Every parameter random: nothing hides behind norms of one and biases of zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(0, spread, generator=generator)
            if "norm" in name.lower() and name.endswith("weight"):
                parameter.add_(1)
    return model.eval()


def save(model: Any, folder: Path, form: str = "safetensors") -> Path:
    """config.json and the weights, as `model.safetensors` or as `pytorch_model.bin` (form `bin`)."""
    model.save_pretrained(folder)
    if form == "bin":
        for path in folder.glob("model*.safetensors*"):
            path.unlink()
        torch.save(model.state_dict(), folder / "pytorch_model.bin")
    return folder
