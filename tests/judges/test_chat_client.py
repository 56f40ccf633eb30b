import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import pytest

from drive_vlm.judges.chat_client import ChatClient, ChatError, RefusedError, image_part, request_key

SECRET = "sk-very-secret-0123456789"
PIXEL = b"\x89PNG\r\n\x1a\n" + bytes(16)


@pytest.fixture
def server(monkeypatch):
    """A chat server that echoes the last words in upper case; `failures` are the statuses it gives first."""
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.setenv("OPENAI_API_KEY", SECRET)
    state = SimpleNamespace(requests=[], headers=[], failures=[], lock=threading.Lock(), answer=None)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with state.lock:
                state.requests.append(body)
                state.headers.append(self.headers["Authorization"])
                status = state.failures.pop(0) if state.failures else 200
            content = body["messages"][-1]["content"]
            text = content if isinstance(content, str) else content[0]["text"]
            reply = state.answer if state.answer is not None else text.upper()
            message = {"role": "assistant", "content": reply}
            payload = {
                "id": "1",
                "object": "chat.completion",
                "created": 0,
                "model": body["model"],
                "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
                "usage": {"prompt_tokens": 10, "completion_tokens": 2, "total_tokens": 12},
            }
            if status != 200:
                payload = {"error": {"message": f"refused key {SECRET}"}}
            data = json.dumps(payload).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("retry-after-ms", "1")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *args):
            pass

    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=httpd.serve_forever, daemon=True)
    thread.start()
    state.url = f"http://127.0.0.1:{httpd.server_port}/v1"
    yield state
    httpd.shutdown()
    httpd.server_close()


def ask(text):
    return [{"role": "user", "content": text}]


def test_second_run_makes_no_request_and_needs_no_key(server, tmp_path, monkeypatch):
    first = ChatClient(server.url, "m", cache_dir=tmp_path)
    replies = first.complete_many([ask(f"q{i}") for i in range(20)], temperature=0)
    assert [r.text for r in replies] == [f"Q{i}" for i in range(20)]
    assert len(server.requests) == 20 and not any(r.cached for r in replies)
    monkeypatch.delenv("OPENAI_API_KEY")
    second = ChatClient(server.url, "m", cache_dir=tmp_path)
    again = second.complete_many([ask(f"q{i}") for i in range(20)], temperature=0)
    assert [r.text for r in again] == [r.text for r in replies] and all(r.cached for r in again)
    assert len(server.requests) == 20
    assert (second.usage.requests, second.usage.cached, second.usage.prompt_tokens) == (0, 20, 0)


def test_half_a_character_at_the_end_of_a_reply_is_replaced(server, tmp_path):
    """max_tokens cut an emoji: JSON can say so, no file can hold it. The paid reply is kept."""
    for text, sent, expected in (("cut", "go \ud83d", "go \ufffd"), ("whole", "go \ud83d\ude00", "go \U0001f600")):
        server.answer = sent
        reply = ChatClient(server.url, "m", cache_dir=tmp_path).complete(ask(text))
        assert reply.text == expected and reply.text.encode()
        again = ChatClient(server.url, "m", cache_dir=tmp_path).complete(ask(text))
        assert again.cached and again.text == expected


def test_a_model_that_moved_to_another_address_is_not_asked_again(server, tmp_path):
    """As after a Slurm job whose server stands on another host: the old address answers no more."""
    ChatClient(server.url, "m", cache_dir=tmp_path).complete(ask("a"))
    moved = ChatClient("http://node7:8000/v1", "m", cache_dir=tmp_path, max_retries=0)
    assert moved.complete(ask("a")).cached and moved.complete_many([ask("a")])[0].text == "A"
    with pytest.raises(ChatError):
        moved.complete(ask("b"))


def test_equal_conversations_are_asked_once_with_a_cache_only(server, tmp_path):
    replies = ChatClient(server.url, "m", cache_dir=tmp_path).complete_many([ask("a"), ask("b"), ask("a")])
    assert [r.text for r in replies] == ["A", "B", "A"] and len(server.requests) == 2
    ChatClient(server.url, "m").complete_many([ask("a"), ask("a")])
    assert len(server.requests) == 4


def test_other_model_sampling_or_picture_is_another_request(server, tmp_path):
    a, b = tmp_path / "a.png", tmp_path / "b.png"
    a.write_bytes(PIXEL)
    b.write_bytes(PIXEL + b"x")
    with_a = [{"role": "user", "content": [{"type": "text", "text": "see"}, image_part(a)]}]
    with_b = [{"role": "user", "content": [{"type": "text", "text": "see"}, image_part(b)]}]
    keys = {
        request_key("m", ask("x"), {}),
        request_key("n", ask("x"), {}),
        request_key("m", ask("x"), {"temperature": 0}),
        request_key("m", with_a, {}),
        request_key("m", with_b, {}),
    }
    assert len(keys) == 5
    assert request_key("m", ask("x"), {"a": 1, "b": 2}) == request_key("m", ask("x"), {"b": 2, "a": 1})
    assert ChatClient(server.url, "m").complete(with_a).text == "SEE"
    sent = server.requests[0]["messages"][0]["content"][1]["image_url"]["url"]
    assert sent.startswith("data:image/png;base64,")


@pytest.mark.parametrize("status", [500, 429])
def test_retries_server_errors_and_rate_limits(server, status):
    server.failures = [status, status]
    client = ChatClient(server.url, "m", max_retries=3)
    assert client.complete(ask("hello")).text == "HELLO"
    assert len(server.requests) == 3 and client.usage.requests == 1


def test_empty_reply_is_an_error_that_names_the_request(server, tmp_path):
    server.answer = " "
    client = ChatClient(server.url, "m", cache_dir=tmp_path, max_retries=2)
    with pytest.raises(ChatError, match=r"'what colour\?'.*in 3 attempts empty reply"):
        client.complete(ask("what colour?"))
    assert len(server.requests) == 3 and not list(tmp_path.rglob("*.json"))


def test_key_reaches_the_server_and_nothing_else(server, tmp_path, caplog):
    client = ChatClient(server.url, "m", cache_dir=tmp_path, max_retries=0)
    with caplog.at_level("DEBUG"):
        client.complete(ask("hi"))
        assert server.headers[0] == f"Bearer {SECRET}"
        server.failures = [401]
        with pytest.raises(ChatError) as caught:
            client.complete(ask("again"))
    assert "refused key ***" in str(caught.value) and caught.value.__cause__ is None
    assert SECRET not in repr(client) + caplog.text
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) == 1 and SECRET not in files[0].read_text() + files[0].name


def test_cost_counts_what_was_asked(server):
    client = ChatClient(server.url, "m", price_in=1.0, price_out=10.0)
    client.complete_many([ask("a"), ask("b")])
    assert client.usage.prompt_tokens == 20 and client.usage.completion_tokens == 4
    assert client.cost == pytest.approx((20 * 1.0 + 4 * 10.0) / 1e6)
    assert ChatClient(server.url, "m").cost is None


def test_requests_per_minute_spaces_requests(server):
    import time

    client = ChatClient(server.url, "m", requests_per_minute=600)
    start = time.monotonic()
    client.complete_many([ask("a"), ask("b"), ask("c")], workers=3)
    assert time.monotonic() - start >= 0.2


def test_missing_key(server, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY")
    assert ChatClient(server.url, "m").complete(ask("local needs none")).text
    assert server.headers[0] == "Bearer EMPTY"
    with pytest.raises(ValueError, match="MY_KEY"):
        ChatClient("https://judge.example.com/v1", "m", api_key_env="MY_KEY").complete(ask("x"))


def test_dead_server_is_one_clear_error(server):
    client = ChatClient("http://127.0.0.1:9/v1", "m", max_retries=0)
    with pytest.raises(ChatError, match=r"m at http://127\.0\.0\.1:9/v1"):
        client.complete(ask("x"))


@pytest.mark.parametrize("url", ["ftp://x/v1", "localhost:8000", "https://user:pw@host/v1", "https://host/v1?key=1"])
def test_bad_base_url(url):
    with pytest.raises(ValueError) as caught:
        ChatClient(url, "m")
    assert "pw" not in str(caught.value)


def test_torn_cache_file_is_named(tmp_path, server):
    client = ChatClient(server.url, "m", cache_dir=tmp_path)
    client.complete(ask("x"))
    file = next(tmp_path.rglob("*.json"))
    file.write_text("{")
    with pytest.raises(ChatError, match=file.name):
        client.complete(ask("x"))


def body(**message):
    """What a server sends: `message` is the assistant's, with its finish_reason."""
    ending = message.pop("finish_reason", "stop")
    choice = {"index": 0, "message": {"role": "assistant", "content": None} | message, "finish_reason": ending}
    return json.dumps({"id": "1", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice]})


@pytest.mark.parametrize(
    ("message", "text", "ending"),
    [
        ({"content": "Brake", "finish_reason": "length"}, "Brake", "length"),
        ({"content": [{"type": "text", "text": "Bra"}, {"type": "text", "text": "ke"}]}, "Brake", "stop"),
        ({"content": [{"type": "thinking", "thinking": "hm"}, {"type": "text", "text": "Go"}]}, "Go", "stop"),
        ({"content": "Go \ud83d"}, "Go \ufffd", "stop"),
        ({"content": "Go \ud83d\ude97"}, "Go \U0001f697", "stop"),
    ],
)
def test_what_a_server_says_is_read_and_kept(chat_server, tmp_path, message, text, ending):
    chat_server.faults = [body(**message)]
    client = ChatClient(chat_server.url, "m", cache_dir=tmp_path)
    for _ in range(2):
        reply = client.complete(ask("x"))
        assert (reply.text, reply.finish_reason) == (text, ending)
    assert len(chat_server.requests) == 1


@pytest.mark.parametrize(
    ("message", "shown"),
    [
        ({"refusal": "I can't help with that."}, "refused: I can't help with that."),
        ({"content": [{"type": "refusal", "refusal": "No people."}]}, "refused: No people."),
        ({"finish_reason": "content_filter"}, "finish_reason content_filter"),
        ({"content": "", "finish_reason": "length"}, "finish_reason length"),
    ],
)
def test_a_reply_that_would_come_again_is_asked_for_once(chat_server, message, shown):
    chat_server.faults = [body(**message)] * 5
    client = ChatClient(chat_server.url, "m")
    with pytest.raises(RefusedError, match="x") as caught:
        client.complete(ask("x"))
    assert shown in str(caught.value) and len(chat_server.requests) == 1


def test_image_part_refuses_what_is_no_picture(tmp_path):
    (tmp_path / "a.jpg").write_text("hello")
    with pytest.raises(ValueError, match="not a JPEG"):
        image_part(tmp_path / "a.jpg")
    with pytest.raises(ValueError, match="no such image"):
        image_part(tmp_path / "b.jpg")


@pytest.mark.parametrize(
    "body",
    ["<html>busy</html>", '{"choices": [tr', "{}", "null", "[1]", "", '{"choices": {"a": 1}}',
     '{"choices": [{"text": "x"}]}', '{"choices": [{"message": {"content": 5}, "finish_reason": "stop"}]}'],
)  # fmt: skip
def test_malformed_replies_are_asked_again_and_then_named(chat_server, tmp_path, body):
    chat_server.faults = [body]
    client = ChatClient(chat_server.url, "m", cache_dir=tmp_path, max_retries=1)
    assert client.complete(ask("x")).text == "OK" and len(chat_server.requests) == 2
    chat_server.faults = [body, body]
    with pytest.raises(ChatError, match=r"'y'.*in 2 attempts (no chat completion|empty reply)"):
        client.complete(ask("y"))
    assert len(list(tmp_path.rglob("*.json"))) == 1


def test_a_silent_server_is_left_after_the_timeout(chat_server):
    chat_server.faults = [3.0]
    assert ChatClient(chat_server.url, "m", timeout=0.3, max_retries=1).complete(ask("x")).text == "OK"
    chat_server.faults = [3.0]
    with pytest.raises(ChatError, match="APITimeoutError"):
        ChatClient(chat_server.url, "m", timeout=0.3, max_retries=0).complete(ask("x"))


def test_a_refused_request_can_be_kept_as_an_empty_reply(chat_server, tmp_path):
    chat_server.answer = lambda body: "" if "silent" in body["messages"][-1]["content"] else "OK"
    client = ChatClient(chat_server.url, "m", cache_dir=tmp_path, max_retries=1)
    chat_server.faults = [400]
    with pytest.raises(RefusedError, match="400"):
        client.complete(ask("too long"))
    replies = client.complete_many([ask("silent"), ask("x")], keep_refused=True)
    assert [reply.text for reply in replies] == ["", "OK"] and "empty reply" in replies[0].finish_reason
    assert len(list(tmp_path.rglob("*.json"))) == 1  # a refusal is asked again by the next run
    with pytest.raises(RefusedError):
        client.complete_many([ask("silent"), ask("x")])
    fresh = ChatClient(chat_server.url, "m", max_retries=0)
    assert fresh.complete_many([ask("silent")], keep_refused=True)[0].text == ""
    with pytest.raises(RefusedError):  # nothing but refusals: something is wrong with every request
        fresh.complete_many([ask(f"silent {i}") for i in range(8)], keep_refused=True)
    chat_server.faults = [403]
    with pytest.raises(ChatError) as caught:
        client.complete_many([ask("y"), ask("x")], keep_refused=True)
    assert not isinstance(caught.value, RefusedError)
