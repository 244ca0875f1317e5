#!/bin/sh
# wheels.sh [LOCK [FOLDER]]: all wheels of an image in a folder (deploy/wheels), for building it where no index is in reach.
set -eu
here=$(dirname "$0")
lock=${1:-$here/image.lock} folder=${2:-$here/wheels}
python3 -m pip download --quiet --require-hashes --only-binary :all: --dest "$folder" --requirement "$lock"
python3 -m pip wheel --quiet --no-deps --wheel-dir "$folder" "$here/.."
