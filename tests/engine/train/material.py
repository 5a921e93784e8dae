"""Small models and written runs to train on. Nothing here imports transformers before it is needed."""

from __future__ import annotations

import hashlib
import io
import json
import math
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import sentencepiece
from PIL import Image

from danqing.engine.core.files import write_json
from danqing.engine.run.versions import current_versions

COLOURS = "红橙黄绿青蓝紫灰"
PAIRS_PER_SHARD = 32
SIDE, LENGTH = 32, 16
Pair = tuple[bytes, str]


def planted_pairs(count: int, seed: int = 0, classes: int = len(COLOURS)) -> list[Pair]:
    """Noisy pictures of one colour and pattern a class, with a caption that names the class among other characters."""
    fixed, rng = np.random.default_rng(0), np.random.default_rng(seed)
    colours, patterns = fixed.uniform(40, 215, (classes, 1, 1, 3)), fixed.normal(0, 40, (classes, SIDE, SIDE, 3))
    pairs = []
    for number in range(count):
        kind = number % classes
        pixels = colours[kind] + patterns[kind] + rng.normal(0, 50, (SIDE, SIDE, 3))
        caption = f"{COLOURS[kind]}{rng.choice(list('大小圆方新旧'))}的画"
        pairs.append((encoded(pixels), caption))
    return pairs


def encoded(pixels: np.ndarray, form: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(buffer, form)
    return buffer.getvalue()


def write_run(folder: Path, pairs: Sequence[Pair], form: str = "webdataset", recaptions: Sequence[str] = ()) -> Path:
    """Writes what training reads of a run: run.json and its shards, in the layout of `danqing write`."""
    manifest: dict[str, Any] = {"recipe": {}, "recipe_hash": "", "layout": {}, "shards": [], "models": {}}
    (folder / "shards").mkdir(parents=True)
    write_json(folder / "run.json", manifest | {"versions": current_versions(), "written": {}})
    for number, first in enumerate(range(0, len(pairs), PAIRS_PER_SHARD)):
        part = pairs[first : first + PAIRS_PER_SHARD]
        uids = [hashlib.md5(f"{first + row}".encode()).hexdigest() for row in range(len(part))]
        columns: dict[str, Any] = {"uid": uids, "caption": [caption for _, caption in part]}
        if recaptions:
            columns["recaption"] = recaptions[first : first + PAIRS_PER_SHARD]
        path = folder / "shards" / f"{number:05d}"
        if form == "parquet":
            images = [{"bytes": image, "path": f"{row}.png"} for row, (image, _) in enumerate(part)]
            columns = {"image": images, "text": columns["caption"]} | columns
        else:
            _write_tar(path.with_suffix(".tar"), part)
        pq.write_table(pa.table(columns), path.with_suffix(".parquet"))
    return folder


def _write_tar(path: Path, pairs: Sequence[Pair]) -> None:
    with tarfile.open(path, "w") as tar:
        for row, (image, caption) in enumerate(pairs):
            for extension, content in (("png", image), ("txt", caption.encode()), ("json", json.dumps({}).encode())):
                member = tarfile.TarInfo(f"{row:09d}.{extension}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))


def write_checkpoint(folder: Path, texts: Sequence[str], width: int = 32, seed: int = 0, heads: int = 2) -> Path:
    """Writes a small SigLIP of random weights, with a SentencePiece vocabulary of the characters of some texts."""
    import torch

    from danqing.engine.train.model import siglip_model

    folder.mkdir(parents=True, exist_ok=True)
    characters = sorted(set("".join(texts)))
    with (folder / "tokenizer.model").open("wb") as file:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(texts), model_writer=file, model_type="char", vocab_size=len(characters) + 5,
            character_coverage=1.0, pad_id=0, eos_id=1, bos_id=2, unk_id=3, minloglevel=2, hard_vocab_limit=False,
        )  # fmt: skip
    words = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model")).vocab_size()
    tower = {"hidden_size": width, "intermediate_size": 2 * width, "num_hidden_layers": 2, "num_attention_heads": heads}
    special: dict[str, Any] = {"bos_token_id": 2, "eos_token_id": 1, "pad_token_id": 0}
    text = tower | special | {"vocab_size": words, "max_position_embeddings": LENGTH, "projection_size": width}
    kind = siglip_model()
    torch.manual_seed(seed)
    config = kind.config_class(text_config=text, vision_config=tower | {"image_size": SIDE, "patch_size": 8})
    model = kind(config)
    with torch.no_grad():
        model.logit_scale.fill_(math.log(10))
        model.logit_bias.fill_(-10)
    model.save_pretrained(folder)
    return folder


def journal(output: Path) -> list[dict[str, Any]]:
    """The lines of train.jsonl."""
    return [json.loads(line) for line in (output / "train.jsonl").read_text(encoding="utf-8").splitlines()]
