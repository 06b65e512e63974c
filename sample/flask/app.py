"""A Flask service with a large dictionary, so that its memory matters: GET /?key=N answers {"value": N}."""

import json

from flask import Flask, Response, request

ENTRIES = 1_000_000

# Built while the program is loaded, before it listens: this is the part of its start that a checkpoint saves.
values = {str(number): number for number in range(ENTRIES)}

app = Flask(__name__)


def answer(status: int, body: dict) -> Response:
    return Response(json.dumps(body) + "\n", status=status, mimetype="application/json")


@app.get("/")
def look_up() -> Response:
    key = request.args.get("key", "")
    if not (key.isascii() and key.isdecimal()):
        return answer(400, {"error": "key must be a whole number, such as /?key=888888"})
    if key not in values:
        return answer(404, {"error": f"there is no entry {key}; keys go from 0 to {ENTRIES - 1}"})
    return answer(200, {"value": values[key]})


if __name__ == "__main__":
    # Flask prints " * Running on ..." once it listens. config.yaml waits for that line.
    app.run(host="0.0.0.0", port=8080, threaded=True)
