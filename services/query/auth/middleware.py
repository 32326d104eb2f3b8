"""Authentication, authorisation and limits of every request, before anything of it is read or routed."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from fastapi import params
from fastapi.responses import JSONResponse
from fastapi.routing import RouteContext
from starlette.datastructures import Headers
from starlette.routing import Match
from starlette.types import ASGIApp, Receive, Scope, Send

from services.query.auth import scopes
from services.query.auth.authentication import Authentication
from services.query.auth.callers import Caller, Rejected, Unavailable
from services.query.auth.limits import Limits, TooMany
from services.query.errors import ApiError
from shared.runtime.logs import get_logger

logger = get_logger(__name__)

_REMEDY = "send the header `Authorization: Bearer` with an API key (`biobracket keys create`) or a JSON Web Token"
_MAX_CREDENTIAL = 16 * 1024  # characters; a token with long claims has four thousand
_RETRY_S = 30


class AccessControl:
    """ASGI middleware that lets a request through if its route is open or its caller has the scope of the route.

    Everything else is refused: also paths that do not exist (401 unless the caller is known), routes that declare no
    scope, and WebSockets. What a route declares: :mod:`.scopes`. The caller is put into the request's state.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        authentication: Authentication,
        limits: Limits,
        routes: Callable[[], Sequence[RouteContext]],
    ) -> None:
        """``routes``: all routes of the application, in the order in which it tries them; called at each request."""
        self.app = app
        self._authentication = authentication
        self._limits = limits
        self._routes = routes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
            return
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        route = self._route(scope)
        if route is not None and scopes.is_open(_dependencies(route)):
            await self.app(scope, receive, send)
            return
        try:
            caller = await self._caller(scope)
            self._limits.count(caller.id)
            if route is not None:
                _check(caller, scopes.required(_dependencies(route)))
            scope.setdefault("state", {})["caller"] = caller
            with self._limits.under_way(caller.id):
                await self.app(scope, receive, send)
        except TooMany as error:
            await _answer(_too_many("caller", error), scope, receive, send)
        except ApiError as refusal:
            await _answer(refusal, scope, receive, send)

    def _route(self, scope: Scope) -> RouteContext | None:
        """The route that will handle a request; None if none will."""
        return next((route for route in self._routes() if route.matches(scope)[0] is Match.FULL), None)

    async def _caller(self, scope: Scope) -> Caller:
        """Who sends a request. Raises :class:`ApiError`."""
        values = Headers(scope=scope).getlist("authorization")
        if not values:
            raise _unauthorized("is missing", error=None)
        scheme, _, credential = values[0].partition(" ")
        try:
            if len(values) > 1 or scheme.lower() != "bearer" or not 0 < len(credential.strip()) <= _MAX_CREDENTIAL:
                raise Rejected("no_bearer", "holds no bearer credential")
            return await self._authentication.check(credential.strip())
        except Unavailable as error:
            logger.error("authentication_unavailable", reason=error.code)
            raise ApiError(
                503,
                "authorization",
                "cannot be checked now",
                "try again later; the server's log has the cause",
                {"Retry-After": str(_RETRY_S)},
            ) from None
        except Rejected as error:
            address = (scope.get("client") or ("unknown",))[0]
            try:
                self._limits.failed(address)
            except TooMany as many:
                raise _too_many("authorization", many) from None  # and no more lines in the log
            logger.warning("authentication_failed", reason=error.code, address=address)
            raise _unauthorized(error.problem, error="invalid_token") from None


async def _answer(refusal: ApiError, scope: Scope, receive: Receive, send: Send) -> None:
    await JSONResponse(refusal.body.model_dump(), refusal.status_code, refusal.headers)(scope, receive, send)


def _dependencies(route: RouteContext) -> Sequence[params.Depends]:
    found: Sequence[params.Depends] = getattr(route, "dependencies", ())  # plain Starlette routes have none
    return found


def _check(caller: Caller, needed: frozenset[str] | None) -> None:
    """Raises :class:`ApiError` unless a caller has all scopes needed; None: those of a route that declares nothing."""
    if needed is None:
        logger.error("route_without_scope")
        raise ApiError(403, "path", "declares no scope, so nobody may call it", "report this as an error of the server")
    if missing := sorted(needed - caller.scopes):
        raise ApiError(
            403,
            "authorization",
            f"has not the scope {', '.join(missing)}, which this operation takes",
            "use an API key or token that has it",
            {"WWW-Authenticate": f'Bearer realm="biobracket", error="insufficient_scope", scope="{" ".join(missing)}"'},
        )


def _unauthorized(problem: str, error: str | None) -> ApiError:
    challenge = 'Bearer realm="biobracket"' + (f', error="{error}"' if error else "")
    return ApiError(401, "authorization", problem, _REMEDY, {"WWW-Authenticate": challenge})


def _too_many(field: str, error: TooMany) -> ApiError:
    return ApiError(429, field, error.problem, error.remedy, {"Retry-After": str(error.retry_after_s)})
