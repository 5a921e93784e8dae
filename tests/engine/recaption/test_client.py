"""The client and what it makes of every fault that a server can play."""

from __future__ import annotations

import base64
import doctest
import io
import json
import threading
import time
from collections.abc import Callable
from itertools import count
from pathlib import Path

import pytest
from PIL import Image

from danqing.engine.cli.main import main
from danqing.engine.core.errors import DanqingError
from danqing.engine.recaption import prompts
from danqing.engine.stages import opening
from danqing.engine.stages.vlm import chat, endpoint, judgment
from danqing.engine.stages.vlm.chat import Answer, Question, field_of, read_answer, sendable
from danqing.engine.stages.vlm.client import MAX_GIVEN_UP, Client, Server, StoppedError, Timing
from tests.conftest import picture
from tests.fault_server import CAPTION, Play, serving

FAST = Timing(silence=0.2, first=0.001, longest=0.01, dead=0.6)
QUESTION = Question("描述", "tiny")


def answers(play: Play, rows: int = 1, concurrency: int = 4, timing: Timing = FAST) -> list[Answer]:
    """The answers to questions about a picture, in the order of the questions."""
    make, image = QUESTION.body(), picture(1, (32, 32))
    client = Client(Server((play.address,), concurrency=concurrency, timing=timing))
    replies = dict(client.ask(range(rows), lambda row: make(image)))
    assert client.waiting == 0 and sorted(replies) == list(range(rows))
    return [read_answer(replies[row]) for row in range(rows)]


@pytest.mark.parametrize(
    ("script", "outcome", "posts", "error"),
    [
        ([], "success", 1, None),
        (["busy"] * 4, "success", 5, None),
        (["broken", "words"], "success", 3, None),
        (["reset", "half"], "success", 3, None),
        (["stall"], "success", 2, None),
        (["broken"] * 9, "error", 3, "HTTP 500: played broken"),
        (["words"] * 9, "error", 3, "the answer is no JSON: <html>no JSON</html>"),
        (["half"] * 9, "error", 3, "IncompleteRead"),
        (["deep"] * 9, "error", 3, "the answer is no JSON: [["),
        (["bad"], "error", 1, "HTTP 400: played bad"),
        (["length"], "truncated", 1, None),
        (["filter"], "blocked", 1, None),
        (["<think>嗯</think>"], "error", 1, "the answer is empty"),
    ],
)
def test_every_fault_has_its_outcome(script: list[str], outcome: str, posts: int, error: str | None) -> None:
    with serving(Play([*script])) as play:
        (answer,) = answers(play)
    assert (answer.outcome, len(play.posts)) == (outcome, posts)
    assert answer.error is None if error is None else error in str(answer.error)
    if outcome == "success":
        assert answer[:1] + answer[2:5] == (CAPTION, "stop", 40, 9) and answer.seconds > 0


def test_retry_after_is_heeded() -> None:
    with serving(Play(["busy", "busy"])) as play:
        started = time.monotonic()
        answers(play, timing=Timing(silence=2, first=0, longest=0, dead=9))
    assert 0.1 <= time.monotonic() - started < 2


def test_a_row_that_fails_does_not_stop_the_others() -> None:
    with serving(Play(["broken"] * 3)) as play:
        found = answers(play, 200, concurrency=1)
    assert [answer.outcome for answer in found] == ["error", *["success"] * 199]


@pytest.mark.parametrize(
    ("play", "message"),
    [
        (Play(always="broken"), f"{MAX_GIVEN_UP} pictures one after the other were given up, the last one since http"),
        (Play(always="busy"), "no endpoint has answered for 1 s: http.*HTTP 429: played busy"),
        (Play(always="key"), "HTTP 401: played key: .*: the key is missing or wrong"),
        (Play(models=""), r"HTTP 500: \{\}; the server may still be loading its model"),
        (Play(models='{"data": []}'), "HTTP 200: .*no list of models; is it the address of the API"),
        (Play(models="<html>"), "HTTP 200: <html>: no list of models; is it the address of the API"),
        (Play(models="[" * 100_000), r"HTTP 200: \[.*no list of models"),
        (Play(models="moved"), "HTTP 302: it redirects to another address; name that one"),
        (Play(models='{"data": [{"id": "a"}, {"id": "b"}]}'), r"\(--vlm-model\) names one of its models: a, b"),
        (Play(always="refused"), "50 pictures one after the other were given up.*no answer in the JSON: refused"),
    ],
)
def test_what_is_wrong_with_the_endpoint_is_no_error_of_rows(play: Play, message: str) -> None:
    with serving(play), pytest.raises(DanqingError, match=message):
        answers(play, 100)


def test_an_endpoint_that_goes_away_ends_with_words_and_another_takes_its_rows() -> None:
    make, image = QUESTION.body(), picture(1, (32, 32))
    with serving(Play()) as lasting:
        with serving(Play()) as leaving:
            client = Client(Server((leaving.address, lasting.address), concurrency=4, timing=FAST))
            replies = client.ask(range(60), lambda row: make(image))
            first = [next(replies)[1] for _ in range(20)]
            assert leaving.posts and lasting.posts  # each takes a part of the rows
        rest = [reply for _, reply in replies]
        assert [reply.error for reply in (*first, *rest)] == [""] * 60
        client = Client(Server((lasting.address,), concurrency=2, timing=FAST))
        replies = client.ask(count(), lambda row: make(image))
        next(replies)
        lasting.always, lasting.models = "stall", ""
        with pytest.raises(DanqingError, match=r"no endpoint has answered for \d s: .*the same command goes on"):
            for _ in replies:
                pass
    with pytest.raises(DanqingError, match=r"cannot be reached \(Connection refused\); is the server running\?"):
        Client(Server((lasting.address,)))


def test_another_thread_can_stop_a_caller_that_waits() -> None:
    with serving(Play(always="stall")) as play:
        client, stopped = Client(Server((play.address,), concurrency=2, timing=Timing())), threading.Event()
        threading.Timer(0.1, stopped.set).start()
        with pytest.raises(StoppedError):
            next(client.ask(range(3), lambda row: b"{}", stopped))


def test_the_caller_can_stop_at_any_time() -> None:
    with serving(Play(["好"], always="stall")) as play:
        client = Client(Server((play.address,), concurrency=8, timing=Timing()))
        replies = client.ask(count(), lambda row: QUESTION.body()(picture(1, (8, 8))))
        started = time.monotonic()
        next(replies)
        replies.close()  # type: ignore[attr-defined]
    assert time.monotonic() - started < 5 and client.waiting == 0


def test_the_key_comes_from_the_environment_and_goes_nowhere_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DANQING_VLM_KEY", "sk-secret")
    script = ["bad", *["refused"] * 3, *["words sk-secret"] * 3, "一只 sk-secret 猫"]
    with serving(Play(script)) as play:  # repeats the headers in its messages
        found = answers(play, 4, concurrency=1)
    assert b"Authorization: Bearer sk-secret" in play.posts[0]
    assert "Bearer …" in str(found[0].error) and "Bearer …" in str(found[1].error)
    assert found[3].text == "一只 … 猫" and "sk-secret" not in repr(found)


def test_a_short_key_is_no_secret_in_a_caption(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DANQING_VLM_KEY", "EMPTY")
    with serving(Play(["EMPTY box"])) as play:
        assert answers(play)[0].text == "EMPTY box"


@pytest.mark.parametrize("key", ["sk-secret\nX-Other: 1", "sk-secret-密钥"])
def test_an_unusable_key_is_refused_without_being_shown(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DANQING_VLM_KEY", key)
    with pytest.raises(DanqingError, match=r"^\$DANQING_VLM_KEY: a key has only printable ASCII") as refused:
        Client(Server(("http://127.0.0.1:9/v1",)))
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize(
    "address",
    [
        "localhost:8000", "ftp://a/v1", "http://me:secret@a/v1", "http://a:x/v1", "http:///v1", "http://a b/v1",
        "http://a/v1\n", "http://a/一", "http://a..b/v1", "http://a:99999/v1", "http://me:secret@a:99999/v1",
        "me:secret@a/v1", "http://me:sec,secret@a/v1", "http://a/v1?api_key=secret", "http://a/v1#secret",
        "http://me:secret",
    ],
)  # fmt: skip
def test_wrong_addresses_are_refused(address: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(DanqingError, match="--vlm-endpoint") as refused:
        Client(Server((address,)))
    assert main(["recaption", str(tmp_path), "--endpoint", address.strip("\n") or address]) == 2
    assert "secret" not in str(refused.value) + "".join(capfd.readouterr())


def test_the_request_has_the_original_bytes() -> None:
    with serving(Play()) as play:
        answers(play)
    body = json.loads(play.posts[0].partition(b"\r\n\r\n")[2])
    sent, asked = body["messages"][0]["content"]
    assert base64.b64decode(sent["image_url"]["url"].removeprefix("data:image/jpeg;base64,")) == picture(1, (32, 32))
    assert asked == {"type": "text", "text": "描述"}
    assert {name: body[name] for name in ("model", "temperature", "seed")} == {
        "model": "tiny",
        "temperature": 0,
        "seed": 0,
    }


def opened(sent: tuple[str, bytes]) -> Image.Image:
    return Image.open(io.BytesIO(sent[1]))


def test_other_formats_and_larger_pictures_are_encoded_again() -> None:
    for form in ("JPEG", "PNG", "WEBP"):
        data = picture(1, (60, 40), form)
        assert sendable(data, None, 10**6) == (f"image/{form.lower()}", data) == sendable(data, 60, 10**6)
    kind, data = sendable(picture(1, (60, 40), "BMP"), None, 10**6)
    assert kind == "image/png" and opened((kind, data)).size == (60, 40)
    sent = sendable(picture(1, (160, 80)), 40, 10**6)
    assert (sent[0], opened(sent).size) == ("image/jpeg", (40, 20))
    for broken, problem in (
        (b"<html>", "not a picture that can be opened"),
        (picture(1, (60, 40), "BMP"), "more than --max-pixels"),
    ):
        with pytest.raises(ValueError, match=problem):
            sendable(broken, None, 100)


@pytest.mark.parametrize(
    ("text", "caption"),
    [
        ('{"caption": "猫"}', "猫"), ('好的：\n```json\n{"caption": " 猫 "}\n```', "猫"), ("一只猫", "一只猫"),
        ('{"caption": "一只\\u732b，\\n在', "一只猫，\n在"), ('{"caption": "一只\\u73', "一只"), ('{"title": 1}', None),
        ('{"caption": 3}', None), ('{"cap', None), ('{"caption": "\\ud800猫"}', "\ufffd猫"),
        ("花括号 {猫}", "花括号 {猫}"),
    ],
)  # fmt: skip
def test_captions_are_read_from_what_models_write(text: str, caption: str | None) -> None:
    assert field_of(text, "caption") == caption


@pytest.mark.parametrize("module", [chat, endpoint, judgment, opening, prompts])
def test_examples(module: Callable[..., object]) -> None:
    assert doctest.testmod(module).failed == 0  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("content", "message"),
    [(b" \n", "is empty"), (b"\xff", "is not UTF-8"), (b"a" * (prompts.MAX_BYTES + 1), "larger than 64 KiB")],
)
def test_files_that_are_no_prompt_are_refused(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "prompt.txt"
    path.write_bytes(content)
    with pytest.raises(DanqingError, match=f"--prompt .*prompt.txt: {message}"):
        prompts.open_prompt(str(path))
    with pytest.raises(DanqingError, match=r"--prompt shorts: no such file; did you mean 'short'\?"):
        prompts.open_prompt("shorts")
