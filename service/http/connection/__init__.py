"""Limits on what a client may do to a connection, in front of uvicorn's own HTTP/1.1 protocol.

uvicorn waits for a head and a body as long as a client likes, keeps a head of any size in memory, shows trailers to the
application as headers, refuses what it cannot parse with plain text, and reads what follows a head that asks for an
upgrade as the next request, so that a client could send requests inside a body. None of this can be changed by its
settings, and no proxy is required in front of this service. So `Connection` stands between the socket and uvicorn's
`HttpToolsProtocol`:

    socket → Connection → RequestReader (parses, checks)
                        → HttpToolsProtocol (one checked request at a time) → with_connection(app)

* `reader` parses what comes in and checks it. What uvicorn gets is written from what was parsed, so that both agree on
  where each request ends.
* `guard` keeps the order of answers, the deadlines, and the end of the connection.

It rests on public interfaces only: the class given as `uvicorn.Config(http=…)` and its constructor's arguments, the
methods of `asyncio.Protocol` and `asyncio.Transport`, the callbacks of `httptools.HttpRequestParser`, and the `state`
of an ASGI scope, through which the application tells that an answer is complete.
"""

from service.http.connection.guard import UVICORN_IDLE_SECONDS, Connection, with_connection

__all__ = ["UVICORN_IDLE_SECONDS", "Connection", "with_connection"]
