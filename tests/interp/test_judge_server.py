"""What is sent to a server, what is made of its refusals, and where the key goes."""

import json

import pytest
from chat_server import serving

from metasae.errors import UserError
from metasae.interp.asking import Asker, Limits, Temporary
from metasae.interp.judges import server as module
from metasae.interp.judges.server import ServerJudge
from metasae.interp.replies import Ask, ReplyStore

ASK = Ask(
    "answer in JSON",
    "what is it?",
    {"type": "object", "properties": {"a": {"type": "string"}}},
    max_tokens=33,
)


@pytest.fixture(autouse=True)
def no_keys(monkeypatch):
    for name in ("METASAE_JUDGE_KEY", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)


def test_the_request_holds_messages_sampling_and_schema():
    with serving() as server:
        reply = ServerJudge(server.url, "some/model").answer(ASK)
        body = server.bodies[0]
    assert (
        body["model"] == "some/model"
        and body["messages"] == ASK.messages
        and body["max_tokens"] == 33
        and body["temperature"] == 0.0
    )
    assert (
        body["response_format"]["json_schema"]["schema"] == ASK.schema
        and body["response_format"]["json_schema"]["strict"] is True
    )
    assert json.loads(reply.text) == {"echo": "what is it?"} and reply.prompt_tokens == 3 and reply.logprobs is None


def test_a_refusal_is_an_answer_to_a_look():
    with serving() as server:
        ServerJudge(server.url, "m").look()
    with pytest.raises(UserError, match=r"nothing answers at .*Connection refused.*; start the judge's server"):
        ServerJudge(server.url, "m").look()


def test_logprobs_are_asked_for_and_kept_under_a_name_of_their_own():
    with serving() as server:
        judge = ServerJudge(server.url, "m", logprobs=5)
        assert judge.answer(ASK).logprobs == (("x", {"x": -0.1}),) and server.bodies[0]["top_logprobs"] == 5
        assert judge.name != ServerJudge(server.url, "m").name


def test_a_server_that_refuses_log_probabilities_is_asked_without_them_from_then_on():
    refusal = (400, '{"error": {"message": "logprobs is not supported with this model"}}')
    with serving(faults={refusal: 1.0}) as server:
        judge = ServerJudge(server.url, "m", logprobs=5)
        name = judge.name
        assert judge.answer(ASK).logprobs is None and judge.answer(ASK).logprobs is None and judge.name == name
        assert ["logprobs" in body for body in server.bodies] == [True, False, False]


def test_a_token_without_alternatives_has_itself_and_the_key_is_in_none(monkeypatch):
    monkeypatch.setenv("METASAE_JUDGE_KEY", "sk-secret")

    def reply(*tokens):
        offered = [{"token": token, "logprob": -0.5, "top_logprobs": None} for token in tokens]
        choice = {
            "index": 0,
            "finish_reason": "stop",
            "message": {"role": "assistant", "content": "".join(tokens)},
            "logprobs": {"content": offered},
        }
        return (
            200,
            json.dumps({"id": "1", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice]}),
        )

    with serving(faults={reply("a", "b"): 1.0}) as server:
        assert ServerJudge(server.url, "m", logprobs=5).answer(ASK).logprobs == (("a", {"a": -0.5}), ("b", {"b": -0.5}))
    with serving(faults={reply("sk-", "secret"): 1.0}) as server:
        answer = ServerJudge(server.url, "m", logprobs=5).answer(ASK)
    assert answer.text == "[key]" and answer.logprobs is None


@pytest.mark.parametrize(
    "fault",
    ["error", "busy", "silence", "garbage", (200, '{"choices": []}'), (200, "[]"), (200, '"text"'), (503, "<html>")],
)
def test_what_may_pass_is_temporary(fault):
    with serving(faults={fault: 1.0}, silence=0.5) as server, pytest.raises(Temporary) as caught:
        ServerJudge(server.url, "m", timeout=0.3).answer(ASK)
    assert caught.value.wait == (0.01 if fault == "busy" else None)


def test_a_port_on_which_nobody_listens_is_temporary():
    with serving() as server:
        url = server.url
    with pytest.raises(Temporary):
        ServerJudge(url, "m", timeout=1).answer(ASK)


@pytest.mark.parametrize(
    ("status", "message", "words"),
    [
        (401, "Incorrect API key provided: sk-secret", "METASAE_JUDGE_KEY"),
        (404, "no model 'm'", "no model 'm'"),
        (400, "response_format is not supported, sk-secret", "response_format"),
        (429, "You exceeded your quota", "nothing left"),
    ],
)
def test_a_refusal_is_one_line_without_the_key(monkeypatch, status, message, words):
    monkeypatch.setenv("METASAE_JUDGE_KEY", "sk-secret")
    body = json.dumps({"error": {"message": message, "code": "insufficient_quota" if status == 429 else None}})
    with serving(faults={(status, body): 1.0}) as server, pytest.raises(UserError, match=words) as caught:
        ServerJudge(server.url, "m").answer(ASK)
    assert "sk-secret" not in str(caught.value) and "\n" not in str(caught.value)


def test_the_key_is_sent_but_never_kept(monkeypatch, tmp_path):
    monkeypatch.setenv("METASAE_JUDGE_KEY", "sk-secret")
    with (
        serving(answer=lambda messages: "your key is sk-secret") as server,
        ReplyStore(tmp_path / "replies.sqlite") as store,
    ):
        judge = ServerJudge(server.url, "m")
        (reply,) = Asker(judge, store, limits=Limits(retries=0)).ask([ASK])
        assert "Bearer sk-secret" in server.headers[0].values()
    assert reply.text == "your key is [key]" and "sk-secret" not in repr(judge) and "sk-secret" not in judge.name
    assert b"sk-secret" not in (tmp_path / "replies.sqlite").read_bytes()


def test_openais_key_goes_to_openai_alone(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-openai")
    with serving() as server:
        ServerJudge(server.url, "m").answer(ASK)
        assert "sk-openai" not in json.dumps(server.headers)
    assert ServerJudge("https://api.openai.com/v1", "m")._client.api_key == "sk-openai"
    assert ServerJudge("https://api.openai.com.example.org/v1", "m")._client.api_key == "none"


@pytest.mark.parametrize(
    "url", ["localhost:8000", "ftp://host/v1", "", "http://", "http://user:pass@host/v1", "http://[::1"]
)
def test_an_address_that_is_none_or_holds_a_password_is_one_line(url):
    with pytest.raises(UserError, match="--judge") as caught:
        ServerJudge(url, "m")
    assert "pass@" not in str(caught.value)


def test_without_the_package_it_says_what_to_install(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(UserError, match="pip install"):
        ServerJudge("http://127.0.0.1:1/v1", "m")
    assert module.KEY == "METASAE_JUDGE_KEY"
