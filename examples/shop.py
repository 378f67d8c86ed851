"""A web shop with several worker processes, which all know who is logged in: plain WSGI, for any server.

Beside a node of this host, or with one of its own (then the node leaves when the server ends):

    HOTSPARE_ATTACH=127.0.0.1:7401 gunicorn --workers 4 --preload --chdir examples shop:app
    hotspare run --node 127.0.0.1:7401 --replicas … -- gunicorn --workers 4 --chdir examples shop:app

    curl -i -X POST 'localhost:8000/login?user=alice'
    curl -b 'session=…' localhost:8000/
    curl -b 'session=…' -X POST 'localhost:8000/cart?add=tea'
    curl -b 'session=…' -X POST localhost:8000/logout

The replicator is made and started once, at the top: each worker that the server forks goes on with it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable
from datetime import timedelta
from http.cookies import SimpleCookie
from secrets import token_urlsafe
from typing import Any
from urllib.parse import parse_qs

from hotspare import SessionReplicator
from hotspare.errors import NotReady, OutcomeUnknown, StaleRead, Unavailable

COOKIE = "session"
LIFETIME = timedelta(days=14)

sessions = SessionReplicator(attach=os.environ.get("HOTSPARE_ATTACH", "127.0.0.1:7401"))
sessions.start()

Answer = tuple[str, dict[str, Any], str]
"""Status, body, and the cookie to set ("" for none)."""
NOT_LOGGED_IN: Answer = ("401 Unauthorized", {"error": "not logged in"}, "")


def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    try:
        status, body, cookie = answer(environ)
    except (NotReady, OutcomeUnknown, StaleRead, Unavailable) as exc:
        # We do not know who this is. That is no reason to send anybody to the login page.
        status, body, cookie = "503 Service Unavailable", {"error": str(exc)}, ""
    headers = [("Content-Type", "application/json")]
    if cookie:
        headers.append(("Set-Cookie", f"{COOKIE}={cookie}; Path=/; HttpOnly; SameSite=Lax"))
    start_response(status, headers)
    return [json.dumps(body | {"worker": os.getpid()}).encode() + b"\n"]


def answer(environ: dict[str, Any]) -> Answer:
    arguments = {key: values[0] for key, values in parse_qs(environ.get("QUERY_STRING", "")).items()}
    known = SimpleCookie(environ.get("HTTP_COOKIE", "")).get(COOKIE)
    id = known.value if known is not None else ""
    match environ["REQUEST_METHOD"], environ["PATH_INFO"]:
        case "GET", "/health":
            return "200 OK", {}, ""
        case "POST", "/login":
            return log_in(arguments.get("user", "nobody"))
        case "POST", "/logout":
            return log_out(id)
        case "POST", "/cart":
            return add_to_cart(id, arguments.get("add", "nothing"))
        case "GET", "/":
            session = sessions.get_session(id) if id else None
            return NOT_LOGGED_IN if session is None else ("200 OK", session, "")
    return "404 Not Found", {"error": "no such page"}, ""


def log_in(user: str) -> Answer:
    """Under an id that nobody knew before: never under one that the browser brought."""
    id = token_urlsafe()
    sessions.store_session(id, {"user": user, "cart": []}, LIFETIME)
    return "200 OK", {"user": user}, id


def log_out(id: str) -> Answer:
    if id:
        sessions.delete_session(id)
    return "200 OK", {"user": None}, "gone"


def add_to_cart(id: str, what: str) -> Answer:
    session = sessions.get_session(id, read="primary") if id else None
    if session is None:
        return NOT_LOGGED_IN
    cart = [*session["cart"], what]
    sessions.update_session(id, {"cart": cart})
    return "200 OK", {"cart": cart}, ""
