"""Sizes of passes: the smallest that holds a batch, and among those that are recorded wherever one is."""

from __future__ import annotations

import pytest

from jitney.runtime.cuda.ladder import EAGER_STEP, FEW_CHUNKS, LARGE, TOKEN_BUCKETS, Ladder
from jitney.runtime.cuda.sizes import CHUNK_ROWS, PAGE_TOKENS, Pass, Sizes, region_words, slot_regions


def sizes(max_rows: int = 256, prefill_tokens: int = 8192, context: int = 4096) -> Sizes:
    return Sizes(context=context, max_rows=max_rows, prefill_tokens=prefill_tokens, num_pages=100)


EVERY = [(1, 64), (3, 64), (8, 200), (17, 512), (100, 4096), (256, 8192), (300, 16), (512, 5000)]


def asked(ladder: Ladder, rows: int, tokens: int, chunks: int) -> Pass:
    return ladder.size(rows, tokens, chunks, cuts=False, full=False, fresh=False)


@pytest.mark.parametrize(("max_rows", "prefill_tokens"), EVERY)
def test_every_batch_has_a_size_that_holds_it(max_rows: int, prefill_tokens: int) -> None:
    bounds = sizes(max_rows, prefill_tokens)
    ladder = Ladder(bounds)
    tokens_tried = {0, 1, 15, 16, 17, prefill_tokens // 2, prefill_tokens - 1, prefill_tokens}
    for rows in {0, 1, max_rows // 2, max_rows - 1, max_rows}:
        for tokens in {min(tokens, prefill_tokens) for tokens in tokens_tried}:
            for chunks in {1, FEW_CHUNKS, FEW_CHUNKS + 1, CHUNK_ROWS} if tokens else {0}:
                if not rows and not tokens:
                    continue
                size = asked(ladder, rows, tokens, chunks)
                assert size.rows >= rows and size.tokens >= tokens and size.chunks >= chunks
                assert size.num_tokens <= bounds.max_tokens
                assert size.num_samples <= bounds.max_samples


@pytest.mark.parametrize(("max_rows", "prefill_tokens"), EVERY)
def test_decoding_and_few_chunks_always_have_a_graph(max_rows: int, prefill_tokens: int) -> None:
    ladder = Ladder(sizes(max_rows, prefill_tokens))
    recorded = {*ladder.decoding(), *ladder.decoding(cuts=True), *ladder.decoding(full=True)}
    recorded |= {*ladder.mixed(later=False), *ladder.mixed(later=True)}
    for rows in range(1, max_rows + 1):
        for cuts, full in ((False, False), (True, False), (False, True), (True, True)):
            size = ladder.size(rows, 0, 0, cuts=cuts, full=full, fresh=False)
            assert size in recorded
        padded = min(beside for beside in ladder.chunk_sizes if beside >= rows)
        for tokens in (1, 64, 500, 3500):
            if tokens <= ladder.chunk_sizes[padded][-1]:
                assert asked(ladder, rows, tokens, FEW_CHUNKS) in recorded


def test_chunks_and_rows_fill_a_bucket_together_unless_rows_are_most_of_it() -> None:
    chunk_sizes = Ladder(sizes()).chunk_sizes
    assert chunk_sizes[0] == TOKEN_BUCKETS + LARGE
    assert chunk_sizes[32] == (16, 64, 96, 160, 224, 352, 480, 736, 992, 1504, 2016, 3040, 4064, 6112, 8160)
    offered = dict(Ladder(sizes()).offered())
    assert offered[0][-1] == 8192 and offered[32] == chunk_sizes[32]
    assert dict(Ladder(sizes(prefill_tokens=5000)).offered())[32][-2:] == (4064, 4936)
    assert chunk_sizes[256][:5] == (16, 64, 128, 192, 256) and chunk_sizes[256][-1] == 8192 - 256


@pytest.mark.parametrize("prefill_tokens", [64, 100, 127, 128, 256])
def test_a_page_of_a_prompt_always_has_a_graph(prefill_tokens: int) -> None:
    for rows, offered in Ladder(sizes(prefill_tokens=prefill_tokens)).chunk_sizes.items():
        assert max(offered) >= PAGE_TOKENS, rows


def test_every_graph_is_made_once_the_large_ones_later() -> None:
    ladder = Ladder(sizes())
    soon, later = [*ladder.mixed(later=False)], [*ladder.mixed(later=True)]
    assert not {*soon} & {*later} and len({*soon, *later}) == sum(map(len, ladder.chunk_sizes.values()))
    assert {size.rows for size in soon} == {size.rows for size in later} == {*ladder.chunk_sizes}
    assert {size.tokens for size in soon if not size.rows} == {*TOKEN_BUCKETS}
    assert {size.tokens for size in later if not size.rows} == {*LARGE}
    assert len({*ladder.graphs()}) == len([*ladder.graphs()])
    assert [*ladder.graphs()][: len([*ladder.first()])] == [*ladder.first()]


def test_it_is_recorded_from_large_to_small() -> None:
    ladder = Ladder(sizes())
    decoding = [size.rows for size in ladder.decoding()]
    assert decoding == sorted(decoding, reverse=True) and decoding[0] == 256 and decoding[-1] == 1
    mixed = [(size.tokens, size.rows) for size in ladder.mixed(later=False)]
    assert mixed == sorted(mixed, reverse=True)


def test_a_pass_without_a_graph_is_padded_little() -> None:
    size = asked(Ladder(sizes()), 3, 5000, FEW_CHUNKS + 1)
    assert size.tokens == -(-5000 // EAGER_STEP) * EAGER_STEP and size.chunks == CHUNK_ROWS and size.rows == 4


def test_only_a_pass_without_a_graph_knows_that_it_is_fresh() -> None:
    ladder = Ladder(sizes())
    assert ladder.size(0, 5000, 1, cuts=False, full=False, fresh=True).fresh
    assert not ladder.size(0, 50, 1, cuts=False, full=False, fresh=True).fresh


@pytest.mark.parametrize(
    ("tokens", "chunks", "is_launched"), [(8192, 4, True), (8192, 5, False), (4000, 1, False)]
)
def test_long_fresh_prompts_are_launched_one_by_one(tokens: int, chunks: int, is_launched: bool) -> None:
    ladder = Ladder(sizes())
    assert ladder.size(0, tokens, chunks, cuts=False, full=False, fresh=True).fresh == is_launched
    assert not ladder.size(0, tokens, chunks, cuts=False, full=False, fresh=False).fresh


def test_rows_are_bounded_by_what_was_asked_for() -> None:
    assert sizes(max_rows=100).row_buckets == (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 100)
    assert sizes(max_rows=1).row_buckets == (1,)
    assert sizes(max_rows=600).row_buckets[-2:] == (512, 600)


def test_slots_and_pages() -> None:
    bounds = sizes(max_rows=10, context=130)
    assert bounds.num_slots == 11 and bounds.pages_per_row == -(-130 // PAGE_TOKENS)
    assert slot_regions(bounds)["tables"] == (11, 3)
    assert [region_words(shape) for shape in ((1,), (64,), (65,), (2, 40), ())] == [64, 64, 128, 128, 64]
