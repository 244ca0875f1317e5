"""What the checksums of arrays that travel between workers cost: their seconds beside those of the rounds.

    .venv/bin/python benchmarks/averaging/bench_checksums.py [--rows 10000000] [--n-factors 16] [--folder …] [--smoke]

The job of bench_rounds.py on two local workers. Every process adds up the time that it spends in
`dfm.storage.transfers.sum_of_bits`, as sender and as receiver; shown is the share of what they had in the epochs.
Seconds are those of the processor (a sum that has to wait for one costs nobody anything), by the clock beside them.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from big_log import prepare_log
from distributed import Client
from machine import machine_line

from dfm import jobs
from dfm.distributed.cluster import connect
from dfm.settings.tables import ClusterSettings

WORKERS = 2


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--n-factors", type=int, default=16)
    parser.add_argument("--replicas", type=int, default=8)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--folder", type=Path, default=Path("benchmarks/output/rounds"))
    parser.add_argument("--smoke", action="store_true", help="tiny and untimed: does it still run?")
    arguments = parser.parse_args()
    rows, repeats = (8_000, 1) if arguments.smoke else (arguments.rows, arguments.repeats)
    print(machine_line())
    job = prepare_log(arguments.folder / f"{rows}", rows)
    knobs = [
        f"model.n_factors={arguments.n_factors}",
        f"training.n_epochs={arguments.epochs}",
        f"training.n_replicas={arguments.replicas}",
        "training.early_stopping=false",
    ]
    with connect.connect(ClusterSettings(workers=WORKERS)) as client:
        jobs.train(job, client, overrides=knobs, progress=False)  # prepares the partitions and compiles
        client.run(count)
        for _ in range(repeats):
            measure(job, client, knobs, arguments.smoke)


def measure(job: Path, client: Client, knobs: list[str], is_smoke: bool) -> None:
    """One training, and a line about it."""
    client.run(reset)
    result = jobs.train(job, client, overrides=knobs, progress=False)
    told = client.run(spent)
    seconds = sum(event["seconds"] for event in result.history) * WORKERS
    calls, used, n_bytes, waited = (sum(each[at] for each in told.values()) for at in range(4))
    assert calls, "nothing was summed"
    if not is_smoke:
        print(
            f"{result.rows.accepted:,} rows, {n_bytes / 1e9:.2f} GB in {calls:,} sums: {used:.3f} s "
            f"({waited:.3f} by the clock) of {seconds:.1f} s that the workers had in the epochs, "
            f"{100 * used / seconds:.2f} %"
        )


def count() -> None:
    """From here on this process counts."""
    from dfm.storage import transfers

    plain = transfers.sum_of_bits

    def counted(parts):  # type: ignore[no-untyped-def]
        parts = list(parts)
        started, used = time.perf_counter(), time.thread_time()
        found = plain(parts)
        transfers.spent[0] += 1
        transfers.spent[1] += time.thread_time() - used
        transfers.spent[2] += sum(part.nbytes for part in parts)
        transfers.spent[3] += time.perf_counter() - started
        return found

    transfers.sum_of_bits = counted
    reset()


def reset() -> None:
    """Nothing is spent."""
    from dfm.storage import transfers

    transfers.spent = [0, 0.0, 0, 0.0]


def spent() -> list[float]:
    """Calls, seconds of the processor, bytes, seconds by the clock."""
    from dfm.storage import transfers

    return transfers.spent


if __name__ == "__main__":
    main()
