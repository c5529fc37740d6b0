"""Plans and commits: what is batched, shared, preempted and ended; and that no plan looks at a token's value."""

from __future__ import annotations

import random
from typing import Any

import pytest
from books import check_books
from simulated_rows import Simulation, random_request, solo
from spelled import spelled

from jitney.runtime.batch import Batch, Capacity, Decoded, RowOutcome, RowSampling, TokenLogprobs
from jitney.runtime.messages import Advance, Generate, Output
from jitney.runtime.scheduler import Scheduler


def request(name: str, prompt: int = 4, tokens: int = 4, **fields: Any) -> Generate:
    fields.setdefault("sampling", RowSampling(seed=1))
    return Generate(id=name, prompt=tuple(range(1, prompt + 1)), max_tokens=tokens, **fields)


def scheduler(
    num_pages: int = 40, rows: int = 4, depth: int = 0, max_batch_tokens: int = 16, **config: Any
) -> Scheduler:
    return Scheduler(Capacity(num_pages, 4, rows, depth=depth), max_batch_tokens=max_batch_tokens, **config)


def outcomes(batch: Batch, token: int = 9) -> list[RowOutcome]:
    sampled = [chunk.slot for chunk in batch.chunks if chunk.samples] + list(batch.decodes)
    return [RowOutcome(slot, (token,)) for slot in sampled]


def run(made: Scheduler, token: int = 9) -> tuple[list[Batch], list[Output]]:
    batches, heard = [], []
    while not made.is_idle:
        batch = made.plan()
        assert batch is not None
        batches.append(batch)
        heard += spelled(made.commit(outcomes(batch, token)))
        check_books(made)
    return batches, heard


def test_nothing_to_plan() -> None:
    made = scheduler()
    assert made.plan() is None and made.is_idle


def test_a_prompt_then_its_tokens_one_a_step() -> None:
    made = scheduler()
    made.add(request("a"))
    batches, heard = run(made)
    assert [(len(b.seats), len(b.chunks), len(b.decodes)) for b in batches] == [(1, 1, 0)] + [(0, 0, 1)] * 3
    seat = batches[0].seats[0]
    assert (seat.prompt_len, seat.limit, seat.start, seat.tokens) == (4, 8, 0, (1, 2, 3, 4))
    assert [output.tokens for output in heard] == [(9,)] * 4
    assert [output.finish_reason for output in heard] == [None] * 3 + ["length"]
    assert heard[0].cached_tokens == 0 and heard[1].cached_tokens is None


def test_an_end_id_ends_and_is_named() -> None:
    made = scheduler()
    made.add(request("a", sampling=RowSampling(seed=1, end_token_ids=(9,))))
    _, (output,) = run(made)
    assert (output.finish_reason, output.matched, output.tokens) == ("stop_token", 9, (9,))


def test_a_long_prompt_is_cut_and_decodes_run_beside_it() -> None:
    made = scheduler(max_batch_tokens=8)
    made.add(request("a", prompt=4, tokens=8))
    first = made.plan()
    assert first is not None
    made.commit(outcomes(first))
    made.add(request("long", prompt=20, tokens=1, use_prefix_cache=False))
    batches, _ = run(made)
    assert [[(c.start, c.count, c.samples) for c in b.chunks] for b in batches[:3]] == [
        [(0, 7, False)],
        [(7, 7, False)],
        [(14, 6, True)],
    ]
    assert all(len(batch.decodes) == 1 for batch in batches[:3])


def test_a_known_prefix_is_not_computed_again_and_one_token_always_is() -> None:
    made = scheduler()
    made.add(request("a", prompt=12, tokens=1))
    run(made)
    for prompt, cached in ((12, 8), (13, 12), (11, 8), (4, 0), (5, 4)):
        made.add(request(f"again {prompt}", prompt=prompt, tokens=1))
        batches, heard = run(made)
        assert batches[0].seats[0].start == cached and batches[0].chunks[0].start == cached
        assert heard[0].cached_tokens == cached


def test_generated_tokens_are_found_as_well() -> None:
    made = scheduler()
    made.add(request("a", prompt=4, tokens=9))
    run(made)
    follow_up = Generate(id="b", prompt=(1, 2, 3, 4, *[9] * 8, 5), sampling=RowSampling(seed=1), max_tokens=1)
    made.add(follow_up)
    batches, _ = run(made)
    assert batches[0].seats[0].start == 12


@pytest.mark.parametrize(
    ("config", "first", "second"),
    [
        ({}, {"salt": b"a"}, {"salt": b"b"}),
        ({}, {}, {"use_prefix_cache": False}),
        ({}, {"use_prefix_cache": False}, {}),
        ({"prefix_cache": False}, {}, {}),
    ],
)
def test_what_is_not_to_be_shared_is_not(config: Any, first: Any, second: Any) -> None:
    made = scheduler(**config)
    made.add(request("a", prompt=12, tokens=1, **first))
    run(made)
    made.add(request("b", prompt=12, tokens=1, **second))
    batches, _ = run(made)
    assert batches[0].seats[0].start == 0


def test_further_choices_share_the_prompts_pages_even_without_the_cache() -> None:
    made = scheduler(prefix_cache=False)
    made.add(request("a", prompt=12, tokens=2, n=3))
    batches, heard = run(made)
    seats = [seat for batch in batches for seat in batch.seats]
    assert sorted((seat.sampling.choice, seat.start) for seat in seats) == [(0, 0), (1, 8), (2, 8)]
    assert len({seat.pages[:2] for seat in seats}) == 1 and len({seat.pages[2:] for seat in seats}) == 3
    assert sorted(output.choice for output in heard if output.finish_reason) == [0, 1, 2]


def test_the_class_and_then_the_arrival_decide_who_sits_first() -> None:
    made = scheduler(rows=1)
    for name, priority, arrival in (("c", 1, 0.0), ("b", 0, 2.0), ("a", 0, 1.0)):
        made.add(request(name, tokens=1, priority=priority, arrival=arrival))
    _, heard = run(made)
    assert [output.id for output in heard] == ["a", "b", "c"]


def test_the_last_in_order_is_preempted_and_answers_as_if_nothing_happened() -> None:
    sim = Simulation(Capacity(9, 4, 3), max_batch_tokens=64)
    for name in "abc":
        sim.feed(
            request(name, prompt=4, tokens=24, sampling=RowSampling(seed=ord(name)), arrival=float(ord(name)))
        )
    first_ended: list[str] = []
    while not sim.loop.is_idle:
        sim.turn()
        first_ended += [
            name for (name, _), story in sim.stories.items() if story.reason and name not in first_ended
        ]
    sim.check_ended()
    assert sim.scheduler.stats().preemptions > 0 and first_ended == ["a", "b", "c"]


def test_a_rows_fault_ends_it_alone() -> None:
    made = scheduler()
    made.add(request("a"))
    made.add(request("b", arrival=1.0))
    batch = made.plan()
    assert batch is not None
    sick, well = outcomes(batch)
    (told, other) = made.commit([RowOutcome(sick.slot, error="NaN"), well])
    assert (told.id, told.finish_reason, told.error, other.finish_reason) == ("a", "error", "NaN", None)
    _, heard = run(made)
    assert {output.id for output in heard} == {"b"}


@pytest.mark.parametrize("shuffled", [False, True])
def test_tokens_in_columns_count_as_those_that_come_alone(shuffled: bool) -> None:
    """An end id, a row of which more is told and a fault, in any order of the slots."""
    made = scheduler()
    for n in range(4):
        made.add(
            request(str(n), tokens=9, arrival=float(n), sampling=RowSampling(seed=1, end_token_ids=(5,)))
        )
    first = made.plan()
    assert first is not None
    made.commit(outcomes(first))
    batch = made.plan()
    assert batch is not None and len(batch.decodes) == 4
    pairs = list(zip(batch.decodes, (8, 5, 7, 6), strict=True))
    slots, tokens = zip(*(reversed(pairs) if shuffled else pairs), strict=True)
    scores = (TokenLogprobs(4, -1.0),)
    told = made.commit(
        [
            RowOutcome(pairs[2][0], (4,), scores),
            Decoded(slots, tokens),
            RowOutcome(pairs[3][0], error="NaN"),
        ]
    )
    check_books(made)
    heard = {output.id: (output.tokens, output.finish_reason, output.logprobs) for output in spelled(told)}
    assert heard == {
        "0": ((8,), None, ()),
        "1": ((5,), "stop_token", ()),
        "2": ((4,), None, scores),
        "3": ((), "error", ()),
    }


def test_a_steady_step_plans_the_same_rows_without_a_look_at_them() -> None:
    made = Scheduler(Capacity(400, 64, 8))
    for n in range(8):
        made.add(request(str(n), prompt=8, tokens=40, arrival=float(n)))
    first = made.plan()
    assert first is not None
    made.commit(outcomes(first))
    plans = []
    for _ in range(30):
        batch = made.plan()
        assert batch is not None
        plans.append(batch)
        (advance,) = made.commit([Decoded(batch.decodes, [9] * 8)])
        assert [output.tokens for output in spelled([advance])] == [(9,)] * 8
        check_books(made)
    assert all(batch.decodes is plans[0].decodes and not batch.grown for batch in plans)


def test_a_ghost_keeps_its_pages_until_its_launches_are_done() -> None:
    made = scheduler(depth=2)
    made.add(request("a", tokens=10))
    launches = [made.plan() for _ in range(3)]
    made.cancel("a")
    check_books(made)
    assert made.plan() is None and not made.is_idle
    for batch in launches:
        assert made.stats().pages_used > 0
        assert batch is not None and made.commit(outcomes(batch)) == []
        check_books(made)
    assert made.stats().pages_used == 0 and made.is_idle


def test_a_plan_does_not_depend_on_what_the_tokens_are() -> None:
    told = []
    for token in (9, 7):
        made = scheduler(num_pages=12, depth=0)
        for n in range(4):
            made.add(request(str(n), prompt=5 + n, tokens=12, arrival=float(n), use_prefix_cache=False))
        batches, _ = run(made, token)
        told.append([(b.chunks, b.decodes, b.grown, [s.pages for s in b.seats]) for b in batches])
    assert told[0] == told[1]


def test_run_ahead_plans_to_the_bound_and_no_further() -> None:
    made = scheduler(depth=8)
    made.add(request("a", tokens=3))
    launches = []
    while (batch := made.plan()) is not None:
        launches.append(batch)
    assert len(launches) == 3, "three tokens may come, and no more"
    for batch in launches:
        made.commit(outcomes(batch))
    assert made.is_idle


def test_a_late_request_ends_wherever_it_is() -> None:
    made = scheduler(rows=1)
    made.add(request("seated", deadline=5.0))
    made.add(request("waits", deadline=5.0, arrival=1.0))
    made.add(request("patient", deadline=6.0, arrival=2.0))
    made.plan()
    assert made.expire(4.9) == []
    assert sorted(output.id for output in made.expire(5.0)) == ["seated", "waits"]
    check_books(made)


def test_failing_all_spares_those_who_were_not_seated() -> None:
    made = scheduler(rows=1, depth=2)
    made.add(request("seated"))
    made.add(request("waits", arrival=1.0))
    made.plan()
    made.plan()
    (told,) = made.fail_all("why")
    assert (told.id, told.finish_reason, told.error) == ("seated", "error", "why")
    check_books(made)
    _, heard = run(made)
    assert {output.id for output in heard} == {"waits"}


def test_prompt_scores_come_once_and_no_prefix_is_reused_for_them() -> None:
    made = scheduler(max_batch_tokens=4)
    made.add(request("warm", prompt=12, tokens=1))
    run(made)
    made.add(request("a", prompt=12, tokens=1, n=2, sampling=RowSampling(seed=1, prompt_logprobs=0)))
    told: list[Any] = []
    while not made.is_idle:
        batch = made.plan()
        assert batch is not None
        scored = []
        for chunk in batch.chunks:
            scores = tuple(
                TokenLogprobs(p, -1.0) if p else None for p in range(chunk.start, chunk.start + chunk.count)
            )
            scored.append(RowOutcome(chunk.slot, (9,) * chunk.samples, prompt_logprobs=scores))
        for output in made.commit(scored):
            assert not (output.choice and output.prompt_logprobs)
            told += output.prompt_logprobs
    assert [score and score.token_id for score in told] == [None, *range(1, 12)]


def test_unknown_and_ended_requests_are_left_alone() -> None:
    made = scheduler()
    made.cancel("nobody")
    made.add(request("a", tokens=1))
    run(made)
    made.cancel("a")
    made.cancel("a", 3)
    check_books(made)


@pytest.mark.parametrize("seed", range(60))
def test_any_mix_gives_each_row_the_tokens_it_gets_alone(seed: int) -> None:
    rng = random.Random(seed)
    context = 80
    needed = -(-context // 4) + 1
    capacity = Capacity(
        needed + rng.choice([0, 3, 40]), 4, rng.randint(1, 6), depth=rng.randint(0, 3),
        tokens_per_launch=rng.choice([1, 1, 3]),
    )  # fmt: skip
    sim = Simulation(capacity, max_batch_tokens=rng.choice([4, 16, 64]), prefix_cache=rng.random() < 0.7)
    for index in range(25):
        sim.feed(random_request(rng, index, context=context, now=sim.now))
        for _ in range(rng.randrange(4)):
            if not sim.loop.is_idle:
                sim.turn()
        if rng.random() < 0.2:
            sim.cancel(f"r{rng.randint(0, index)}")
    sim.run()
    sim.check_ended()
    assert any(
        story.tokens == solo(sim.requests[name], choice) for (name, choice), story in sim.stories.items()
    )


def sizes_of_chunks(capacity: Capacity, *requests: Any) -> list[int]:
    made = Scheduler(capacity)
    for each in requests:
        made.add(each)
    batches, _ = run(made)
    return [sum(chunk.count for chunk in batch.chunks) for batch in batches if batch.chunks]


def test_rows_at_their_end_hold_no_prompt_up() -> None:
    capacity = Capacity(40, 4, 4, depth=2, max_batch_tokens=12, mixed_tokens=4)
    made = Scheduler(capacity)
    for name in "abc":
        made.add(request(name, prompt=12, tokens=1))
    launches = [made.plan() for _ in range(3)]
    assert [[chunk.count for chunk in batch.chunks] for batch in launches if batch] == [[12]] * 3


def test_a_cut_prompt_fills_a_bucket_and_the_last_of_it_what_it_needs() -> None:
    capacity = Capacity(40, 4, 4, max_batch_tokens=15, mixed_tokens=15, chunk_sizes=((0, (4, 8, 16)),))
    assert sizes_of_chunks(capacity, request("a", prompt=27, tokens=1)) == [8, 8, 11]
    assert sizes_of_chunks(capacity, request("a", prompt=15, tokens=1)) == [15]


def decoding(made: Scheduler, count: int) -> None:
    for index in range(count):
        made.add(request(f"decodes {index}", prompt=4, tokens=200))
    while len((batch := made.plan() or Batch(0, (), (), (), ())).decodes) < count:
        made.commit(outcomes(batch))
    made.commit(outcomes(batch))


@pytest.mark.parametrize(
    ("rows", "prompts", "chunk"), [(10, 10, 8), (10, 11, 90), (2, 8, 8), (2, 9, 98), (10, 1, 8)]
)
def test_prompts_are_spread_out_unless_more_rows_wait_than_decode(
    rows: int, prompts: int, chunk: int
) -> None:
    made = Scheduler(Capacity(4000, 4, 40, max_batch_tokens=100, mixed_tokens=8), prefix_cache=False)
    decoding(made, rows)
    for index in range(prompts):
        made.add(request(f"waits {index}", prompt=20, tokens=1))
    batch = made.plan()
    assert batch is not None and sum(part.count for part in batch.chunks) == chunk


def waiting(made: Scheduler, count: int, prompt: int) -> None:
    for index in range(count):
        made.add(request(f"waits {index}", prompt=prompt, tokens=200))


def chunked(made: Scheduler) -> int:
    """Prompt tokens of the next launch."""
    batch = made.plan()
    assert batch is not None
    made.commit(outcomes(batch))
    return sum(part.count for part in batch.chunks)


def test_a_crowd_goes_first_until_few_of_it_are_left() -> None:
    made = Scheduler(Capacity(4000, 4, 60, max_batch_tokens=80, mixed_tokens=8), prefix_cache=False)
    decoding(made, 16)
    waiting(made, 17, prompt=20)
    left, seen = 17, []
    while left:
        batch = made.plan()
        assert batch is not None
        seen.append((left, len(batch.decodes), sum(part.count for part in batch.chunks)))
        left -= sum(part.samples for part in batch.chunks)
        made.commit(outcomes(batch))
    assert all(chunk == min(80 - rows, 20 * left) for left, rows, chunk in seen if left >= rows / 8)
    few = [chunk for left, rows, chunk in seen if left < rows / 8]
    assert len(few) > 1 and max(few) == 8 and seen[0][2] == 64


@pytest.mark.parametrize(("rows", "prompts", "chunks"), [(30, 40, [370, 352, 8]), (62, 70, [338, 33, 32])])
def test_beside_more_than_64_rows_a_crowd_goes_first_only_while_more_wait_than_decode(
    rows: int, prompts: int, chunks: list[int]
) -> None:
    made = Scheduler(Capacity(4000, 4, 200, max_batch_tokens=400, mixed_tokens=8), prefix_cache=False)
    decoding(made, rows)
    waiting(made, prompts, prompt=20)
    assert [chunked(made) for _ in chunks] == chunks


def test_who_waits_for_a_seat_keeps_no_crowd_up() -> None:
    """One more than there are seats always waits."""
    made = Scheduler(Capacity(4000, 4, 8, max_batch_tokens=400, mixed_tokens=8), prefix_cache=False)
    beside = []
    for _ in range(2000):
        while made.stats().running + made.stats().waiting < 9:
            count = made.stats().received_rows
            made.add(request(f"waits {count}", prompt=100, tokens=150 + 61 * count % 250))
        batch = made.plan()
        assert batch is not None
        if len(batch.decodes) >= 4:
            beside.append(sum(part.count for part in batch.chunks))
        made.commit(outcomes(batch))
    assert len(beside) > 1000 and max(beside[1000:]) == 8


def test_where_launches_beside_rows_are_large_no_crowd_goes_first() -> None:
    made = Scheduler(Capacity(4000, 4, 200, max_batch_tokens=400, mixed_tokens=50), prefix_cache=False)
    decoding(made, 4)
    waiting(made, 60, prompt=20)
    assert chunked(made) == 50


def test_a_launch_takes_as_much_beside_many_rows_as_beside_few() -> None:
    for rows in (4, 79):
        made = Scheduler(Capacity(9000, 4, 90, max_batch_tokens=8192, mixed_tokens=2048), prefix_cache=False)
        decoding(made, rows)
        waiting(made, 2, prompt=3000)
        assert chunked(made) == 2048


def test_a_token_is_told_as_the_same_object_each_time() -> None:
    """Answers keep what they are told."""
    made = Scheduler(Capacity(400, 4, 8, max_batch_tokens=100), prefix_cache=False)
    decoding(made, 4)
    told: list[tuple[int, ...]] = []
    for _ in range(3):
        batch = made.plan()
        assert batch is not None
        for news in made.commit([Decoded(batch.decodes, [70_000] * len(batch.decodes))]):
            assert isinstance(news, Advance)
            told += news.tokens
    assert len(told) == 12 and told[0] == (70_000,) and {id(token) for token in told} == {id(told[0])}


def test_chunks_fill_a_bucket_with_the_rows_that_decode() -> None:
    sizes = ((0, (16, 64)), (8, (16, 56)), (32, (16, 32)))
    capacity = Capacity(4000, 4, 60, max_batch_tokens=64, mixed_tokens=60, chunk_sizes=sizes)
    for rows, chunk in ((1, 56), (8, 56), (9, 32), (32, 32)):
        made = Scheduler(capacity, prefix_cache=False)
        decoding(made, rows)
        waiting(made, 1, prompt=100)
        assert chunked(made) == chunk


def test_a_large_backlog_takes_a_32nd_of_itself_a_launch() -> None:
    made = Scheduler(Capacity(4000, 4, 40, max_batch_tokens=1000, mixed_tokens=8), prefix_cache=False)
    decoding(made, 10)
    for index in range(10):
        made.add(request(f"waits {index}", prompt=128, tokens=1))
    batch = made.plan()
    assert batch is not None and sum(part.count for part in batch.chunks) == 10 * 128 // 32
