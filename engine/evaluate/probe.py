"""PROBE: cosines of phrases and pictures, model by model, as the paper shows new concepts (its Figure 8)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from danqing.engine.core.errors import DanqingError
from danqing.engine.evaluate.towers import check_model, open_towers
from danqing.engine.run.settings import Settings


@dataclass(frozen=True)
class Probe:
    """Cosines.

    Attributes:
        models: their names.
        texts: the phrases.
        pictures: the files.
        cosines: float32 (models, texts, pictures).
    """

    models: tuple[str, ...]
    texts: tuple[str, ...]
    pictures: tuple[Path, ...]
    cosines: np.ndarray

    def to_dict(self) -> dict[str, Any]:
        """Returns the cosines as JSON, an object for each."""
        return {
            "cosines": [
                {"model": model, "text": text, "picture": str(picture), "cosine": float(self.cosines[m, t, p])}
                for m, model in enumerate(self.models)
                for t, text in enumerate(self.texts)
                for p, picture in enumerate(self.pictures)
            ]
        }


def probe(models: Sequence[str], texts: Sequence[str], pictures: Sequence[Path], settings: Settings) -> Probe:
    """Compares every phrase with every picture.

    Args:
        models: see `towers.find_model`.
        texts: phrases.
        pictures: picture files.
        settings: the device, threads, resizer and limits.

    Raises:
        DanqingError: a model cannot be used, or a picture does not decode; names it.
    """
    for model in models:
        check_model(model)
    encoded = [_read(path) for path in pictures]
    found = []
    for model in models:
        with open_towers(model, settings) as towers:
            images = towers.images(encoded)
            if broken := [str(path) for path, row in zip(pictures, images, strict=True) if not row.any()]:
                raise DanqingError(f"{', '.join(broken)}: cannot be decoded; give a picture file")
            found.append(towers.texts(texts) @ images.T)
    return Probe(tuple(models), tuple(texts), tuple(pictures), np.stack(found))


def _read(path: Path) -> bytes:
    if not path.is_file():
        raise DanqingError(f"--images {path}: no such file")
    return path.read_bytes()
