"""The queue before the worker: bounds, classes, fair share, deadlines, and books that stay small."""

from __future__ import annotations

import random
import time
from collections import Counter
from typing import Any

import pytest

from jitney.runtime.batch import RowSampling
from jitney.runtime.errors import QueueFull
from jitney.runtime.messages import Generate
from jitney.runtime.queue import IDLE_USERS, RequestQueue


def request(name: str, *, tokens: int = 10, **fields: Any) -> Generate:
    return Generate(id=name, prompt=(1,) * tokens, sampling=RowSampling(seed=0), max_tokens=10, **fields)


def queue(*requests: Generate, max_requests: int = 100_000, max_tokens: int = 10**9) -> RequestQueue:
    made = RequestQueue(max_requests=max_requests, max_tokens=max_tokens)
    for each in requests:
        made.push(each)
    return made


def popped(waiting: RequestQueue) -> list[str]:
    names = []
    while (each := waiting.pop()) is not None:
        names.append(each.id)
        waiting.charge(each.user, len(each.prompt))
    return names


def test_an_empty_queue_gives_nothing() -> None:
    assert queue().pop() is None and len(queue()) == 0 and queue().next_deadline is None


def test_the_bound_on_requests_refuses_at_once_and_says_when_to_come_back() -> None:
    waiting = queue(request("a"), request("b"), max_requests=2)
    with pytest.raises(QueueFull, match="2 requests") as refused:
        waiting.push(request("c"), retry_after_s=7.0)
    assert refused.value.retry_after_s == 7.0
    waiting.pop()
    waiting.push(request("c"))
    assert len(waiting) == 2


def test_the_bound_on_tokens_counts_what_waits_and_lets_a_single_large_one_in() -> None:
    waiting = queue(request("large", tokens=50), max_tokens=20)
    with pytest.raises(QueueFull, match="50 prompt tokens"):
        waiting.push(request("small", tokens=1))
    waiting.remove("large")
    waiting.push(request("a", tokens=20))
    with pytest.raises(QueueFull):
        waiting.push(request("b", tokens=1))


def test_a_refused_request_leaves_no_trace() -> None:
    waiting = queue(request("a", user="u"), max_requests=1)
    with pytest.raises(QueueFull):
        waiting.push(request("b", user="v", deadline=1.0))
    assert waiting.next_deadline is None
    assert popped(waiting) == ["a"]


def test_a_lower_class_goes_first_whatever_its_user_was_served() -> None:
    waiting = queue(
        request("late", priority=5, arrival=0.0),
        request("normal", priority=0, arrival=1.0),
        request("urgent", priority=-5, arrival=2.0, user="busy"),
    )
    waiting.charge("busy", 10_000)
    assert popped(waiting) == ["urgent", "normal", "late"]


def test_one_users_requests_go_in_order_of_arrival() -> None:
    waiting = queue(*(request(str(n), arrival=float(n)) for n in range(5)))
    assert popped(waiting) == ["0", "1", "2", "3", "4"]


def test_the_user_who_was_served_least_goes_first() -> None:
    waiting = queue(
        *(request(f"a{n}", user="a", tokens=30) for n in range(3)),
        *(request(f"b{n}", user="b", tokens=10) for n in range(3)),
    )
    assert popped(waiting) == ["a0", "b0", "b1", "b2", "a1", "a2"]


def serve(rng: random.Random, waiting: RequestQueue, *, seats: int) -> list[tuple[str, str, int]]:
    """Seat, decode one token a step, finish: (user, id, tokens) as they were served."""
    seated: dict[str, list[Any]] = {}
    story: list[tuple[str, str, int]] = []
    while waiting or seated:
        while len(seated) < seats and (each := waiting.pop()) is not None:
            waiting.charge(each.user, len(each.prompt))
            story.append((each.user, each.id, len(each.prompt)))
            seated[each.id] = [each.user, rng.randint(1, 60)]
        for name, row in list(seated.items()):
            waiting.charge(row[0], 1)
            story.append((row[0], name, 1))
            row[1] -= 1
            if not row[1]:
                waiting.leave(row[0])
                del seated[name]
    return story


@pytest.mark.parametrize("seed", range(5))
def test_a_user_who_sends_a_hundred_times_more_gets_no_more(seed: int) -> None:
    rng = random.Random(seed)
    few, many = 100, 10_000
    waiting = queue(
        *(request(f"m{n}", user="many", tokens=rng.randint(1, 100), arrival=n) for n in range(many)),
        *(request(f"f{n}", user="few", tokens=rng.randint(1, 100), arrival=many + n) for n in range(few)),
    )
    story = serve(rng, waiting, seats=8)
    last_seated = next(at for at, (_, name, _) in enumerate(story) if name == f"f{few - 1}")
    served: Counter[str] = Counter()
    for user, _, tokens in story[:last_seated]:
        served[user] += tokens
    assert 0.9 < served["many"] / served["few"] < 1.1
    assert len({name for _, name, _ in story}) == few + many, "somebody starved"


def test_a_user_who_comes_back_neither_saved_up_nor_pays_for_the_past() -> None:
    waiting = queue(*(request(f"a{n}", user="a", arrival=n) for n in range(10)))
    waiting.push(request("b", user="b", arrival=0.0))
    waiting.charge("b", 10_000)
    waiting.remove("b")
    waiting.leave("b")
    waiting.charge("a", 20_000)
    waiting.push(request("b1", user="b", arrival=11.0))
    waiting.push(request("b2", user="b", arrival=12.0))
    assert popped(waiting)[:4] == ["a0", "b1", "a1", "b2"]


def test_counters_of_users_who_went_are_dropped() -> None:
    waiting = queue(request("constant", user="constant"))
    for n in range(20 * IDLE_USERS):
        waiting.push(request(f"r{n}", user=f"u{n}"))
        waiting.charge(f"u{n}", 5 + n % 7)
        waiting.remove(f"r{n}")
        waiting.leave(f"u{n}")
    assert len(waiting._served) <= 2 * IDLE_USERS


def test_a_heavy_user_who_went_is_remembered_while_others_are_active() -> None:
    waiting = queue(request("constant", user="constant"), request("heavy", user="heavy"))
    waiting.charge("heavy", 10**6)
    waiting.remove("heavy")
    waiting.leave("heavy")
    for n in range(3 * IDLE_USERS):
        waiting.push(request(f"r{n}", user=f"u{n}"))
        waiting.charge(f"u{n}", 5)
        waiting.remove(f"r{n}")
        waiting.leave(f"u{n}")
    waiting.push(request("h", user="heavy", arrival=0.0))
    waiting.push(request("new", user="new", arrival=9.0))
    assert popped(waiting) == ["constant", "new", "h"]


def test_expired_requests_come_out_once_in_order_of_their_deadlines() -> None:
    waiting = queue(*(request(str(n), deadline=float(10 - n)) for n in range(5)), request("patient"))
    assert waiting.next_deadline == 6.0
    assert [late.id for late in waiting.expire(8.0)] == ["4", "3", "2"]
    assert waiting.expire(8.0) == []
    assert waiting.next_deadline == 9.0
    assert popped(waiting) == ["0", "1", "patient"]
    assert waiting.next_deadline is None


def test_a_deadline_goes_with_its_request_even_if_the_id_comes_again() -> None:
    waiting = queue(request("a", deadline=5.0), request("b", deadline=1.0))
    waiting.remove("a")
    waiting.push(request("a", deadline=50.0))
    assert [late.id for late in waiting.expire(10.0)] == ["b"]
    assert waiting.next_deadline == 50.0


def test_deadlines_of_those_who_left_do_not_pile_up() -> None:
    waiting = queue(request("first", deadline=1.0))
    for n in range(10_000):
        waiting.push(request(str(n), deadline=1e6))
        waiting.remove(str(n))
    assert len(waiting._deadlines) < 1000


def test_removing_what_does_not_wait_is_false() -> None:
    waiting = queue(request("a"))
    assert waiting.remove("a") and not waiting.remove("a") and not waiting.remove("b")


def removal_time(count: int) -> float:
    waiting = queue(*(request(str(n), arrival=n, deadline=float(n)) for n in range(count)))
    order = list(range(count))
    random.Random(1).shuffle(order)
    began = time.process_time()
    for n in order:
        assert waiting.remove(str(n))
    assert waiting.pop() is None
    return time.process_time() - began


def test_removing_in_random_order_takes_linear_time() -> None:
    small, large = (min(removal_time(count) for _ in range(3)) for count in (2_000, 32_000))
    assert large < 16 * small * 8


@pytest.mark.parametrize("seed", range(20))
def test_books_balance_after_any_commands(seed: int) -> None:
    rng = random.Random(seed)
    waiting = queue(max_requests=30, max_tokens=300)
    open_requests: dict[str, Generate] = {}
    for serial in range(500):
        command = rng.choice(["push", "push", "pop", "remove", "expire"])
        gone: list[Generate] = []
        if command == "push":
            new = request(
                str(serial),
                tokens=rng.randint(1, 30),
                user=rng.choice("abc"),
                priority=rng.randint(0, 2),
                arrival=float(serial),
                deadline=rng.choice([None, serial + 50.0]),
            )
            full = len(open_requests) >= 30 or (
                bool(open_requests)
                and sum(len(r.prompt) for r in open_requests.values()) + len(new.prompt) > 300
            )
            if full:
                with pytest.raises(QueueFull):
                    waiting.push(new)
            else:
                waiting.push(new)
                open_requests[new.id] = new
        elif command == "pop":
            each = waiting.pop()
            assert (each is None) == (not open_requests)
            if each is not None:
                assert each.priority == min(r.priority for r in open_requests.values())
                gone = [each]
        elif command == "remove" and open_requests:
            name = rng.choice(list(open_requests))
            assert waiting.remove(name)
            gone = [open_requests[name]]
        elif command == "expire":
            gone = waiting.expire(float(serial))
            assert {r.id for r in gone} == {
                r.id for r in open_requests.values() if r.deadline is not None and r.deadline <= serial
            }
        for each in gone:
            del open_requests[each.id]
            waiting.leave(each.user)
        assert len(waiting) == len(open_requests)
        assert waiting.next_deadline == min(
            (r.deadline for r in open_requests.values() if r.deadline is not None), default=None
        )
