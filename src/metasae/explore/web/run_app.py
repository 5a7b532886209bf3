"""The answers for one run: the store's as JSON, labels written back, and the latents that fire on a text."""

import json
from collections.abc import Callable

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from metasae.errors import UserError
from metasae.explore.web.guard import guarded

LARGEST_BODY = 1_000_000
# of /api/latents: the parameter, and what its text is read as
FILTERS = {"sort": str, "search": str, "label": str, "min_rate": float, "max_rate": float, "offset": int, "limit": int}
# of /api/splits
SPLIT_FILTERS = {"pair": str, "kind": str, "offset": int, "limit": int, "search": str, "min_score": float, "label": str}
LABEL = 'a label is {"target": {"kind": "latent", "sae", "latent"} or {"kind": "split", "id"}, "label", "note"}'


def run_app(explorer, try_text: Callable[[str], dict] | None, host: str) -> Starlette:
    """explorer: a `metasae.explore.pages.queries.Explorer`, or anything with its methods.

    try_text: text -> which latents fire on it; None where there is no model.
    """
    # plain functions run in threads, so that a slow one holds up no other
    questions = {
        "/api/overview": lambda request: explorer.overview(),
        "/api/latents/{sae}": lambda request: explorer.latents(
            request.path_params["sae"],
            **_given(request, FILTERS),
            descending=request.query_params.get("desc", "1") != "0",
            dead=request.query_params.get("dead", "0") == "1",
        ),
        "/api/latent/{sae}/{latent:int}": lambda request: explorer.latent(**request.path_params),
        "/api/briefs/{sae}": lambda request: explorer.briefs(request.path_params["sae"], _ids(request)),
        "/api/splits": lambda request: explorer.splits(**_given(request, SPLIT_FILTERS)),
        "/api/split/{id}": lambda request: explorer.split(request.path_params["id"]),
        "/api/compare": lambda request: explorer.compare_latents(_latent_of(request, "a"), _latent_of(request, "b")),
        "/api/search": lambda request: explorer.search(
            request.query_params.get("q", ""), **_given(request, {"limit": int})
        ),
        "/api/labels": lambda request: {"labels": explorer.labels()},
    }

    async def label(request: Request) -> Response:
        given = await _posted(request)
        target, label, note = given.get("target"), given.get("label"), given.get("note", "")
        if not _is_target(target) or not isinstance(label, (str, type(None))) or not isinstance(note, str):
            raise HTTPException(400, LABEL)
        await run_in_threadpool(_answer, explorer.set_label, target, label, note)
        return JSONResponse({"saved": True}, headers={"cache-control": "no-store"})

    async def fires(request: Request) -> Response:
        text = (await _posted(request)).get("text")
        if not isinstance(text, str) or not text.strip():
            raise HTTPException(400, 'send {"text": some words}')
        if try_text is None:
            raise HTTPException(404, "this explorer has no model to try a text on")
        try:
            return JSONResponse(await run_in_threadpool(try_text, text))
        except UserError as error:
            raise HTTPException(404, str(error)) from None

    routes = [Route(path, _answering(question)) for path, question in questions.items()]
    posts = [Route("/api/label", label, methods=["POST"]), Route("/api/try", fires, methods=["POST"])]
    return guarded([*routes, *posts], host, html=True)


def _answering(question: Callable[[Request], dict]) -> Callable[[Request], Response]:
    return lambda request: _answer(question, request)


def _answer(call: Callable[..., dict], *args) -> Response:
    """The query's answer, 404 for what is not there, 400 for wrong parameters."""
    try:
        return JSONResponse(call(*args), headers={"cache-control": "no-store"})
    except KeyError as error:
        raise HTTPException(404, str(error.args[0]) if error.args else "not found") from None
    except (ValueError, UserError) as error:
        raise HTTPException(400, str(error)) from None


def _given(request: Request, kinds: dict[str, type]) -> dict:
    """The query's parameters, each read as its kind; those that are absent or empty are left out. Raises ValueError."""
    given = {}
    for name, kind in kinds.items():
        text = request.query_params.get(name)
        if text:
            try:
                given[name] = kind(text)
            except ValueError:
                raise ValueError(f"{name} must be a number, not '{text[:40]}'") from None
    return given


def _ids(request: Request) -> list[int]:
    try:
        return [int(number) for number in request.query_params.get("ids", "").split(",") if number]
    except ValueError:
        raise ValueError("ids must be whole numbers with commas between them") from None


def _latent_of(request: Request, name: str) -> tuple[str, int]:
    sae, colon, latent = request.query_params.get(name, "").rpartition(":")
    if not colon or not (latent.isascii() and latent.isdigit()):
        raise ValueError(f"{name} must be an SAE and a latent, as in solo-s0:17")
    return sae, int(latent)


def _is_target(given) -> bool:
    """Whether it names a latent or a split, be it there or not."""
    if not isinstance(given, dict):
        return False
    if given.get("kind") == "latent":
        return isinstance(given.get("sae"), str) and type(given.get("latent")) is int
    return given.get("kind") == "split" and isinstance(given.get("id"), str)


async def _posted(request: Request) -> dict:
    body = b""
    async for part in request.stream():
        body += part
        if len(body) > LARGEST_BODY:
            raise HTTPException(413, f"at most {LARGEST_BODY:,} bytes")
    try:
        given = json.loads(body)
    except ValueError:
        raise HTTPException(400, "the body is not JSON") from None
    if not isinstance(given, dict):
        raise HTTPException(400, "the body must be a JSON object")
    return given
