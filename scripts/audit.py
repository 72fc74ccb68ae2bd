"""Looks up every package of this environment in the advisories of OSV, with pip-audit.

OSV (https://osv.dev) receives their names and versions. A local version such as torch's 2.13.0+cpu is looked up as the
public version 2.13.0, which advisories name. This project itself is left out.
"""

import os
import subprocess
import sys
import tempfile
from importlib.metadata import distributions

import requests

URL = os.environ.get("ASMG_AUDIT_URL", "https://api.osv.dev/v1/query")
OURS = "asmg-service"
TIMEOUT_SECONDS = 10


def pinned_packages() -> list[str]:
    """All packages of the environment, as `name==version`."""
    versions = {found.name.lower(): found.version.partition("+")[0] for found in distributions() if found.name}
    return [f"{name}=={version}" for name, version in sorted(versions.items()) if name != OURS]


def unreachable_because() -> str | None:
    """Why the advisories cannot be reached; None if they can."""
    question = {"package": {"name": OURS, "ecosystem": "PyPI"}}
    try:
        answer = requests.post(URL, json=question, timeout=TIMEOUT_SECONDS)
        answer.raise_for_status()
        answer.json()
    except requests.RequestException as error:
        return type(error).__name__ if error.response is None else f"status {error.response.status_code}"
    return None


def main() -> int:
    packages = pinned_packages()
    if (reason := unreachable_because()) is not None:
        print(f"NOT AUDITED: the advisories at {URL} cannot be reached from here ({reason}); {len(packages)} packages")
        return 0
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as file:
        file.write("\n".join(packages))
        file.flush()
        # The list is pinned and complete: pip-audit resolves, downloads and installs nothing.
        options = ["--requirement", file.name, "--no-deps", "--disable-pip", "--progress-spinner", "off"]
        service = ["--vulnerability-service", "osv", "--osv-url", URL]
        code = subprocess.run(
            [sys.executable, "-m", "pip_audit", *options, *service, *sys.argv[1:]], check=False
        ).returncode
    print(f"{len(packages)} packages looked up at {URL}")
    return code


if __name__ == "__main__":
    sys.exit(main())
