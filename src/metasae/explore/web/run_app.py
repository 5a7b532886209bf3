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
from metasae.explore.web.guard import fresh, guarded

LARGEST_BODY = 1_000_000
# of /api/latents: the parameter, and what its text is read as
FILTERS = {"sort": str, "search": str, "label": str, "min_rate": float, "max_rate": float, "offset": int, "limit": int}
# of /api/splits
SPLIT_FILTERS = {"pair": str, "kind": str, "offset": int, "limit": int, "search": str, "min_score": float, "label": str}
LABEL = 'a label is {"target": {"kind": "latent", "sae", "latent"} or {"kind": "split", "id"}, "label", "note"}'


def run_app(explorer, try_text: Callable[[str], dict], host: str) -> Starlette:
    """explorer: a `metasae.explore.pages.queries.Explorer`, or anything with its methods.

    try_text: text -> which latents fire on it. host: the address it is served on.
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
        "/api/briefs/{sae}": lambda request: explorer.briefs(
            request.path_params["sae"], [int(id) for id in request.query_params.get("ids", "").split(",") if id]
        ),
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
            raise ValueError(LABEL)
        await run_in_threadpool(explorer.set_label, target, label, note)
        return fresh({"saved": True})

    async def fires(request: Request) -> Response:
        text = (await _posted(request)).get("text")
        if not isinstance(text, str) or not text.strip():
            raise ValueError('send {"text": some words}')
        try:
            return JSONResponse(await run_in_threadpool(try_text, text))
        except UserError as error:
            raise HTTPException(404, str(error)) from None

    routes = [Route(path, _answering(question)) for path, question in questions.items()]
    posts = [Route("/api/label", label, methods=["POST"]), Route("/api/try", fires, methods=["POST"])]
    return guarded([*routes, *posts], host, html=True)


def _answering(question: Callable[[Request], dict]) -> Callable[[Request], Response]:
    return lambda request: fresh(question(request))


def _given(request: Request, kinds: dict[str, type]) -> dict:
    """The query's parameters, each read as its kind; those that are absent or empty are left out. Raises ValueError."""
    texts = {name: request.query_params.get(name) for name in kinds}
    return {name: kinds[name](text) for name, text in texts.items() if text}


def _latent_of(request: Request, name: str) -> tuple[str, int]:
    """The parameter `a` or `b` of a comparison. Raises ValueError where it is not as in solo-s0:17."""
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
    """The JSON object of a body. Raises ValueError for anything else."""
    body = b""
    async for part in request.stream():
        body += part
        if len(body) > LARGEST_BODY:
            raise HTTPException(413, f"at most {LARGEST_BODY:,} bytes")
    given = json.loads(body)
    if not isinstance(given, dict):
        raise ValueError("the body must be a JSON object")
    return given
