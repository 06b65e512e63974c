"""Redis with values that are known, and HTTP in front of it. test/e2e/heaps.ts says what is answered.

GET /refill  empties the database, gives memory back, and fills it again
"""

import http.server
import json
import os
import socket
import subprocess
import threading
import time
import urllib.parse
import zlib

PAGE = 4096
PAGES_MB = (1 << 20) // PAGE
SPARE_MB = 16
SPARE_KEY = 1 << 40
GROWN_KEY = 2 << 40
SMALL = 50_000
BATCH = 500
SOCKET = "/tmp/redis"
COMMON = bytes((i * 167 + (i >> 8) * 59 + 1) & 255 for i in range(PAGE))[8:]


def page(key: int) -> bytes:
    return key.to_bytes(8, "little") + COMMON


class Redis:
    """A connection; `commands` sends many at a time and gives what came back."""

    def __init__(self):
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.connect(SOCKET)
        self.answers = self.socket.makefile("rb")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.answers.close()
        self.socket.close()

    def command(self, *words):
        return self.commands([words])[0]

    def commands(self, commands: list) -> list:
        text = bytearray()
        for words in commands:
            text += b"*%d\r\n" % len(words)
            for word in words:
                word = word if isinstance(word, bytes) else str(word).encode()
                text += b"$%d\r\n%s\r\n" % (len(word), word)
        self.socket.sendall(text)
        return [self.answer() for _ in commands]

    def answer(self):
        line = self.answers.readline()
        kind, rest = line[:1], line[1:-2]
        if kind == b"+":
            return rest
        if kind == b":":
            return int(rest)
        if kind == b"$":
            return None if rest == b"-1" else self.answers.read(int(rest) + 2)[:-2]
        if kind == b"*":
            return [self.answer() for _ in range(int(rest))]
        raise RuntimeError(line.decode())


class Values:
    """What the database holds: pages, by ranges of keys, and many small values."""

    def __init__(self, megabytes: int):
        self.kept = range(0, megabytes * PAGES_MB)
        self.next_key = GROWN_KEY
        self.fill()

    def fill(self) -> None:
        self.others = [range(SPARE_KEY, SPARE_KEY + SPARE_MB * PAGES_MB)]
        with Redis() as redis:
            for keys in [self.kept, *self.others]:
                self.store(redis, keys)
            for start in range(0, SMALL, BATCH):
                redis.commands([("SET", f"small {i}", f"value {i}") for i in range(start, start + BATCH)])
                redis.commands([("HSET", f"hash {i % 500}", i, i * 3) for i in range(start, start + BATCH)])
            redis.command("SET", "value", "as dumped")

    def store(self, redis: Redis, keys: range) -> None:
        for start in range(0, len(keys), BATCH):
            redis.commands([("SET", key, page(key)) for key in keys[start : start + BATCH]])

    def pages(self, redis: Redis, keys: range):
        for start in range(0, len(keys), BATCH):
            yield from zip(keys[start : start + BATCH], redis.command("MGET", *keys[start : start + BATCH]))

    def wrong(self, redis: Redis) -> int:
        wrong = 0
        for keys in [self.kept, *self.others]:
            wrong += sum(value != page(key) for key, value in self.pages(redis, keys))
        for start in range(0, SMALL, BATCH):
            numbers = range(start, start + BATCH)
            found = redis.command("MGET", *(f"small {i}" for i in numbers))
            wrong += sum(value != b"value %d" % i for i, value in zip(numbers, found))
            found = redis.commands([("HGET", f"hash {i % 500}", i) for i in numbers])
            wrong += sum(value != b"%d" % (i * 3) for i, value in zip(numbers, found))
        expected = sum(map(len, [self.kept, *self.others])) + SMALL + 500 + 1
        return wrong + abs(redis.command("DBSIZE") - expected)

    def answer(self, target: str) -> dict:
        url = urllib.parse.urlsplit(target)
        query = dict(urllib.parse.parse_qsl(url.query))
        with Redis() as redis:
            if url.path == "/sum":
                crc = 0
                for _, value in self.pages(redis, self.kept):
                    crc = zlib.crc32(value or b"", crc)
                return {"pages": len(self.kept), "crc": crc}
            if url.path == "/check":
                return {"wrong": self.wrong(redis)}
            if url.path == "/gc":
                redis.command("MEMORY", "PURGE")
                return {}
            if url.path == "/grow":
                grown = range(self.next_key, self.next_key + int(query["mb"]) * PAGES_MB)
                self.next_key = grown.stop
                self.store(redis, grown)
                self.others.append(grown)
                return {}
            if url.path == "/release":
                for keys in self.others:
                    for start in range(0, len(keys), BATCH):
                        redis.command("DEL", *keys[start : start + BATCH])
                self.others.clear()
                redis.command("MEMORY", "PURGE")
                return {}
            if url.path == "/refill":
                redis.command("FLUSHALL")
                redis.command("MEMORY", "PURGE")
                self.fill()
                return {}
            if url.path == "/write":
                redis.command("SET", "value", query["value"])
                return {}
            if url.path == "/read":
                return {"value": redis.command("GET", "value").decode()}
        raise KeyError(target)


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        if self.path == "/healthz":
            body = b"ok"
        else:
            with one_at_a_time:
                body = json.dumps([values.answer(self.path)]).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        pass


one_at_a_time = threading.Lock()
subprocess.Popen(["redis-server", "--port", "0", "--unixsocket", SOCKET, "--save", "", "--logfile", "/dev/null"])
end = time.monotonic() + 20
while not os.path.exists(SOCKET):
    if time.monotonic() > end:
        raise TimeoutError("redis-server has no socket")
    time.sleep(0.02)
values = Values(int(os.environ.get("HEAP_MB", "64")))
server = http.server.ThreadingHTTPServer(("", 8080), Handler)
print("ready", flush=True)
server.serve_forever()
