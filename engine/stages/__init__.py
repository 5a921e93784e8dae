"""The stages there are. Which of them run, and when, follows from the recipe (`engine.recipe.plan`)."""

import pyarrow as pa

from danqing.engine.stages.aesthetic import Aesthetic
from danqing.engine.stages.base import Context, Stage
from danqing.engine.stages.decode import Decode
from danqing.engine.stages.embed import Alignment, ImageEmbedding, TextEmbedding, Tokens
from danqing.engine.stages.fingerprint import Digest, PerceptualHash
from danqing.engine.stages.header import Header
from danqing.engine.stages.pixels import PixelStatistics
from danqing.engine.stages.resize import Resize
from danqing.engine.stages.safety import ImageSafety
from danqing.engine.stages.source import Source
from danqing.engine.stages.text import Caption, Refine

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
    produced = (column for stage in CATALOGUE for column in stage.produces.values())
    return {column.name: column.type for column in produced if column.type is not None}


__all__ = ["CATALOGUE", "Context", "Stage", "stored_columns"]
