#!/bin/sh
# install.sh LOCK SOURCE TARGET [WHEELS]: a virtual environment at TARGET with dfm from SOURCE and just what LOCK lists.
# With a folder of wheels (made by `deploy/wheels.sh`) nothing is fetched from anywhere.
set -eu
lock=$1 source=$2 target=$3 wheels=${4:-}
"${PYTHON:-python3}" -m venv "$target"
offline=""
if [ -n "$wheels" ] && ls "$wheels"/*.whl >/dev/null 2>&1; then
    offline=yes
fi
pip() {
    "$target/bin/python" -m pip --disable-pip-version-check install --quiet --no-cache-dir --no-compile \
        ${offline:+--no-index} ${offline:+--find-links="$wheels"} "$@"
}
if ! pip --require-hashes --requirement "$lock"; then
    test -z "$offline" || echo "$wheels lacks wheels of $lock for $("$target/bin/python" -V), or some are damaged:" \
        "run deploy/wheels.sh $lock $wheels, with that Python" >&2
    exit 1
fi
if [ -n "$offline" ]; then
    pip --no-deps dask-fm
    # It was built from the source earlier; what is installed must not be an older state of it.
    site=$("$target/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
    if ! diff -rq -x __pycache__ "$source/dfm" "$site/dfm" >&2; then
        echo "the wheel of dfm in $wheels is not of this source: run deploy/wheels.sh again" >&2
        exit 1
    fi
else
    pip --no-deps "$source"
fi
# Byte code now: the image is read-only later.
"$target/bin/python" -m compileall -q "$target/lib" || true
