"""Recall and false positives of the word lists and patterns, on invented captions beside this file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from danqing.engine.core.device import Device
from danqing.kernels.text.strings import Strings
from danqing.trt_models.model_set import ModelSet

MODELS = ModelSet({"text_safety": "jionlp-pornography", "caption_safety": "jionlp-advertising"})


def unsafe(device: Device, name: str) -> tuple[list[str], np.ndarray]:
    """Returns the captions of a file, and whether `embedded.yaml` drops each."""
    lines = Path(__file__).with_name(name).read_text(encoding="utf-8").splitlines()
    captions = [line for line in lines if not line.startswith("#")]
    text = Strings.of([caption.replace("❤️", "").replace("❤", "") for caption in captions])
    scores = [MODELS.text_classifier(role, device)(text) for role in ("text_safety", "caption_safety")]
    return captions, (scores[0] > 0) | (scores[1] > 0.5)


@pytest.mark.parametrize(("name", "least"), [("unsafe_captions.txt", 56), ("unsafe_captions_2.txt", 30)])
def test_unsafe_captions_are_found(device: Device, name: str, least: int) -> None:
    captions, found = unsafe(device, name)
    assert found.sum() >= least, [caption for caption, hit in zip(captions, found, strict=True) if not hit]


def test_harmless_captions_with_their_words_are_not(device: Device) -> None:
    captions, found = unsafe(device, "harmless_captions.txt")
    assert len(captions) >= 50
    assert not [caption for caption, hit in zip(captions, found, strict=True) if hit]
