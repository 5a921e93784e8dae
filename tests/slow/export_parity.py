"""Are exported models the published ones? Every architecture at its published size, with random weights.

Built by transformers (EVA-02 by timm), saved in the published layout, exported by `danqing models export`, and run by
ONNX Runtime beside PyTorch on the same pictures or captions, on CPU cores in float32.

  python -m danqing.profiling.bench.export_parity \
      chinese-clip-vit-b-16 chinese-clip-vit-l-14 siglip2-b-16-256 freepik-nsfw

`apart`: the largest difference of two numbers; `spread`: their standard deviation between inputs, beside which it is to
be seen. `fused`: the largest difference between the outputs of the graph and of its fused form.
`memory`: the peak of the export, which is a process of its own; mapped pages of the checkpoint count.
"""

from __future__ import annotations

import argparse
import gc
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch

from danqing.profiling.bench.published import mend_torchvision, randomised, save
from danqing.trt_models.card import Card, card_names, load_card
from danqing.trt_models.compile.onnx_fusion import fuse
from danqing.trt_models.export import aesthetic, chinese_clip, siglip

BERT = {"vocab_size": 21128, "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12,
        "intermediate_size": 3072, "max_position_embeddings": 512, "pad_token_id": 0}  # fmt: skip
LARGE_BERT = BERT | {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096}
SPREAD = 0.02
"""Standard deviation of the random weights: of the order of trained ones."""


def vision(width: int, layers: int, heads: int, side: int, patch: int) -> dict[str, int]:
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


MODELS: dict[str, Callable[[], Any]] = {
    "chinese-clip-vit-b-16": lambda: build_chinese_clip(BERT, vision(768, 12, 12, 224, 16), 512),
    "chinese-clip-vit-l-14": lambda: build_chinese_clip(BERT, vision(1024, 24, 16, 224, 14), 768),
    "chinese-clip-vit-l-14-336": lambda: build_chinese_clip(BERT, vision(1024, 24, 16, 336, 14), 768),
    "chinese-clip-vit-h-14": lambda: build_chinese_clip(LARGE_BERT, vision(1280, 32, 16, 224, 14), 1024),
    "siglip2-b-32-256": lambda: build_siglip(vision(768, 12, 12, 256, 32)),
    "siglip2-b-16-256": lambda: build_siglip(vision(768, 12, 12, 256, 16)),
    "siglip2-l-16-256": lambda: build_siglip(vision(1024, 24, 16, 256, 16)),
    "freepik-nsfw": build_eva,
    "laion-aesthetic": build_clip,
    "text-safety-20m": build_bert,
}
"""Model → its published configuration (the text classifier's: one of about that many parameters)."""


def inputs(card: Card, rows: int) -> dict[str, np.ndarray]:
    """Noise that is coarser from picture to picture, or random captions of every length up to the longest."""
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
    """The aesthetic predictor's layers at the places they have there."""
    layers: dict[int, torch.nn.Module] = {}
    for place, rows in aesthetic.LAYERS:
        # Each layer keeps its input's size, or nothing of the picture would be left after five.
        layers[place] = randomised(torch.nn.Linear(width, rows), place, width**-0.5)
        width = rows
    return torch.nn.Sequential(*(layers.get(place, torch.nn.Identity()) for place in range(max(layers) + 1)))


def reference(model: Any, card: Card, given: np.ndarray, predictor: torch.nn.Module | None) -> np.ndarray:
    """PyTorch's answer to the graph's input."""
    normalised = torch.nn.functional.normalize
    with torch.no_grad():
        if card.image_input:
            half = "siglip" in card.name
            mean, deviation = (siglip.HALF,) * 2 if half else (chinese_clip.MEAN, chinese_clip.DEVIATION)
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


def measure(name: str, folder: Path, rows: int, form: str) -> None:
    """Prints a row for each card of the model."""
    torch.manual_seed(0)
    model = randomised(MODELS[name](), 1, SPREAD)
    checkpoint = save(model, folder / "checkpoint", form)
    predictor = None
    if name == "laion-aesthetic":
        predictor = head(768)
        torch.save(
            {f"layers.{key}": value for key, value in predictor.state_dict().items()}, checkpoint / aesthetic.HEAD
        )
    cards = [load_card(card) for card in (f"{name}-image", f"{name}-text", name) if card in card_names()]
    expected = {}
    for card in cards:
        if card.token_input:  # only copied here
            (checkpoint / card.token_input.file).write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n")
        expected[card.name] = reference(model, card, next(iter(inputs(card, rows).values())), predictor)
    del model
    gc.collect()
    for card in cards:
        start = time.perf_counter()
        command = [sys.executable, "-m", __spec__.name, "--only-export", card.name, str(checkpoint)]
        told = subprocess.run(command, env=os.environ | {"DANQING_CACHE": str(folder)}, capture_output=True, text=True)
        if told.returncode:
            raise SystemExit(told.stderr)
        seconds = time.perf_counter() - start
        path, peak = Path(told.stdout.split()[0]), float(told.stdout.split()[1])
        found = run_on_cpu(path, inputs(card, rows))
        fused = np.abs(run_on_cpu(fused_form(path), inputs(card, rows)) - found).max()
        wanted = expected[card.name]
        cosine = f"{(found * wanted).sum(axis=1).min():.7f}" if found.ndim == 2 else "–"
        size = sum(file.stat().st_size for file in path.parent.glob("model.onnx*"))
        apart, spread = np.abs(found - wanted).max(), wanted.std(axis=0).mean()
        print(
            f"{card.name:32}{parameters(path):>8.1f} M{cosine:>12}{apart:>10.1e}"
            f"{spread:>10.1e}{fused:>10.1e}{size / 1e6:>9.0f} MB{seconds:>7.1f} s{peak:>7.1f} GiB",
            flush=True,
        )
        for file in path.parent.iterdir():
            file.unlink()


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
    import onnx

    model = onnx.load(str(path))
    fuse(model)
    beside = path.with_name("fused.onnx")
    onnx.save(model, str(beside), save_as_external_data=True, location="fused.data")
    return beside


def parameters(path: Path) -> float:
    """Millions of numbers in the graph's weights."""
    import onnx

    graph = onnx.load(str(path), load_external_data=False).graph
    return sum(int(np.prod(weight.dims, dtype=np.int64)) for weight in graph.initializer) / 1e6


def only_export(name: str, checkpoint: Path) -> None:
    """Prints where the ONNX is, and the most memory this process had, in GiB."""
    from danqing.trt_models.export.from_checkpoint import export

    folder = export(load_card(name), checkpoint)
    # getrusage's maximum would be the parent's, if that was larger.
    (peak,) = re.findall(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    print(folder / "model.onnx", int(peak) / 2**20)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", metavar="MODEL", help=f"default: all of {', '.join(MODELS)}")
    parser.add_argument("--rows", type=int, default=4, metavar="N", help="pictures or captions (default: 4)")
    parser.add_argument("--form", choices=("safetensors", "bin"), default="safetensors", help="of the weights")
    parser.add_argument("--only-export", nargs=2, metavar=("CARD", "FOLDER"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.only_export:
        only_export(options.only_export[0], Path(options.only_export[1]))
        return
    mend_torchvision()
    print(f"{'card':32}{'weights':>10}{'cosine ≥':>12}{'apart ≤':>10}{'spread':>10}{'fused ≤':>10}", end="")
    print(f"{'ONNX':>12}{'export':>9}{'memory':>11}")
    for name in options.models or MODELS:
        with tempfile.TemporaryDirectory() as folder:
            measure(name, Path(folder), options.rows, options.form)


if __name__ == "__main__":
    main()
