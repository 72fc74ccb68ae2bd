"""Looks up every package of this environment in the advisories of OSV, by pip-audit.

OSV (https://osv.dev) gets their names and versions. A local version, such as torch's 2.13.0+cpu, is looked up as the
public version that it is a build of, which is what advisories name; this project itself is left out.
"""

import os
import subprocess
import sys
import tempfile
from importlib.metadata import distributions

import requests

URL = os.environ.get("ASMG_AUDIT_URL", "https://api.osv.dev/v1/query")
OURS = "asmg-service"
PATIENCE_SECONDS = 10


def pinned() -> list[str]:
    """All packages of the environment, as `name==version`."""
    versions = {found.name.lower(): found.version.partition("+")[0] for found in distributions() if found.name}
    return [f"{name}=={version}" for name, version in sorted(versions.items()) if name != OURS]


def trouble() -> str | None:
    """Why the advisories cannot be reached; None where they can."""
    question = {"package": {"name": OURS, "ecosystem": "PyPI"}}
    try:
        answer = requests.post(URL, json=question, timeout=PATIENCE_SECONDS)
        answer.raise_for_status()
        answer.json()
    except requests.RequestException as error:
        return type(error).__name__ if error.response is None else f"status {error.response.status_code}"
    return None


def main() -> int:
    packages = pinned()
    if (why := trouble()) is not None:
        print(f"NOT AUDITED: the advisories at {URL} cannot be reached from here ({why}); {len(packages)} packages")
        return 0
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as file:
        file.write("\n".join(packages))
        file.flush()
        # Pinned and complete: nothing is resolved, downloaded or installed.
        how = ["--requirement", file.name, "--no-deps", "--disable-pip", "--progress-spinner", "off"]
        where = ["--vulnerability-service", "osv", "--osv-url", URL]
        code = subprocess.run([sys.executable, "-m", "pip_audit", *how, *where, *sys.argv[1:]], check=False).returncode
    print(f"{len(packages)} packages looked up at {URL}")
    return code


if __name__ == "__main__":
    sys.exit(main())
