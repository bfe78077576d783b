"""From the start of the process to the first optimizer step, with 2,000 records whose tokens are in the cache: mltrack,
and the Hugging Face Trainer with and without its MLflow callback.

Invariant: every round starts each side once, in alternation, after one start that is not counted and fills the caches;
mltrack runs its whole start: run in MLflow, checks of the data, baselines, relay.

    python benchmarks/startup.py --rounds 3
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from pathlib import Path
from typing import Any

from report import circumstances, met, of_pairs, show, shown_ratio, write
from side_process import end_with_sigterm, train
from training_job import Job
from training_records import prepare

SIDES = {"mltrack": "mltrack train", "hf_untracked": "HF Trainer, no MLflow", "hf": "HF Trainer + MLflow"}
RECORDS, HELD_OUT, GOAL = 2_000, 32, 0.7


def measure(
    folder: Path, *, rounds: int, device: str = "cpu", records: int = RECORDS, model: str = "scratch:small"
) -> dict[str, Any]:
    """Seconds of every start by side."""
    start = prepare(folder / "startup", "code_generation", records=records, held_out=HELD_OUT, model=model)
    seen: dict[str, list[float]] = {side: [] for side in SIDES}
    for number in range(rounds + 1):
        for side in list(SIDES) if number % 2 else reversed(list(SIDES)):
            place = folder / "startup" / f"{side}-{number}"
            uri = start.store(folder / "startup" / f"{side}.db")
            found = train(
                Job(side=side, folder=str(place), uri=uri, max_steps=2, seed=number + 1, device=device, **start.places)
            )
            print(f"start-up {number}/{rounds} {SIDES[side]}: {found['first_step_s']:.2f} s", flush=True)
            if number:
                seen[side].append(found["first_step_s"])
    return {"records": records, "seconds": seen, "against_untracked": of_pairs(seen["mltrack"], seen["hf_untracked"])}


def show_startup(found: dict[str, Any]) -> None:
    """A row a side."""
    rows = []
    for side, seconds in found["seconds"].items():
        ratio = of_pairs(seconds, found["seconds"]["hf_untracked"])
        goal = f"<= {GOAL:g}x: {met(ratio['ratio'], GOAL, at_most=True)}" if side == "mltrack" else ""
        rows.append(
            (
                SIDES[side],
                f"{statistics.median(seconds):.1f} s [{min(seconds):.1f}, {max(seconds):.1f}]",
                shown_ratio(ratio),
                goal,
            )
        )
    title = f"process start to first optimizer step, {found['records']:,} records of code_generation, all cached"
    show(title, ("", "median", "of HF without MLflow", "goal"), rows)


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--records", type=int, default=RECORDS)
    parser.add_argument("--model", default="scratch:small")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    options = parser.parse_args()
    end_with_sigterm()
    results = circumstances()
    with tempfile.TemporaryDirectory(prefix="mltrack-bench-") as folder:
        results |= measure(
            Path(folder), rounds=options.rounds, device=options.device, records=options.records, model=options.model
        )
    show_startup(results)
    write("startup", results)


if __name__ == "__main__":
    main()
