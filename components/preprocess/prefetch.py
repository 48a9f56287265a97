"""The content of raw files, in order. Objects on S3 are read ahead, so that decoding does not wait for the network."""

from collections import deque
from collections.abc import Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor

from components.common.runs import storage
from components.preprocess.index import File

Contents = Generator[tuple[File, bytes], None, None]

READERS = 8  # number of threads, and of objects read ahead; one connection transfers 20 to 100 MB/s with a latency of about 20 ms
MAX_BYTES_AHEAD = 256 * 2**20  # maximum memory for objects read ahead, unless a single one is larger


def contents(raw: str, files: Iterable[File]) -> Contents:
    """Yields each file of the raw folder with its content, in the given order; raises UserError if one cannot be read."""
    if storage.is_s3(raw):
        yield from _read_ahead(raw, files)
        return
    for file in files:
        yield file, storage.read(storage.join(raw, file.path))


def _read_ahead(raw: str, files: Iterable[File]) -> Contents:
    remaining = iter(files)
    following = next(remaining, None)
    ahead: deque[tuple[File, Future[bytes]]] = deque()
    held = 0
    pool = ThreadPoolExecutor(READERS, thread_name_prefix="s3")
    try:
        while ahead or following:
            while following and len(ahead) < READERS and (not ahead or held + following.size <= MAX_BYTES_AHEAD):
                ahead.append((following, pool.submit(storage.read, storage.join(raw, following.path))))
                held += following.size
                following = next(remaining, None)
            file, content = ahead.popleft()
            yield file, content.result()
            held -= file.size
    finally:
        pool.shutdown(cancel_futures=True)
