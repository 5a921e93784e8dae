"""Shared by the steps: settings, figures, `rate`, and inputs (pictures, captions, an image tower)."""

from __future__ import annotations

import io
import random
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib import resources
from itertools import cycle, islice
from pathlib import Path
from statistics import median

import yaml
from PIL import Image

from danqing.engine.core.device import Device
from danqing.engine.core.errors import DanqingError
from danqing.engine.core.files import write_json
from danqing.profiling.bench.crawl import chinese_lines
from danqing.profiling.bench.harness import SEED
from danqing.trt_models.card import Card, load_card
from danqing.trt_models.package_files import cache_folder
from danqing.trt_models.store import model_folder

JPEG_SIDE, JPEG_QUALITY, DISTINCT_JPEGS, DISTINCT_CAPTIONS = 512, 90, 512, 4096
IMAGE, TEXT, LANGUAGE_MODEL = "image", "text", "language-model"
"""The models of random weights: both towers, and a language model."""
VOCABULARY_SIZE = 21128
SMALL = "small"
"""Models of one or two layers, to try the steps on a CPU."""
SMALL_CARDS = {
    IMAGE: {"task": "image_embedding", "export": "chinese_clip.image_tower",
            "image_input": {"size": 224, "resize": 224, "fit": "stretch", "interpolation": "cubic"},
            "outputs": {"embedding": "64 numbers, unit length"}},
    TEXT: {"task": "text_embedding", "export": "chinese_clip.text_tower",
           "token_input": {"kind": "wordpiece", "file": "vocab.txt", "max_length": 52},
           "outputs": {"embedding": "64 numbers, unit length"}},
    LANGUAGE_MODEL: {"task": "language_model", "export": "bert.masked_language_model",
                     "token_input": {"kind": "wordpiece", "file": "vocab.txt", "max_length": 128},
                     "outputs": {"log_likelihood": "log-probability of the masked token"}},
}  # fmt: skip
SMALL_TEXT = {"vocab_size": VOCABULARY_SIZE, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
              "intermediate_size": 64, "max_position_embeddings": 128, "pad_token_id": 0}  # fmt: skip


@dataclass(frozen=True)
class Figure:
    """One measured value.

    Attributes:
        value: the figure; a string says why there is none.
        unit: of the value, `1/s` for instance.
        bar: the figure to compare with, in words: a peer's published figure or a goal of ours.
    """

    name: str
    value: float | str
    unit: str = ""
    bar: str = ""

    @property
    def text(self) -> str:
        """The value with as many digits as are shown."""
        if isinstance(self.value, str):
            return self.value
        digits = 0 if abs(self.value) >= 100 or self.value == int(self.value) else 3 if abs(self.value) >= 0.1 else 6
        return f"{self.value:,.{digits}f}"


@dataclass(frozen=True)
class Job:
    """Settings of a step.

    Attributes:
        device: `cuda`, `cuda:N` or `cpu`.
        scratch: folder that the steps of this run share.
        work: folder of the exported models and their engines, which later runs may use again.
        tower: name in `published.TOWERS`, or `small`.
        captions: Parquet with a column `text`; None: the demo's captions.
        rows: captions and vectors in the measured columns.
        pairs: pairs of the end-to-end run.
    """

    device: str
    scratch: Path
    work: Path
    tower: str
    captions: Path | None
    rows: int
    pairs: int

    def card_name(self, model: str) -> str:
        """Name or path of the card of a model: `IMAGE`, `TEXT` or `LANGUAGE_MODEL`."""
        if self.tower == SMALL:
            return str(self.work / f"small-{model}.yaml")
        return "bert-chinese" if model == LANGUAGE_MODEL else f"{self.tower}-{model}"


def rate(work: Callable[[], object], count: int, device: Device, seconds: float = 0.5, repeats: int = 3) -> float:
    """Items a second: the median of the runs of `work`, after one that warms up.

    Args:
        count: items that one run processes.
        device: the device to wait for after each run.
        seconds: least time of all runs together.
        repeats: least number of runs.
    """
    work()
    device.wait()
    taken: list[float] = []
    while len(taken) < repeats or sum(taken) < seconds:
        started = time.perf_counter()
        work()
        device.wait()
        taken.append(time.perf_counter() - started)
    return count / median(taken)


def demo_photographs() -> list[Path]:
    """The JPEG files that the demo ships."""
    return sorted((Path(str(resources.files("danqing.engine"))) / "demo" / "photos").glob("*.jpg"))


def jpegs(count: int) -> list[bytes]:
    """Distinct JPEG files of 512 × 512, each another part of one of the demo's photographs."""
    photographs = [Image.open(path).convert("RGB") for path in demo_photographs()]

    def crop(number: int) -> bytes:
        chance = random.Random(SEED + number)
        picture = photographs[number % len(photographs)]
        side = chance.randint(min(picture.size) // 2, min(picture.size))
        left, top = chance.randint(0, picture.width - side), chance.randint(0, picture.height - side)
        resized = picture.resize((JPEG_SIDE, JPEG_SIDE), box=(left, top, left + side, top + side))
        resized.save(buffer := io.BytesIO(), "JPEG", quality=JPEG_QUALITY)
        return buffer.getvalue()

    with ThreadPoolExecutor() as pool:
        return list(pool.map(crop, range(count)))


def captions(path: Path | None, count: int) -> list[str]:
    """Chinese captions of 8 to 40 words, in a cycle of at most 4,096 distinct ones."""
    return list(islice(cycle(chinese_lines(path, min(count, DISTINCT_CAPTIONS))), count))


def link_cache(work: Path) -> Path:
    """Makes a cache folder for this run, with links to the tables and models in the user's cache; returns its path.

    Models of random weights must not appear in the user's cache under a published model's name.
    """
    theirs, ours = cache_folder(), work / "cache"
    for kind in ("tables", "models"):
        (ours / kind).mkdir(parents=True, exist_ok=True)
        for path in sorted((theirs / kind).glob("[!.]*")):
            if not (ours / kind / path.name).exists():
                (ours / kind / path.name).symlink_to(path.resolve())
    return ours


def export_models(job: Job) -> None:
    """Exports the models with random weights, unless MODEL.json in the work folder shows that one is there."""
    import torch

    from danqing.profiling.bench import published
    from danqing.trt_models.export.from_checkpoint import export

    published.mend_torchvision()
    if job.tower == SMALL:
        for model, own in SMALL_CARDS.items():
            common = {"name": f"small-{model}", "title": "random weights", "licence": "none", "published": "nowhere"}
            Path(job.card_name(model)).write_text(yaml.safe_dump(common | own), encoding="utf-8")

    def make(model: str) -> torch.nn.Module:
        if job.tower != SMALL:
            made: torch.nn.Module = published.TOWERS[LANGUAGE_MODEL if model == LANGUAGE_MODEL else job.tower]()
            return made
        if model == LANGUAGE_MODEL:
            return published.build_masked_bert(SMALL_TEXT)
        return published.build_chinese_clip(SMALL_TEXT, published.vision(128, 2, 2, 224, 32), 64)

    for model in SMALL_CARDS:
        if (job.work / f"{model}.json").exists():
            continue
        started, checkpoint = time.monotonic(), job.work / ("bert" if model == LANGUAGE_MODEL else "checkpoint")
        if not (checkpoint / "vocab.txt").exists():  # both towers are in one checkpoint
            torch.manual_seed(SEED)
            published.save(published.randomised(make(model), spread=published.SPREAD), checkpoint)
            (checkpoint / "vocab.txt").write_text("\n".join(vocabulary(job.captions)) + "\n", encoding="utf-8")
        card = load_card(job.card_name(model))
        if model_folder(card).is_symlink():  # the user's own model of that name, which stays as it is
            model_folder(card).unlink()
        export(card, checkpoint)
        write_json(job.work / f"{model}.json", {"seconds": round(time.monotonic() - started, 1)})


def vocabulary(path: Path | None) -> list[str]:
    """A WordPiece vocabulary of the usual size: the characters of captions, and pieces that no caption has."""
    characters = sorted({*"".join(captions(path, DISTINCT_CAPTIONS)).lower()} - {" "})[: VOCABULARY_SIZE - 5]
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *characters]
    return [*pieces, *(f"[unused{number}]" for number in range(len(pieces), VOCABULARY_SIZE))]


def wait_for(job: Job, model: str) -> Card:
    """Waits until a model is exported; returns its card.

    Raises:
        DanqingError: the export failed; `export.log` says why.
    """
    while not (job.work / f"{model}.json").exists():
        if (job.work / "export.failed").exists():
            log = (job.work / "export.log").read_text(encoding="utf-8", errors="replace")
            raise DanqingError(f"{job.card_name(model)} was not exported: {log[-1500:]}")
        time.sleep(0.2)
    return load_card(job.card_name(model))
