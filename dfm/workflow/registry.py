"""Which model is the champion: an alias names it, and a model becomes it only where the gate lets it through.

An alias is a folder (or URL) of small files, one a version: `v000001.json`, `v000002.json`, … The highest one names the
champion. A file is made only where none exists, so of two publications at once one succeeds and the other learns of it;
a reader sees the old champion or the new one. Nothing is ever changed or removed: the folder is the history.

A version names a model by its place and by what was there when it was promoted. Where another model lies there by now,
it is no champion: it is neither compared, served nor gone back to.
"""

from __future__ import annotations

import dataclasses
import datetime
import json
import logging
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from dfm.data.reading import fingerprint
from dfm.errors import GateError, ModelError
from dfm.events import to_json
from dfm.model.fm_model import FMModel
from dfm.model.folder import MANIFEST, read_manifest
from dfm.storage import files
from dfm.workflow.gate import Verdict
from dfm.workflow.moments import are_comparable, is_earlier

logger = logging.getLogger(__name__)


class Overtaken(GateError):
    """Another model became the champion in the meantime; judge again."""


_VERSION = re.compile(r"v(\d{6,})\.json")
_NO_PART_OF_PREDICTIONS = ("format", "files", "metadata", "superseded")
"""Keys of a manifest that change no prediction, but for the checksum of the parameters among the files."""


@dataclass(frozen=True)
class Version:
    """One entry of an alias: the champion from `time` (ISO 8601, UTC) until the next entry."""

    number: int
    model: str
    parameters_sha256: str
    action: str = "promote"
    """"promote" or "rollback"."""
    previous: int = 0
    """The version that a rollback goes back to; 0: none."""
    withdrawn: str = ""
    """The parameters that a rollback took out of service (sha256)."""
    order: str = ""
    """When the model's data ended, a moment as in ISO 8601 (`dfm.workflow.moments`): an earlier one never replaces a
    later one."""
    reason: str = ""
    time: str = ""
    candidate: dict[str, Any] = field(default_factory=dict)
    champion: dict[str, Any] = field(default_factory=dict)
    model_sha256: str = ""
    """All that its predictions are made of (`Marks.predicting`); "" in entries of earlier versions of dfm."""


def versions(alias: str, options: files.Options = None) -> list[Version]:
    """All entries of an alias, oldest first; none where there is no such alias yet."""
    names = [name for name in files.names_in(alias, options) if _VERSION.fullmatch(name)]
    return [_read(files.join(alias, name), options) for name in sorted(names, key=_number)]


def champion(alias: str, options: files.Options = None) -> Version | None:
    """The present entry of an alias."""
    names = [name for name in files.names_in(alias, options) if _VERSION.fullmatch(name)]
    return _read(files.join(alias, max(names, key=_number)), options) if names else None


def model_of(url: str, options: files.Options = None) -> str:
    """The model that a URL means: of an alias its champion, else the URL itself. ModelError where another model lies
    in the champion's place.
    """
    if files.exists(files.join(url, MANIFEST), options):
        return url
    present = champion(url, options)
    if present is None:
        return url
    if files.exists(files.join(present.model, MANIFEST), options):
        check_in_place(url, present, options)
    return present.model


def check_in_place(alias: str, entry: Version, options: files.Options = None) -> None:
    """ModelError where the model that an entry of an alias names is gone, or another one lies in its place."""
    found = marks_of(entry.model, options)
    if _is_of(entry, *found):
        return
    changed = f"parameters {found.parameters[:12]} in place of {entry.parameters_sha256[:12]}"
    if found.parameters == entry.parameters_sha256:
        changed = "the same parameters, with another calibration, range or reading of values"
    raise ModelError(
        f"version {entry.number} of {alias} names the model at {entry.model}, which was overwritten ({changed}): it "
        "can be neither compared, served nor gone back to. Put the model of the version back in its place, or begin "
        "anew with another alias; where the model of the version before is still in place, dfm rollback serves that. "
        'Give each model a folder of its own (output.directory = "results/2026-11-28")'
    )


def _number(name: str) -> int:
    match = _VERSION.fullmatch(name)
    return int(match[1]) if match else 0


def _read(url: str, options: files.Options) -> Version:
    try:
        found, known = json.loads(files.read_bytes(url, options)), {entry.name for entry in dataclasses.fields(Version)}
        return Version(**{name: value for name, value in found.items() if name in known})
    except (ValueError, TypeError, AttributeError) as error:
        raise ModelError(f"{url} is no version of an alias ({error}); restore it, the folder is append-only") from error


class Marks(NamedTuple):
    """The checksums that tell one model from another (sha256, hex)."""

    parameters: str
    predicting: str
    """That of all that its predictions are made of: parameters and calibration, range, loss, statistics and schema, and
    not when or by whom it was trained."""


def marks_of(model: str, options: files.Options = None) -> Marks:
    """The marks of a model, as its manifest tells them."""
    manifest = read_manifest(model, options)
    try:
        parameters = str(manifest["files"]["parameters"]["sha256"])
    except (KeyError, TypeError) as error:
        raise ModelError(f"the model at {model} is damaged ({error}); publish it again") from error
    told = {name: value for name, value in manifest.items() if name not in _NO_PART_OF_PREDICTIONS}
    return Marks(parameters, fingerprint(told, parameters))


def check_unchanged(model: str, before: Marks, done: str, options: files.Options = None) -> None:
    """ModelError where the model that had these marks was replaced while something was done with it."""
    if marks_of(model, options) != before:
        raise ModelError(
            f"the model at {model} was replaced while it was {done}, so that what was found may be of either; run "
            'again, and give each model a folder of its own (output.directory = "results/2026-11-28")'
        )


def _is_of(entry: Version, parameters: str, predicting: str) -> bool:
    """Whether an entry is of a model; one of an earlier version of dfm knows its parameters alone. predicting: "" where
    they are all that is asked for.
    """
    same = not (entry.model_sha256 and predicting) or entry.model_sha256 == predicting
    return same and entry.parameters_sha256 == parameters


def published_as(history: Sequence[Version], model: str, parameters: str, predicting: str = "") -> Version | None:
    """The version by which a model became the champion last, unless it was withdrawn since."""
    if _withdrawals(history, parameters, predicting):
        return None
    same = [entry for entry in history if entry.model == model and _is_of(entry, parameters, predicting)]
    return same[-1] if same else None


def _withdrawals(history: Sequence[Version], parameters: str, predicting: str) -> list[Version]:
    """The entries that took a model out of service: that of the entry before each."""
    before = {entry.number + 1: entry for entry in history}
    return [
        entry
        for entry in history
        if entry.withdrawn == parameters
        and (entry.number not in before or _is_of(before[entry.number], parameters, predicting))
    ]


def objections(history: Sequence[Version], parameters: str, order: str, predicting: str = "") -> list[str]:
    """Why an alias with this history should not take a model of these marks, whatever its metrics."""
    found = [reason for reason in [_set_back(history, order)] if reason]
    return found + [
        f"it was the champion before, and was withdrawn by version {entry.number} ({entry.reason})"
        for entry in _withdrawals(history, parameters, predicting)
    ]


def is_left_behind(alias: str, model: str, order: str, options: files.Options = None) -> str:
    """The reason why a model that was the champion before, or of earlier data, is left alone, whatever it is worth;
    empty otherwise.
    """
    history, where = versions(alias, options), _absolute(model)
    known = published_as(history, where, *marks_of(where, options))
    if known is None:
        return _set_back(history, order)
    if known.number == history[-1].number:
        return ""
    return f"it was version {known.number}, and the champion is version {history[-1].number} now: {history[-1].model}"


def _set_back(history: Sequence[Version], order: str) -> str:
    present = history[-1] if history else None
    if not (present and order and present.order and is_earlier(order, present.order)):
        return ""
    return f"its data end at {order}, those of the champion at {present.order}: it would set the alias back in time"


def promote(
    alias: str,
    model: str,
    verdict: Verdict,
    *,
    order: str = "",
    seen: int | None = None,
    judged: Marks | None = None,
    options: files.Options = None,
) -> Version:
    """Make a model the champion. GateError where the verdict or the history of the alias speaks against it.

    seen: number of the version that the verdict compared with (0: none); with another one in its place it is Overtaken.
    judged: marks of the model that the verdict is of. ModelError where this model, or that of the version which was
    seen, was replaced meanwhile. A model that was promoted before is left where it stands, without a new version. The
    model is loaded first: what does not score its golden rows is never published.
    """
    where = _absolute(model)
    if judged is not None:
        check_unchanged(where, judged, "judged", options)
    parameters, predicting = judged or marks_of(where, options)
    history = versions(alias, options)
    present = history[-1] if history else None
    number = present.number if present else 0
    if present and seen == number:
        check_in_place(alias, present, options)
    if known := published_as(history, where, parameters, predicting):
        return known
    if refusals := [*verdict.refusals, *objections(history, parameters, order, predicting)]:
        raise GateError(f"{model} does not become the champion of {alias}: {'; '.join(refusals)}")
    if seen is not None and seen != number:
        raise Overtaken(_overtaken(alias, seen, number))
    _tell_of_other_order(alias, present, order)
    FMModel.load(where, options)
    entry = Version(
        number + 1, where, parameters, "promote", number, "", order, "passed the gate", _now(),
        verdict.candidate, verdict.champion, predicting,
    )  # fmt: skip
    return _append(alias, entry, options)


def _tell_of_other_order(alias: str, present: Version | None, order: str) -> None:
    if present and order and present.order and not are_comparable(order, present.order):
        logger.warning(
            "nothing says whether a model whose order is %r is older than the champion of %s, whose order is %r: it "
            "takes its place. Give orders of one kind: moments (2026-11-30), or texts or numbers without a date",
            order, alias, present.order,
        )  # fmt: skip


def rollback(alias: str, reason: str = "", options: files.Options = None) -> Version:
    """Make the champion before the present one the champion again; a second call goes back one further.

    The present one is withdrawn: promoting it again is refused. GateError where there is none to go back to, ModelError
    where another model lies in its place by now.
    """
    history = {entry.number: entry for entry in versions(alias, options)}
    present = history[max(history)] if history else None
    target = history.get(present.previous) if present else None
    if present is None or target is None:
        raise GateError(f"{alias} has no champion to go back to; it has {len(history)} versions")
    check_in_place(alias, target, options)
    FMModel.load(target.model, options)
    entry = Version(
        present.number + 1, target.model, target.parameters_sha256, "rollback", target.previous,
        present.parameters_sha256, target.order, reason or "rolled back", _now(), target.candidate, target.champion,
        target.model_sha256,
    )  # fmt: skip
    return _append(alias, entry, options)


def _append(alias: str, entry: Version, options: files.Options) -> Version:
    data = to_json(dataclasses.asdict(entry), indent=1).encode()
    try:
        files.create_bytes(files.join(alias, f"v{entry.number:06d}.json"), data, options)
    except FileExistsError as error:
        raise Overtaken(_overtaken(alias, entry.number - 1, entry.number)) from error
    return entry


def _overtaken(alias: str, seen: int, found: int) -> str:
    return f"{alias} went from version {seen} to {found} in the meantime; compare with the new champion and try again"


def _absolute(url: str) -> str:
    return os.path.abspath(files.local_path(url)) if files.is_local(url) else url


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
