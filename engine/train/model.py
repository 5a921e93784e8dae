"""The model: a SigLIP checkpoint in the published layout, read by transformers and written with its model cards."""

from __future__ import annotations

import re
import shutil
import sys
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import nn
from torch.nn.functional import normalize

from danqing.engine.core.errors import DanqingError
from danqing.trt_models.card import ImageInput, TokenInput, load_card
from danqing.trt_models.export.checkpoint import UNUSED_WEIGHTS, Checkpoint
from danqing.trt_models.package_files import package_file, sha256
from danqing.trt_models.run.tokenizer import AnyTokenizer, open_tokenizer

GEMMA = TokenInput("sentencepiece", "tokenizer.model", unknown=3, end=1, pad=0, lower_case=True, fixed_length=True)
"""The tokenizer of SigLIP 2, without its length."""
GEMMA_PIECES, GEMMA_SHA256 = 256_000, "61a7b147390c64585d6c3543dd6fc636906c9af3865a5548f27f31aee1d4c8e2"
"""Vocabulary and SHA-256 of its file, which all published SigLIP 2 share (google/siglip2-*, tokenizer.model)."""
MADE_WITH = "tokenizer_sha256"
"""Key of config.json: SHA-256 of the tokenizer that a model was trained with."""
LEVELS = 255.0
BACKWARD = 3
"""Arithmetic of a training step in that of its forward pass: the backward pass takes twice as much."""


@dataclass(frozen=True)
class Source:
    """A checkpoint that a training starts from.

    Attributes:
        folder: config.json, weights, tokenizer file.
        image_input, token_input: preprocessing of pictures and texts.
        files: SHA-256 of config.json, of the weights and of the tokenizer, by name.
    """

    folder: Path
    image_input: ImageInput
    token_input: TokenInput
    files: dict[str, str]

    @classmethod
    def open(cls, folder: Path) -> Source:
        """Reads what a checkpoint's inputs are: from its cards, if a training has written it, else as SigLIP 2 has.

        Raises:
            DanqingError: a file is missing or damaged, the tokenizer is another model's, or the model is not a SigLIP
                of fixed resolution.
        """
        weights = Checkpoint(folder)
        weights.expect("siglip")
        vision, text = (weights.setting(weights.config, f"{name}_config") for name in ("vision", "text"))
        size = weights.setting(vision, "image_size", 224)
        length = weights.setting(text, "max_position_embeddings", 64)
        cards = sorted(folder.glob("*-text.yaml"))
        tokens = load_card(str(cards[0])).token_input if cards else TokenInput(**asdict(GEMMA) | {"max_length": length})
        assert tokens is not None
        tokenizer = package_file(None, tokens.file, folder)
        open_tokenizer(tokens, tokenizer)  # its faults are errors before the training
        published = GEMMA_SHA256 if text.get("vocab_size") == GEMMA_PIECES else None
        wanted = weights.config.get(MADE_WITH, published)
        if wanted not in (None, sha256(tokenizer)):
            raise DanqingError(
                f"{tokenizer}: is not the tokenizer that the model was made with (SHA-256 {sha256(tokenizer)[:16]}…, "
                f"not {str(wanted)[:16]}…); get it and the weights from the same repository"
            )
        files = {path.name: sha256(path) for path in sorted({*weights.files, tokenizer})}
        return cls(folder, ImageInput(size, size, "stretch", "linear"), tokens, files)

    def tokenizer(self) -> AnyTokenizer:
        """Opens the tokenizer."""
        return open_tokenizer(self.token_input, self.folder / self.token_input.file)

    def load(self) -> Any:
        """Loads the model, float32: a `transformers.SiglipModel`.

        Raises:
            DanqingError: weights are missing, which would begin at random values, or do not fit config.json.
        """
        try:
            model, found = siglip_model().from_pretrained(
                self.folder, dtype=torch.float32, local_files_only=True, output_loading_info=True,
                ignore_mismatched_sizes=True,
            )  # fmt: skip
        except (OSError, RuntimeError, ValueError, TypeError) as problem:  # TypeError: a text where a number belongs
            first = next(iter(str(problem).splitlines()), type(problem).__name__)
            raise DanqingError(f"{self.folder}: transformers cannot load the model: {first}") from None
        wrong = [f"{name} is {tuple(there)}, and config.json asks for {tuple(asked)}"
                 for name, there, asked in sorted(found["mismatched_keys"])]  # fmt: skip
        wrong += [
            f"config.json has no place for {name}"
            for name in sorted(found["unexpected_keys"])
            if not name.endswith(UNUSED_WEIGHTS)
        ]
        if wrong:
            raise DanqingError(
                f"{self.folder}: {wrong[0]}, and {len(wrong) - 1} more; get config.json and the weights from the same "
                "repository"
            )
        if missing := sorted(found["missing_keys"]):
            raise DanqingError(f"{self.folder}: the weights have no {missing[0]!r}, and lack {len(missing)} in all")
        return model


def siglip_model() -> Any:
    """Imports `transformers.SiglipModel`.

    transformers imports torchvision where it is installed, which fails beside a PyTorch of another build, though no
    code here needs it. A torchvision that cannot be imported is made to look as if it were not installed.

    Raises:
        DanqingError: transformers is not installed.
    """
    if "transformers" not in sys.modules and find_spec("torchvision"):
        try:
            import torchvision  # noqa: F401
        except Exception:  # "RuntimeError: operator torchvision::nms does not exist"
            for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
                del sys.modules[name]
            sys.modules["torchvision"] = None  # type: ignore[assignment]  # how the import system marks a missing one
    try:
        from transformers import SiglipModel
        from transformers.utils.logging import disable_progress_bar, set_verbosity_error
    except ImportError as problem:
        raise DanqingError(f"transformers: {problem}; pip install 'danqing-engine[train]'") from None
    disable_progress_bar()  # of single files
    set_verbosity_error()  # its warnings are about default values, and missing weights, which `Source.load` refuses
    return SiglipModel


class SiglipTowers(nn.Module):
    """Both towers, from pixels and tokens to unit vectors.

    Args:
        model: a `transformers.SiglipModel`.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def image_features(self, pixels: torch.Tensor) -> torch.Tensor:
        """Embeds pictures: uint8 (n, size, size, 3) → float32 (n, d), unit rows."""
        normal = pixels.permute(0, 3, 1, 2).float() / (LEVELS / 2) - 1  # mean and deviation are 0.5
        return normalize(self.model.vision_model(pixel_values=normal).pooler_output.float(), dim=-1)

    def text_features(self, tokens: torch.Tensor) -> torch.Tensor:
        """Embeds texts: int64 (n, length) → float32 (n, d), unit rows."""
        return normalize(self.model.text_model(input_ids=tokens).pooler_output.float(), dim=-1)

    def forward(self, pixels: torch.Tensor, tokens: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Returns both embeddings, and the scale and the bias of the logits."""
        scale, bias = self.model.logit_scale.float().exp(), self.model.logit_bias.float()
        return self.image_features(pixels), self.text_features(tokens), scale, bias


def training_flops(config: Any) -> float:
    """Counts the floating-point operations of a pair in a training step: matrix products and convolutions, 2 a MAC.

    Args:
        config: a `transformers.SiglipConfig`.
    """
    from torch.utils.flop_counter import FlopCounterMode

    size, length = config.vision_config.image_size, config.text_config.max_position_embeddings
    with torch.device("meta"), torch.no_grad():
        towers = SiglipTowers(siglip_model()(config))
        pixels, tokens = torch.zeros((1, size, size, 3), dtype=torch.uint8), torch.zeros((1, length), dtype=torch.long)
        with FlopCounterMode(display=False) as counter:
            towers(pixels, tokens)
    return BACKWARD * float(counter.get_total_flops())


def write_model(model: Any, source: Source, folder: Path, name: str) -> None:
    """Writes a trained model: weights and config.json as published, the tokenizer's file, and a card of each tower.

    `danqing models export FOLDER` exports it. The cards' names end with the first digits of the weights' SHA-256, since
    the store of models knows a model by its card.

    Args:
        model: a `transformers.SiglipModel`.
        source: the checkpoint that it was trained from.
        folder: appears when it is complete.
        name: start of the cards' names.
    """
    made = folder.with_name(f"{folder.name}.part")
    shutil.rmtree(made, ignore_errors=True)
    tokens = source.token_input
    setattr(model.config, MADE_WITH, sha256(source.folder / tokens.file))
    model.save_pretrained(made, max_shard_size="100GB")  # one file, whatever the size
    shutil.copyfile(source.folder / tokens.file, made / Path(tokens.file).name)
    name = re.sub(r"[^A-Za-z0-9._-]", "-", name).lstrip("._-")[:80] or "model"
    digest = sha256(made / "model.safetensors")[:8]
    width = model.config.vision_config.hidden_size
    common = {"licence": "other", "published": "the folder model/ that `danqing train` has written",
              "outputs": {"embedding": f"{width} numbers, unit length"}}  # fmt: skip
    inputs = {"image": ("image_input", asdict(source.image_input)), "text": ("token_input", asdict(tokens))}
    for tower, (key, values) in inputs.items():
        card = {
            "name": f"{name}-{digest}-{tower}",
            "title": f"{name}, {tower} tower",
            "task": f"{tower}_embedding",
            "export": f"siglip.{tower}_tower",
            **common,
            key: {field: value for field, value in values.items() if value is not None},
        }
        text = yaml.safe_dump(card, sort_keys=False, allow_unicode=True)
        (made / f"{name}-{tower}.yaml").write_text(text, encoding="utf-8")
    shutil.rmtree(folder, ignore_errors=True)
    made.rename(folder)
