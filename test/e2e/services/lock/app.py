"""Held file locks of both kinds: each must still be held, which only another process can find out."""

import fcntl
import http.server
import json
import os

whole = open("/flock", "w")
fcntl.flock(whole, fcntl.LOCK_EX)
record = open("/record", "w")
fcntl.lockf(record, fcntl.LOCK_EX)


def is_held(path: str, lock) -> bool:
    child = os.fork()
    if child == 0:
        try:
            lock(open(path, "w"), fcntl.LOCK_EX | fcntl.LOCK_NB)
            os._exit(0)
        except BlockingIOError:
            os._exit(1)
        finally:
            os._exit(2)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if status == 2:
        raise RuntimeError(f"could not try the lock on {path}")
    return status == 1


def report() -> dict:
    return {"flock": is_held("/flock", fcntl.flock), "fcntl": is_held("/record", fcntl.lockf)}


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = b"ok" if self.path == "/healthz" else json.dumps(report()).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        pass


# One thread: a fork while others run would not be safe.
server = http.server.HTTPServer(("", 8080), Handler)
print("ready", flush=True)
server.serve_forever()
