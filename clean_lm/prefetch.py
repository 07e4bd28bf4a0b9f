"""An iterator that runs ahead of its consumer, in a thread."""

from collections.abc import Iterator
from queue import SimpleQueue
from threading import Event, Thread
from typing import TypeVar

T = TypeVar("T")


def prefetch(items: Iterator[T]) -> Iterator[T]:
    """The same items, computed in a thread without waiting for the consumer; closing it ends the thread.

    An exception in the thread is raised where the item would have been.
    """
    computed: SimpleQueue[tuple[T] | BaseException | None] = SimpleQueue()
    closed = Event()

    def compute() -> None:
        try:
            for item in items:
                computed.put((item,))
                if closed.is_set():
                    return
            computed.put(None)
        except BaseException as error:
            computed.put(error)

    thread = Thread(target=compute, daemon=True)
    thread.start()
    try:
        while (item := computed.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item[0]
    finally:
        closed.set()
        thread.join()
