"""Pages of a study: rendered by the server, one form per step. Nothing in them shows which policy wrote a response."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.templating import Jinja2Templates

from optune_core.errors import OptuneError, StudyError, TransientError
from optune_core.study.pairing import StudyPair
from optune_core.study.sessions import CHOICES, MAX_NAME, Choice, Participant, Sessions

_PAGES = Path(__file__).parent / "pages"
_STATIC = Path(__file__).parent / "static"
_COOKIE_SECONDS = 90 * 24 * 3600
_MAX_SECONDS = 24 * 3600.0
_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; style-src 'self'; script-src 'self'; img-src data:; form-action 'self'; "
        "frame-ancestors 'none'; base-uri 'none'"
    ),
    "Cache-Control": "no-store",  # so that the browser's back button shows the current choice
    "Referrer-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
}


class StudyPages:
    """Request handlers. A visitor is known only by the participant's id in a cookie."""

    def __init__(self, study: str, sessions: Sessions, pairs: Sequence[StudyPair]) -> None:
        self._sessions = sessions
        self._pairs = pairs
        self._templates = Jinja2Templates(directory=_PAGES)
        # Cookies do not distinguish ports, and studies served by one machine may differ in nothing but their port.
        self._cookie = "participant-" + hashlib.sha256(study.encode()).hexdigest()[:12]

    def routes(self) -> list[Route | Mount]:
        return [
            Route("/", self.welcome),
            Route("/join", self.join, methods=["POST"]),
            Route("/leave", self.leave, methods=["POST"]),
            Route("/guidelines", self.guidelines),
            Route("/pair", self.next_pair),
            Route("/pair/{number:int}", self.pair),
            Route("/pair/{number:int}", self.rate, methods=["POST"]),
            Route("/done", self.done),
            Mount("/static", StaticFiles(directory=_STATIC)),
        ]

    async def welcome(self, request: Request) -> Response:
        if await self._visitor(request) is not None:
            return _see("/pair")
        return self._page(request, "welcome.html", max_name=MAX_NAME)

    async def join(self, request: Request) -> Response:
        if not _same_origin(request):
            return self._refusal(request, "This form was sent from another site, so it was ignored.", 403)
        name = (await request.form()).get("name")
        try:
            participant = await run_in_threadpool(self._sessions.join, name if isinstance(name, str) else "")
        except StudyError as error:
            return self._page(request, "welcome.html", 400, max_name=MAX_NAME, problem=str(error))
        _, following = await self._progress(participant)
        response = _see("/guidelines" if following == 1 else "/pair")
        response.set_cookie(
            self._cookie,
            participant.id,
            max_age=_COOKIE_SECONDS,
            httponly=True,
            samesite="lax",
            secure=request.url.scheme == "https",
        )
        return response

    async def leave(self, request: Request) -> Response:
        if not _same_origin(request):
            return self._refusal(request, "This form was sent from another site, so it was ignored.", 403)
        response = _see("/")
        response.delete_cookie(self._cookie)
        return response

    async def guidelines(self, request: Request) -> Response:
        participant = await self._visitor(request)
        if participant is None:
            return _see("/")
        return self._page(request, "guidelines.html", participant=participant)

    async def next_pair(self, request: Request) -> Response:
        participant = await self._visitor(request)
        if participant is None:
            return _see("/")
        _, following = await self._progress(participant)
        return _see(f"/pair/{following}" if following <= len(participant.pairs) else "/done")

    async def pair(self, request: Request) -> Response:
        participant = await self._visitor(request)
        if participant is None:
            return _see("/")
        number: int = request.path_params["number"]
        choices, following = await self._progress(participant)
        if not 1 <= number <= min(following, len(participant.pairs)):
            return _see("/pair")
        shown = participant.pairs[number - 1]
        pair = self._pairs[shown.pair]
        responses = [pair.policy_response, pair.baseline_response]
        return self._page(
            request,
            "pair.html",
            participant=participant,
            number=number,
            rated=len(choices),
            prompt=pair.prompt,
            responses=responses[::-1] if shown.swapped else responses,
            chosen=choices.get(number - 1),
            token=_form_token(participant),
            shown_at=f"{time.time():.3f}",
        )

    async def rate(self, request: Request) -> Response:
        participant = await self._visitor(request)
        form = await request.form()
        if participant is None or form.get("token") != _form_token(participant) or not _same_origin(request):
            return self._refusal(
                request, "This page belongs to another participant or another site, so the choice was not saved.", 403
            )
        number, choice = request.path_params["number"], form.get("choice")
        _, following = await self._progress(participant)
        if choice not in CHOICES or not 1 <= number <= min(following, len(participant.pairs)):
            return self._refusal(request, "This is not one of the choices, so it was not saved.", 400)
        seconds = _seconds_since(form.get("shown_at"))
        await run_in_threadpool(self._sessions.rate, participant, number - 1, choice, seconds)
        return _see("/pair")

    async def done(self, request: Request) -> Response:
        participant = await self._visitor(request)
        if participant is None:
            return _see("/")
        choices, _ = await self._progress(participant)
        if len(choices) < len(participant.pairs):
            return _see("/pair")
        return self._page(request, "done.html", participant=participant)

    async def not_saved(self, request: Request, error: Exception) -> Response:
        """Answer after a failure of the store: the participant must know that the choice may be lost."""
        return self._refusal(
            request,
            "The study's store did not answer, so your last choice may not be saved. Go back and try again.",
            503,
        )

    async def _visitor(self, request: Request) -> Participant | None:
        return await run_in_threadpool(self._sessions.find, request.cookies.get(self._cookie, ""))

    async def _progress(self, participant: Participant) -> tuple[dict[int, Choice], int]:
        """Return the choices by position, and the number of the first pair without a choice, counted from 1."""
        choices = await run_in_threadpool(self._sessions.choices, participant)
        open_pairs = (number for number in range(len(participant.pairs)) if number not in choices)
        return choices, next(open_pairs, len(participant.pairs)) + 1

    def _page(self, request: Request, page: str, status: int = 200, **context: Any) -> Response:
        return self._templates.TemplateResponse(request, page, context, status_code=status, headers=_HEADERS)

    def _refusal(self, request: Request, message: str, status: int) -> Response:
        return self._page(request, "refusal.html", status, message=message)


def study_app(study: str, sessions: Sessions, pairs: Sequence[StudyPair], hosts: Sequence[str]) -> Starlette:
    """Make the ASGI application that serves the study's pages.

    Args:
        study: name of the study, for the cookie.
        sessions: participants of the study.
        pairs: pairs of the study, in the order of their numbers.
        hosts: host names that requests may be addressed to; `*`: any. On loopback all others are refused, because
            another site could let its own name point to this address and read the pages.
    """
    pages = StudyPages(study, sessions, pairs)
    failed: dict[Any, Callable[..., Any]] = {OptuneError: pages.not_saved, TransientError: pages.not_saved}
    guard = Middleware(TrustedHostMiddleware, allowed_hosts=list(hosts), www_redirect=False)
    return Starlette(routes=pages.routes(), middleware=[guard], exception_handlers=failed)


def _see(path: str) -> Response:
    return RedirectResponse(path, status_code=303, headers={"Cache-Control": "no-store"})


def _same_origin(request: Request) -> bool:
    """Return whether a form was sent from the study's own pages, by either of the headers that name its origin.

    A request without both headers is accepted, since it does not come from a browser.
    """
    if (site := request.headers.get("sec-fetch-site")) is not None:
        return site in ("same-origin", "none")
    origin = request.headers.get("origin")
    return origin is None or urlsplit(origin).netloc == request.headers.get("host")


def _form_token(participant: Participant) -> str:
    """Return the token in the participant's own pages, by which a form of another participant or site is refused."""
    return hashlib.sha256(f"form/{participant.id}".encode()).hexdigest()[:32]


def _seconds_since(shown_at: object) -> float | None:
    try:
        seconds = time.time() - float(str(shown_at))
    except ValueError:
        return None
    return round(seconds, 3) if math.isfinite(seconds) and 0 <= seconds <= _MAX_SECONDS else None
