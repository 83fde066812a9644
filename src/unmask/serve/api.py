"""The routes. The one importer of FastAPI."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, Response
from fastapi.routing import APIRoute
from pydantic_core import from_json
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware

from unmask.errors import UnmaskError
from unmask.serve import described
from unmask.serve.answers import ChatForm, CompletionForm, Form
from unmask.serve.errors import ApiError
from unmask.serve.gate import App, Gate, crowding
from unmask.serve.protocol import ChatRequest, CompletionRequest, ErrorBody, ReloadRequest
from unmask.serve.service import Service, describe_problems
from unmask.serve.streams import ClientGoneError, EventStream, chunks, unless_gone, whole_answer

_ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorBody, "description": text}
    for status, text in {
        400: "a field that is unknown, wrong or too much",
        401: "no key, or an unknown one",
        403: "no admin key is set",
        404: "another model",
        408: "the body did not arrive",
        413: "the body is too large",
        415: "not JSON",
        421: "the server is not called by this name",
        429: "no room; try again after Retry-After seconds",
        500: "the engine failed",
        503: "the server ends",
        504: "it took too long",
    }.items()
}
_ROUTES = (
    "/", "/health", "/ready", "/metrics", "/openapi.json", "/v1/models", "/v1/chat/completions", "/v1/completions",
    "/admin/reload",
)  # fmt: skip


def create_app(
    service: Service, *, page: str, find: Callable[[str | None], Path], api_keys: Sequence[str] = (),
    admin_keys: Sequence[str] = (), hosts: Sequence[str] = (),
) -> App:  # fmt: skip
    """The server as an ASGI application.

    page: HTML of the player. find: from a checkpoint's name, or None for the one of the start, to its folder.
    api_keys: who may use `/v1`; empty = everybody. admin_keys: who may use `/admin`; empty = nobody. hosts: names by which the
    server may be called; empty = any.
    """
    # Without the pages of documentation, which load scripts from elsewhere.
    app = FastAPI(title="unmask", version="1", docs_url=None, redoc_url=None, redirect_slashes=False)
    app.openapi_version = "3.2.0"  # which can describe events
    app.router.route_class = _route_class(service.max_context)
    limits = service.limits
    _add_error_handlers(app, service)
    _add_openapi(app, needs_key=bool(api_keys))

    @app.get("/", response_class=HTMLResponse, include_in_schema=False)
    async def player() -> HTMLResponse:
        return HTMLResponse(page, headers={"X-Frame-Options": "DENY", "X-Content-Type-Options": "nosniff"})

    @app.get("/health", response_model=described.Status, responses=_errors(421, 503))
    async def health() -> dict[str, str]:
        """Whether the server works; while it ends, too."""
        if not service.engine.is_running:
            raise ApiError(503, "the engine has ended")
        return {"status": "ok"}

    @app.get("/ready", response_model=described.Status, responses=_errors(421, 503))
    async def ready() -> dict[str, str]:
        """Whether it takes new requests."""
        if service.is_ending or not service.engine.is_running:
            raise ApiError(503, "the server is about to end" if service.is_ending else "the engine has ended")
        return {"status": "ready"}

    @app.get("/metrics", include_in_schema=False)
    async def metrics() -> Response:
        text, content_type = service.render_metrics()
        return Response(text, media_type=content_type)

    @app.get("/v1/models", response_model=described.ModelList, responses=_errors(401, 421))
    async def models() -> dict[str, Any]:
        """The one model there is."""
        return {"object": "list", "data": [_model(service)]}

    @app.get("/v1/models/{name:path}", response_model=described.ModelObject, responses=_errors(401, 404, 421))
    async def model(name: str) -> dict[str, Any]:
        if name != service.name:
            raise ApiError(404, f"the model {name!r} is not here; this server has {service.name!r}", code="model_not_found")
        return _model(service)

    @app.post("/v1/chat/completions", responses=_answers(described.ChatCompletion))
    async def chat_completions(request: Request, body: ChatRequest) -> Response:
        """The answer to a conversation."""
        return await _answer(service, request, body, ChatForm)

    @app.post("/v1/completions", responses=_answers(described.Completion))
    async def completions(request: Request, body: CompletionRequest) -> Response:
        """What follows a text, without a chat template."""
        return await _answer(service, request, body, CompletionForm)

    @app.post(
        "/admin/reload", response_model=described.Reloaded, responses=_errors(400, 401, 403, 408, 413, 415, 421, 500, 503)
    )
    async def reload(body: ReloadRequest | None = None) -> dict[str, Any]:
        """Other weights of the same model. Requests under way are finished with the old ones, others wait for the new."""
        wanted = body or ReloadRequest()
        try:
            folder = await asyncio.to_thread(find, wanted.path)
        except (UnmaskError, OSError, ValueError) as error:  # ... a path that no system has
            raise ApiError(400, str(error), param="path") from None
        version = await service.reload(wanted, folder)
        return {"model": service.name, "checkpoint": service.checkpoint(), "policy_version": version}

    gate = Gate(
        app, service.metrics, api_keys=api_keys, admin_keys=admin_keys, max_body=int(limits.max_body_mb * 2**20),
        body_timeout_s=limits.body_timeout_s, routes=_ROUTES, hosts=hosts,
    )  # fmt: skip
    if not limits.cors_origins:
        return gate
    # Before the gate: a browser asks whether it may ask without a key, and shows a page no error that does not say it may.
    return _Cors(
        gate, allow_origins=list(limits.cors_origins), allow_methods=["*"], allow_headers=["*"], expose_headers=["Retry-After"]
    )


class _Cors(CORSMiddleware):
    """Refuses in the form of all errors."""

    def preflight_response(self, request_headers: Headers) -> Response:
        response = super().preflight_response(request_headers)
        if response.status_code < 400:
            return response
        kept = {name: value for name, value in response.headers.items() if not name.startswith("content-")}
        body = ApiError(response.status_code, bytes(response.body).decode()).encode()
        return Response(body, response.status_code, kept, "application/json")


def _route_class(max_context: int) -> type[APIRoute]:
    """Routes that read JSON faster than Starlette, and nothing that takes the event loop long."""

    class QuickRequest(Request):
        async def json(self) -> Any:
            body = await self.body()
            if problem := crowding(body, max_context):
                raise HTTPException(413, problem)
            text = body.decode()  # what is not UTF-8 has an answer of its own
            try:
                return from_json(text, cache_strings="none")
            except ValueError as error:
                raise json.JSONDecodeError(str(error), "", 0) from None  # which FastAPI understands

    class Route(APIRoute):
        def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
            answer = super().get_route_handler()

            async def handle(request: Request) -> Response:
                return await answer(QuickRequest(request.scope, request.receive))

            return handle

    return Route


async def _answer(
    service: Service, request: Request, body: ChatRequest | CompletionRequest, form_class: type[Form]
) -> Response:
    key, started = request.state.api_key, request.state.arrived
    form = form_class(service.name, service.tokenizer)
    if body.stream:
        return _Streaming(EventStream(chunks(service, body, key, form, started), service.metrics))
    try:
        answer = await unless_gone(whole_answer(service, body, key, form, started), request.receive)
    except ClientGoneError:
        service.metrics.disconnects.inc()
        return Response(status_code=499)  # nobody gets it
    return Response(answer, media_type="application/json")


class _Streaming(Response):
    """What FastAPI takes for an answer, and leaves to the stream."""

    def __init__(self, stream: EventStream):
        super().__init__()
        self._stream = stream

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await self._stream(scope, receive, send)


def _model(service: Service) -> dict[str, Any]:
    spec = service.spec
    return {
        "id": service.name, "object": "model", "created": service.created, "owned_by": "unmask",
        "unmask": {
            "checkpoint": service.checkpoint(), "family": spec.family, "attention": spec.attention,
            "block_size": spec.block_size, "max_context": service.max_context,
        },
    }  # fmt: skip


def _add_error_handlers(app: FastAPI, service: Service) -> None:
    def respond(error: ApiError) -> Response:
        service.metrics.errors.labels(error.type).inc()
        return Response(error.encode(), error.status, error.headers, "application/json")

    @app.exception_handler(ApiError)
    async def known(request: Request, error: ApiError) -> Response:
        return respond(error)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json" and not (kind.startswith("application/") and kind.endswith("+json")):
            said = f"it is {kind!r}" if kind else "there is none"
            return respond(ApiError(415, f"the body should be JSON, with the header 'Content-Type: application/json'; {said}"))
        problems = error.errors()
        if problems and problems[0]["type"] == "json_invalid":
            reason = problems[0].get("ctx", {}).get("error", "")
            return respond(ApiError(400, f"the body is not JSON: {reason}"))
        if problems and problems[0]["loc"] == ("body",) and problems[0]["type"] == "missing":
            return respond(ApiError(400, "there is no body"))
        return respond(describe_problems([{**p, "loc": p["loc"][1:]} for p in problems]))  # after "body"

    @app.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> Response:
        known = {404: "there is nothing at this address", 405: "this address does not know the method",
                 400: "the body is not JSON in UTF-8"}  # fmt: skip
        return respond(ApiError(error.status_code, known.get(error.status_code, str(error.detail)), headers=error.headers))

    @app.exception_handler(Exception)
    async def defect(request: Request, error: Exception) -> Response:
        return respond(ApiError(500, "the server has a defect; its log has the details"))


def _errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    return {status: _ERRORS[status] for status in statuses}


def _answers(model: type) -> dict[int | str, dict[str, Any]]:
    """Descriptions of what a request for text may be answered with."""
    data = {"type": "string", "description": "a chunk of the answer as JSON, at the end [DONE]"}
    events = {"text/event-stream": {"itemSchema": {"type": "object", "properties": {"data": data}, "required": ["data"]}}}
    errors = {status: error for status, error in _ERRORS.items() if status != 403}
    return {200: {"model": model, "description": "the answer; with `stream` its events", "content": events}, **errors}


def _add_openapi(app: FastAPI, *, needs_key: bool) -> None:
    """The description, with the keys, and without the answer of FastAPI's own to bad input: here that is 400."""
    make: Callable[[], dict[str, Any]] = app.openapi

    def openapi() -> dict[str, Any]:
        description = make()
        for unused in ("HTTPValidationError", "ValidationError"):
            description["components"]["schemas"].pop(unused, None)
        description["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        for path, methods in description["paths"].items():
            for method in methods.values():
                method["responses"].pop("422", None)
                if path.startswith("/admin") or (needs_key and path.startswith("/v1")):
                    method["security"] = [{"key": []}]
        return description

    app.openapi = openapi  # type: ignore[method-assign]
