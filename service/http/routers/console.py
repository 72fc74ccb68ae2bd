"""`/console`: the web console for operators. Its files lie in `service/http/console` and are sent as they are.

The page and its modules refer to each other, and to the API, by relative addresses, so they need to know no path
prefix. They hold no secrets; the API asks for a key.
"""

from functools import cache
from hashlib import sha256
from importlib.resources import files
from typing import NamedTuple

from fastapi import APIRouter, HTTPException, Request
from fastapi.responses import RedirectResponse, Response

from service.http.headers import page_headers

__all__ = ["router"]

router = APIRouter(include_in_schema=False)

FOLDER = files("service.http") / "console"
PAGE = "index.html"
MEDIA_TYPES = {"css": "text/css", "html": "text/html", "js": "text/javascript", "svg": "image/svg+xml"}

POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self'",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "require-trusted-types-for 'script'",  # no module makes HTML of text
        "trusted-types 'none'",
    )
)


class _File(NamedTuple):
    """A file of the console."""

    content: bytes
    media_type: str
    etag: str


@cache
def _files() -> dict[str, _File]:
    """All files by name, read once."""
    found = {}
    for path in FOLDER.iterdir():
        content = path.read_bytes()
        suffix = path.name.rpartition(".")[2]
        found[path.name] = _File(content, MEDIA_TYPES[suffix], f'"{sha256(content).hexdigest()[:32]}"')
    return found


@router.api_route("/console", methods=["GET", "HEAD"])
def get_console() -> Response:
    """The page, which may load its own files and talk to this service, and nothing else."""
    page = _files()[PAGE]
    return Response(page.content, media_type=page.media_type, headers=page_headers(POLICY))


@router.get("/console/{name:path}")
def get_console_file(request: Request, name: str) -> Response:
    """A file of the page. Browsers keep it, and ask whether it has changed; after an upgrade they get the new one."""
    if not name:  # somebody has typed `/console/`
        return RedirectResponse(f"{request.scope.get('root_path', '')}/console", status_code=308)
    file = _files().get(name)
    if file is None or name == PAGE:
        raise HTTPException(404, "the console has no such file")
    connection = getattr(request.state, "connection", None)
    if connection is not None:
        connection.keep_caching()
    headers = {"cache-control": "no-cache", "etag": file.etag}
    given = request.headers.get("if-none-match", "")
    if file.etag in (tag.strip().removeprefix("W/") for tag in given.split(",")):
        return Response(status_code=304, headers=headers)
    return Response(file.content, media_type=file.media_type, headers=headers)
