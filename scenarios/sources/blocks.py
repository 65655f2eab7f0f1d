"""Blocks of rows: loaded when they are asked for, or ahead of that by threads, and kept within a bound of bytes."""

from collections import OrderedDict
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor

from torch import Tensor


class Blocks:
    """The blocks used last, and those expected next.

    Threads, not processes: decoders of images and of Parquet release the interpreter's lock, and nothing is held twice.
    They only run ``load``; one thread, the caller's, decides what is loaded and kept. So neither their number nor
    the order in which they end can change a result. An error of ``load`` is raised where its block is asked for.

    Args:
        load: the rows of a block by its number; the same each time, and safe to run in several threads at once.
        nbytes: of a block that is loaded, known before.
        capacity: bytes that are kept, of blocks that are being loaded too; the block used last is kept in any case.
            A block that is dropped while a thread loads it takes its room until that ends.
        workers: threads that load what is expected; 0: nothing is loaded ahead.
    """

    def __init__(
        self, load: Callable[[int], Tensor], nbytes: Callable[[int], int], capacity: int, workers: int
    ) -> None:
        self.load, self.nbytes, self.capacity, self.workers = load, nbytes, capacity, workers
        self.held: OrderedDict[int, Future[Tensor]] = OrderedDict()  # the one used last comes last
        self.bytes = 0
        self.pool: ThreadPoolExecutor | None = None

    def get(self, block: int) -> Tensor:
        """The rows of ``block``, not to be written to."""
        if block not in self.held:
            future: Future[Tensor] = Future()
            future.set_result(self.load(block))
            self._hold(block, future)
        self.held.move_to_end(block)
        try:
            return self.held[block].result()
        except BaseException:
            self._drop(block)
            raise

    def expect(self, blocks: Iterable[int]) -> None:
        """Begin to load those of ``blocks``, which are asked for next, that fit in ``capacity`` together."""
        if not self.workers:
            return
        room = self.capacity
        for block in blocks:
            room -= self.nbytes(block)
            if room < 0:
                break
            if block not in self.held:
                self.pool = self.pool or ThreadPoolExecutor(self.workers, thread_name_prefix="rows")
                self._hold(block, self.pool.submit(self.load, block))
            self.held.move_to_end(block)

    def _hold(self, block: int, future: Future[Tensor]) -> None:
        self.held[block] = future
        self.bytes += self.nbytes(block)
        while self.bytes > self.capacity and len(self.held) > 1:
            self._drop(next(iter(self.held)))

    def _drop(self, block: int) -> None:
        self.held.pop(block).cancel()  # unless it is being loaded
        self.bytes -= self.nbytes(block)
