"""Names of pages: equal exactly where secret, salt and every token up to the page's end are equal."""

from __future__ import annotations

from jitney.runtime.prefix import PrefixHasher

TOKENS = [5, 70_000, 0, 3, 9, 9, 9, 9, 1]


def keys(
    tokens: list[int], *, secret: bytes = b"s", salt: bytes = b"", length: int | None = None
) -> list[bytes]:
    hasher = PrefixHasher(secret, 4)
    chain = [hasher.root(salt)]
    hasher.extend(chain, tokens, len(tokens) if length is None else length)
    return chain


def test_only_full_pages_have_names() -> None:
    assert [len(keys(TOKENS, length=n)) - 1 for n in (0, 3, 4, 7, 8, 9)] == [0, 0, 1, 1, 2, 2]


def test_growing_step_by_step_gives_the_same_names() -> None:
    hasher = PrefixHasher(b"s", 4)
    chain = [hasher.root(b"")]
    for length in range(len(TOKENS) + 1):
        hasher.extend(chain, TOKENS, length)
    assert chain == keys(TOKENS)


def test_a_name_depends_on_every_token_before_it() -> None:
    for position in range(8):
        other = list(TOKENS)
        other[position] += 1
        first = position // 4 + 1
        assert keys(other)[:first] == keys(TOKENS)[:first]
        assert all(a != b for a, b in zip(keys(other)[first:], keys(TOKENS)[first:], strict=True))


def test_the_same_page_after_another_beginning_has_another_name() -> None:
    chain = keys([7, 7, 7, 7, 7, 7, 7, 7])
    assert chain[1] != chain[2]


def test_salt_and_secret_change_every_name() -> None:
    plain = keys(TOKENS)
    for other in (keys(TOKENS, salt=b"t"), keys(TOKENS, secret=b"t")):
        assert not set(plain) & set(other)


def test_a_root_is_no_pages_name() -> None:
    hasher = PrefixHasher(b"s", 1)
    page = keys([1], secret=b"s")
    assert hasher.root(b"") == page[0] and len({len(key) for key in keys(TOKENS)}) == 1
