"""ASCII characters in kernels, as bytes of UTF-8 or as code points."""

from __future__ import annotations

import numpy as np

from danqing.kernels.portable import inlined


@inlined
def is_digit(code):
    """Whether a character is a digit."""
    return 48 <= code <= 57


@inlined
def is_letter(code):
    """Whether a character is a letter."""
    return 97 <= code | 32 <= 122


@inlined
def is_alphanumeric(code):
    """Whether a character is a letter or a digit."""
    return 48 <= code <= 57 or 65 <= code <= 90 or 97 <= code <= 122


@inlined
def lower(code):
    """Converts a letter to lower case; returns another character itself."""
    return code + 32 if 65 <= code <= 90 else code


@inlined
def hex_digit(code):
    """Returns the value of a hexadecimal digit, or -1."""
    if is_digit(code):
        return np.int32(code) - 48
    small = lower(code)
    return np.int32(small) - 87 if 97 <= small <= 102 else np.int32(-1)
