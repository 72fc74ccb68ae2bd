"""`/docs`: Swagger UI for the description of the API, with all its files from this service."""

import re
from base64 import b64encode
from hashlib import sha256
from importlib.resources import files
from typing import Literal

from fastapi import APIRouter, Request
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import HTMLResponse, Response

from service.http.headers import page_headers

__all__ = ["router"]

router = APIRouter(include_in_schema=False)

SWAGGER_UI = files("fastapi_offline") / "static"
"""The folder with Swagger UI's files; nothing else of that package is used."""

MEDIA_TYPES = {"swagger-ui-bundle.js": "text/javascript", "swagger-ui.css": "text/css"}

INLINE_SCRIPT = re.compile(r"<script>(.*?)</script>", re.DOTALL)

POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self' {inline}",
        "style-src 'self' 'unsafe-inline'",  # Swagger UI styles its elements one by one
        "img-src data:",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
    )
)


@router.api_route("/docs", methods=["GET", "HEAD"])
async def get_docs(request: Request) -> HTMLResponse:
    """Swagger UI, allowed to run itself and this page's own script, and to talk to this service alone."""
    app, prefix = request.app, request.scope.get("root_path", "")
    page = get_swagger_ui_html(
        openapi_url=prefix + app.openapi_url,
        title=app.title,
        swagger_js_url=f"{prefix}/docs/swagger-ui-bundle.js",
        swagger_css_url=f"{prefix}/docs/swagger-ui.css",
        swagger_favicon_url="data:,",
        swagger_ui_parameters={"validatorUrl": None},  # it would be told where this service is
    )
    scripts = INLINE_SCRIPT.findall(bytes(page.body).decode())
    inline = " ".join(f"'sha256-{b64encode(sha256(script.encode()).digest()).decode()}'" for script in scripts)
    page.headers.update(page_headers(POLICY.format(inline=inline)))
    return page


@router.get("/docs/{name}")
def get_docs_file(name: Literal["swagger-ui-bundle.js", "swagger-ui.css"]) -> Response:
    """A file of Swagger UI."""
    return Response((SWAGGER_UI / name).read_bytes(), media_type=MEDIA_TYPES[name])
