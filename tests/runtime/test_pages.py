"""The page pool against a model of it: a dictionary of references and a set of what was published."""

from __future__ import annotations

from books import check_pages
from hypothesis import given, settings
from hypothesis import strategies as st

from jitney.runtime.pages import PagePool

COMMANDS = st.lists(
    st.tuples(st.sampled_from("take give publish find".split()), st.integers(0, 50)), max_size=200
)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(num_pages=st.integers(2, 12), commands=COMMANDS)
def test_every_page_is_in_one_state_after_every_command(
    num_pages: int, commands: list[tuple[str, int]]
) -> None:
    pool = PagePool(num_pages)
    held: list[list[int]] = []
    named: dict[int, bytes] = {}
    for serial, (command, number) in enumerate(commands):
        if command == "take" and pool.num_available:
            held.append(pool.take(number % pool.num_available + 1))
            for page in held[-1]:
                assert sum(page in pages for pages in held) == 1, "a page that somebody holds was handed out"
                named.pop(page, None)
        elif command == "give" and held:
            pool.give_back(held.pop(number % len(held)))
        elif command == "publish" and held:
            page = held[number % len(held)][0]
            pool.publish(page, b"%d" % serial)
            named.setdefault(page, b"%d" % serial)
        elif command == "find" and named:
            page, key = list(named.items())[number % len(named)]
            assert pool.find(key) == page
            pool.share(page)
            held.append([page])
        check_pages(pool)
        assert pool.num_used == len({page for pages in held for page in pages})
        assert pool.num_used + pool.num_available == num_pages - 1
    for pages in held:
        pool.give_back(pages)
    assert pool.num_used == 0


def test_page_zero_is_never_handed_out() -> None:
    assert sorted(PagePool(5).take(4)) == [1, 2, 3, 4]


def test_a_published_page_is_found_until_its_room_is_needed() -> None:
    pool = PagePool(3)
    first, second = pool.take(2)
    pool.publish(first, b"first")
    pool.give_back([first])
    pool.give_back([second])
    assert pool.find(b"first") == first and pool.is_cached(first)
    assert pool.take(1) == [second], "a free page goes before a cached one"
    assert pool.take(1) == [first]
    assert pool.find(b"first") is None


def test_the_page_given_back_longest_ago_is_evicted_first_and_a_rows_tail_before_its_head() -> None:
    pool = PagePool(6)
    old, row = pool.take(1), pool.take(3)
    pool.take(1)
    for page in old + row:
        pool.publish(page, b"%d" % page)
    pool.give_back(old)
    pool.give_back(row)
    assert [pool.take(1)[0] for _ in range(4)] == [*old, *reversed(row)]


def test_a_shared_page_stays_until_its_last_reference_goes() -> None:
    pool = PagePool(2)
    (page,) = pool.take(1)
    pool.publish(page, b"key")
    pool.share(page)
    pool.give_back([page])
    assert pool.num_available == 0
    pool.give_back([page])
    assert pool.num_available == 1
    pool.share(page)
    assert pool.num_available == 0


def test_a_key_keeps_its_first_page_and_a_page_its_first_key() -> None:
    pool = PagePool(3)
    first, second = pool.take(2)
    pool.publish(first, b"a")
    pool.publish(second, b"a")
    pool.publish(first, b"b")
    assert pool.find(b"a") == first
    assert pool.find(b"b") is None
    pool.give_back([first, second])
    check_pages(pool)
