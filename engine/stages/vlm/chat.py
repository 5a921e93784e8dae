"""A question about one picture, as chat.completions wants it, and what the answer says.

An answer is data from outside: it is read as text or JSON and goes into no prompt, file name or command.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from PIL import Image, ImageOps

from danqing.engine.core.escape import valid_text
from danqing.engine.stages.header import has_alpha
from danqing.engine.stages.opening import open_picture, problem_of
from danqing.engine.stages.vlm.client import Reply

Outcome = Literal["success", "truncated", "blocked", "error"]
SENT = {b"\xff\xd8\xff": "image/jpeg", b"\x89PNG\r\n\x1a\n": "image/png", b"RIFF": "image/webp"}
"""First bytes of the formats that are sent as they are. Servers read them with different libraries; these three are
read by all."""
RESIZED_QUALITY = 95
"""JPEG quality of a picture that was made smaller."""
SEED = 0
MAX_SHOWN = 200
"""Characters of an answer that an error shows."""
_PLACE = "\x00"
_THOUGHT = re.compile(r"^.*?</think>", re.DOTALL)
_FENCE = re.compile(r"^```\w*\s*|\s*```$")
_CUT_FIELD = r'"%s"\s*:\s*"((?:[^"\\]|\\.)*)'
_CUT_ESCAPE = re.compile(r"\\(u[0-9a-fA-F]{0,3})?$")


@dataclass(frozen=True)
class Question:
    """What is asked about every picture.

    Attributes:
        prompt: the text.
        model: id of the model.
        max_tokens: of an answer.
        longest_edge: larger pictures are made smaller; None: the original bytes are sent.
        max_pixels: of a picture that must be decoded.
    """

    prompt: str
    model: str
    max_tokens: int = 256
    longest_edge: int | None = None
    max_pixels: int = Image.MAX_IMAGE_PIXELS or 0

    @property
    def identity(self) -> dict[str, Any]:
        """What the answers depend on, as JSON values."""
        return {
            "model": self.model,
            "prompt_hash": hashlib.sha256(self.prompt.encode()).hexdigest()[:16],
            "max_tokens": self.max_tokens,
            "longest_edge": self.longest_edge,
            "temperature": 0,
            "seed": SEED,
        }

    def body(self) -> Callable[[bytes], bytes]:
        """A function that makes the request's JSON of a picture; it raises `ValueError` if that cannot be decoded."""
        content = [{"type": "image_url", "image_url": {"url": _PLACE}}, {"type": "text", "text": self.prompt}]
        messages = [{"role": "user", "content": content}]
        request = {"model": self.model, "messages": messages, "max_tokens": self.max_tokens, "temperature": 0,
                   "seed": SEED}  # fmt: skip
        before, after = json.dumps(request).encode().split(json.dumps(_PLACE)[1:-1].encode(), 1)

        def make(picture: bytes) -> bytes:
            kind, data = sendable(picture, self.longest_edge, self.max_pixels)
            return b"".join((before, b"data:", kind.encode(), b";base64,", base64.b64encode(data), after))

        return make


def sendable(picture: bytes, longest_edge: int | None, max_pixels: int) -> tuple[str, bytes]:
    """The picture as it is sent: media type and bytes.

    JPEG, PNG and WebP are sent as they are. Other formats are sent as PNG (the first frame, turned as EXIF says).

    Args:
        picture: the encoded picture.
        longest_edge: a picture that is larger is sent in this size, as JPEG, or as PNG if it has transparency.
        max_pixels: see `open_picture`.

    Raises:
        ValueError: it cannot be decoded.
    """
    kind = next((kind for start, kind in SENT.items() if picture.startswith(start)), None)
    if kind == "image/webp" and picture[8:12] != b"WEBP":
        kind = None
    if kind and longest_edge is None:
        return kind, picture
    try:
        with open_picture(picture, max_pixels) as opened:
            if kind and max(opened.size) <= (longest_edge or 0):
                return kind, picture
            if longest_edge:
                opened.draft("RGB", (longest_edge, longest_edge))
            mode = "RGBA" if has_alpha(opened) else "RGB"
            image = ImageOps.exif_transpose(opened).convert(mode)
            if longest_edge:
                image.thumbnail((longest_edge, longest_edge), Image.Resampling.LANCZOS)
            buffer = io.BytesIO()
            if kind and mode == "RGB":
                image.save(buffer, "JPEG", quality=RESIZED_QUALITY)
                return "image/jpeg", buffer.getvalue()
            image.save(buffer, "PNG", compress_level=1)
            return "image/png", buffer.getvalue()
    except Exception as problem:  # Pillow's parsers raise many types
        raise ValueError(f"the picture cannot be decoded: {problem_of(problem)}") from None


class Answer(NamedTuple):
    """What came of a question.

    Attributes:
        text: of the answer, without the model's thoughts; None if there is none.
        outcome: `success`; `truncated`: the answer reached `max_tokens`; `blocked`: a content filter or a refusal;
            `error`: there is no answer that can be used.
        finish_reason: as the server gave it.
        prompt_tokens, completion_tokens: as the server counted them.
        seconds: from the first request to the answer.
        error: why the outcome is `error`.
    """

    text: str | None
    outcome: Outcome
    finish_reason: str | None
    prompt_tokens: int | None
    completion_tokens: int | None
    seconds: float
    error: str | None


def read_answer(reply: Reply) -> Answer:
    """Reads a reply of the client.

    >>> said = {"choices": [{"message": {"content": "一只猫"}, "finish_reason": "length"}]}
    >>> read_answer(Reply(said, "", 0.5))[:3]
    ('一只猫', 'truncated', 'length')
    """
    if reply.content is None:
        blocked = "content_filter" in reply.error or "content management policy" in reply.error
        return Answer(None, "blocked" if blocked else "error", None, None, None, reply.seconds, reply.error)
    usage = reply.content.get("usage")
    counted = usage if isinstance(usage, dict) else {}
    tokens = _whole(counted.get("prompt_tokens")), _whole(counted.get("completion_tokens"))
    answer = Answer(None, "error", None, *tokens, reply.seconds, None)
    try:
        choice = reply.content["choices"][0]
        message, reason = choice["message"], choice.get("finish_reason")
        text, refusal = _text(message.get("content")), message.get("refusal")
    except (KeyError, IndexError, TypeError, AttributeError):
        shown = valid_text(json.dumps(reply.content, ensure_ascii=False))[:MAX_SHOWN]
        return answer._replace(error=f"no answer in the JSON: {shown}")
    answer = answer._replace(text=text or None, finish_reason=reason if isinstance(reason, str) else None)
    if reason == "content_filter" or refusal:
        return answer._replace(outcome="blocked", error=valid_text(str(refusal))[:MAX_SHOWN] if refusal else None)
    if reason == "length":
        return answer._replace(outcome="truncated")
    return answer._replace(outcome="success") if text else answer._replace(error="the answer is empty")


def _text(content: Any) -> str:
    """The text of a message: a string, or the joined texts of its parts."""
    if isinstance(content, list):
        content = "".join(part.get("text") or "" for part in content if isinstance(part, dict))
    return _THOUGHT.sub("", valid_text(content)).strip() if isinstance(content, str) else ""


def _whole(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**31 else None


def json_of(text: str) -> Any:
    """The JSON value in a text: the whole of it, a fenced block, or the first object in it; None if there is none."""
    bare = _FENCE.sub("", text.strip())
    for start in [bare, *([bare[bare.index("{") :]] if "{" in bare else [])]:
        try:
            return json.JSONDecoder().raw_decode(start)[0]
        except (ValueError, RecursionError):
            continue
    return None


def field_of(text: str, name: str) -> str | None:
    """A text field of the JSON object in an answer, also of one that was cut off; an answer without JSON as it is.

    Returns:
        None for an object without the field.

    >>> field_of('```json\\n{"caption": "一只猫"}\\n```', "caption"), field_of("一只猫", "caption")
    ('一只猫', '一只猫')
    >>> field_of('{"caption": "一只\\\\"猫', "caption"), field_of('{"title": "猫"}', "caption")
    ('一只"猫', None)
    """
    found = json_of(text)
    if isinstance(found, dict):
        value = found.get(name)
        return valid_text(value).strip() or None if isinstance(value, str) else None
    if "{" not in text:
        return text.strip()
    cut = re.search(_CUT_FIELD % re.escape(name), text)
    if cut is None:
        return None if text.lstrip("`json \n").startswith("{") else text.strip()
    try:
        return valid_text(str(json.loads(f'"{_CUT_ESCAPE.sub("", cut[1])}"', strict=False))).strip() or None
    except ValueError:
        return None
