"""One row's lengths."""

from __future__ import annotations

from jitney.runtime.batch import RowSampling, TokenLogprobs
from jitney.runtime.messages import Generate
from jitney.runtime.sequence import Sequence


def row(**fields: object) -> Sequence:
    sampling = RowSampling(seed=0, prompt_logprobs=0)
    request = Generate(id="r", prompt=(1, 2, 3, 4, 5), sampling=sampling, max_tokens=3, **fields)  # type: ignore[arg-type]
    return Sequence(request, sampling, b"root", None)


def test_scores_are_reported_once_across_a_preemption() -> None:
    made = row()
    scores = (None, *(TokenLogprobs(token, -1.0) for token in (2, 3, 4, 5)))
    assert made.take_prompt_scores(0, scores[:2]) == scores[:2]
    made.unseat()
    assert made.take_prompt_scores(0, scores[:3]) == scores[2:3]
    assert made.wants_prompt_scores
    assert made.take_prompt_scores(3, scores[3:]) == scores[3:]
    assert not made.wants_prompt_scores and made.take_prompt_scores(0, scores) == ()


def test_leaving_the_seat_keeps_tokens_and_forgets_places() -> None:
    made = row()
    made.tokens.append(6)
    made.slot, made.pages, made.filled, made.planned = 2, [1, 2], 5, 5
    made.decoding = made.sampled = True
    made.unseat()
    assert (made.slot, made.pages, made.computed, made.planned, made.decoding) == (-1, [], 0, 0, False)
    assert made.tokens == [1, 2, 3, 4, 5, 6]


def test_tokens_past_an_end_id_or_the_limit_are_not_taken() -> None:
    made = row()
    assert made.advance(5, True, (6,)) == ((6,), None) and made.computed == 5
    assert made.advance(0, True, (7, 8, 9)) == ((7, 8), "length")
    made = row()
    made.sampling = RowSampling(seed=0, end_token_ids=(7, 8))
    assert made.advance(0, True, (6, 7, 8)) == ((6, 7), "stop_token") and made.tokens[5:] == [6, 7]
