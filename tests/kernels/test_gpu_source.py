"""The CUDA program where there is no GPU: it compiles, moves 16 bytes at a time, and fits the contract."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import re

import numpy as np
import pytest

from dfm.errors import SettingsError
from dfm.kernels.contract import Kernels, KernelSpec
from dfm.kernels.cpu import backend as numba_cpu
from dfm.kernels.custom.functions import CustomLoss, CustomRegularizer
from dfm.kernels.gpu import backend as cupy_gpu
from dfm.kernels.gpu import device as cupy_device
from dfm.kernels.gpu.composition import ON_GPU
from dfm.kernels.losses import LOSSES
from dfm.kernels.optimizers import OPTIMIZERS
from dfm.kernels.tables import Layout
from tests.support import nvrtc
from tests.support.host_gpu import library_of

needs_nvrtc = pytest.mark.skipif(nvrtc.find_library() is None, reason="nvidia-cuda-nvrtc-cu12 is not installed")
CHIPS = ["compute_80", "compute_90"]
SPECS = [
    KernelSpec("logistic", "adagrad", 16),
    KernelSpec("logistic", "adagrad-row", 16),
    KernelSpec("squared", "ftrl", 3),
    KernelSpec("logistic", "sgd", 0),
    KernelSpec("logistic", "adagrad-row", 256),
    KernelSpec("logistic", "adagrad-row", 16, factor_dtype="bfloat16"),
    KernelSpec("squared", "adagrad", 20, factor_dtype="float16"),
    KernelSpec("hinge", "sgd", 8),
    KernelSpec("poisson", "adagrad", 4),
    KernelSpec("quantile", "adagrad-row", 5, loss_parameter=0.9),
    KernelSpec("huber", "ftrl", 8),
]


@functools.cache
def ptx_of(spec: KernelSpec, chip: str) -> str:
    return nvrtc.compile_ptx(cupy_gpu.source_of(spec), chip)


def kernel(ptx: str, name: str) -> str:
    """The instructions of one kernel."""
    found = re.search(rf"\.entry {name}\(.*?^}}", ptx, re.S | re.M)
    assert found
    return found[0]


def accesses(text: str, kind: str) -> list[str]:
    """Names of all instructions of a kind such as "atom", in full."""
    return re.findall(rf"\b({kind}\.\S+)", text)


@needs_nvrtc
@pytest.mark.parametrize("chip", CHIPS)
@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_the_program_compiles_for_every_chip(spec: KernelSpec, chip: str) -> None:
    ptx = ptx_of(spec, chip)
    names = {"train_rows", "score_rows", "refresh_weights"}
    if spec.factor_dtype != "float32":
        names |= {"narrow_factors", "widen_factors"}
    assert set(re.findall(r"\.entry (\w+)", ptx)) == names
    assert ".local" not in ptx, "an array went to slow memory"


@needs_nvrtc
@pytest.mark.parametrize("chip", CHIPS)
def test_factors_are_read_16_bytes_at_a_time_past_the_first_level_cache(chip: str) -> None:
    for spec in SPECS[:2]:
        for name in ("train_rows", "score_rows"):
            loads = accesses(kernel(ptx_of(spec, chip), name), "ld")
            assert loads.count("ld.global.cg.v4.f32") >= 4, "several are in flight at a time"
            assert not [load for load in loads if load.startswith("ld.global.cg.v2")]
    halves = accesses(kernel(ptx_of(SPECS[5], chip), "train_rows"), "ld")
    assert "ld.global.cg.v4.u16" in halves


@needs_nvrtc
def test_additions_to_factors_are_one_instruction_of_16_bytes_on_hopper() -> None:
    for spec, least in ((SPECS[0], 4), (SPECS[1], 2)):
        atomics = accesses(kernel(ptx_of(spec, "compute_90"), "train_rows"), "(?:atom|red)")
        assert sum(name == "atom.global.add.v4.f32" for name in atomics) >= least
    assert not [name for name in accesses(ptx_of(SPECS[0], "compute_80"), "(?:atom|red)") if ".v4" in name]


@needs_nvrtc
@pytest.mark.parametrize("chip", CHIPS)
@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_no_atomic_has_to_ask_which_memory_it_is_about(spec: KernelSpec, chip: str) -> None:
    atomics = accesses(ptx_of(spec, chip), "(?:atom|red)")
    in_code = [name for name in atomics if name.startswith(("atom.", "red.")) and "add" in name]
    assert in_code
    assert all(name.startswith(("atom.global", "atom.shared", "red.global", "red.shared")) for name in in_code)


def test_both_backends_export_the_same_names() -> None:
    for name in ("compile_kernels",):
        ours, other = getattr(cupy_gpu, name), getattr(numba_cpu, name)
        assert inspect.signature(ours) == inspect.signature(other)
    assert {field.name for field in dataclasses.fields(Kernels)} == {"spec", "run_round", "scores"}


def test_both_backends_know_the_same_optimizers_by_the_same_state() -> None:
    """What only one of them knows is refused by the other in so many words."""
    for name, optimizer in OPTIMIZERS.items():
        spec = KernelSpec("logistic", name, 8)
        if optimizer.cuda is None:
            with pytest.raises(SettingsError, match=f"GPU has no code for optimizer = '{name}'"):
                cupy_gpu.source_of(spec)
            continue
        source = cupy_gpu.source_of(spec)
        assert optimizer.cuda in source
        assert optimizer.factor_state <= 1, "one accumulator per coordinate of V is all that the program knows"
        assert ("float derived_weight(float z" in source) == optimizer.derives_weights


def test_the_program_of_a_loss_holds_its_text() -> None:
    for loss in LOSSES.values():
        if loss.is_paired:
            continue
        assert loss.cuda is not None
        assert loss.cuda in cupy_gpu.source_of(KernelSpec(loss.name, "sgd", 4))


def test_what_the_gpu_does_not_do_is_refused_with_the_way_out() -> None:
    own = CustomLoss.of(lambda score, y: (score - y) ** 4)
    with pytest.raises(SettingsError, match=r"no code for the loss '<lambda>'.*training.backend = \"numba\""):
        cupy_gpu.compile_kernels(KernelSpec(own, "sgd", 4))
    penalty = CustomRegularizer.of(lambda w: abs(w))
    with pytest.raises(SettingsError, match=r"no code for regularizer.*training.backend = \"numba\""):
        cupy_gpu.compile_kernels(KernelSpec("logistic", "sgd", 4, regularizer=penalty))
    with pytest.raises(SettingsError, match=r"no code for optimizer = 'adam'.*training.backend = \"numba\""):
        cupy_gpu.compile_kernels(KernelSpec("logistic", "adam", 4))
    with pytest.raises(SettingsError, match="'nothing'"):
        cupy_gpu.compile_kernels(KernelSpec("logistic", "nothing", 4))
    with pytest.raises(SettingsError, match="factor_dtype = 'int8'"):
        cupy_gpu.compile_kernels(KernelSpec("logistic", "sgd", 4, factor_dtype="int8"))
    with pytest.raises(SettingsError, match=r'factor_dtype = "float16" is for GPUs.*training.backend = "cupy"'):
        numba_cpu.compile_kernels(KernelSpec("logistic", "sgd", 4, factor_dtype="float16"))


def test_widths_of_the_program_are_those_of_the_layout() -> None:
    for name in ON_GPU:
        for k in (0, 3, 16, 20):
            layout, source = Layout(name, k), cupy_gpu.source_of(KernelSpec("logistic", name, k))
            assert f"#define N_FACTORS {k}\n#define LANES {layout.lanes}\n" in source
            assert (layout.factor_width > layout.lanes) == (name in ("adagrad", "ftrl") and k > 0)


def test_the_launch_record_is_the_same_here_and_there() -> None:
    text = cupy_gpu.source_of(KernelSpec("logistic", "sgd", 4))
    assert library_of(text).record_bytes() == cupy_gpu.LAUNCH.itemsize
    fields: list[str] = []
    for struct in ("Rows", "Table", "Rates", "Launch"):
        body = re.search(rf"^struct {struct} {{$(.*?)^}};$", text, re.S | re.M)
        assert body
        names = re.findall(r"[ *](\w+);", re.sub(r"//.*", "", body[1]))
        expected = cupy_gpu.LAUNCH if struct == "Launch" else cupy_gpu.LAUNCH[struct.lower()]
        assert names == list(expected.names or ())
        fields += names
    assert len(fields) > 30


def test_a_machine_without_gpu_says_why() -> None:
    name, reason = cupy_device.availability()
    assert bool(name) != bool(reason)
    assert name or re.search(r"dask-fm\[cuda12\]|no usable GPU", reason)
    assert np.dtype(cupy_gpu.LAUNCH).isalignedstruct
