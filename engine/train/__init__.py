"""TRAIN: contrastive training of an image and a text tower on the pairs that runs have kept."""

from __future__ import annotations

from types import ModuleType

from danqing.engine.core.errors import DanqingError


def import_training() -> ModuleType:
    """Imports `engine.train.loop`, which needs PyTorch.

    Raises:
        DanqingError: a package is missing; says what to install.
    """
    try:
        from danqing.engine.train import loop
    except ModuleNotFoundError as problem:
        raise DanqingError(f"train: {problem}; pip install 'danqing-engine[train]'") from None
    return loop
