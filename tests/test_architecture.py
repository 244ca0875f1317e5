"""Who may import whom: packages build on those below them, and scoring a model needs no cluster and no GPU."""

from __future__ import annotations

import ast
import graphlib
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import dfm
import dfm.kernels.families
import dfm.kernels.optimizers
from dfm.kernels.families.registry import FAMILIES
from dfm.kernels.losses import LOSSES
from dfm.kernels.optimizers import OPTIMIZERS

PACKAGE = Path(dfm.__file__).parent
FLOORS = [
    {"errors", "version", "events"},
    {"compilation"},
    {"storage"},
    {"pages"},
    {"settings"},
    {"data"},
    {"kernels"},
    {"averaging"},
    {"solvers"},
    {"model"},
    {"training"},
    {"distributed"},
    {"runs"},
    {"mlflow"},
    {"jobs"},
    {"launch"},
    {"workflow"},
    {"export", "factorization", "estimators", "kubernetes", "airflow", "cli", "__main__"},
]
"""From the ground up. A module may import its own package and the floors below, at its top or inside a function."""
LIGHT_RECORDS = {
    "averaging.rules",
    "kernels.losses",
    "kernels.records",
    "kernels.schedule",
    *("kernels.optimizers", "kernels.optimizers.record"),
    *(f"kernels.optimizers.{module.name}" for module in pkgutil.iter_modules(dfm.kernels.optimizers.__path__)),
    "kernels.blocks",
    *(f"kernels.families.{module.name}" for module in pkgutil.iter_modules(dfm.kernels.families.__path__)),
    "data.transforms",
}
"""Records of names, numbers and ranges, from which settings take theirs. At their top they import the ground alone;
what a loss or an optimizer is made of is imported inside of the functions that make it."""
DOORS = {
    "cli": {"kubernetes"},
    "airflow": {"kubernetes"},
    "factorization": {"estimators"},
    "__main__": {"cli"},
}
"""Doors that open onto others of the top floor."""
WITH_DASK = ("distributed.", "launch.", "workflow.", "jobs", "factorization", "estimators.", "airflow.", "cli.")
WITH_CUPY = ("kernels.gpu.device",)
WITH_SKLEARN = ("estimators.",)
"""Its classes inherit from those of scikit-learn, so that nothing else may import these modules."""
WITH_AIRFLOW = ("airflow.",)
OPTIONAL = {
    "IPython",
    "airflow",
    "cupy",
    "fastapi",
    "kubernetes",
    "deltalake",
    "matplotlib",
    "mlflow",
    "onnx",
    "pandas",
    "pyiceberg",
    "s3fs",
    "scipy",
    "sklearn",
    "torch",
}

WRITES_JSON = {
    *("events", "settings.job", "settings.constraints", "settings.toml", "data.chunks", "data.reading"),
    *("training.checkpoint", "distributed.scoring", "launch.process", "cli.app", "kubernetes.api"),
    "kubernetes.manifest",
}
"""Who calls json.dumps: to make fingerprints, messages and requests."""


def modules() -> dict[str, ast.Module]:
    """Every module of the package but its own face, by its name below dfm; a package's face has the package's name."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        if name:
            found[name] = ast.parse(path.read_text(), str(path))
    return found


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


def own(full_names: set[str]) -> set[str]:
    """Modules of dfm among imported names; what comes from a module counts as the module, and not as its package."""
    names = {full.removeprefix("dfm.") for full in full_names if full.startswith("dfm.")} & MODULES.keys()
    return {name for name in names if not any(other.startswith(f"{name}.") for other in names)}


def floor_of(name: str) -> int:
    return next(i for i, floor in enumerate(FLOORS) if name.split(".")[0] in floor)


def test_every_package_and_every_lone_module_stands_on_a_floor():
    assert {name.split(".")[0] for name in MODULES} == set().union(*FLOORS)


def test_json_is_written_in_one_place():
    """`json.dumps` writes NaN, which no other reader takes; `events.to_json` does not."""
    found = {
        name
        for name, tree in MODULES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and node.attr in ("dump", "dumps") and ast.unparse(node.value) == "json"
    }
    assert found - WRITES_JSON == set()


RECORDS = {
    "kernels.losses": LOSSES.keys() - {"quantile"},  # which is a transform too
    "kernels.optimizers": OPTIMIZERS.keys(),
    "kernels.families": {*FAMILIES},
}


@pytest.mark.parametrize("home", RECORDS)
def test_names_of_losses_optimizers_and_families_stand_in_their_records_alone(home):
    names = RECORDS[home]
    found = {
        module: texts
        for module, tree in MODULES.items()
        if (texts := {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)} & names)
    }
    assert set().union(*found.values()) == names
    assert all(module.startswith(home) for module in found), found


def test_few_modules_stand_outside_of_a_package():
    assert len(list(PACKAGE.glob("*.py"))) <= 9


@pytest.mark.parametrize("name", MODULES)
def test_a_module_imports_its_own_package_and_lower_floors_only(name):
    package = name.split(".")[0]
    upward = {
        used
        for used in own(imports(MODULES[name])) - LIGHT_RECORDS
        if used.split(".")[0] != package
        and floor_of(used) >= floor_of(name)
        and used.split(".")[0] not in DOORS.get(package, ())
    }
    assert not upward, f"{name} imports {sorted(upward)}, which do not stand below it"


@pytest.mark.parametrize("name", sorted(LIGHT_RECORDS))
def test_a_light_record_imports_the_ground_alone(name):
    at_the_top = imports_at_the_top(MODULES[name])
    assert {used for used in own(at_the_top) - LIGHT_RECORDS if floor_of(used) > 0} == set()
    assert not {full.split(".")[0] for full in at_the_top} & {"numba", "pyarrow", "cupy", "dask"}


def test_names_ranges_defaults_and_help_of_all_knobs_need_no_numba():
    statement = "from dfm.settings import describe; from dfm.averaging.rules import MergeRule; describe(), MergeRule()"
    assert not loaded_after(statement) & {"numba", "pyarrow", "cupy", "dask"}


def test_what_a_dag_is_parsed_with_needs_no_numba():
    parsed = (tree for name, tree in MODULES.items() if name.split(".")[0] == "airflow")
    others = {name for tree in parsed for name in own(imports_at_the_top(tree)) if name.split(".")[0] != "airflow"}
    assert "workflow.gate" in others
    statement = "; ".join(f"import dfm.{name}" for name in sorted(others))
    assert not loaded_after(statement) & {"numba", "pyarrow", "cupy", "dask"}


def test_modules_import_each_other_without_circles():
    graph = {name: own(imports(tree)) - {name.split(".")[0], name} for name, tree in MODULES.items() if "." in name}
    list(graphlib.TopologicalSorter(graph).static_order())


def users_of(*packages: str) -> set[str]:
    return {name for name, tree in MODULES.items() if {full.split(".")[0] for full in imports(tree)} & {*packages}}


def test_training_itself_knows_nothing_of_dask():
    users = users_of("dask", "distributed")
    assert users
    assert all(name.startswith(WITH_DASK) for name in users), users


def test_only_the_gpu_backend_imports_cupy():
    assert users_of("cupy") <= {*WITH_CUPY}


def test_nothing_else_needs_the_estimators():
    others = {name for name in MODULES if not name.startswith((*WITH_SKLEARN, "estimators"))}
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
        "import dfm.model.inspection, dfm.data.preparation, dfm.averaging.merge, dfm.model.metrics"
    )
    loaded = loaded_after(statement)
    assert {"dfm.model", "numba", "pyarrow"} <= loaded
    assert not loaded & {"dask", "distributed", "cupy", "dfm.distributed", "dfm.jobs"}
    assert not loaded & (OPTIONAL - {"scipy"})


def test_importing_dfm_loads_nothing_heavy_and_its_names_are_there_when_used():
    assert not loaded_after("import dfm") & {"dask", "distributed", "numba", "pyarrow", "numpy", "cupy"}
    for name in dfm.__all__:
        assert getattr(dfm, name) is not None
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        dfm.nothing  # noqa: B018 (the access itself is the test)
