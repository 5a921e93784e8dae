from __future__ import annotations

import json

from danqing.engine.core.escape import escaped, escaped_json, printable


def test_text_that_acts_on_a_terminal_is_escaped() -> None:
    assert (
        escaped("a\x1b[31m\x07\r\x9b\u202e\u2066\u2028\ud83d") == "a\\x1b[31m\\x07\\r\\x9b\\u202e\\u2066\\u2028\\ud83d"
    )
    harmless = "一只猫\n\ttab ÄÖ 👨\u200d👩 \ufe0f ①\\x1b"
    assert escaped(harmless) == harmless


def test_a_name_in_a_message_takes_one_line() -> None:
    assert printable("\x1b[2J\u202e\t猫\u3000狗\n\ud800") == "\\x1b[2J\\u202e\\t猫\u3000狗\\n\\ud800"


def test_json_keeps_its_value() -> None:
    value = {"a\x7f\u202e": ["\x1b\x9b\ud83d 一只猫"]}
    shown = escaped_json(json.dumps(value, ensure_ascii=False))
    assert json.loads(shown) == value and shown.isprintable() and "一只猫" in shown
