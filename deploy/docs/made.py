"""Pages of the reference that are made of dfm's own records, when the site is built. Needs no Sphinx.

`write(folder)` writes each of `PAGES` as Markdown, which a page of the site includes, and `COPIES`: pages that lie
elsewhere in the repository and are shown as they are. `python deploy/docs/made.py NAME` prints one of `PAGES`.
"""

from __future__ import annotations

import ast
import importlib
import os
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
COPIES = {
    "deploy/README.md": "running/clusters",
    "deploy/airflow/README.md": "running/airflow",
    "benchmarks/gpu/README.md": "running/gpus",
    "pipelines/README.md": "examples/index",
    **{f"pipelines/{name}/README.md": f"examples/{name}" for name in (
        "criteo", "sms_spam", "rendle_toy", "movielens", "matrix_completion", "families", "retrieval", "custom_loss",
        "serving",
    )},
}  # fmt: skip
"""Where in the site a page of the repository stands."""
_VECTORS = (
    ("site", "a.example", "a.example"),
    ("site", "", "empty text: missing"),
    ("site", "ä", "text beyond ASCII, in UTF-8"),
    ("ad", "7", "the integer 7, the float 7.0 and the text"),
    ("ad", "-12", "a negative integer"),
    ("price", "0.1", "0.1, of 32 or 64 bits"),
    ("flag", "true", "true"),
    ("day", "2026-11-20", "a date, or a moment at midnight"),
    ("ts", "2026-11-20 06:30:00", "a moment, in UTC"),
    ("site", "a" * 40, "40 times the letter a: more than 32 bytes"),
)


# ---------------------------------------------------------------------------------------------- reference ----


def knobs() -> str:
    """The knobs of a job file, a section for each table: name, default, legal values, meaning."""
    from dfm.settings.job import MATTER_FIRST, describe
    from dfm.settings.tables import TABLES

    found = describe()
    first = ", ".join(f"[`{name}`](#{_anchor(name)})" for name in MATTER_FIRST)
    lines = [f"What matters first: {first}."]
    for table in TABLES:
        lines += ["", f"## [{table}]", ""]
        for one in (one for one in found if one.name.split(".")[0] == table):
            lines += [f"({_anchor(one.name)})=", f"`{one.name} = {one.default}`", f": {_plain(one.help)}"]
            lines += ["", f"  *{_plain(one.legal)}*", ""]
    return "\n".join(lines)


def events() -> str:
    """The kinds of events, and below them each field of each with its kind, unit and meaning."""
    from dfm.events import METRICS, RECORDS, STAMPS, markdown_table

    lines = [markdown_table(), "", "## Fields", ""]
    for record in RECORDS:
        names = {field.name for field in METRICS}
        listed = [field for field in record.fields if field.name not in names or len(record.fields) <= len(names)]
        lines += [f"`{record.name}`, {record.emitter}: {_plain(record.meaning)}", f": {_fields(listed)}", ""]
    lines += ["`(metrics)`: of labelled rows, as far as task and loss define them", f": {_fields(METRICS)}", ""]
    lines += ["Every event that is kept or sent on has besides", f": {_fields(STAMPS)}", ""]
    return "\n".join(lines)


def _fields(fields: Iterable[Any]) -> str:
    told = [f"`{one.name}` {one.kind}{f' ({one.unit})' if one.unit else ''}: {_plain(one.meaning)}" for one in fields]
    return "; ".join(told) or "nothing"


def exit_codes() -> str:
    """The exit codes, and the errors of Python that they stand for."""
    from dfm import errors
    from dfm.cli.app import EXIT_CODES

    text = " ".join(EXIT_CODES.replace("\b", "").split()).removeprefix("Exit codes: ").removesuffix(".")
    raised: dict[int, list[type[errors.DfmError]]] = {}
    for kind in vars(errors).values():
        if isinstance(kind, type) and issubclass(kind, errors.DfmError):
            raised.setdefault(kind.exit_code, []).append(kind)
    lines = ["| exit code | meaning | from Python |", "|---|---|---|"]
    for code, meaning in (told.split(" ", 1) for told in text.split("; ")):
        names = ", ".join(f"`dfm.errors.{kind.__name__}`" for kind in raised.get(int(code), []))
        lines.append(f"| {code} | {meaning} | {names} |")
    lines += ["", "## Errors", ""]
    for kind in (kind for kinds in raised.values() for kind in kinds):
        lines += [f"`{kind.__name__}` ({kind.exit_code})", f": {_plain(' '.join((kind.__doc__ or '').split()))}", ""]
    return "\n".join(lines)


def bad_inputs() -> str:
    """What can be wrong with the rows of a job: the cases that tests run."""
    return _from_tests("bad_inputs").markdown()


def types() -> str:
    """What each type of Arrow becomes: the cases that tests run."""
    return _from_tests("arrow_cases").markdown_table()


def formats() -> str:
    """The versions of what dfm writes."""
    from dfm import events
    from dfm.data import reading
    from dfm.model import folder
    from dfm.training import checkpoint

    versions = sorted({record.version for record in events.RECORDS})
    rows = [
        (
            "a model",
            "`model.json`, `format`",
            f"1 to {folder.FORMAT}",
            "the oldest that can say what the model is",
        ),
        ("a checkpoint", "its manifest, `format`", str(checkpoint.FORMAT), "another one is refused with both numbers"),
        ("a partition cache", "part of every key", str(reading.CACHE_FORMAT), "rows are hashed anew"),
        ("an event", f"`{events.VERSION}`", ", ".join(map(str, versions)), "grows when a field goes or changes"),
    ]
    head = ["| of | where | this dfm | when it differs |", "|---|---|---|---|"]
    return "\n".join([*head, *(f"| {' | '.join(row)} |" for row in rows)])


def hash_vectors() -> str:
    """Values, the text of each that is hashed, and what must come out."""
    from dfm.data.hashing import MISSING, column_seed, token_index
    from dfm.storage.xxhash import hash_bytes

    lines = [
        "| column | text | what it is | seed: XXH64(column) | XXH64(text, seed) | id of 20 bits |",
        "|---|---|---|---|---|---|",
    ]
    for column, text, meaning in _VECTORS:
        data = text.encode() if text else MISSING
        seed = int(column_seed(column))
        shown = f"`{text}`" if text else f"`{MISSING!r}`"
        hashed = hash_bytes(data, seed)
        lines.append(
            f"| `{column}` | {shown} | {meaning} | `{seed:016x}` | `{hashed:016x}` | {token_index(column, data, 20)} |"
        )
    return "\n".join(lines)


def glossary() -> str:
    """The glossary of the package's docstring."""
    import dfm

    text = (dfm.__doc__ or "").split("--------\n", 1)[1]
    head, *rest = text.split("\n", 1)
    lines = [head, "", "```{glossary}"]
    for line in rest[0].strip("\n").split("\n"):
        lines.append(_plain(line) if line.startswith("    ") else f"\n{line}")
    return "\n".join([*lines, "```"])


def parts() -> str:
    """Families, losses, optimizers, transforms and merge rules, of their records."""
    from dfm.averaging.rules import WEIGHT_RULES
    from dfm.data.transforms import TRANSFORMS
    from dfm.kernels.families.registry import FAMILIES, family_of
    from dfm.kernels.losses import LOSSES
    from dfm.kernels.optimizers import OPTIMIZERS

    def mark(flag: object) -> str:
        return "yes" if flag else "no"

    lines = ["## Families", "", "| family | meaning | GPUs | pairs of rows |", "|---|---|---|---|"]
    for one in map(family_of, FAMILIES):
        lines.append(
            f"| `{one.name}` | {_plain(one.summary)} | {mark(one.cuda is not None)} | {mark(one.knows_pairs)} |"
        )
    lines += ["", "## Losses", "", "| loss | task | link | GPUs |", "|---|---|---|---|"]
    for loss in LOSSES.values():
        lines.append(f"| `{loss.name}` | {loss.task} | {loss.link} | {mark(loss.cuda is not None)} |")
    lines += ["", "## Optimizers", "", "| optimizer | own knobs | GPUs |", "|---|---|---|"]
    for optimizer in OPTIMIZERS.values():
        own = ", ".join(f"`{each.name}`" for each in optimizer.parameters)
        lines.append(f"| `{optimizer.name}` | {own} | {mark(optimizer.cuda is not None)} |")
    lines += ["", "## Transforms of numbers", "", "| transform | meaning | makes |", "|---|---|---|"]
    for transform in TRANSFORMS.values():
        makes = "a category" if transform.makes_buckets else "a value"
        lines.append(f"| `{transform.name}` | {transform.meaning} | {makes} |")
    lines += ["", "## Merge rules", "", "| rule | reads squared gradients |", "|---|---|"]
    lines += [f"| `{rule.name}` | {mark(rule.by_accumulators)} |" for rule in WEIGHT_RULES.values()]
    return "\n".join(lines)


def airflow() -> str:
    """The names of dfm.airflow with their docstrings, read from the source: Airflow is not here."""
    from dfm.airflow import _HOMES

    lines: list[str] = []
    for name in sorted(_HOMES):
        source = (ROOT / "dfm" / "airflow" / f"{_HOMES[name]}.py").read_text(encoding="utf-8")
        (found,) = [node for node in ast.parse(source).body if getattr(node, "name", "") == name]
        assert isinstance(found, ast.ClassDef | ast.FunctionDef)
        text, *parameters = (ast.get_docstring(found) or "").split("\n:param ")
        lines += [f"## {name}", "", _plain(text), ""]
        for parameter in parameters:
            argument, meaning = parameter.split(":", 1)
            lines += [f"`{argument}`", f": {_plain(' '.join(meaning.split()))}", ""]
    return "\n".join(lines)


PAGES: Mapping[str, Callable[[], str]] = {
    "airflow": airflow,
    "bad_inputs": bad_inputs,
    "events": events,
    "exit_codes": exit_codes,
    "formats": formats,
    "glossary": glossary,
    "hash_vectors": hash_vectors,
    "knobs": knobs,
    "parts": parts,
    "types": types,
}


def _anchor(name: str) -> str:
    return "knob-" + re.sub(r"\W", "-", name)


def _plain(text: str) -> str:
    """Text that Markdown leaves as it is, but for what stands in backticks."""
    return re.sub(r"(`[^`]*`)|([*_<>\[\]|$#{}\\])", lambda found: found[1] or f"\\{found[2]}", text)


def _from_tests(name: str) -> Any:
    """A module of tests/support, whose tables tests run."""
    if str(ROOT) not in sys.path:
        sys.path.insert(0, str(ROOT))
    return importlib.import_module(f"tests.support.{name}")


# ------------------------------------------------------------------------------- pages from elsewhere ----


def copied(source: str) -> str:
    """A page of the repository with its links and pictures as they are from its place in the site."""
    path, target = ROOT / source, Path(COPIES[source])

    def moved(match: re.Match[str]) -> str:
        link, anchor = re.fullmatch(r"([^#]*)(#.*)?", match["link"]).groups()  # type: ignore[union-attr]
        if not link or link.startswith(("https://", "http://")):
            return match[0]
        beside = os.path.relpath((path.parent / link).resolve(), ROOT)
        if beside in COPIES:
            return f"]({os.path.relpath(COPIES[beside], target.parent)}.md{anchor or ''})"
        if (ROOT / beside).suffix in (".png", ".svg"):
            return f"](/_build/copies/{_picture(beside)})"
        return f"](https://dfm.invalid/{beside})"

    text = re.sub(r"\]\((?P<link>[^)\s]+)\)", moved, path.read_text(encoding="utf-8"))
    return re.sub(r"\[([^\]]+)\]\(https://dfm\.invalid/([^)]+)\)", r"\1 (`\2`)", text)


def _picture(path: str) -> str:
    return path.replace("/", "-")


def pictures() -> dict[str, Path]:
    """The pictures of the pages from elsewhere, by the names that they get."""
    found = {}
    for source in COPIES:
        path = ROOT / source
        for link in re.findall(r"!\[[^\]]*\]\(([^)\s]+)\)", path.read_text(encoding="utf-8")):
            picture = (path.parent / link).resolve()
            found[_picture(os.path.relpath(picture, ROOT))] = picture
    return found


def write(folder: Path) -> None:
    """Write everything that is made below a folder, and leave alone what is the same."""
    texts = {f"made/{name}.md": make().encode() for name, make in PAGES.items()}
    texts |= {f"copies/{target}.md": copied(source).encode() for source, target in COPIES.items()}
    texts |= {f"copies/{name}": path.read_bytes() for name, path in pictures().items()}
    for name, data in texts.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists() or path.read_bytes() != data:
            path.write_bytes(data)


if __name__ == "__main__":
    print(PAGES[sys.argv[1]]())
