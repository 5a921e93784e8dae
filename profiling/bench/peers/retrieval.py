"""clip-retrieval's embedding of pairs, with two towers that are ONNX files.

Its reader (WebDataset, PyTorch's DataLoader), runner, writer and logger are the package's own. CLIP's weights would
have to be downloaded, so in place of its mapper stands one of ONNX Runtime, and in place of CLIP's preprocessing Pillow
(which CLIP's own uses, too) and SentencePiece.
"""

from __future__ import annotations

import argparse
import json
import sys
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnxruntime
import sentencepiece
import torch
from PIL import Image

FILTERS = {"cubic": Image.Resampling.BICUBIC, "linear": Image.Resampling.BILINEAR}


def without_init(outer: str, inner: str) -> None:
    """Spares two packages their `__init__`, which opens a web server, an index and CLIP's own models."""
    spec = find_spec(outer)
    place = Path(((spec and spec.submodule_search_locations) or [outer])[0])
    for name, path in ((outer, place), (f"{outer}.{inner}", place / inner)):
        sys.modules[name] = package = ModuleType(name)
        package.__path__ = [str(path)]


without_init("clip_retrieval", "clip_inference")  # before the logger's process, which imports this file, asks for it

from clip_retrieval.clip_inference.logger import LoggerWriter  # noqa: E402
from clip_retrieval.clip_inference.reader import WebdatasetReader  # noqa: E402
from clip_retrieval.clip_inference.runner import Runner  # noqa: E402
from clip_retrieval.clip_inference.writer import NumpyWriter  # noqa: E402


class Preprocess:
    """Picture → uint8 (size, size, 3); mean and deviation lie in the ONNX graph."""

    def __init__(self, job: dict[str, Any]) -> None:
        self.size, self.resize, self.fit = job["size"], job["resize"], job["fit"]
        self.filter = FILTERS[job["interpolation"]]

    def __call__(self, image: Image.Image) -> torch.Tensor:
        width = height = self.resize
        if self.fit == "shorter-edge":
            width, height = (side * self.resize // min(image.size) for side in image.size)
        left, top = (width - self.size) // 2, (height - self.size) // 2
        image = image.convert("RGB").resize((width, height), self.filter)
        return torch.from_numpy(np.array(image.crop((left, top, left + self.size, top + self.size))))


class Tokenizer:
    """Texts → int32 (texts, max_length), as CLIP's tokenizer gives them: the rest is padding."""

    def __init__(self, job: dict[str, Any]) -> None:
        self.job, self.pieces = job, sentencepiece.SentencePieceProcessor(model_file=job["pieces"])

    def __call__(self, texts: list[str]) -> torch.Tensor:
        out = torch.full((len(texts), self.job["max_length"]), self.job["pad"], dtype=torch.int32)
        for row, ids in enumerate(self.pieces.encode(texts)):
            ids = [self.job["begin"], *ids[: self.job["max_length"] - 2], self.job["end"]]
            out[row, : len(ids)] = torch.tensor(ids, dtype=torch.int32)
        return out


class Mapper:
    """In ClipMapper's place: a batch of the reader → float16 embeddings."""

    def __init__(self, job: dict[str, Any]) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = job["threads"]
        self.image, self.text = (
            onnxruntime.InferenceSession(job[side]["onnx"], options, providers=["CPUExecutionProvider"])
            for side in ("image", "text")
        )
        self.pad = job["text"]["pad"]

    def __call__(self, item: dict[str, Any]) -> dict[str, Any]:
        tokens = item["text_tokens"].numpy()
        tokens = tokens[:, : int((tokens != self.pad).sum(1).max())]  # what CLIP's fixed length would cost is spared
        (pictures,) = self.image.run(["embedding"], {"pixels": item["image_tensor"].numpy()})
        (texts,) = self.text.run(["embedding"], {"tokens": tokens})
        return {
            "image_embs": pictures.astype(np.float16),
            "text_embs": texts.astype(np.float16),
            "image_filename": item["image_filename"],
            "text": item["text"],
            "metadata": None,
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("job", type=Path, help="JSON: shards, output, image, text, threads, workers, batch")
    job = json.loads(parser.parse_args().job.read_text(encoding="utf-8"))
    output, both = job["output"], {"enable_image": True, "enable_text": True, "enable_metadata": False}
    preprocess, tokenizer = Preprocess(job["image"]), Tokenizer(job["text"])
    run = Runner(
        reader_builder=lambda sampler: WebdatasetReader(
            sampler, preprocess, tokenizer, job["shards"], job["batch"], job["workers"], **both
        ),
        mapper_builder=lambda: Mapper(job),
        writer_builder=lambda part: NumpyWriter(part, output, output_partition_count=1, **both),
        logger_builder=lambda part: LoggerWriter(part, f"{output}/stats"),
        output_partition_count=1,
    )
    run(0)


if __name__ == "__main__":
    main()
