"""Messages of a run that cannot be resumed: how the inputs differ."""

from __future__ import annotations

from typing import Any

import pytest

from danqing.engine.run.folder import identity_differences


def shards(*names: str, size: int = 1) -> list[dict[str, Any]]:
    return [
        {"number": number, "name": name, "path": f"/in/{name}", "bytes": size, "first": 0, "rows": None}
        for number, name in enumerate(names)
    ]


@pytest.mark.parametrize(
    ("there", "here", "message"),
    [
        (shards("0.tar", "1.tar"), shards("0.tar", "1.tar", "2.tar"), "2 there, 3 here: 2.tar is new"),
        (shards("0.tar", "1.tar"), shards("1.tar"), "2 there, 1 here: 0.tar is removed"),
        (shards("0.tar"), shards("0.tar", size=2), "1 there, 1 here: 0.tar is changed"),
        (shards("0.tar", "1.tar"), shards("1.tar", "0.tar"), "2 there, 2 here: in another order"),
        (shards("x"), shards(*"abcde"), "1 there, 5 here: a, b, c and 2 more are new; x is removed"),
    ],
)
def test_shards_that_differ_are_named(there: list[Any], here: list[Any], message: str) -> None:
    assert identity_differences({"shards": there}, {"shards": here}) == [f"shards: {message}"]


def test_a_changed_limit_is_named_alone() -> None:
    there, here = {"shards": shards("0.tar"), "limit": 1}, {"shards": shards("0.tar", "1.tar"), "limit": None}
    assert identity_differences(there, here) == ["limit: 1 there, null here"]
    assert identity_differences(there, there) == []
