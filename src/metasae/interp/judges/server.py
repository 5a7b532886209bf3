"""A judge on any server with OpenAI's chat completions: OpenAI itself, vLLM, llama.cpp, Ollama.

The key comes from the environment only: METASAE_JUDGE_KEY, and for api.openai.com also OPENAI_API_KEY, which is sent
nowhere else. It is cut out of every message and reply.
"""

import os
from urllib.parse import urlsplit

from metasae.errors import UserError, install_hint
from metasae.interp.asking import Temporary
from metasae.interp.replies import Ask, Reply

KEY = "METASAE_JUDGE_KEY"
OPENAI_KEY, OPENAI_HOST = "OPENAI_API_KEY", "api.openai.com"
# Seconds in which a server has to answer anything at all.
LOOK = 10.0


class ServerJudge:
    """url: of the API, as http://127.0.0.1:8000/v1. model: as the server calls it. timeout: seconds for one reply.

    logprobs: alternatives per token to ask for, 0 for none. Not every server and model offers them: where they are
    refused, replies come without, under the same name.
    """

    def __init__(self, url: str, model: str, timeout: float = 120.0, logprobs: int = 0):
        """Raises UserError for an invalid address or one with a password, and without the `openai` package."""
        try:
            parts = urlsplit(url)
            host, secret = parts.hostname, parts.username or parts.password
        except ValueError:
            host, secret = None, None
        if host is None or parts.scheme not in ("http", "https"):
            raise UserError("--judge needs the address of an API, as http://127.0.0.1:8000/v1")
        if secret:
            raise UserError(f"--judge must hold no password; set the environment variable {KEY} instead")
        self.name, self._model, self._logprobs = f"{model} logprobs={logprobs}" if logprobs else model, model, logprobs
        try:
            import openai
        except ImportError:
            raise UserError(f"a judge on a server needs the openai package: {install_hint('interp')}") from None
        self._openai = openai
        self._key = os.environ.get(KEY) or (os.environ.get(OPENAI_KEY) if host == OPENAI_HOST else None)
        # OpenAI's newer models accept only the second name, other servers only the first
        self._limit = "max_completion_tokens" if host == OPENAI_HOST else "max_tokens"
        self._client = self._openai.OpenAI(base_url=url, api_key=self._key or "none", timeout=timeout, max_retries=0)

    def answer(self, ask: Ask) -> Reply:
        asked_for = self._logprobs
        options = {"logprobs": True, "top_logprobs": asked_for} if asked_for else {}
        options |= {"seed": ask.repeat} if ask.repeat else {}
        schema = {"name": "reply", "schema": ask.schema, "strict": True}
        try:
            completion = self._client.chat.completions.create(
                model=self._model,
                messages=ask.messages,
                temperature=ask.temperature,
                response_format={"type": "json_schema", "json_schema": schema},
                **{self._limit: ask.max_tokens},
                **options,
            )
        except self._openai.APIStatusError as error:
            if not (asked_for and error.status_code in (400, 422) and "logprob" in str(error).lower()):
                raise self._refused(error) from None
            self._logprobs = 0
            return self.answer(ask)
        except (self._openai.OpenAIError, ValueError) as error:
            # no connection, no reply in time, or a body that is not JSON
            raise Temporary(self._clean(str(error))) from None
        return self._read(completion)

    def look(self) -> None:
        """Raises UserError where nothing answers at the address, so that this shows before the windows are drawn. Any
        answer counts.
        """
        try:
            self._client.with_options(timeout=LOOK).models.with_raw_response.list()
        except self._openai.APIConnectionError as error:
            why = " ".join(self._clean(str(error.__cause__ or error)).split()) or type(error).__name__
            raise UserError(
                f"nothing answers at {self._client.base_url} ({why}); start the judge's server or correct --judge"
            ) from None
        except self._openai.APIStatusError:
            # a refusal is an answer, too
            return

    def _read(self, completion) -> Reply:
        try:
            choice, usage = completion.choices[0], completion.usage
            text = _text_of(choice.message)
            counts = (None, None) if usage is None else (usage.prompt_tokens, usage.completion_tokens)
            offered = choice.logprobs.content if choice.logprobs is not None else None
            logprobs = None if offered is None else tuple(map(_alternatives, offered))
        except (AttributeError, IndexError, TypeError):
            raise Temporary("the server's reply is not a chat completion") from None
        if logprobs is not None and self._key and self._key in "".join(token for token, _ in logprobs):
            logprobs = None
        return Reply(self._clean(text), *counts, logprobs, cut=choice.finish_reason == "length")

    def _refused(self, error) -> Exception:
        status, text = error.status_code, self._clean(" ".join(str(error).split()))[:300]
        if status in (408, 409, 425, 429) or status >= 500:
            if getattr(error, "code", None) == "insufficient_quota":
                return UserError(
                    f"the judge's account has nothing left: {text}; top it up, then run again: replies are kept"
                )
            return Temporary(text, _seconds(error.response.headers.get("retry-after")))
        if status in (401, 403):
            return UserError(f"the judge refuses the key ({status}); set the environment variable {KEY}")
        return UserError(
            f"the judge refuses the question ({status}): {text}; "
            "see that --judge, --model and JSON-schema output fit the server"
        )

    def _clean(self, text: str) -> str:
        return text.replace(self._key, "[key]") if self._key else text


def _text_of(message) -> str:
    """The text of a message. Models that reason may put all of it where their thoughts go, and leave the
    content empty.
    """
    names = ("content", "reasoning_content", "reasoning", "refusal")
    said = (getattr(message, name, None) for name in names)
    return next((words for words in said if isinstance(words, str) and words.strip()), "")


def _alternatives(entry) -> tuple[str, dict[str, float]]:
    """(token, {alternative: log p}), the token itself among them."""
    return entry.token, {
        entry.token: entry.logprob,
        **{other.token: other.logprob for other in entry.top_logprobs or ()},
    }


def _seconds(text: str | None) -> float | None:
    """The seconds in a Retry-After header; None for a date or anything else."""
    try:
        return max(0.0, float(text)) if text is not None else None
    except ValueError:
        return None
