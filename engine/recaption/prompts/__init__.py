"""Prompts: those that come with the engine, and the user's files."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from danqing.engine.core.errors import DanqingError, did_you_mean
from danqing.engine.core.storage import path_of


@dataclass(frozen=True)
class Prompt:
    """What is asked about every picture.

    Attributes:
        text: the prompt.
        max_tokens: of an answer.
        longest_edge: larger pictures are sent smaller; None: as they are.
    """

    text: str
    max_tokens: int
    longest_edge: int | None = None


MAX_TOKENS = {"dense": 512, "short": 128}
"""The engine's prompts, and the tokens of their answers: about one for each Chinese character, and a margin."""
DEFAULT_MAX_TOKENS = 128
"""Tokens of an answer to a user's prompt."""
MAX_BYTES = 64 << 10
FIELD = "caption"
"""The field of a JSON answer that holds the caption."""


def open_prompt(prompt: str, max_tokens: int | None = None, longest_edge: int | None = None) -> Prompt:
    """Reads a prompt of the engine by name, or a text file by path; without white space at its ends.

    Args:
        prompt: name or path.
        max_tokens: of an answer; None: those of the engine's prompt, or `DEFAULT_MAX_TOKENS`.
        longest_edge: see `Prompt`.

    Raises:
        DanqingError: there is no such prompt or file, or it is empty or no text.

    >>> open_prompt("short").text.splitlines()[-1]
    '只输出一个 JSON 对象，不输出别的内容：{"caption": "描述"}'
    """
    if prompt in MAX_TOKENS:
        text = (resources.files("danqing.engine.recaption.prompts") / f"{prompt}.txt").read_text("utf-8").strip()
    else:
        text = _read(path_of(prompt))
    return Prompt(text, max_tokens or MAX_TOKENS.get(prompt, DEFAULT_MAX_TOKENS), longest_edge)


def _read(path: Path) -> str:
    if not path.is_file():
        raise DanqingError(f"--prompt {path}: no such file; {did_you_mean(str(path), MAX_TOKENS)}")
    if path.stat().st_size > MAX_BYTES:
        raise DanqingError(f"--prompt {path}: larger than {MAX_BYTES >> 10} KiB, so it is not read as a prompt")
    try:
        text = path.read_text(encoding="utf-8-sig").strip()
    except UnicodeDecodeError as problem:
        raise DanqingError(f"--prompt {path}: is not UTF-8 ({problem.reason} at byte {problem.start})") from None
    if not text:
        raise DanqingError(f"--prompt {path}: is empty")
    return text
