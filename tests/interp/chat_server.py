"""A server on loopback that speaks chat completions and fails as often as it is told, each question in its own way."""

import hashlib
import json
import threading
import time
from collections import Counter
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

FAULTS = ("error", "busy", "silence", "garbage")


class ChatServer(ThreadingHTTPServer):
    """answer: messages -> text, or a dictionary of the message's fields, `finish_reason` among them.

    faults: name -> share of questions that meet it on their first attempt. delay: seconds per answer.

    delivered: user message -> how often a whole good answer was sent. bodies, headers: of every request. on_answer:
    called before an answer.
    """

    daemon_threads = True
    request_queue_size = 128

    def __init__(
        self, answer=lambda messages: json.dumps({"echo": messages[-1]["content"]}), faults=None, delay=0.0, silence=1.0
    ):
        super().__init__(("127.0.0.1", 0), Handler)
        self.answer, self.faults, self.delay, self.silence = answer, faults or {}, delay, silence
        self.attempts, self.delivered, self.met = Counter(), Counter(), Counter()
        self.bodies, self.headers, self.lock = [], [], threading.Lock()
        self.at_once, self.most_at_once = 0, 0

    def handle_error(self, *_):
        """A client that was killed is no error of the server's."""

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    def fault_of(self, question, attempt):
        place = int(hashlib.sha256(question.encode()).hexdigest()[:8], 16) / 2**32
        for name, share in self.faults.items():
            if place < share:
                return name if attempt == 0 else None
            place -= share
        return None


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        # a repeat is another question
        server, question = (
            self.server,
            body["messages"][-1]["content"] + (f" (repeat {body['seed']})" if "seed" in body else ""),
        )
        with server.lock:
            attempt = server.attempts[question]
            server.attempts[question] += 1
            server.bodies.append(body)
            server.headers.append(dict(self.headers))
            server.at_once += 1
            server.most_at_once = max(server.most_at_once, server.at_once)
        try:
            self._reply(server, body, question, server.fault_of(question, attempt))
        finally:
            with server.lock:
                server.at_once -= 1

    def _reply(self, server, body, question, fault):
        time.sleep(server.delay)
        if fault:
            with server.lock:
                server.met[fault] += 1
        if fault == "error":
            return self._send(500, b'{"error": {"message": "broken"}}')
        if fault == "busy":
            return self._send(429, b'{"error": {"message": "slow down"}}', {"Retry-After": "0.01"})
        if fault == "silence":
            time.sleep(server.silence)
            self.close_connection = True
            return None
        if fault == "garbage":
            return self._send(200, b'{"choices": [{"message": {"cont')
        if isinstance(fault, tuple):
            return self._send(fault[0], fault[1].encode())
        said = server.answer(body["messages"])
        fields = dict(said) if isinstance(said, dict) else {"content": said}
        finish, text = fields.pop("finish_reason", "stop"), " ".join(filter(None, fields.values()))
        usage = {"prompt_tokens": len(question.split()), "completion_tokens": len(text.split()), "total_tokens": 0}
        choice = {"index": 0, "finish_reason": finish, "message": {"role": "assistant", "content": None, **fields}}
        if body.get("logprobs"):
            choice["logprobs"] = {
                "content": [{"token": "x", "logprob": -0.1, "top_logprobs": [{"token": "x", "logprob": -0.1}]}]
            }
        whole = {
            "id": "1",
            "object": "chat.completion",
            "created": 0,
            "model": body["model"],
            "choices": [choice],
            "usage": usage,
        }
        if self._send(200, json.dumps(whole).encode()):
            with server.lock:
                server.delivered[question] += 1
        return None

    def _send(self, status, body, headers=None):
        try:
            self.send_response(status)
            for name, value in {
                "Content-Type": "application/json",
                "Content-Length": str(len(body)),
                **(headers or {}),
            }.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)
            return True
        except OSError:
            return False


@contextmanager
def serving(**options):
    server = ChatServer(**options)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
