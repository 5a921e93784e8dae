"""Pseudo-perplexity of captions under a masked language model. The paper reports it and drops nothing by it."""

from __future__ import annotations

from typing import Any

import numpy as np

from danqing.engine.core.batch import Batch
from danqing.engine.core.columns import produced
from danqing.engine.core.errors import DanqingError
from danqing.engine.stages.base import Context
from danqing.engine.stages.network import TextModelStage
from danqing.trt_models.run.tokenizer import WordPiece, widths

ENDS = 2
"""[CLS] and [SEP], which are not predicted."""
NETWORK_ROWS = 8
"""Rows of one call of the network, in batches of the session on each thread: bounds the memory of the masked copies."""


class Perplexity(TextModelStage):
    """`text_perplexity`: pseudo-perplexity of the clean caption.

    For tokens w_1 … w_n it is exp(-1/n Σ log P(w_t | all other tokens)): one masked copy of the caption for each token
    (PPPL of Salazar et al., "Masked Language Model Scoring", arXiv 1910.14659, of one text). A caption with more tokens
    than the card's `max_length` is cut.
    """

    name = "perplexity"
    role = "language_model"
    needs = ("text_clean",)
    produces = produced("text_perplexity")

    def __init__(self, context: Context) -> None:
        card = context.models.card(self.role)
        if card.task != self.role:
            raise DanqingError(f"models.{self.role}: {card.name} is a model for {card.task}, not a {self.role}")
        super().__init__(context)
        tokenizer = context.models.tokenizer(self.role)
        if not isinstance(tokenizer, WordPiece) or tokenizer.mask is None:
            raise DanqingError(f"model {card.name}: a language model needs a WordPiece vocabulary with [MASK]")
        self.tokenizer, self.mask = tokenizer, tokenizer.mask

    def run(self, batch: Batch) -> dict[str, Any]:
        """The captions' pseudo-perplexity: float32 (rows,), on the host; NaN for a caption without tokens."""
        device, card = self.context.device, self.tokenizer.card
        ids, lengths, _ = self.tokenizer.encode(batch["text_clean"], device)
        predicted, wide = lengths - ENDS, widths(lengths, card)
        sums = np.zeros(len(lengths))
        step = NETWORK_ROWS * self.session.batch * (device.threads if device.kind == "cpu" else 1)
        for width in np.unique(wide).tolist():
            rows = np.flatnonzero(wide == width)
            text = np.repeat(rows, predicted[rows])
            place = np.concatenate([np.arange(1, count + 1) for count in predicted[rows].tolist()])
            for start in range(0, len(text), step):
                chosen = text[start : start + step]
                likelihood = self._log_likelihood(ids[:, :width], chosen, place[start : start + step])
                sums += np.bincount(chosen, likelihood, len(sums))
        with np.errstate(invalid="ignore"):
            return {"perplexity": np.exp(-sums / predicted).astype(np.float32)}

    def _log_likelihood(self, ids: Any, text: np.ndarray, place: np.ndarray) -> np.ndarray:
        """Log-probability of the token at a place of each text, which is masked: float32 (copies,), on the host."""
        device = self.context.device
        xp, rows, at = device.xp, device.up(np.arange(len(text))), device.up(place)
        tokens = device.up(ids)[device.up(text)]
        targets = xp.full_like(tokens, -1)
        targets[rows, at] = tokens[rows, at]
        tokens[rows, at] = self.mask
        found: np.ndarray = device.down(self.session.run(tokens=tokens, targets=targets)["log_likelihood"])
        return found

    def __call__(self, batch: Batch) -> None:
        batch["text_perplexity"] = self.run(batch)["perplexity"]
        for row in np.flatnonzero(~np.isfinite(batch["text_perplexity"])):
            batch["error"][row] = "the language model gave no finite perplexity: the clean caption has no tokens"
