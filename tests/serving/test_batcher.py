"""The batcher: what shares a batch, what waits, and who gets which answer."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fact_jax import UserError
from fact_jax.serving.server.batcher import Batcher
from fact_jax.serving.server.limits import Limits
from fact_jax.serving.server.refusal import Refusal

Batches = list[tuple[int, list[str]]]


def images(count: int, side: int = 4, value: float = 0) -> np.ndarray:
    return np.full((count, side, side, 3), value, np.float32)


def recording(batches: Batches) -> Callable[[np.ndarray, list[str]], list[np.ndarray]]:
    """A network whose logits are an image's first number; it knows no task 'gone'."""

    def compute(x: np.ndarray, names: list[str]) -> list[np.ndarray]:
        batches.append((x.shape[1], names))
        if "gone" in names:
            raise UserError("There is no task 'gone'.")
        if "broken" in names:
            raise ZeroDivisionError
        return [np.array([image[0, 0, 0]]) for image in x]

    return compute


def run(
    ask: Callable[[Batcher], Sequence[Awaitable[Any]]], batch_size: int = 4, **limits: Any
) -> tuple[list[Any], Batches]:
    """Answers, or exceptions, of requests that come at one moment; and the batches."""
    batches: Batches = []

    async def main() -> list[Any]:
        batcher = Batcher(recording(batches), batch_size, Limits(**{"max_delay_ms": 20, **limits}))
        running = asyncio.create_task(batcher.run())
        answers = await asyncio.gather(*ask(batcher), return_exceptions=True)
        batcher.close()
        await running
        return answers

    return asyncio.run(main()), batches


@settings(deadline=None, max_examples=30)
@given(
    st.lists(st.tuples(st.integers(1, 5), st.sampled_from([4, 8])), min_size=1, max_size=12),
    st.integers(1, 6),
)
def test_every_request_gets_its_own_answer_and_batches_are_of_one_size(
    requests: list[tuple[int, int]], batch_size: int
) -> None:
    answers, batches = run(
        lambda b: [b.logits(images(n, s, i), f"t{i}") for i, (n, s) in enumerate(requests)],
        batch_size,
        max_delay_ms=1,
    )
    for i, (count, _) in enumerate(requests):
        assert [row.tolist() for row in answers[i]] == [[i]] * count
    for side, names in batches:
        assert {requests[int(name[1:])][1] for name in names} == {side}
        assert len(names) <= batch_size or len(set(names)) == 1


def test_requests_of_one_moment_share_a_batch_in_the_order_of_their_coming() -> None:
    _, batches = run(lambda b: [b.logits(images(1), name) for name in "abcde"])
    assert batches == [(4, ["a", "b", "c", "d"]), (4, ["e"])]


def test_a_full_queue_refuses_and_says_when_to_ask_again() -> None:
    answers, batches = run(lambda b: [b.logits(images(n), "a") for n in (3, 2, 1, 5)], max_queue=4)
    assert [getattr(answer, "status", 200) for answer in answers] == [200, 503, 200, 413]
    assert answers[1].headers == {"Retry-After": "1"}
    assert batches == [(4, ["a"] * 4)]


def test_a_task_that_is_gone_fails_alone() -> None:
    answers, batches = run(lambda b: [b.logits(images(1, 4, 7), n) for n in ("a", "gone", "b")])
    assert isinstance(answers[1], UserError)
    assert [answers[i][0].tolist() for i in (0, 2)] == [[7], [7]]
    assert [names for _, names in batches] == [["a", "gone", "b"], ["a"], ["gone"], ["b"]]


def test_after_a_failed_batch_others_are_answered() -> None:
    answers, _ = run(lambda b: [b.logits(images(4), "broken"), b.logits(images(4), "a")])
    assert isinstance(answers[0], ZeroDivisionError)
    assert len(answers[1]) == 4


def test_a_request_that_waits_too_long_is_told_so_and_takes_no_place() -> None:
    answers, batches = run(
        lambda b: [b.logits(images(1), "a")], max_delay_ms=2000, answer_timeout=0.02
    )
    assert isinstance(answers[0], Refusal)
    assert answers[0].status == 504
    assert batches == []


def test_what_was_accepted_is_answered_after_close() -> None:
    async def main() -> tuple[list[np.ndarray], int]:
        batcher = Batcher(recording([]), 4, Limits(max_delay_ms=10_000))
        accepted = asyncio.create_task(batcher.logits(images(2), "a"))
        await asyncio.sleep(0)
        batcher.close()
        with pytest.raises(Refusal) as late:
            await batcher.logits(images(1), "a")
        await batcher.run()
        return await accepted, late.value.status

    answer, status = asyncio.run(main())
    assert (len(answer), status) == (2, 503)
