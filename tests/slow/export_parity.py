"""Compares exported models with the published architectures: every one at its published size, with random weights.

    pytest tests/slow/export_parity.py -s                      # all; 16 GB of memory, an hour
    pytest tests/slow/export_parity.py -s -k "siglip2-b-16-256 or freepik-nsfw"

transformers (timm for EVA-02) builds the model and saves it in the published layout; `danqing models export` exports
it; ONNX Runtime and PyTorch run it on the same pictures or captions, on CPU cores in float32. For every card it prints
the largest difference between the two, the standard deviation of the output between inputs, the largest difference
between the graph and its fused form, and seconds and peak memory of the export.
"""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from danqing.profiling.bench.published import SPREAD, TOWERS, mend_torchvision, randomised, save, vision
from danqing.trt_models.card import Card, card_names, load_card
from danqing.trt_models.compile.onnx_fusion import fuse
from danqing.trt_models.export import aesthetic, chinese_clip, siglip

mend_torchvision()

ROWS = 4
"""Pictures or captions."""
EXPORT = """
import re, sys
from pathlib import Path
from danqing.trt_models.card import load_card
from danqing.trt_models.export.from_checkpoint import export

folder = export(load_card(sys.argv[1]), Path(sys.argv[2]))
# getrusage would report the parent's peak, if that was larger.
(peak,) = re.findall(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())
print(folder / "model.onnx", int(peak) / 2**20)
"""
"""Exports a card's model in a process of its own; prints the file's path and the peak memory in GiB."""


def build_eva() -> Any:
    from transformers import TimmWrapperConfig, TimmWrapperForImageClassification

    labels = dict(enumerate(("neutral", "low", "medium", "high")))
    return TimmWrapperForImageClassification(TimmWrapperConfig(architecture="eva02_base_patch14_448", id2label=labels))


def build_clip() -> Any:
    from transformers import CLIPConfig, CLIPModel

    picture = vision(1024, 24, 16, 224, 14) | {"projection_dim": 768}
    return CLIPModel(CLIPConfig(text_config={}, vision_config=picture, projection_dim=768))


def build_bert() -> Any:
    from transformers import BertConfig, BertForSequenceClassification

    labels = {0: "safe", 1: "unsafe"}
    config = BertConfig(
        vocab_size=21128, hidden_size=512, num_hidden_layers=4, num_attention_heads=8, intermediate_size=2048,
        id2label=labels, label2id={"safe": 0, "unsafe": 1},
    )  # fmt: skip
    return BertForSequenceClassification(config)


MODELS: dict[str, Callable[[], Any]] = TOWERS | {
    "freepik-nsfw": build_eva,
    "laion-aesthetic": build_clip,
    "text-safety-20m": build_bert,
}
"""Model → its published configuration; the text classifier has about that many parameters."""


def inputs(card: Card, rows: int) -> dict[str, np.ndarray]:
    """Noise, twice as coarse in each further picture; or random captions of several lengths up to the longest."""
    random = np.random.default_rng(11)
    if card.image_input:
        side = card.image_input.size
        pixels = np.empty((rows, side, side, 3), np.uint8)
        for row in range(rows):
            grain = 1 << row
            coarse = random.integers(0, 256, (side // grain + 1, side // grain + 1, 3), np.uint8)
            pixels[row] = np.kron(coarse, np.ones((grain, grain, 1), np.uint8))[:side, :side]
        return {"pixels": pixels}
    assert card.token_input is not None
    length = card.token_input.max_length
    tokens = random.integers(5, 21_000, (rows, length), np.int32)
    for row in range(1, rows):
        tokens[row, max(length * (rows - row) // rows, 2) :] = 0
    return {"tokens": tokens}


def head(width: int) -> torch.nn.Sequential:
    """The aesthetic predictor with random weights; layers have the indices of the published file."""
    layers: dict[int, torch.nn.Module] = {}
    for place, rows in aesthetic.LAYERS:
        # This spread keeps the size of the values; with a smaller one the output would not depend on the picture.
        layers[place] = randomised(torch.nn.Linear(width, rows), place, width**-0.5)
        width = rows
    return torch.nn.Sequential(*(layers.get(place, torch.nn.Identity()) for place in range(max(layers) + 1)))


def reference(model: Any, card: Card, given: np.ndarray, predictor: torch.nn.Module | None) -> np.ndarray:
    """PyTorch's output for the graph's input."""
    normalised = torch.nn.functional.normalize
    with torch.no_grad():
        if card.image_input:
            half = "siglip" in card.name
            mean, deviation = (siglip.MEAN,) * 2 if half else (chinese_clip.MEAN, chinese_clip.DEVIATION)
            scaled = (given / np.float32(255) - np.array(mean, np.float32)) / np.array(deviation, np.float32)
            values = torch.tensor(scaled.transpose(0, 3, 1, 2))
            if card.name == "freepik-nsfw":
                return model(pixel_values=values).logits.softmax(-1)[:, 3].numpy()
            embedding = normalised(model.get_image_features(pixel_values=values).pooler_output, dim=-1)
            return (predictor(embedding)[:, 0] if predictor else embedding).numpy()
        ids = torch.tensor(given, dtype=torch.long)
        mask = {} if "siglip" in card.name else {"attention_mask": (ids != 0).long()}
        if card.task == "text_classifier":
            return model(input_ids=ids, **mask).logits.softmax(-1)[:, 1].numpy()
        return normalised(model.get_text_features(input_ids=ids, **mask).pooler_output, dim=-1).numpy()


@pytest.mark.parametrize("name", MODELS)
def test_exported_models_give_the_published_outputs(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = randomised(MODELS[name](), 1, SPREAD)
    checkpoint = save(model, tmp_path / "checkpoint")
    predictor = None
    if name == "laion-aesthetic":
        predictor = head(768)
        weights = {f"layers.{key}": value for key, value in predictor.state_dict().items()}
        torch.save(weights, checkpoint / aesthetic.HEAD_FILE)
    cards = [load_card(card) for card in (f"{name}-image", f"{name}-text", name) if card in card_names()]
    expected = {}
    for card in cards:
        if card.token_input:  # the export only copies it
            (checkpoint / card.token_input.file).write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n")
        expected[card.name] = reference(model, card, next(iter(inputs(card, ROWS).values())), predictor)
    del model
    gc.collect()
    for card in cards:
        start = time.perf_counter()
        command = [sys.executable, "-c", EXPORT, card.name, str(checkpoint)]
        environment = os.environ | {"DANQING_CACHE": str(tmp_path)}
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        seconds, (file, peak) = time.perf_counter() - start, done.stdout.split()
        path = Path(file)
        found, wanted = run_on_cpu(path, inputs(card, ROWS)), expected[card.name]
        fused = np.abs(run_on_cpu(fused_form(path), inputs(card, ROWS)) - found).max()
        apart, spread = np.abs(found - wanted).max(), wanted.std(axis=0).mean()
        size = sum(file.stat().st_size for file in path.parent.glob("model.onnx*"))
        print(f"\n{card.name}: {parameters(path):.1f} M weights, {size / 1e6:.0f} MB, {seconds:.1f} s, {peak:.4} GiB")
        print(f"difference {apart:.1e}, spread between inputs {spread:.1e}, difference of the fused form {fused:.1e}")
        assert apart < 1e-5 and fused < 1e-4
        if found.ndim == 2:
            assert (found * wanted).sum(axis=1).min() > 0.99999
        for part in path.parent.iterdir():
            part.unlink()


def run_on_cpu(path: Path, given: dict[str, np.ndarray]) -> np.ndarray:
    """Runs an ONNX file with one output on CPU cores.

    Args:
        given: the inputs by name.

    Returns:
        The output.
    """
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, given)
    return np.asarray(found)


def fused_form(path: Path) -> Path:
    """Writes the graph in fused operators to a file beside it; returns its path."""
    model = onnx.load(str(path))
    fuse(model)
    beside = path.with_name("fused.onnx")
    onnx.save(model, str(beside), save_as_external_data=True, location="fused.data")
    return beside


def parameters(path: Path) -> float:
    """Millions of numbers in the graph's weights."""
    graph = onnx.load(str(path), load_external_data=False).graph
    return sum(int(np.prod(weight.dims, dtype=np.int64)) for weight in graph.initializer) / 1e6
