"""`asmg serve`."""

from pathlib import Path
from typing import Annotated

import typer

from service.cli.errors import plain_errors
from service.cli.installation import DataDir, load_settings
from service.processes.serve import serve

__all__ = ["serve_command"]


def serve_command(
    host: Annotated[str | None, typer.Option(help="Address to listen on. [ASMG_HOST]")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on; 0 for any free port. [ASMG_PORT]")] = None,
    workers: Annotated[int | None, typer.Option(help="Number of api processes. [ASMG_API_WORKERS]")] = None,
    worker: Annotated[
        bool | None,
        typer.Option("--worker/--no-worker", help="Also run the worker; by default with embedded servers only."),
    ] = None,
    tls_cert: Annotated[
        Path | None, typer.Option(help="Serve HTTPS with this certificate chain (PEM). [ASMG_TLS_CERT]")
    ] = None,
    tls_key: Annotated[
        Path | None, typer.Option(help="Private key of the certificate (PEM, not encrypted). [ASMG_TLS_KEY]")
    ] = None,
    root_path: Annotated[
        str | None, typer.Option(help="Prefix that a proxy adds to all paths. [ASMG_ROOT_PATH]")
    ] = None,
    migrate: Annotated[
        bool, typer.Option("--migrate", help="Bring the schema of the database up to date first.")
    ] = False,
    data_dir: DataDir = None,
) -> None:
    """Serve the API; without ASMG_POSTGRES_DSN and ASMG_REDIS_URL it starts its own Postgres and Redis."""
    with plain_errors():
        settings = load_settings(
            host=host,
            port=port,
            api_workers=workers,
            tls_cert=tls_cert,
            tls_key=tls_key,
            root_path=root_path,
            data_dir=data_dir,
        )
        serve(settings, worker=worker, migrate_first=migrate)
