"""Recall and false positives of the word lists and patterns, on invented captions beside this file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from danqing.engine.core.device import Device
from danqing.engine.core.errors import DanqingError
from danqing.engine.core.text_column import TextColumn
from danqing.trt_models.model_set import ModelSet
from danqing.trt_models.run.classifier import read_patterns

MODELS = ModelSet({"text_safety": "jionlp-pornography", "caption_safety": "jionlp-advertising"})


def unsafe(device: Device, name: str) -> tuple[list[str], np.ndarray]:
    """Returns the captions of a file, and whether `embedded.yaml` drops each."""
    lines = Path(__file__).with_name(name).read_text(encoding="utf-8").splitlines()
    captions = [line for line in lines if not line.startswith("#")]
    text = TextColumn.of([caption.replace("❤️", "").replace("❤", "") for caption in captions])
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


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("代开发票", "could not convert"),
        ("0 代开发票", "the weight 0 is not in 0.01 to 100"),
        ("nan 代开发票", "the weight nan"),
        ("1 代开(发票", r"'\(' is not closed"),
        ("1 代开发票)", r"one '\)' too many"),
        ("1 [代开", r"'\[' is not closed"),
        ("1 (代|)?", "empty string"),
        ("1", "empty string"),
        ("1 " + "[abcdefgh]" * 8, "more than 20,000 strings"),
    ],
)
def test_an_error_in_a_pattern_names_the_line(tmp_path: Path, line: str, problem: str) -> None:
    path = tmp_path / "spam.txt"
    path.write_text(f"# a comment\n\n{line}\n", encoding="utf-8")
    with pytest.raises(DanqingError, match=rf"spam\.txt:3: .*{problem}"):
        read_patterns(path)


def test_the_larger_weight_of_a_term_counts(tmp_path: Path) -> None:
    path = tmp_path / "spam.txt"
    path.write_text("0.5 VX[1-3]?(a|b(c|d))?\n1 vx2a\n0.5 (vx|vx2)a\n", encoding="utf-8")
    terms = read_patterns(path)
    assert len(terms) == 4 * 4 and terms["vx2a"] == 1 and terms["vx3bd"] == terms["vxa"] == terms["vx"] == 0.5
