"""The order of the pairs and the recipe: neither needs PyTorch."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from danqing.engine.core.errors import DanqingError
from danqing.engine.train.order import Order, permutation
from danqing.engine.train.recipe import load_train_recipe

ORDER = Order((40, 0, 25, 60, 13, 31, 8), batch=24, seed=3, window_shards=3)


def rows(order: Order, step: int) -> list[tuple[int, int]]:
    """The pairs of a global batch."""
    return [order.row(place) for place in order.places(step)]


def test_an_epoch_has_every_pair_at_most_once() -> None:
    for epoch in range(3):
        steps = range(epoch * ORDER.steps_per_epoch, (epoch + 1) * ORDER.steps_per_epoch)
        seen = [row for step in steps for row in rows(ORDER, step)]
        assert len(seen) == 7 * 24 == len(set(seen)) and all(0 <= row < ORDER.rows[shard] for shard, row in seen)


def test_epochs_and_seeds_have_other_orders() -> None:
    first = rows(ORDER, 0)
    assert first != rows(ORDER, ORDER.steps_per_epoch) and first != rows(Order(ORDER.rows, 24, 4, 3), 0)
    assert first == rows(Order(ORDER.rows, 24, 3, 3), 0)


def test_the_order_is_the_same_on_every_machine() -> None:
    assert permutation(8, 1, 2, 3).tolist() == permutation(8, 1, 2, 3).tolist() != permutation(8, 1, 2, 4).tolist()
    assert permutation(8, 1, 2, 3).tolist() == FIXED
    places = Counter(int(permutation(10, seed)[0]) for seed in range(2_000))
    assert min(places.values()) > 140 and max(places.values()) < 260


FIXED = [7, 6, 4, 1, 3, 2, 0, 5]


def test_rows_of_a_window_only_are_mixed() -> None:
    for step in range(ORDER.steps_per_epoch):
        for place in ORDER.places(step):
            assert ORDER.row(place)[0] in ORDER.window_of(place) and len(ORDER.window_of(place)) <= 3


def test_a_replacement_is_in_no_batch_twice_and_every_row_has_its_turn() -> None:
    order = Order((100,), batch=10)
    places = order.places(2)
    assert {order.row(order.replacement(p)) for p in places}.isdisjoint(order.row(p) for p in places)
    place, seen = places[0], set()
    for _ in range(100):
        place = order.replacement(place)
        seen.add(order.row(place))
    assert len(seen) == 100


def test_fewer_pairs_than_a_batch_are_refused() -> None:
    with pytest.raises(ValueError, match="9 pairs are fewer"):
        Order((4, 5), batch=10)


def test_the_paper_s_recipe() -> None:
    recipe = load_train_recipe()
    assert recipe.batch == 768 * 16 and recipe.learning_rate == 1e-5 and recipe.betas == (0.9, 0.98)
    assert recipe.epochs * Order((10_000,) * 10_000, recipe.batch).steps_per_epoch == 16_276
    rates = [recipe.learning_rate_at(step, 16_276) for step in (0, 499, 999, 1_000, 8_638, 16_275)]
    assert np.allclose(rates, [1e-8, 5e-6, 1e-5, 1e-5, 5e-6, 0], atol=1e-9)


@pytest.mark.parametrize(
    ("setting", "problem"),
    [
        ("batch=0", "--set batch=0: batch must be a whole number of 1 or more, not 0"),
        ("batch=1.5", "whole number"),
        ("learning_rate=fast", "must be a number of 0 or more, not 'fast'"),
        ("learning_rate=.inf", "must be a number of 0 or more, not inf"),
        ("max_logit_scale=0", "must be a number of 1 or more, not 0"),
        ("recaption_share=2", "from 0 to 1"),
        ("betas=[0.9]", "two numbers"),
        ("warmup=5", "unknown key 'warmup'; did you mean 'warm_up_steps'"),
        ("seed", "write it as NAME=VALUE"),
    ],
)
def test_wrong_settings_are_named(setting: str, problem: str) -> None:
    with pytest.raises(DanqingError, match="(?s).*" + problem.replace("(", r"\(").replace("[", r"\[")):
        load_train_recipe("danqing", [setting])
