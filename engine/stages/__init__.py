"""The registered stages. Which of them run, and in which order, follows from the recipe (`engine.recipe.plan`)."""

from __future__ import annotations

from collections.abc import ValuesView

import pyarrow as pa

from danqing.engine.core.registry import Registry
from danqing.engine.stages.base import Context, Stage

STAGES: Registry[type[Stage]] = Registry(
    "danqing.stages",
    {
        "source": "danqing.engine.stages.source:BlockedSource",
        "caption": "danqing.engine.stages.text:Caption",
        "refine": "danqing.engine.stages.text:Refine",
        "caption-hash": "danqing.engine.stages.caption_hash:CaptionHash",
        "tokens": "danqing.engine.stages.embed:Tokens",
        "perplexity": "danqing.engine.stages.perplexity:Perplexity",
        "digest": "danqing.engine.stages.fingerprint:Digest",
        "header": "danqing.engine.stages.header:Header",
        "decode": "danqing.engine.stages.decode:Decode",
        "pixels": "danqing.engine.stages.pixels:PixelStatistics",
        "resize": "danqing.engine.stages.resize:Resize",
        "perceptual-hash": "danqing.engine.stages.fingerprint:PerceptualHash",
        "image-embedding": "danqing.engine.stages.embed:ImageEmbedding",
        "image-safety": "danqing.engine.stages.safety:ImageSafety",
        "aesthetic": "danqing.engine.stages.aesthetic:Aesthetic",
        "text-embedding": "danqing.engine.stages.embed:TextEmbedding",
        "alignment": "danqing.engine.stages.embed:Alignment",
    },
)
CATALOGUE: ValuesView[type[Stage]] = STAGES.values()
"""Every registered stage; imported when it is first iterated over."""


def stored_columns() -> dict[str, pa.DataType]:
    """Every column that some stage stores, and its type."""
    produced = (column for stage in CATALOGUE for column in stage.produces.values())
    return {column.name: column.type for column in produced if column.type is not None}


def model_roles() -> set[str]:
    """Every role that a recipe can name a model for."""
    return {stage.role for stage in CATALOGUE if stage.role}


def columns_of_role(role: str) -> set[str]:
    """Every column whose values depend on the outputs of the model in a role."""
    stages = (stage for stage in CATALOGUE if stage.role == role)
    found = {name for s in stages for name in (s.produces if s.model_columns is None else s.model_columns)}
    while more := {name for stage in CATALOGUE if found & set(stage.needs) for name in stage.produces} - found:
        found |= more
    return found


__all__ = ["CATALOGUE", "STAGES", "Context", "Stage", "columns_of_role", "model_roles", "stored_columns"]
