"""Write the DaskJob and the disruption budget of base, and the patches of the overlays, after a change:
`python deploy/kubernetes/render.py`.

The DaskJob is the one that `dfm submit --kubernetes` makes of base/job.toml, so the two ways to run a job cannot drift
apart. An overlay's patch is the difference that its settings make.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import yaml

from dfm.kubernetes import manifest, sizing
from dfm.settings import load_job

HERE = Path(__file__).parent
NAME, NAMESPACE = "dfm-train", "dfm"
OVERLAYS: dict[str, list[str]] = {
    "small": ["workers=1", "worker_memory='2GiB'", "driver_memory='1GiB'", "scratch='5GiB'"],
    "production": [
        "workers=8", "worker_cpus=2", "worker_memory='12GiB'", "driver_memory='4GiB'", "scheduler_memory='2GiB'",
        "scratch='100GiB'", "scratch_claim='local-nvme'", "deadline=43200", "image='registry.example.com/dfm:0.2.0'",
    ],
    "gpu": ["workers=2", "gpus=1", "worker_memory='16GiB'", "image='dfm:latest-cuda12'"],
    "spot": ["workers=8", "spot=true", "attempts=20"],
    "tls": ["tls_secret='dfm-tls'"],
}  # fmt: skip


def submission(settings: list[str]) -> manifest.Submission:
    """The submission of base/job.toml with other [kubernetes] settings."""
    job = load_job(HERE / "base" / "job.toml", [f"kubernetes.{setting}" for setting in settings])
    return manifest.Submission(NAME, NAMESPACE, job, sizing.size(job.kubernetes, None))


def differences(before: Any, after: Any, path: str = "") -> list[dict[str, Any]]:
    """A JSON patch (RFC 6902) from one value to another."""
    if isinstance(before, dict) and isinstance(after, dict):
        found = []
        for key in [*before, *(key for key in after if key not in before)]:
            below = f"{path}/{key.replace('~', '~0').replace('/', '~1')}"
            if key not in after:
                found.append({"op": "remove", "path": below})
            elif key not in before:
                found.append({"op": "add", "path": below, "value": after[key]})
            else:
                found += differences(before[key], after[key], below)
        return found
    if isinstance(before, list) and isinstance(after, list) and len(before) <= len(after):
        pairs = enumerate(zip(before, after, strict=False))
        found = [change for i, (old, new) in pairs for change in differences(old, new, f"{path}/{i}")]
        return found + [{"op": "add", "path": f"{path}/-", "value": value} for value in after[len(before) :]]
    return [] if before == after else [{"op": "replace", "path": path, "value": after}]


def files() -> dict[Path, str]:
    """Text of every file that is made here."""
    base = manifest.dask_job(submission([]))
    made: dict[Path, Any] = {
        HERE / "base" / "daskjob.yaml": base,
        HERE / "base" / "disruption.yaml": manifest.disruption_budget(submission([])),
    }
    for name, settings in OVERLAYS.items():
        made[HERE / "overlays" / name / "daskjob-patch.yaml"] = differences(
            base, manifest.dask_job(submission(settings))
        )
    note = "# Made by deploy/kubernetes/render.py; change dfm/kubernetes/manifest.py or job.toml instead.\n"
    return {path: note + yaml.safe_dump(content, sort_keys=False, width=110) for path, content in made.items()}


def main() -> None:
    """Write the files."""
    for path, text in files().items():
        path.write_text(text)
        print(path.relative_to(HERE), file=sys.stderr)


if __name__ == "__main__":
    main()
