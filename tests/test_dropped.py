"""A streamed dataset whose connection breaks: one line after how many documents, and the command that goes on."""

import asyncio
import http.client
import ssl

import pytest

import metasae
from metasae.data.cache.activations import harvest
from metasae.data.cache.cache import INDEX
from metasae.data.text.text import documents
from metasae.errors import Dropped, UserError
from metasae.recipe import recipe

datasets = pytest.importorskip("datasets")
pytestmark = pytest.mark.usefixtures("no_drawing")

TOKENS = {"train": 3000, "calibration": 500, "evaluation": 500}
SPEC = recipe.Harvest(dtype="fp32", batch_tokens=64, shard_tokens=500)


def wrapped() -> Exception:
    """As the datasets library wraps what its readers meet."""
    error = datasets.exceptions.DatasetGenerationError("An error occurred while generating the dataset")
    error.__cause__ = OSError("read")
    error.__cause__.__context__ = TimeoutError("timed out")
    return error


def of(module: str, name: str, *words) -> Exception:
    found_in = pytest.importorskip(module)
    return getattr(found_in, name)(*words)


DROPS = {
    "httpx": lambda: of("httpx", "ReadTimeout", "The read operation timed out"),
    "httpx, of no words": lambda: of("httpx", "RemoteProtocolError", ""),
    "requests": lambda: of("requests.exceptions", "ConnectionError", "('Connection aborted.', reset by peer)"),
    "requests, in the middle": lambda: of("requests.exceptions", "ChunkedEncodingError", "Connection broken"),
    "aiohttp": lambda: of("aiohttp", "ServerDisconnectedError"),
    "aiohttp, in the middle": lambda: of("aiohttp", "ClientPayloadError", "Response payload is not completed\nat all"),
    "fsspec": lambda: of("fsspec.exceptions", "FSTimeoutError"),
    "urllib3": lambda: of("urllib3.exceptions", "ProtocolError", "IncompleteRead"),
    "http": lambda: http.client.IncompleteRead(b"", 5),
    "ssl": lambda: ssl.SSLError("decryption failed or bad record mac"),
    "asyncio": asyncio.TimeoutError,
    "a file cut off": lambda: EOFError("Compressed file ended before the end-of-stream marker was reached"),
    "wrapped": wrapped,
}


@pytest.fixture
def stream(monkeypatch, stories):
    """stream(after, error): a dataset on the hub of 400 stories that raises after so many; None: it does not."""
    monkeypatch.setattr("metasae.data.text.hub.unreachable", lambda: "")

    def records(after, error):
        for number, story in enumerate(stories):
            if number == after:
                raise error()
            yield {"text": story}

    def stream(after, error=None):
        monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: records(after, error))

    return stream


@pytest.mark.parametrize("kind", DROPS)
def test_every_clients_errors_are_one_line(stream, kind):
    stream(7, DROPS[kind])
    with pytest.raises(Dropped, match=r"'a/b' stopped after 7 documents \(.+\); the harvest so far is kept") as dropped:
        list(documents(recipe.Text(source="a/b")))
    assert "\n" not in str(dropped.value)
    stream(0, DROPS[kind])
    with pytest.raises(UserError, match="'a/b' cannot be loaded: ") as refused:
        list(documents(recipe.Text(source="a/b")))
    assert not isinstance(refused.value, Dropped)


def test_other_errors_are_what_they_are(stream):
    stream(7, lambda: FileNotFoundError("no file part-2.parquet"))
    with pytest.raises(UserError, match="cannot be loaded after document 7: no file part-2"):
        list(documents(recipe.Text(source="a/b")))
    stream(7, lambda: ZeroDivisionError("a mistake of ours"))
    with pytest.raises(ZeroDivisionError):
        list(documents(recipe.Text(source="a/b")))


def test_half_an_emoji_over_the_hub(monkeypatch):
    monkeypatch.setattr("metasae.data.text.hub.unreachable", lambda: "")
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: iter([{"text": "half \ud83d"}]))
    assert list(documents(recipe.Text(source="a/b"))) == ["half \ufffd"]


def test_a_second_harvest_goes_on_there(stream, load, tmp_path, monkeypatch):
    host = load("gpt2", "blocks.1.hook_resid_pre")
    text = recipe.Text(source="a/b", context=16, calibration_share=0.2, evaluation_share=0.2)
    monkeypatch.setattr("metasae.data.cache.activations.POOL_BATCHES", 4)
    stream(None)
    harvest(host, text, SPEC, tmp_path / "whole", TOKENS)
    stream(38, DROPS["httpx"])
    with pytest.raises(Dropped, match="after 38 documents"):
        harvest(host, text, SPEC, tmp_path / "again", TOKENS)
    assert not (tmp_path / "again" / INDEX).exists()
    stream(None)
    passes = []
    real = host.model.forward
    monkeypatch.setattr(host.model, "forward", lambda *args, **more: passes.append(1) or real(*args, **more))
    harvest(host, text, SPEC, tmp_path / "again", TOKENS)
    again = len(passes)
    harvest(host, text, SPEC, tmp_path / "third", TOKENS)
    assert again < len(passes) - again
    for file in (tmp_path / "whole").iterdir():
        assert (tmp_path / "again" / file.name).read_bytes() == file.read_bytes()


@pytest.mark.parametrize("window_tokens", [0, 1500])
def test_a_run_names_the_command_that_goes_on(stream, build, tmp_path, window_tokens):
    values = {
        "model": {"path": str(build("gpt2")), "dtype": "fp32"},
        "hook": {"point": "blocks.1.hook_resid_pre"},
        "text": {"source": "a/b", "context": 32, "calibration_share": 0.2, "evaluation_share": 0.3},
        "harvest": {"batch_tokens": 64, "window_tokens": window_tokens},
        "sae": {"n": 64, "k": 4},
        "train": {"tokens": 4000, "batch": 128},
        "measure": {
            "tokens": 2000, "calibration_tokens": 1000, "output_tokens": 0, "meta_steps": 5, "shifts": 0,
            "lift": False, "pursuit_k": 0, "critics": 1, "concepts": 0, "explorer": False,
        },
        "arms": ["solo"],
    }  # fmt: skip
    out = tmp_path / "run"
    stream(150, DROPS["httpx"])
    with pytest.raises(Dropped) as dropped:
        metasae.run(values, out, show=False)
    line = str(dropped.value)
    assert "after 150 documents (The read operation timed out)" in line and "\n" not in line
    assert line.endswith(f"run the same command again to continue: metasae run {out}/recipe.toml --out {out}")
    stream(None)
    metasae.run(str(out / "recipe.toml"), out, show=False)
    assert (out / "compare.json").is_file()
