"""Storage in a job or on the command line: places, and options without secrets.

A job's options travel to the workers inside tasks, which the scheduler keeps, logs and shows; its URLs stand in the
model that it publishes. So neither may hold a secret. Credentials come from where each process finds its own: the
environment, a profile, the identity of the machine or the pod.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from dfm.errors import SettingsError
from dfm.storage.tables import folder_of

_SECRET_OPTION = re.compile(
    r"(?i)(^key$|^auth$|^sas$|^pwd$|secret|passw|passphrase|token|credential|private[-_]?key|access[-_]?key"
    r"|account[-_]?key|api[-_]?key|subscription[-_]?key|connection[-_]?string|authorization|cookie|signature)"
)
_SECRET_VARIABLE = re.compile(
    r"(?i)(secret|passw|passphrase|(^|_)(pwd|token|key|sas|auth)$|credential|private_?key|access_?key|account_?key"
    r"|api_?key|connection_?string|authorization)"
)
_PUBLIC_TOKENS = ("anon", "google_default", "cache", "cloud", "browser")
"""Words that gcsfs takes as `token`: where to find credentials, not credentials."""
_SECRET_PARAMETERS = re.compile(
    r"(?i)^(sig|.*signature|.*token|.*credential|awsaccesskeyid|.*secret.*|passw(or)?d|passphrase|pwd|(.*[-_])?key|apikey)$"
)
_INTERPRETING = (
    "reference",
    "dask",
    "jupyter",
    "jlab",
    "pyscript",
    "generic",
    "git",
    "dvc",
    "async_wrapper",
    "asyncwrapper",
)
"""Filesystems of fsspec that interpret what they read (templates, repositories) or call services by themselves."""
_WRAPPED_PROTOCOL = ("protocol", "target_protocol", "remote_protocol", "fo", "fs")
_ENVIRONMENT = (
    "give credentials to every worker and to this process in the environment (AWS_ACCESS_KEY_ID and "
    "AWS_SECRET_ACCESS_KEY, AWS_PROFILE, GOOGLE_APPLICATION_CREDENTIALS, AZURE_STORAGE_CONNECTION_STRING, or "
    "FSSPEC_<PROTOCOL>_<OPTION>) or as the identity of the machine or pod"
)


def check_url(url: str, name: str = "the URL") -> None:
    """SettingsError where a URL holds a secret, or names a filesystem that interprets what it reads.

    name: what the message calls the URL; the secret itself is never shown. Of a table, the URL of its folder counts.
    """
    url = folder_of(url)
    for link in url.split("::"):
        protocol = link.partition("://")[0].lower() if "://" in link or "::" in url else ""
        if protocol in _INTERPRETING:
            raise SettingsError(
                f'{name} uses "{protocol}", a filesystem that interprets what it reads; '
                "name the files themselves (a path, s3://…, gs://…, abfs://…, https://…)"
            )
        if _holds_secret(link):
            raise SettingsError(
                f"{name} = {hidden(url)} holds a password or a signature, which would stand in logs, tasks and the "
                f"published model; leave it out of the URL, and {_ENVIRONMENT}"
            )


def _holds_secret(link: str) -> bool:
    try:
        parts = urlsplit(link)
    except ValueError:
        return "@" in link
    user, at, _ = parts.netloc.rpartition("@")
    # Azure's URLs say container@account, and sftp's user@host: a lone name is no secret there, but a key on the web.
    if at and (":" in user or parts.scheme in ("http", "https")):
        return True
    return any(_SECRET_PARAMETERS.match(key) for key, _ in parse_qsl(parts.query))


def hidden(url: str) -> str:
    """The URL with what may be secret in it left out."""
    return re.sub(r"://[^/@]*@", "://(hidden)@", re.sub(r"\?.*", "?(hidden)", url))


def check_options(options: Mapping[str, Any] | None, name: str = "data.storage_options") -> None:
    """SettingsError where options hold a secret, or wrap a filesystem that interprets what it reads; no value shows."""
    for key, value in _walk(options or {}):
        last = key.rpartition(".")[2]
        if last in _WRAPPED_PROTOCOL and (last in ("fo", "fs") or str(value).lower() in _INTERPRETING):
            raise SettingsError(f"{name}.{key} can name a filesystem that interprets what it reads; leave it out")
        if isinstance(value, str) and "://" in value:
            check_url(value, f"{name}.{key}")
        if _SECRET_OPTION.search(last) and not isinstance(value, bool) and value not in (*_PUBLIC_TOKENS, ""):
            raise SettingsError(
                f"{name}.{key} is a secret, and options travel inside tasks that the scheduler keeps and shows; leave "
                f"it out, and {_ENVIRONMENT}"
            )


def check_variables(variables: Mapping[str, Any], name: str, remedy: str) -> None:
    """SettingsError where an environment variable holds a secret; the path of a file that has one is none."""
    for key, value in variables.items():
        text = str(value)
        if "://" in text:
            check_url(text, f"{name}.{key}")
        is_place = key.upper().endswith(("_FILE", "_PATH", "_DIR")) or text.startswith("/")
        if _SECRET_VARIABLE.search(key) and text and not is_place:
            raise SettingsError(
                f"{name}.{key} is a secret, which would stand in manifests and the published model; leave it out, and "
                f"{remedy}"
            )


def _walk(options: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """All values by their names; those of lists, and of pairs in them (name, value), too."""
    for key, value in options.items():
        yield from _walk_value(f"{prefix}{key}", value)


def _walk_value(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        yield from _walk(value, f"{name}.")
    elif not isinstance(value, list | tuple):
        yield name, value
    elif len(value) == 2 and isinstance(value[0], str) and isinstance(value[1], str):
        yield from ((name, value[0]), (f"{name}.{value[0]}", value[1]))
    else:
        for each in value:
            yield from _walk_value(name, each)


def parse_options(pairs: tuple[str, ...]) -> dict[str, Any]:
    """Options of the command line, KEY=VALUE each; dots in a key make tables, true, false and integers are themselves.

    SettingsError where a pair is none, or holds a secret.
    """
    options: dict[str, Any] = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        steps = key.strip().split(".")
        if not equals or not all(steps):
            raise SettingsError(
                f"--storage-option {key.strip()!r} is not legal: expected KEY=VALUE, for example anon=true "
                "or client_kwargs.endpoint_url=https://…"
            )
        table = options
        for step in steps[:-1]:
            inner = table.setdefault(step, {})
            if not isinstance(inner, dict):
                raise SettingsError(f"--storage-option {key.strip()!r} needs a table, but {step!r} has a value already")
            table = inner
        table[steps[-1]] = _value(text)
    check_options(options, "--storage-option")
    return options


def merged(options: Mapping[str, Any], stronger: Mapping[str, Any]) -> dict[str, Any]:
    """Both in one, table by table; where both have a value, the stronger one's."""
    found = dict(options)
    for key, value in stronger.items():
        below = found.get(key)
        found[key] = merged(below, value) if isinstance(below, Mapping) and isinstance(value, Mapping) else value
    return found


def _value(text: str) -> Any:
    words = {"true": True, "false": False}
    if text in words:
        return words[text]
    return int(text) if re.fullmatch(r"-?\d{1,18}", text) else text
