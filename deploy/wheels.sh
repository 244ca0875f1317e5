#!/bin/sh
# wheels.sh [LOCK [FOLDER]]: all wheels of an image in a folder (deploy/wheels), for building it where no index is in reach.
# Wheels belong to a version of Python and a platform: run it with the Python of the image (PYTHON=python3.12), or inside:
#     docker run --rm -v "$PWD":/source -w /source python:3.12-slim deploy/wheels.sh
set -eu
here=$(dirname "$0")
lock=${1:-$here/image.lock} folder=${2:-$here/wheels}
python=${PYTHON:-python3}
wanted=$(sed -n 's/^ARG PYTHON=//p' "$here/Dockerfile")
found=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
if [ "$found" != "$wanted" ]; then
    echo "these wheels are for Python $found and deploy/Dockerfile builds with $wanted: say PYTHON=python$wanted" \
        "deploy/wheels.sh, or docker build --build-arg PYTHON=$found" >&2
fi
rm -f "$folder"/dask_fm-*.whl  # of an earlier state of the source
"$python" -m pip download --quiet --require-hashes --only-binary :all: --dest "$folder" --requirement "$lock"
"$python" -m pip wheel --quiet --no-deps --wheel-dir "$folder" "$here/.."
