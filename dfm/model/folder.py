"""The folder that a model is published as: its manifest, the files that it names, and those that it replaces."""

from __future__ import annotations

import errno
import hashlib
import logging
import re
from collections.abc import Mapping
from typing import Any

from dfm.errors import ModelError
from dfm.kernels.families.registry import DEFAULT as DEFAULT_FAMILY
from dfm.kernels.families.registry import FAMILIES
from dfm.model.manifest import MOST_MANIFEST_BYTES, parse_manifest
from dfm.model.misnamed import remedy
from dfm.storage import files, ownership

logger = logging.getLogger(__name__)
_LONGEST_REASON = 500
"""Characters of another error, or of a manifest, that a message quotes."""
_OWN_FILE = re.compile(r"(parameters|golden|seen)-[0-9a-f]{16}\.(safetensors|parquet)")
MANIFEST = "model.json"
FORMAT = 9
"""The newest that this dfm reads: 1 is of the task's default loss, 2 names another, 3 says how numbers compare too, 4
names another family than the default, 5 says how values are read, or the range that predictions stay in, 6 which
columns are integers whatever their zeros, 7 which group each field is in, 8 how its logits are calibrated, and 9 has
draws."""


def check_place(url: str, options: files.Options = None) -> None:
    """SettingsError where a model has no place at all, or would replace a model.json that dfm did not write."""
    files.check_named(url, "the folder of the model")
    ownership.check_replaceable(files.join(url, MANIFEST), lambda *_: bool(manifest_in_place(url, options)), options)


def read_manifest(url: str, options: files.Options = None) -> dict[str, Any]:
    """The manifest of a model folder."""
    try:
        if files.size_of(files.join(url, MANIFEST), options) > MOST_MANIFEST_BYTES:
            raise ValueError(f"it has more than {MOST_MANIFEST_BYTES} bytes")
        manifest = parse_manifest(files.read_bytes(files.join(url, MANIFEST), options))
        known = int(manifest["format"])
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ModelError(f"no model at {url}: {remedy(url, MANIFEST, options)}") from error
    except (ValueError, KeyError, TypeError, OverflowError) as error:
        raise ModelError(
            f"{files.join(url, MANIFEST)} is no model manifest ({shortened(error)}); publish the model again"
        ) from error
    family = manifest.get("family", DEFAULT_FAMILY)
    if known <= FORMAT and family not in FAMILIES:
        raise ModelError(
            f"the model at {url} is of family {shortened(family)!r}; dfm knows {', '.join(FAMILIES)}: install a newer "
            "one"
        )
    if known > FORMAT:
        raise ModelError(f"the model at {url} has format {known}; this dfm reads up to {FORMAT}: install a newer dfm")
    return dict(manifest)


def manifest_in_place(url: str, options: files.Options) -> dict[str, Any]:
    """The manifest that is about to be replaced; empty where there is none that can be read."""
    try:
        found = read_manifest(url, options)
    except ModelError:
        return {}
    return found if {"files", "hashing", "schema"} <= found.keys() else {}


def checked_bytes(url: str, manifest: Mapping[str, Any], kind: str, options: files.Options) -> bytes:
    """A file of the model, after its name, size and checksum were found to be what the manifest says."""
    entry = manifest["files"][kind]
    name = _checked_name(str(entry["name"]), url)
    try:
        # A file of another size is not even read.
        fits = files.size_of(files.join(url, name), options) == entry["bytes"]
        data = files.read_bytes(files.join(url, name), options) if fits else b""
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ENAMETOOLONG) and not isinstance(error, FileNotFoundError):
            raise
        raise ModelError(f"the model at {url} lacks {shortened(name)}; publish it again") from error
    if not fits or len(data) != entry["bytes"] or hashlib.sha256(data).hexdigest() != entry["sha256"]:
        raise ModelError(f"{name} of the model at {url} is damaged: its checksum differs; publish the model again")
    return data


def _checked_name(name: str, url: str) -> str:
    """The name of a file of the model. ModelError where it points elsewhere."""
    if "/" in name or "\\" in name or name.startswith("."):
        raise ModelError(
            f"the manifest of {url} names a file outside the model: {shortened(name)!r}; do not trust this model"
        )
    return name


def remove_superseded(url: str, name: str, options: files.Options) -> None:
    """Delete a file that the manifest before the last one listed, if its name is of a model: anybody may have written
    the manifest. The model is published by now, so a file that cannot be deleted is told in a warning.
    """
    try:
        if _OWN_FILE.fullmatch(_checked_name(name, url)):
            files.remove(files.join(url, name), options)
    except Exception as error:
        logger.warning("a file of an earlier model at %s stays: %s", url, error)


def names_in(manifest: Mapping[str, Any]) -> set[str]:
    """The files that a manifest lists. They outlive it by one generation: a reader may still be loading them."""
    return {str(entry["name"]) for entry in manifest.get("files", {}).values()}


def shortened(cause: object) -> str:
    """The words of an error or a manifest; those of a damaged file may be all of it."""
    text = str(cause)
    return text if len(text) <= _LONGEST_REASON else text[:_LONGEST_REASON] + " …"
