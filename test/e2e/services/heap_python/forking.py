"""Workers that were forked before the dump, and accept from one listener. Each has the parent's heap and one of its own.

A worker that is asked asks all others too, by sockets of theirs, so that an answer is a list with one part for each heap.

GET /more  the parent forks one more worker, which finds the heap that the parent had at the dump
"""

import http.server
import json
import os
import pathlib
import signal
import socket
import socketserver
import threading
import time

from heap import Heap

WORKERS = 4
MEGABYTES = int(os.environ.get("HEAP_MB", "64"))
# A socket for each worker, and beside it a file that says that it listens.
SOCKETS = pathlib.Path("/sockets")
# The parent's, which all share until they write.
inherited = Heap(MEGABYTES)


def listening() -> list:
    return sorted(SOCKETS.glob("*.listens"))


def ask(worker: pathlib.Path, target: str) -> list:
    with socket.socket(socket.AF_UNIX) as asked:
        asked.connect(str(worker.with_suffix(".socket")))
        asked.sendall(target.encode() + b"\n")
        return json.loads(asked.makefile().readline())


def ask_all(target: str) -> list:
    return [part for worker in listening() for part in ask(worker, target)]


def one_more() -> list:
    count = len(listening())
    os.kill(os.getppid(), signal.SIGUSR1)
    end = time.monotonic() + 20
    while len(listening()) == count:
        if time.monotonic() > end:
            raise TimeoutError("the parent did not fork")
        time.sleep(0.01)
    return []


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        if self.path == "/healthz":
            body = b"ok" if len(listening()) >= WORKERS else b"not yet"
        else:
            body = json.dumps(one_more() if self.path == "/more" else ask_all(self.path)).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        pass


def answer_others(inner: socket.socket, heaps: list) -> None:
    while True:
        asking, _ = inner.accept()
        with asking:
            target = asking.makefile().readline().strip()
            asking.sendall(json.dumps([heap.answer(target) for heap in heaps]).encode() + b"\n")


def work(listener: socket.socket, number: int) -> None:
    own = Heap(MEGABYTES // 2)
    inner = socket.socket(socket.AF_UNIX)
    inner.bind(str(SOCKETS / f"{number}.socket"))
    inner.listen(64)
    threading.Thread(target=answer_others, args=(inner, [inherited, own]), daemon=True).start()
    server = socketserver.TCPServer(("", 8080), Handler, bind_and_activate=False)
    server.socket.close()
    server.socket = listener
    (SOCKETS / f"{number}.listens").touch()
    server.serve_forever()


SOCKETS.mkdir(exist_ok=True)
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
listener = socket.create_server(("", 8080), backlog=128)
forked = 0
while True:
    if os.fork() == 0:
        work(listener, forked)
    forked += 1
    if forked == WORKERS:
        while len(listening()) < WORKERS:
            time.sleep(0.01)
        print("ready", flush=True)
    if forked >= WORKERS:
        signal.sigwait({signal.SIGUSR1})
