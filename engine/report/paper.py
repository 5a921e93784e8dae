"""The funnel of the DanQing paper (arXiv 2601.10305 v3, Table 6), to compare a run with."""

from __future__ import annotations

from danqing.engine.decide.funnel import Funnel

COLLECTED = 1_047_085_609
LEFT = {
    "unsafe_text": 726_334_674,
    "words": 706_069_936,
    "downloaded": 475_104_485,
    "chinese_confidence": 467_455_303,
    "stop_word_share": 442_680_171,
    "nouns": 431_878_774,
    "unknown_tokens": 431_619_647,
    "text_entropy": 400_068_251,
    "unsafe_caption": 397_187_759,
    "shortest_edge": 352_663_012,
    "pixel_std": 352_204_550,
    "laplacian_variance": 333_255_945,
    "image_entropy": 316_359_868,
    "redundancy": 186_019_602,
    "unsafe_image": 178_601_215,
    "alignment_distance": 154_293_590,
    "cross_batch_redundancy": 99_892_381,
}
"""Name of a criterion of the recipe `danqing` → pairs that the paper's step left. The paper counts source reliability
with the text length (`words`), and the aspect ratio with the shortest edge."""


def paper_shares(funnel: Funnel) -> dict[str, tuple[float, float]]:
    """The paper's figures for the criteria of a funnel.

    Returns:
        Name of a criterion → share of the collected pairs left, and share that the step dropped; nothing unless the
        funnel has at least half of the paper's steps, in their order.
    """
    names = [line.criterion for line in funnel.lines if line.criterion in LEFT]
    if 2 * len(names) < len(LEFT) or names != [name for name in LEFT if name in names]:
        return {}
    before = dict(zip(LEFT, (COLLECTED, *LEFT.values()), strict=False))
    return {name: (LEFT[name] / COLLECTED, 1 - LEFT[name] / before[name]) for name in names}
