"""`/docs`: the description of the API as a page on which it can be tried."""

import re
from base64 import b64encode
from hashlib import sha256

from fastapi import APIRouter, Request
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import HTMLResponse

from service.head import page_headers

__all__ = ["router"]

router = APIRouter()

SWAGGER_UI = "https://cdn.jsdelivr.net/npm/swagger-ui-dist@5/"
INLINE_SCRIPT = re.compile(r"<script>(.*?)</script>", re.DOTALL)

POLICY = "; ".join(
    (
        "default-src 'none'",
        f"script-src {SWAGGER_UI} {{inline}}",
        f"style-src {SWAGGER_UI} 'unsafe-inline'",  # Swagger UI styles its elements one by one
        "img-src data:",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
    )
)


@router.api_route("/docs", methods=["GET", "HEAD"], include_in_schema=False)
async def get_docs(request: Request) -> HTMLResponse:
    """Swagger UI from a CDN, allowed to run that and this page's own script, and to talk to this service alone."""
    app = request.app
    page = get_swagger_ui_html(
        openapi_url=request.scope.get("root_path", "").rstrip("/") + app.openapi_url,
        title=app.title,
        swagger_js_url=f"{SWAGGER_UI}swagger-ui-bundle.js",
        swagger_css_url=f"{SWAGGER_UI}swagger-ui.css",
        swagger_favicon_url="data:,",
        swagger_ui_parameters={"validatorUrl": None},  # it would be told where this service is
    )
    scripts = INLINE_SCRIPT.findall(bytes(page.body).decode())
    inline = " ".join(f"'sha256-{b64encode(sha256(script.encode()).digest()).decode()}'" for script in scripts)
    page.headers.update(page_headers(POLICY.format(inline=inline)))
    return page
