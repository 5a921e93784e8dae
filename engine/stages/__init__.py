"""The stages there are. Which of them run, and when, follows from the recipe (`engine.plan`)."""

import pyarrow as pa

from engine.stages.aesthetic import Aesthetic
from engine.stages.base import Context, Stage
from engine.stages.decode import Decode
from engine.stages.embed import Alignment, ImageEmbedding, TextEmbedding, Tokens
from engine.stages.fingerprint import Digest, PerceptualHash
from engine.stages.header import Header
from engine.stages.pixels import PixelStatistics
from engine.stages.resize import Resize
from engine.stages.safety import ImageSafety
from engine.stages.source import Source
from engine.stages.text import Caption, Refine

CATALOGUE: tuple[type[Stage], ...] = (
    Source,
    Caption,
    Refine,
    Tokens,
    Digest,
    Header,
    Decode,
    PixelStatistics,
    Resize,
    PerceptualHash,
    ImageEmbedding,
    ImageSafety,
    Aesthetic,
    TextEmbedding,
    Alignment,
)


def stored_columns() -> dict[str, pa.DataType]:
    """Every column that some stage stores, and its type."""
    produced = {name: kind for stage in CATALOGUE for name, kind in stage.produces.items()}
    return {name: kind for name, kind in produced.items() if kind is not None}


__all__ = ["CATALOGUE", "Context", "Stage", "stored_columns"]
