"""A small OpenAI-compatible server on this machine, for tests of what asks one."""

import base64
import contextlib
import io
import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from PIL import Image


class ChatServer(ThreadingHTTPServer):
    """Answers `answer(image, body)`; the statuses in `script` come first, and `asked` keeps what came in."""

    daemon_threads = True

    def __init__(self, answer):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.answer, self.script, self.asked, self.delay, self.headers = answer, [], [], 0.0, {}

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}/v1"


class _Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked.append((self.path, dict(self.headers), body))
        time.sleep(self.server.delay)
        status = self.server.script.pop(0) if self.server.script else 200
        answer = self.server.answer(picture(body), body)
        payload = (answer if isinstance(answer, str) else json.dumps(answer)).encode()
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # the client may have left
            self.send_response(status)
            for name, value in {"Content-Length": str(len(payload)), **self.server.headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(payload)

    def log_message(self, *_):
        pass


@contextlib.contextmanager
def serving(answer):
    server = ChatServer(answer)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def picture(body):
    """The image in a request."""
    url = body["messages"][0]["content"][0]["image_url"]["url"]
    kind, _, data = url.partition(",")
    assert kind == "data:image/png;base64"
    return Image.open(io.BytesIO(base64.b64decode(data)))


def said(text, finish="stop"):
    """A completion of words."""
    return {"choices": [{"message": {"role": "assistant", "content": text}, "finish_reason": finish}]}


def weighed(logprobs):
    """A completion of one token with its list of the likeliest ones, {token: log-probability}."""
    ranked = [
        {"token": token, "logprob": value, "bytes": None} for token, value in sorted(logprobs.items(), key=_by_value)
    ]
    choice = said(ranked[0]["token"], "length")["choices"][0]
    return {"choices": [{**choice, "logprobs": {"content": [{**ranked[0], "top_logprobs": ranked}]}}]}


def _by_value(item):
    return -item[1]
