"""Embeddings of pictures and captions, and the distance between them."""

from __future__ import annotations

from typing import Any

import numpy as np

from danqing.engine.core.batch import Batch
from danqing.engine.core.columns import FEATURES, produced
from danqing.engine.stages.base import Context, Stage
from danqing.engine.stages.network import ModelStage, TextModelStage
from danqing.trt_models.run.session import texts_at_once
from danqing.trt_models.run.texts import run_texts


class ImageEmbedding(ModelStage):
    """`image_embedding`, and `features` for near-duplicate search: unit vectors."""

    name = "image embedding"
    role = "image_embedding"
    needs = ("embedding_input",)
    image_inputs = {"embedding_input": None}
    produces = produced("image_embedding", FEATURES)

    def inputs(self, batch: Batch) -> dict[str, Any]:
        return {"pixels": batch["embedding_input"]}

    def __call__(self, batch: Batch) -> None:
        outputs = self.run(batch)
        batch["image_embedding"] = outputs["embedding"]
        batch[FEATURES] = outputs.get("features", outputs["embedding"]).astype(np.float16)
        for row in np.flatnonzero(~self.context.device.down(has_direction(batch[FEATURES]))):
            batch["error"][row] = "the image model returned a zero or non-finite embedding"


def has_direction(vectors: Any) -> Any:
    """Returns which vectors are finite and not zero.

    Args:
        vectors: float (rows, dimension), on any device.

    Returns:
        bool (rows,), on the same device.
    """
    squares = (vectors.astype(np.float32) ** 2).sum(1)
    return (squares > 0) & np.isfinite(squares)


class Tokens(Stage):
    """`token_ids` of the clean caption, from the text model's tokenizer; `unknown_tokens`: how many are [UNK].

    Without a stage that needs the ids, only [UNK] is counted.

    A WordPiece tokenizer is a kernel, whose ids stay on the device. SentencePiece runs on the host; its ids are copied
    to a GPU by `TextEmbedding`, each at the width of its text.
    """

    name = "tokens"
    role = "text_embedding"
    model_columns = ()  # the tokenizer makes them, not the network
    needs = ("text_clean",)
    produces = produced("token_ids", "token_lengths", "unknown_tokens")

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self.tokenizer = context.models.tokenizer(self.role)

    def __call__(self, batch: Batch) -> None:
        if self.context.wanted.isdisjoint(TextEmbedding.needs):
            batch["unknown_tokens"] = self.tokenizer.count_unknown(batch["text_clean"], self.context.device)
            return
        found = self.tokenizer.encode(batch["text_clean"], self.context.device)
        batch["token_ids"], batch["token_lengths"], batch["unknown_tokens"] = found


class TextEmbedding(TextModelStage):
    """`text_embedding` of the clean caption: unit vectors."""

    name = "text embedding"
    role = "text_embedding"
    needs = ("token_ids", "token_lengths")
    produces = produced("text_embedding")

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self.tokenizer = context.models.tokenizer(self.role)

    @property
    def capacity(self) -> int:
        return texts_at_once(self.context.device, self.session)

    def run(self, batch: Batch) -> dict[str, Any]:
        ids, lengths = batch["token_ids"], batch["token_lengths"]
        return run_texts(self.session, self.tokenizer.card, ids, lengths, self.context.device)

    def __call__(self, batch: Batch) -> None:
        batch["text_embedding"] = self.run(batch)["embedding"]
        for row in np.flatnonzero(~self.context.device.down(has_direction(batch["text_embedding"]))):
            batch["error"][row] = "the text model returned a zero or non-finite embedding"


class Alignment(Stage):
    """`alignment_distance`: L2 distance of the two unit vectors, sqrt(2 - 2 cos), 0 to 2."""

    name = "alignment"
    needs = ("image_embedding", "text_embedding")
    produces = produced("alignment_distance")

    def __call__(self, batch: Batch) -> None:
        xp = self.context.device.xp
        batch["alignment_distance"] = xp.linalg.norm(batch["image_embedding"] - batch["text_embedding"], axis=1)
