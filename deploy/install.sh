#!/bin/sh
# install.sh LOCK SOURCE TARGET [WHEELS]: a virtual environment at TARGET with dfm from SOURCE and just what LOCK lists.
# With a folder of wheels (made by `deploy/wheels.sh`) nothing is fetched from anywhere.
set -eu
lock=$1 source=$2 target=$3 wheels=${4:-}
"${PYTHON:-python3}" -m venv "$target"
offline=""
if [ -n "$wheels" ] && ls "$wheels"/*.whl >/dev/null 2>&1; then
    offline="--no-index --find-links $wheels"
fi
# shellcheck disable=SC2086
"$target/bin/python" -m pip install --quiet --no-cache-dir --no-compile --require-hashes $offline --requirement "$lock"
if [ -n "$offline" ]; then
    # shellcheck disable=SC2086
    "$target/bin/python" -m pip install --quiet --no-cache-dir --no-compile --no-deps $offline dfm
else
    "$target/bin/python" -m pip install --quiet --no-cache-dir --no-compile --no-deps "$source"
fi
# Byte code now: the image is read-only later.
"$target/bin/python" -m compileall -q "$target/lib" || true
