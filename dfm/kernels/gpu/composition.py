"""CUDA programs put together from a .cu file and the texts that records of losses and optimizers hold."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from dfm.errors import SettingsError
from dfm.kernels.contract import Rates
from dfm.kernels.optimizers import OPTIMIZERS
from dfm.kernels.optimizers.record import Optimizer

ON_GPU = {name: optimizer for name, optimizer in OPTIMIZERS.items() if optimizer.cuda is not None}
"""Optimizers that the GPU has code for."""
_OWN = [own.name for optimizer in ON_GPU.values() for own in optimizer.parameters]
RATES = (*Rates._fields[:-1], *_OWN)
"""Numbers of a step that the kernels are told: `struct Rates` of the .cu, field by field."""
RATES_TEXT = "".join(f"    float {name};\n" for name in RATES)


def optimizer_on_gpu(name: str) -> Optimizer:
    """The optimizer of that name. SettingsError where the GPU has no code for it."""
    if name not in ON_GPU:
        raise SettingsError(
            f"the GPU has no code for optimizer = {name!r}, only for {', '.join(ON_GPU)}; choose one of these, or "
            'training.backend = "numba"'
        )
    return ON_GPU[name]


def compose(source: Path, numbers: Mapping[str, object], texts: Mapping[str, str]) -> str:
    """A .cu file behind its compile-time numbers, each text in place of the line that names it: `// {name}`."""
    program = source.read_text(encoding="utf-8")
    for name, text in texts.items():
        before, marker, after = program.partition(f"// {{{name}}}\n")
        assert marker, f"{source.name} has no place for {name}"
        program = before + text + after
    return "".join(f"#define {name} {number}\n" for name, number in numbers.items()) + program
