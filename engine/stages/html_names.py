"""Names of HTML's elements and entities, for `kernels.text.markup`.

A crawler that copies alt texts as they stand in the page leaves entities and tags in captions.
"""

from __future__ import annotations

import html
from html.entities import html5

import numpy as np

from danqing.kernels.text.markup import BLOCK, INLINE, SCRIPT, STYLE

INLINE_ELEMENTS = (
    "a abbr b bdi bdo big cite code del em font i ins kbd mark nobr q s small span strike strong sub sup tt u wbr"
)
BLOCK_ELEMENTS = (
    "address article aside blockquote body br button center dd div dl dt figcaption figure footer form h1 h2 h3 h4 h5 "
    "h6 head header hr html iframe img input label li link main meta nav object ol option p picture pre section select "
    "source svg table tbody td textarea tfoot th thead title tr ul video"
)


def element_values() -> dict[str, int]:
    """Returns `<` and the name of each element with its value in `kernels.text.markup`."""
    blocks, inline = BLOCK_ELEMENTS.split(), INLINE_ELEMENTS.split()
    kinds = dict.fromkeys(blocks, BLOCK) | dict.fromkeys(inline, INLINE) | {"script": SCRIPT, "style": STYLE}
    return {f"<{name}": kind for name, kind in kinds.items()}


def entity_targets() -> dict[str, str]:
    """Returns `&` and the name of each entity of HTML with its characters."""
    return {f"&{name}": characters for name, characters in html5.items()}


def numeric_entities() -> np.ndarray:
    """Returns the characters of `&#0;` … `&#159;`, which differ from their numbers: int32 (160,), -1 is none."""
    characters = [html.unescape(f"&#{number};") for number in range(160)]
    return np.array([ord(character) if character else -1 for character in characters], np.int32)
