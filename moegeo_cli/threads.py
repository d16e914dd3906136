"""How many threads linear algebra takes: products of small matrices are not worth sharing."""

from __future__ import annotations

from contextlib import AbstractContextManager

from threadpoolctl import ThreadpoolController


def few_threads(most: int) -> AbstractContextManager[object]:
    """While it holds, BLAS has at most so many threads, and never more than it had.

    Args:
        most: how many.
    """
    controller = ThreadpoolController().select(user_api="blas")
    had = [library["num_threads"] for library in controller.info()]
    return controller.limit(limits=min(most, *had) if had else None)  # type: ignore[no-any-return]
