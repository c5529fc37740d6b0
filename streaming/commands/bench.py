"""bench"""


def bench() -> None:
    """b"""
