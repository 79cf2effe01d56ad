#!/bin/sh
# From a bare Debian with Python >= 3.11 to .venv: a pinned uv, then the locked environment.
# Does nothing if .venv was made from the same lock, in the same folder.
set -eu
cd "$(dirname "$0")/.."

fail() {
    echo "FAILED: $*" >&2
    exit 1
}

# A colon ends an entry of PATH, MLflow's migrations interpret %, ssh and Docker interpret the others. Blanks,
# apostrophes and non-ASCII letters are fine.
case $PWD in
*[:%\"\$\\]*) fail "the folder $PWD has one of : % \" \$ \\ in its path, which some of the programs cannot handle: move it" ;;
esac

# Ansible, DVC, ssh and others keep files there.
[ -d "${HOME:-}" ] && [ -w "$HOME" ] || fail "HOME, ${HOME:-not set}, is not a folder that you can write to: set it to one"

wanted=$({ echo "$PWD" && cat pyproject.toml uv.lock; } | sha256sum | cut -d' ' -f1)
made() { [ -x .venv/bin/python ] && [ "$(cat .venv/made-from 2>/dev/null)" = "$wanted" ]; }
made && exit 0

# Of several at once, one makes it and the others wait. The lock ends with this process.
mkdir -p .cache
exec 9>>.cache/environment.lock
if ! flock --nonblock 9; then
    echo "Environment: waiting for another process that makes $PWD/.venv" >&2
    flock 9
    made && exit 0
fi

install() { # Debian packages, if possible
    [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null ||
        fail "$* is missing: install it and run this again (as root on Debian, this happens automatically)"
    mkdir -p build
    # A new machine may be installing its security updates.
    { apt-get update -q && DEBIAN_FRONTEND=noninteractive \
        apt-get install -qy -o DPkg::Lock::Timeout=600 --no-install-recommends "$@"; } \
        >>build/lab.log 2>&1 || fail "apt-get install $* failed: see build/lab.log"
}

command -v python3 >/dev/null || install python3
python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
    fail "python3 is $(python3 -V), but 3.11 or newer is needed: put one first on PATH"

# pip and uv use the machine's CA bundle, so that a company's CA works.
bundle=${SSL_CERT_FILE:-/etc/ssl/certs/ca-certificates.crt}
if [ -f "$bundle" ]; then
    export SSL_CERT_FILE="$bundle" PIP_CERT="${PIP_CERT:-$bundle}"
fi

uv_version=$(sed -n 's/^uv_version: //p' group_vars/all/versions.yml)
uv=.cache/tools/uv-$uv_version/bin/uv
if [ ! -x "$uv" ]; then
    echo "Environment: uv $uv_version"
    python3 -c 'import ensurepip, venv' 2>/dev/null || install python3-venv
    mkdir -p .cache/tools
    rm -rf .cache/tools/uv.partial
    python3 -m venv .cache/tools/uv.partial
    .cache/tools/uv.partial/bin/python -m pip install --quiet --disable-pip-version-check "uv==$uv_version"
    mv .cache/tools/uv.partial ".cache/tools/uv-$uv_version"
fi
# The programs of a .venv that was made in another folder would start that folder's interpreter.
if [ -e .venv/bin/activate ] && ! grep -qF "$PWD/.venv" .venv/bin/activate; then
    rm -rf .venv
fi
echo "Environment: uv sync --locked (half a minute the first time)"
UV_PYTHON_DOWNLOADS=never "$uv" sync --locked --quiet --python "$(python3 -c 'import sys; print(sys.executable)')"
echo "$wanted" >.venv/made-from
