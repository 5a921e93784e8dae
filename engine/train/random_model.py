"""Small SigLIP models with random weights, to train from scratch."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sentencepiece
import torch

from danqing.engine.train.model import GEMMA, MADE_WITH, siglip_model
from danqing.trt_models.package_files import sha256


@dataclass(frozen=True)
class Size:
    """Size of a model with two layers in each tower.

    Attributes:
        width: of the states and of the embeddings.
        heads: of the attention.
        side, patch: of a picture and of its patches, in pixels.
        length: tokens of a text.
    """

    width: int
    heads: int
    side: int
    patch: int
    length: int


def write_random_model(folder: Path, texts: Iterable[str], size: Size, seed: int = 0) -> Path:
    """Writes a SigLIP in the published layout, whose tokens are the characters of some texts.

    Args:
        folder: receives config.json, weights and tokenizer.model.
        texts: have all characters that the model knows.
        size: of the model.
        seed: of the weights.

    Returns:
        The folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    words = write_tokenizer(folder / GEMMA.file, texts)
    tower: dict[str, Any] = {"hidden_size": size.width, "intermediate_size": 2 * size.width, "num_hidden_layers": 2,
                             "num_attention_heads": size.heads}  # fmt: skip
    text = {"vocab_size": words, "max_position_embeddings": size.length, "projection_size": size.width,
            "bos_token_id": 2, "eos_token_id": GEMMA.end, "pad_token_id": GEMMA.pad}  # fmt: skip
    kind = siglip_model()
    torch.manual_seed(seed)
    vision = tower | {"image_size": size.side, "patch_size": size.patch}
    made_with = {MADE_WITH: sha256(folder / GEMMA.file)}
    model = kind(kind.config_class(text_config=tower | text, vision_config=vision, **made_with))
    with torch.no_grad():  # first values of the SigLIP paper; transformers begins at 0
        model.logit_scale.fill_(math.log(10))
        model.logit_bias.fill_(-10)
    model.save_pretrained(folder)
    return folder


def write_tokenizer(path: Path, texts: Iterable[str]) -> int:
    """Writes a SentencePiece model with SigLIP 2's special tokens, whose pieces are the characters of some texts.

    Returns:
        The number of pieces.
    """
    with path.open("wb") as file:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(texts), model_writer=file, model_type="char", character_coverage=1.0,
            vocab_size=8000, hard_vocab_limit=False, pad_id=0, eos_id=1, bos_id=2, unk_id=3, minloglevel=2,
        )  # fmt: skip
    return int(sentencepiece.SentencePieceProcessor(model_file=str(path)).vocab_size())
