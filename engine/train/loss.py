"""The sigmoid loss of SigLIP (Zhai et al., arXiv 2303.15343), over the pairs of all ranks."""

from __future__ import annotations

import torch
import torch.distributed as dist
import torch.distributed.nn.functional as with_gradient
from torch.nn.functional import logsigmoid
from torch.utils.checkpoint import checkpoint


def siglip_loss(
    images: torch.Tensor, texts: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor, block: int | None = None
) -> torch.Tensor:
    """Computes a rank's part of the loss: its images against the texts of all ranks.

    −Σ log σ(y · (scale · ⟨image, text⟩ + bias)) / b, where y is 1 for a pair and −1 for all others, and b the pairs of
    the rank. The mean over the ranks is the loss of the global batch, and DDP's mean of the gradients is its gradient.

    The texts are gathered; their gradients return to their ranks. Logits are computed in blocks, and again in the
    backward pass, so that their memory grows with neither the batch nor the number of ranks.

    Args:
        images, texts: float32 (b, d), unit rows, on the rank's device; row k of both is one pair.
        scale, bias: float32, the factor (not its logarithm) and the offset of the logits.
        block: rows and columns of a block of logits; None: b.

    Returns:
        float32, without dimension.
    """
    rows, rank, ranks = len(images), 0, 1
    if dist.is_initialized() and dist.get_world_size() > 1:
        rank, ranks = dist.get_rank(), dist.get_world_size()
        texts = torch.cat(with_gradient.all_gather(texts.contiguous()))  # type: ignore[no-untyped-call]
    size = block or rows
    if ranks == 1 and size >= rows:
        return _block_sum(images, texts, scale, bias, 0) / rows
    total = images.new_zeros(())
    for top in range(0, rows, size):
        for left in range(0, len(texts), size):
            parts = images[top : top + size], texts[left : left + size]
            offset = rank * rows + top - left
            total = total + checkpoint(_block_sum, *parts, scale, bias, offset, use_reentrant=False)
    return total / rows


def _block_sum(
    images: torch.Tensor, texts: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor, offset: int
) -> torch.Tensor:
    """Sums a block's terms. Image k belongs to text k + offset, if the block has it."""
    logits = scale * (images @ texts.T) + bias
    positive = torch.arange(len(images), device=images.device)[:, None] + offset == torch.arange(
        len(texts), device=images.device
    )
    return -logsigmoid(torch.where(positive, logits, -logits)).sum()
