"""Builds a tiny random LLaVA with a tokenizer trained on the spot: 0.3 MB, no download. It answers nonsense.

python -m tests.slow.vlm_model FOLDER
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

SPECIAL = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
IMAGE = "<image>"
ENDING = 4
"""Every fourth token ends an answer, so that answers of random weights are short and some are complete."""
TEXTS = ["描述这张图片", "一只猫坐在桌子上", "user: assistant: describe the picture"]
TEMPLATE = (
    "{% for m in messages %}{{ m.role }}: {% for part in m.content %}"
    "{% if part.type == 'image' %}" + IMAGE + "{% elif part.type == 'text' %}{{ part.text }}{% endif %}{% endfor %}\n"
    "{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"
)


def tokenizer() -> Any:
    """Bytes, and a few merges of them."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    words = [*SPECIAL.values(), IMAGE]
    made.train_from_iterator(
        TEXTS, trainers.BpeTrainer(vocab_size=400, special_tokens=words, initial_alphabet=alphabet)
    )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=made, extra_special_tokens={"image_token": IMAGE}, **SPECIAL
    )


def build(folder: Path) -> None:
    """Writes the model and its processor."""
    tokens = tokenizer()
    small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    vision = transformers.CLIPVisionConfig(**small, image_size=32, patch_size=8)
    text = transformers.LlamaConfig(
        **small, num_key_value_heads=2, vocab_size=len(tokens), max_position_embeddings=2048,
        bos_token_id=tokens.bos_token_id, eos_token_id=tokens.eos_token_id, pad_token_id=tokens.pad_token_id,
    )  # fmt: skip
    config = transformers.LlavaConfig(
        vision_config=vision, text_config=text, image_token_id=tokens.convert_tokens_to_ids(IMAGE),
        vision_feature_layer=-1,
    )  # fmt: skip
    torch.manual_seed(0)
    model = transformers.LlavaForConditionalGeneration(config)
    model.generation_config.eos_token_id = [*range(0, len(tokens), ENDING)]
    model.save_pretrained(folder)
    pictures = transformers.CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    transformers.LlavaProcessor(
        image_processor=pictures, tokenizer=tokens, patch_size=8, vision_feature_select_strategy="default",
        num_additional_image_tokens=1, chat_template=TEMPLATE,
    ).save_pretrained(folder)  # fmt: skip


if __name__ == "__main__":
    build(Path(sys.argv[1]))
