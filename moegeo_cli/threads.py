"""Limits the threads of linear algebra: small matrix products are slower on many threads."""

from __future__ import annotations

from contextlib import AbstractContextManager

from threadpoolctl import ThreadpoolController


def few_threads(most: int) -> AbstractContextManager[object]:
    """Limit the threads of BLAS while the returned context manager is active.

    Args:
        most: the limit; a lower number already in force stays.
    """
    controller = ThreadpoolController().select(user_api="blas")
    had = [library["num_threads"] for library in controller.info()]
    return controller.limit(limits=min(most, *had) if had else None)  # type: ignore[no-any-return]
