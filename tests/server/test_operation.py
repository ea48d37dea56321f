"""How the server is run: full, slow, guarded, watched, stopped."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time

import httpx
import openai
import pytest
from server.conftest import serving
from server_images import asking

from pixtral.errors import ConfigError
from pixtral.server.run import listen

LONG = {"max_tokens": 14_000, "ignore_eos": True, "temperature": 0}


def long_stream(url):
    """A stream that would go on for a while, of which the first piece has been read; (its lines, how to close it)."""
    client = httpx.Client(base_url=url, timeout=60)
    context = client.stream("POST", "/v1/chat/completions", json={"messages": asking(), "stream": True, **LONG})
    lines = context.__enter__().iter_lines()
    assert next(lines).startswith("data: ")
    return lines, lambda: (context.__exit__(None, None, None), client.close())


def idle(state, seconds=60.0):
    deadline = time.monotonic() + seconds
    while state.active and time.monotonic() < deadline:
        time.sleep(0.01)
    return state.active == 0


def test_a_full_queue(tiny):
    with serving(tiny, max_num_seqs=1, queue_limit=0) as live:
        _, close = long_stream(live.url)
        answer = httpx.post(f"{live.url}/v1/chat/completions", json={"messages": asking()})
        assert (answer.status_code, answer.json()["error"]["code"]) == (429, "queue_full")
        assert int(answer.headers["retry-after"]) >= 1
        close()
        assert idle(live.state)
        body = {"messages": asking(), "max_tokens": 2}
        assert httpx.post(f"{live.url}/v1/chat/completions", json=body).status_code == 200


def test_a_request_that_takes_too_long(tiny):
    with serving(tiny, request_timeout=1) as live:
        started = time.monotonic()
        answer = httpx.post(f"{live.url}/v1/chat/completions", json={"messages": asking(), **LONG}, timeout=60)
        assert (answer.status_code, answer.json()["error"]["code"]) == (408, "request_timeout")
        assert answer.headers["x-should-retry"] == "false", "the openai package would try again"
        assert time.monotonic() - started >= 1
        lines, close = long_stream(live.url)
        last = [line for line in lines if line][-1]
        assert json.loads(last.removeprefix("data: "))["error"]["code"] == "request_timeout"
        close()
        assert idle(live.state) and live.state.engine.stats().num_running == 0


def test_a_key(tiny):
    with serving(tiny, api_key="secret") as live:
        for wrong in ("other", "secretly"):
            with (
                openai.OpenAI(base_url=f"{live.url}/v1", api_key=wrong, max_retries=0) as client,
                pytest.raises(openai.AuthenticationError) as caught,
            ):
                client.models.list()
            assert caught.value.code == "invalid_api_key"
        assert httpx.get(f"{live.url}/v1/models").status_code == 401
        assert httpx.get(f"{live.url}/health").status_code == 200
        with openai.OpenAI(base_url=f"{live.url}/v1", api_key="secret") as client:
            assert client.models.list().data


def test_web_pages_of_others_may_ask_only_if_they_are_named(live, tiny):
    preflight = {"origin": "https://a.example", "access-control-request-method": "POST"}
    assert "access-control-allow-origin" not in httpx.options(f"{live.url}/v1/models", headers=preflight).headers
    with serving(tiny, cors_origin=("https://a.example",), api_key="k") as named:
        allowed = httpx.options(f"{named.url}/v1/models", headers=preflight)
        assert allowed.headers["access-control-allow-origin"] == "https://a.example"
        other = httpx.options(f"{named.url}/v1/models", headers=preflight | {"origin": "https://b.example"})
        assert "access-control-allow-origin" not in other.headers


def test_an_engine_that_has_stopped(tiny):
    with serving(tiny) as live:
        assert httpx.get(f"{live.url}/ready").status_code == 200

        def broken():
            raise SystemError("broken on purpose")

        live.state.engine._engine.step = broken
        answer = httpx.post(f"{live.url}/v1/chat/completions", json={"messages": asking()}, timeout=60)
        assert answer.status_code == 503
        for path in ("/health", "/ready"):
            assert httpx.get(live.url + path).status_code == 503
        assert httpx.post(f"{live.url}/v1/chat/completions", json={"messages": asking()}).status_code == 503


def test_metrics(tiny):
    with serving(tiny) as live:
        for _ in range(2):
            httpx.post(
                f"{live.url}/v1/chat/completions", json={"messages": asking(), "max_tokens": 5, "ignore_eos": True}
            )
        httpx.get(f"{live.url}/nowhere/1")
        lines = httpx.get(f"{live.url}/metrics").text.splitlines()
    found = dict(line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
    assert float(found["pixtral_generated_tokens_total"]) == 10
    assert float(found["pixtral_images_encoded_total"]) == 1, "the second image was in the cache"
    assert float(found["pixtral_cached_tokens_total"]) > 0
    assert float(found["pixtral_request_images_total"]) == 2
    assert float(found["pixtral_time_to_first_token_seconds_count"]) == 2
    assert float(found["pixtral_time_per_token_seconds_count"]) == 2
    assert float(found['pixtral_finished_total{reason="length"}']) == 2
    assert float(found['pixtral_requests_total{path="/v1/chat/completions",status="200"}']) == 2
    assert float(found['pixtral_requests_total{path="other",status="404"}']) == 1
    assert float(found["pixtral_running"]) == float(found["pixtral_waiting"]) == 0


def test_the_document_names_every_field(live):
    document = httpx.get(f"{live.url}/openapi.json").json()
    fields = document["components"]["schemas"]["ChatCompletionRequest"]["properties"]
    assert {"messages", "temperature", "response_format", "tools", "stream_options"} <= fields.keys()
    assert httpx.get(f"{live.url}/docs").status_code == 200


class Process:
    """`pixtral serve` as a program."""

    def __init__(self, *flags, **environment):
        self.process = subprocess.Popen(
            [sys.executable, "-m", "pixtral.cli", "serve", "--port", "0", *flags],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **environment},
        )
        self.line = self.process.stdout.readline()
        self.url = self.line.split()[-1] if self.line else ""

    def stop(self):
        self.process.send_signal(signal.SIGTERM)

    def ended(self):
        out, err = self.process.communicate(timeout=60)
        return self.process.returncode, out, err


def test_a_program_that_is_stopped_lets_answers_finish():
    server = Process("--log-format", "json", PIXTRAL_MAX_NUM_SEQS="4", PIXTRAL_GRACE_PERIOD="60")
    assert server.line.startswith("pixtral serves pixtral-tiny at http://127.0.0.1:"), server.ended()
    if curl := shutil.which("curl"):
        data = json.dumps({"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 3, "ignore_eos": True})
        command = [curl, "-sS", f"{server.url}v1/chat/completions", "-H", "content-type: application/json", "-d", data]
        said = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
        assert json.loads(said)["usage"]["completion_tokens"] == 3
    with httpx.Client(base_url=server.url, timeout=60) as client:
        body = {"messages": asking("A secret question"), "stream": True, **LONG, "max_tokens": 600}
        with client.stream("POST", "/v1/chat/completions", json=body) as stream:
            lines = stream.iter_lines()
            next(lines)
            server.stop()
            for _ in range(100):
                late = httpx.post(f"{server.url}v1/chat/completions", json={"messages": asking(), "max_tokens": 1})
                if late.status_code != 200:
                    break
            assert (late.status_code, late.json()["error"]["code"]) == (503, "unavailable")
            assert httpx.get(f"{server.url}ready").status_code == 503
            assert list(lines)[-2] == "data: [DONE]"
    code, _, err = server.ended()
    assert code == 0
    records = [json.loads(line) for line in err.splitlines()]
    assert {"method": "POST", "path": "/v1/chat/completions", "status": 200}.items() <= records[0].items()
    (stopped,) = [record for record in records if record.get("new_tokens") == 600]
    assert stopped["image_tokens"] > 0 and stopped["prompt_tokens"] > stopped["image_tokens"]
    assert "secret" not in err and "Traceback" not in err


def test_a_second_signal_does_not_wait():
    """Ten minutes for those who are there; it has ended in one."""
    server = Process("--grace-period", "600")
    lines, close = long_stream(server.url)
    server.stop()
    deadline = time.monotonic() + 60
    while httpx.get(f"{server.url}ready").status_code != 503 and time.monotonic() < deadline:
        time.sleep(0.02)
    server.stop()
    with contextlib.suppress(httpx.RemoteProtocolError):  # cut off
        list(lines)
    assert server.ended()[0] == 0
    close()


def test_a_program_that_may_not_wait_cuts_answers_off():
    server = Process("--grace-period", "0.2")
    lines, close = long_stream(server.url)
    server.stop()
    last = [line for line in lines if line][-1]
    assert json.loads(last.removeprefix("data: "))["error"]["code"] == "unavailable"
    close()
    assert server.ended()[0] == 0


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--host", "0.0.0.0"], "set PIXTRAL_API_KEY"),
        (["--max-num-seqs", "0"], "max_num_seqs is 0"),
        (["--log-format", "xml"], "log_format is 'xml'"),
        (["--config", "/nowhere.toml"], "/nowhere.toml cannot be read"),
        (["/nowhere/model"], "/nowhere/model"),
    ],
)
def test_what_cannot_be_served_is_said_in_a_line(flags, message):
    server = Process(*flags)
    code, out, err = server.ended()
    assert code == 1 and not out
    assert err.startswith("error: ") and message in err and err.count("\n") == 1


def test_a_port_that_is_taken():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(ConfigError, match="choose another"):
            listen("127.0.0.1", taken.getsockname()[1])


def test_a_missing_extra_is_named():
    code = "import sys; sys.modules['uvicorn'] = None\nfrom pixtral.cli.main import app\napp(['serve', '--port', '0'])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "pip install 'pixtral[server]'" in done.stderr and "Traceback" not in done.stderr


def test_threads_end_with_the_server(tiny):
    before = {thread.name for thread in threading.enumerate()}
    with serving(tiny) as live:
        httpx.post(f"{live.url}/v1/chat/completions", json={"messages": asking(), "max_tokens": 1})
    deadline = time.monotonic() + 60
    while {t.name for t in threading.enumerate()} - before and time.monotonic() < deadline:
        time.sleep(0.02)
    assert {thread.name for thread in threading.enumerate()} <= before
