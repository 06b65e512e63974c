"""A heap of CPython whose every byte is known. test/e2e/heaps.ts says what pages hold and what is answered."""

import ctypes
import gc
import mmap
import urllib.parse
import zlib

PAGE = 4096
MB = 1 << 20
SPARE_MB = 16
GROWN_KEY = 2 << 40
COMMON = bytes((i * 167 + (i >> 8) * 59 + 1) & 255 for i in range(PAGE))[8:]
libc = ctypes.CDLL(None)


def page(key: int) -> bytes:
    return key.to_bytes(8, "little") + COMMON


class Run:
    """Pages from a key on, in buffers of 1 to 32 pages: below and above what malloc takes from mmap for itself."""

    def __init__(self, megabytes: int, key: int):
        self.key = key
        self.buffers = []
        left = megabytes * MB // PAGE
        while left > 0:
            count = min(left, 1 + len(self.buffers) % 32)
            self.buffers.append(bytearray().join(page(key + i) for i in range(count)))
            key += count
            left -= count
        # Small objects, which have an allocator of their own.
        self.small = {f"key {number}": (number, str(number)) for number in range(20_000)}

    def sum(self) -> dict:
        crc = pages = 0
        for buffer in self.buffers:
            crc = zlib.crc32(buffer, crc)
            pages += len(buffer) // PAGE
        return {"pages": pages, "crc": crc}

    def wrong(self) -> int:
        wrong, key = 0, self.key
        for buffer in self.buffers:
            for at in range(0, len(buffer), PAGE):
                wrong += buffer[at : at + PAGE] != page(key)
                key += 1
        wrong += sum(self.small.get(f"key {number}") != (number, str(number)) for number in range(20_000))
        return wrong


class Heap:
    def __init__(self, megabytes: int):
        self.kept = Run(megabytes, 0)
        self.spare = Run(SPARE_MB, 1 << 40)
        self.value = ["as dumped"] * 1000
        self.grown = []
        self.next_key = GROWN_KEY
        # Nobody holds these, but each other.
        for number in range(20_000):
            pair = [number]
            pair.append(pair)

    def answer(self, target: str) -> dict:
        url = urllib.parse.urlsplit(target)
        query = dict(urllib.parse.parse_qsl(url.query))
        if url.path == "/sum":
            return self.kept.sum()
        if url.path == "/check":
            runs = [self.kept, *self.grown] + ([self.spare] if self.spare else [])
            return {"wrong": sum(run.wrong() for run in runs)}
        if url.path == "/gc":
            gc.collect()
            libc.malloc_trim(0)
            return {}
        if url.path == "/grow":
            return {"dirty": self.grow(int(query["mb"]))}
        if url.path == "/release":
            self.spare = None
            self.grown.clear()
            gc.collect()
            libc.malloc_trim(0)
            return {}
        if url.path == "/write":
            self.value = [query["value"]] * len(self.value)
            return {}
        if url.path == "/read":
            return {"value": self.value[-1]}
        raise KeyError(target)

    def grow(self, megabytes: int) -> int:
        """Pages that were not zeros in new memory: of calloc, in several sizes, and of mmap."""
        dirty = 0
        fresh = [bytearray(size) for size in (PAGE * (1 + i % 100) for i in range(megabytes * 4))]
        dirty += sum(len(buffer) // PAGE for buffer in fresh if buffer.count(0) != len(buffer))
        with mmap.mmap(-1, megabytes * MB, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as mapped:
            dirty += mapped[:].count(b"\0") != len(mapped)
        del fresh
        run = Run(megabytes, self.next_key)
        self.next_key += megabytes * MB // PAGE
        self.grown.append(run)
        return dirty
