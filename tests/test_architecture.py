"""Who may import whom: modules build on those above them, and scoring a model needs no cluster and no GPU."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import dfm

PACKAGE = Path(dfm.__file__).parent
ORDER = [
    *("errors", "gate", "compilation", "credentials", "settings", "schema", "patience", "storage", "ownership"),
    *("runs", "arrays"),
    *("timesplit", "heartbeat"),
    "manifest",
    *("ingest", "duplicates"),
    *("hashing", "vocabulary", "partition", "encoding", "rowwise", "accounting", "preparation"),
    *("params", "slices", "costs"),
    *("kernels.contract", "kernels.arithmetic", "kernels.dual", "kernels.snapshot", "kernels.custom", "kernels.losses"),
    *("kernels.simd", "kernels.optimizers", "kernels.step_passes", "kernels.adam_passes", "kernels.row_passes"),
    *("kernels.numba_cpu", "kernels.gpu_plan", "kernels.gpu_memory", "kernels.gpu_tables"),
    *("kernels.cupy_device", "kernels.cupy_gpu"),
    *(
        "contributions",
        "averaging",
        "gpu_averaging",
        "metrics",
        "matrices",
        "objective",
        "model",
        "warmstart",
        "promotion",
    ),
    *("datacheck", "nightreport", "export", "inspection", "synth", "checkpoint"),
    *("distributed.release", "distributed.newcomers", "distributed.carried", "distributed.joining"),
    "distributed.versions",
    *("distributed.cluster", "distributed.placement", "distributed.inputs"),
    *("distributed.prepare", "distributed.rounds", "distributed.observing"),
    *("distributed.backends", "distributed.predict"),
    *("distributed.checkpointing", "distributed.progress", "distributed.loop", "distributed.publishing"),
    *("distributed.train", "distributed.retire"),
    *("footprint", "jobs", "outcome", "driver", "submission", "detached", "steps"),
    *("kubernetes.sizing", "kubernetes.manifest", "kubernetes.api", "kubernetes.following", "kubernetes.submitting"),
    *("airflow.hooks", "airflow.runtime", "airflow.links", "airflow.provider", "airflow.triggers", "airflow.sensors"),
    *("airflow.tasks", "airflow.operators"),
    *("demo", "report", "cli_kubernetes", "cli_runs", "cli_publish", "cli", "__main__"),
    *("inputs", "labels", "fitting", "distributed.crew", "distributed.collections", "factorization"),
    *("estimators.recipes", "estimators.outputs", "estimators.elsewhere", "estimators.base"),
    *("estimators.classifiers", "estimators.regressors"),
]
"""Every module; each may import those before it, at its top or inside a function."""
TYPES_ONLY = {("kernels.contract", "kernels.losses"), ("kernels.contract", "kernels.custom")}
"""Imports for annotations alone, which never run."""
WITH_DASK = ("distributed.", "jobs", "submission", "steps", "airflow.")
WITH_CUPY = ("kernels.cupy_device",)
WITH_SKLEARN = ("estimators.",)
"""Its classes inherit from those of scikit-learn, so that nothing else may import these modules."""
WITH_AIRFLOW = ("airflow.",)
OPTIONAL = {"airflow", "cupy", "kubernetes", "matplotlib", "onnx", "pandas", "s3fs", "scipy", "sklearn", "torch"}


def modules() -> dict[str, ast.Module]:
    """Every module of the package but the `__init__` files, by its name below dfm."""
    paths = {path.relative_to(PACKAGE).with_suffix(""): path for path in sorted(PACKAGE.rglob("*.py"))}
    return {
        ".".join(name.parts): ast.parse(path.read_text(), str(path))
        for name, path in paths.items()
        if name.name != "__init__"
    }


def imports(tree: ast.AST) -> set[str]:
    """Full names of all that is imported anywhere below a node; `from a import b` gives a and a.b."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: imports are written in full"
            found |= {str(node.module), *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def imports_at_the_top(tree: ast.Module) -> set[str]:
    statements = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    return set().union(*map(imports, statements))


MODULES = modules()


def test_the_order_names_every_module_once():
    """A new module gets its place in ORDER: as early as what it imports allows."""
    assert sorted(ORDER) == sorted(MODULES)


@pytest.mark.parametrize("name", ORDER)
def test_a_module_imports_only_modules_before_it(name):
    used = {full.removeprefix("dfm.") for full in imports(MODULES[name]) if full.startswith("dfm.")} & set(ORDER)
    allowed = {*ORDER[: ORDER.index(name)], *(later for module, later in TYPES_ONLY if module == name)}
    assert used <= allowed, f"{name} imports {sorted(used - allowed)}, which come after it"


def users_of(*packages: str) -> set[str]:
    return {name for name, tree in MODULES.items() if {full.split(".")[0] for full in imports(tree)} & {*packages}}


def test_only_the_distributed_part_imports_dask():
    users = users_of("dask", "distributed")
    assert users
    assert all(name.startswith(WITH_DASK) for name in users), users


def test_only_the_gpu_backend_imports_cupy():
    assert users_of("cupy") <= {*WITH_CUPY}


def test_nothing_else_needs_the_estimators():
    others = {name for name in MODULES if not name.startswith(WITH_SKLEARN)}
    assert not {name for name in others if any(full.startswith("dfm.estimators") for full in imports(MODULES[name]))}


def test_optional_packages_are_imported_where_they_are_needed_not_at_the_top():
    for name, tree in MODULES.items():
        if not name.startswith((*WITH_CUPY, *WITH_SKLEARN, *WITH_AIRFLOW)):
            assert not {i.split(".")[0] for i in imports_at_the_top(tree)} & OPTIONAL, name


LOADED = "import sys; print(*sorted({name.split('.')[0] for name in sys.modules} | set(sys.modules)))"


def loaded_after(statement: str) -> set[str]:
    """Names of all modules that a fresh interpreter holds after a statement."""
    command = [sys.executable, "-c", f"{statement}; {LOADED}"]
    return set(subprocess.run(command, capture_output=True, text=True, check=True, cwd=PACKAGE.parent).stdout.split())


def test_scoring_needs_neither_dask_nor_cupy():
    statement = (
        "import pickle, dfm.model; from dfm.model import FMModel; FMModel.load, FMModel.predict; "
        "import dfm.inspection, dfm.preparation, dfm.averaging, dfm.metrics"
    )
    loaded = loaded_after(statement)
    assert {"dfm.model", "numba", "pyarrow"} <= loaded
    assert not loaded & {"dask", "distributed", "cupy", "dfm.distributed", "dfm.jobs"}
    assert not loaded & (OPTIONAL - {"scipy"})


def test_importing_dfm_loads_nothing_heavy_and_its_names_are_there_when_used():
    assert not loaded_after("import dfm") & {"dask", "distributed", "numba", "pyarrow", "numpy", "cupy"}
    for name in dfm.__all__:
        assert getattr(dfm, name).__name__ == name
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        dfm.nothing  # noqa: B018 (the access itself is the test)
