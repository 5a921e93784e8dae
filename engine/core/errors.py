"""The exception for errors that the user can correct."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class DanqingError(Exception):
    """Bad input or a wrong setting. The message names the file, the place in it, and what to do.

    The command line prints the message and exits with status 2. Any other exception is a bug and shows its traceback.
    """


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Returns the end of an error message: the valid name that is most similar to `word`, or all valid names.

    >>> did_you_mean("wods", ["words", "nouns"])
    "did you mean 'words'?"
    """
    names = sorted(known)
    similar = difflib.get_close_matches(word, names, n=1, cutoff=0.5)
    return f"did you mean {similar[0]!r}?" if similar else f"known: {', '.join(names)}"
