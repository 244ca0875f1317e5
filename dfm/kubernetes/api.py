"""The few requests to a Kubernetes API server that a job needs, on plain dicts, with errors that say what to do."""

from __future__ import annotations

import contextlib
import json
import os
import ssl
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from dfm.errors import ClusterError, SettingsError
from dfm.kubernetes.manifest import GROUP, RUN_ID, VERSION, Manifest
from dfm.version import pip_install

_PATHS = {
    "ConfigMap": ("/api/v1", "configmaps"),
    "Pod": ("/api/v1", "pods"),
    "Event": ("/api/v1", "events"),
    "Deployment": ("/apis/apps/v1", "deployments"),
    "PodDisruptionBudget": ("/apis/policy/v1", "poddisruptionbudgets"),
    "DaskJob": (f"/apis/{GROUP}/{VERSION}", "daskjobs"),
    "DaskCluster": (f"/apis/{GROUP}/{VERSION}", "daskclusters"),
}
_OF_THE_OPERATOR = "DaskJob", "DaskCluster"
_KUBECONFIG = "~/.kube/config"
_TRIES = 5
FIRST_PAUSE = 0.5
_UNAUTHORIZED, _FORBIDDEN, _NOT_FOUND, _CONFLICT, _GONE = 401, 403, 404, 409, 410
_PASSING = (429, 500, 502, 503, 504)


class NotThere(Exception):
    """The object does not exist."""


class Away(ClusterError):
    """The API server does not answer, or cannot yet; what it keeps is there all the same."""

    sat_out = 900.0


class Refused(ClusterError):
    """The API server refuses. One that is just starting says so too (401, 403, 404) before it has read its rules."""

    sat_out = 120.0


class Api:
    """A namespace of a Kubernetes cluster: that of the kubeconfig's context, or the one this pod runs in."""

    def __init__(self, namespace: str = "", context: str = "") -> None:
        self._access = _connect(context)
        self.namespace = namespace or self._access.namespace

    def create(self, body: Manifest) -> Manifest:
        """Create an object; fields that the server does not know are refused. The object as it is stored.

        One of the same run that is there already is the answer to an attempt whose own answer was lost. What a DaskJob
        owns may not be read, but has a name that is its run's alone.
        """
        query = {"fieldValidation": "Strict"}
        try:
            return self._json("POST", self._path(body["kind"]), query, body)
        except _Refused as refused:
            if refused.status != _CONFLICT or "being deleted" in refused.message:
                raise refused.explained(body["kind"], self.namespace) from None
        if body["kind"] != "DaskJob":
            return body
        found = self.get("DaskJob", body["metadata"]["name"])
        if not run_of(body) or run_of(found) != run_of(body):
            raise SettingsError(
                f"there is a DaskJob {body['metadata']['name']!r} in namespace {self.namespace!r} already; delete it "
                "(dfm cancel) or choose another --name"
            )
        return found

    def get(self, kind: str, name: str) -> Manifest:
        """An object by name. NotThere where there is none."""
        try:
            return self._json("GET", f"{self._path(kind)}/{name}")
        except _Refused as refused:
            raise refused.explained(kind, self.namespace) from None

    def list(self, kind: str, labels: str = "", fields: str = "") -> tuple[list[Manifest], str]:
        """Objects of a kind, and the version of the list, from which `watch` goes on."""
        query = {"labelSelector": labels, "fieldSelector": fields}
        try:
            found = self._json("GET", self._path(kind), {key: value for key, value in query.items() if value})
        except _Refused as refused:
            raise refused.explained(kind, self.namespace) from None
        return found["items"], found["metadata"].get("resourceVersion", "")

    def watch(self, kind: str, labels: str, since: str, seconds: int) -> Iterator[tuple[str, Manifest]]:
        """Changes (ADDED, MODIFIED, DELETED; object) from a version on, for so many seconds at most.

        Ends early where the connection breaks, or the version is too old (410): list again, and watch from there.
        """
        query = {
            "watch": "1", "labelSelector": labels, "resourceVersion": since, "timeoutSeconds": str(seconds),
            "allowWatchBookmarks": "false",
        }  # fmt: skip
        try:
            for line in self._lines(self._path(kind), query, seconds + 10.0):
                event = json.loads(line)
                if event["type"] == "ERROR":
                    return
                yield event["type"], event["object"]
        except _Refused as refused:
            if refused.status != _GONE:
                raise refused.explained(kind, self.namespace) from None
        except _broken():
            return

    def log(self, pod: str, container: str, follow: bool, since: str = "") -> Iterator[tuple[str, str]]:
        """Lines of a container's log with their times (RFC 3339), from a time on. Away where the connection breaks."""
        query = {"container": container, "follow": str(follow).lower(), "timestamps": "true"}
        query |= {"sinceTime": since} if since else {}
        try:
            for line in self._lines(f"{self._path('Pod')}/{pod}/log", query, 3600.0):
                moment, _, text = line.decode(errors="replace").partition(" ")
                yield moment, text
        except _Refused as refused:
            if refused.status not in (400, _NOT_FOUND):  # the container has not started, or is gone
                raise refused.explained("Pod", self.namespace) from None
        except _broken() as error:
            raise Away(f"the connection to the log of pod {pod} broke ({error})") from error

    def delete(self, kind: str, name: str, version: str = "") -> bool:
        """Delete an object and what it owns; a missing one is no error.

        version: the only one (metadata.resourceVersion) that may be deleted; false where there is another by now.
        """
        body = {"preconditions": {"resourceVersion": version}} if version else None
        try:
            self._json("DELETE", f"{self._path(kind)}/{name}", {"propagationPolicy": "Background"}, body)
        except _Refused as refused:
            if refused.status == _CONFLICT and version:
                return False
            error = refused.explained(kind, self.namespace)
            if not isinstance(error, NotThere):
                raise error from None
        return True

    # ------------------------------------------------------------------------------------------------------

    def _path(self, kind: str) -> str:
        group, plural = _PATHS[kind]
        return f"{group}/namespaces/{self.namespace}/{plural}"

    def _json(
        self, method: str, path: str, query: Mapping[str, str] | None = None, body: Manifest | None = None
    ) -> Manifest:
        """The answer; a server that is out of reach or out of breath is asked again, which is safe for all we ask."""
        for attempt in range(1, _TRIES + 1):
            try:
                with self._request(method, path, query, body) as response:
                    answer: Manifest = json.loads(response.read())
                    return answer
            except _Refused as refused:
                if refused.status not in _PASSING or attempt == _TRIES:
                    raise
            except _broken() as error:
                if _is_about_certificates(error):
                    raise SettingsError(
                        f"the Kubernetes API at {self._access.configuration.host} and this kubeconfig do not trust "
                        f"each other ({error}); check its certificates (kubectl get pods)"
                    ) from error
                if attempt == _TRIES:
                    raise Away(
                        f"the Kubernetes API at {self._access.configuration.host} does not answer ({error}); check "
                        "the kubeconfig (kubectl get pods), or try again"
                    ) from error
            time.sleep(FIRST_PAUSE * 2 ** (attempt - 1))
        raise AssertionError

    def _lines(self, path: str, query: Mapping[str, str], timeout: float) -> Iterator[bytes]:
        rest = b""
        with self._request("GET", path, query, None, timeout) as response:
            for chunk in response.stream(1 << 14, decode_content=True):
                *lines, rest = (rest + chunk).split(b"\n")
                yield from lines
        if rest:
            yield rest

    def _request(
        self, method: str, path: str, query: Mapping[str, str] | None, body: Manifest | None, timeout: float = 30.0
    ) -> Any:
        """The answer; a request whose credentials are not accepted is repeated once, with those of the moment.

        The client library reads a token's file (tokenFile) but once, and others replace it every hour.
        """
        with contextlib.suppress(_LoggedOut):
            return self._attempt(method, path, query, body, timeout)
        with contextlib.suppress(SettingsError):  # a kubeconfig that is just being written: the old one's 401 counts
            self._access = _connect(self._access.context)
        return self._attempt(method, path, query, body, timeout)

    def _attempt(
        self, method: str, path: str, query: Mapping[str, str] | None, body: Manifest | None, timeout: float
    ) -> Any:
        import urllib3

        kind = "application/merge-patch+json" if method == "PATCH" else "application/json"
        headers = {"Accept": "application/json", "Content-Type": kind}
        configuration = self._access.configuration
        for auth in configuration.auth_settings().values():  # fetches a new token where the old one ran out
            if auth["in"] == "header" and auth["value"]:
                headers[auth["key"]] = auth["value"]
        address = f"{configuration.host}{path}" + (f"?{urlencode(query)}" if query else "")
        response = self._access.pool.request(
            method, address, body=None if body is None else json.dumps(body), headers=headers, preload_content=False,
            retries=False, timeout=urllib3.Timeout(connect=10.0, read=timeout),
        )  # fmt: skip
        if response.status >= 400:
            with _Answer(response):
                refused = _LoggedOut if response.status == _UNAUTHORIZED else _Refused
                raise refused(response.status, response.read().decode(errors="replace"))
        return _Answer(response)


class _Answer:
    """A response as a context manager that gives its connection back."""

    def __init__(self, response: Any) -> None:
        self._response = response

    def __enter__(self) -> Any:
        return self._response

    def __exit__(self, *_: object) -> None:
        self._response.close()
        self._response.release_conn()


class _Refused(Exception):
    """The server answered with an error."""

    def __init__(self, status: int, body: str) -> None:
        super().__init__(body)
        self.status = status
        try:
            self.message = str(json.loads(body)["message"])
        except (ValueError, KeyError, TypeError):
            self.message = body[:500]

    def explained(self, kind: str, namespace: str) -> Exception:
        """The error for the user."""
        remedy = {
            _UNAUTHORIZED: "log in again: the kubeconfig's credentials are not accepted",
            403: f"ask for the Role dfm-submitter in namespace {namespace!r} (deploy/kubernetes/base/access.yaml)",
        }.get(self.status, "try again; the API server's message is all that is known")
        if self.status == _FORBIDDEN and "exceeded quota" in self.message:
            remedy = f"ask for a larger quota (kubectl describe quota -n {namespace}), or for fewer and smaller pods"
        elif self.status == _FORBIDDEN and "being terminated" in self.message:
            remedy = f"namespace {namespace!r} is being deleted; name another one with --namespace"
        elif self.status == _NOT_FOUND and self.message.startswith("namespaces "):
            remedy = f"create it (kubectl create namespace {namespace}) or name another one with --namespace"
        elif self.status == _NOT_FOUND and '"' in self.message:
            return NotThere(self.message)
        elif self.status in (400, 422) and kind in _OF_THE_OPERATOR:
            remedy = "this dfm and the cluster's operator do not fit together: update the CRDs of dask-kubernetes"
        elif self.status == _NOT_FOUND and kind in _OF_THE_OPERATOR:
            remedy = "install the Dask operator (helm install dask-kubernetes-operator, see deploy/README.md)"
        passes = self.status in _PASSING or (self.status == _CONFLICT and "being deleted" in self.message)
        error = Away if passes else Refused
        return error(f"Kubernetes refuses a request for a {kind} ({self.status}): {self.message}; {remedy}")


class _LoggedOut(_Refused):
    """The server does not accept the credentials."""


def run_of(body: Mapping[str, Any]) -> str:
    """The run that an object was made for; "" where it does not say."""
    return str(body["metadata"].get("annotations", {}).get(RUN_ID, ""))


def _broken() -> tuple[type[Exception], ...]:
    """The errors of a broken connection; an answer that was cut short is no JSON."""
    from urllib3.exceptions import HTTPError

    return (HTTPError, OSError, ValueError)


def _is_about_certificates(error: BaseException | None) -> bool:
    """Whether a connection failed for what stands in certificates, and not because the server went away meanwhile."""
    while error is not None:
        if isinstance(error, ssl.SSLError):
            return not isinstance(error, ssl.SSLEOFError | ssl.SSLZeroReturnError)
        error = getattr(error, "reason", None) or error.__cause__ or error.__context__
        error = error if isinstance(error, BaseException) else None
    return False


@dataclass(frozen=True)
class _Access:
    """The client library's configuration and connection pool (TLS, proxies, logins), and the namespace by default.

    context: the kubeconfig's that was chosen, whichever is its current one later; "" in a pod. The library's own calls
    are not used: they differ from version to version.
    """

    configuration: Any
    pool: Any
    context: str
    namespace: str


def _connect(context: str) -> _Access:
    """The access that the kubeconfig, or this process's pod, gives at present."""
    try:
        from kubernetes import client, config
    except ImportError as error:
        raise SettingsError(f"the Kubernetes client is not installed; {pip_install('kubernetes')}") from error
    configuration = client.Configuration()
    try:
        chosen, namespace = _load(config, configuration, context)
        return _Access(configuration, client.ApiClient(configuration).rest_client.pool_manager, chosen, namespace)
    except SettingsError:
        raise
    except Exception as error:  # YAML, base64, certificates, missing keys: whatever a broken file makes of them
        raise SettingsError(
            f"the kubeconfig cannot be used ({type(error).__name__}: {str(error)[:300]}); check it with "
            "kubectl config view and kubectl get pods, or name another one in KUBECONFIG"
        ) from error


def _load(config: Any, configuration: Any, context: str) -> tuple[str, str]:
    """Fill in the configuration from the kubeconfig or, where neither it nor a context is named, from the pod that this
    process runs in; context, namespace.
    """
    named = os.environ.get("KUBECONFIG", "")  # the client library looks only once, when it is imported
    file = named or _KUBECONFIG
    try:
        contexts, current = _contexts(config, file)
    except config.ConfigException:  # it is empty
        if context or named:
            raise
        contexts, current = {}, ""
    chosen = context or current
    if (context or named) and chosen not in contexts:
        raise SettingsError(
            f"no Kubernetes cluster is configured: there is no context {chosen!r} in {file}; there are: "
            f"{', '.join(contexts) or 'none'}. Name one of these with --context, or another file in KUBECONFIG"
        )
    try:
        config.load_kube_config(file, context=chosen or None, client_configuration=configuration)
        return chosen, str(contexts[chosen].get("namespace", "default"))
    except config.ConfigException as no_kubeconfig:
        if context or named:
            raise
        try:
            config.load_incluster_config(client_configuration=configuration)
        except config.ConfigException:
            raise SettingsError(
                f"no Kubernetes cluster is configured ({no_kubeconfig}); set KUBECONFIG, or check kubectl config view"
            ) from None
    return "", Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace").read_text().strip()


def _contexts(config: Any, file: str) -> tuple[dict[str, dict[str, Any]], str]:
    """The contexts of a kubeconfig (of several, where colons stand between paths) by name, and the current one."""
    merged = config.kube_config.KubeConfigMerger(file).config
    if merged is None:
        return {}, ""
    entries = [each.value for each in merged.value["contexts"]]
    return {entry["name"]: entry["context"] for entry in entries}, merged.value.get("current-context") or ""
