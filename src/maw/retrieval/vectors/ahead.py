"""Work done ahead: an iterator that runs in a thread of its own, and a function that runs in processes of its own."""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Executor, Future
from contextlib import contextmanager
from typing import Any, TypeVar

__all__ = ["map_ahead", "prefetched"]

Item = TypeVar("Item")
Result = TypeVar("Result")


def map_ahead(
    executor: Executor, function: Callable[[Item], Result], items: Iterable[Item], ahead: int
) -> Iterator[Result]:
    """Yield function(item) in the order of the items, with at most `ahead` of them under way or waiting to be taken.

    Args:
        executor: where the function runs.
        function: what to do.
        items: what to do it on; read as far as needed.
        ahead: at least 1.

    Example:
        >>> from concurrent.futures import ThreadPoolExecutor
        >>> with ThreadPoolExecutor(2) as pool:
        ...     list(map_ahead(pool, abs, [-1, 2, -3], ahead=2))
        [1, 2, 3]
    """
    waiting: deque[Future[Result]] = deque()
    try:
        for item in items:
            if len(waiting) >= ahead:
                yield waiting.popleft().result()
            waiting.append(executor.submit(function, item))
        while waiting:
            yield waiting.popleft().result()
    finally:
        for future in waiting:
            future.cancel()


@contextmanager
def prefetched(items: Iterable[Item], ahead: int) -> Generator[Iterator[Item]]:
    """Run an iterable in a thread that is up to `ahead` items further than who takes them; its errors arrive in turn.

    The thread has ended when the context is left, whether everything was taken or not.

    Example:
        >>> with prefetched(range(3), ahead=1) as numbers:
        ...     list(numbers)
        [0, 1, 2]
    """
    ready: queue.Queue[tuple[str, Any]] = queue.Queue(ahead)
    left = threading.Event()

    def put(kind: str, value: Any) -> bool:
        while not left.is_set():
            try:
                ready.put((kind, value), timeout=0.1)
            except queue.Full:
                continue
            return True
        return False

    def run() -> None:
        iterator = iter(items)
        try:
            for item in iterator:
                if not put("item", item):
                    break
            else:
                put("end", None)
        except BaseException as error:
            put("error", error)
        finally:
            close = getattr(iterator, "close", None)
            if close is not None:
                close()

    def take() -> Iterator[Item]:
        while True:
            kind, value = ready.get()
            if kind == "item":
                yield value
            elif kind == "error":
                raise value
            else:
                return

    thread = threading.Thread(target=run, name="ahead", daemon=True)
    thread.start()
    try:
        yield take()
    finally:
        left.set()
        thread.join()
