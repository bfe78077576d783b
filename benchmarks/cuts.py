"""One optimizer step of eight examples cut into micro-batches of 8, 4 and 1, with and without mixed precision: speed
and peak memory.

Invariant: the real tokens and optimizer steps of all cuts are the same; where the device has no mixed precision that
pays, its rows say so and nothing is emulated.

    python benchmarks/cuts.py --tasks code_generation
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

from report import circumstances, show, write
from side_process import end_with_sigterm, train
from training_job import Job
from training_records import prepare

CUTS = ((8, 1), (4, 2), (1, 8))
"""Micro-batch and accumulation."""
MIXED_GOAL = 2.0
"""Mixed precision against fp32, on a GPU."""


def measure(
    folder: Path, task: str, *, device: str, records: int | None = None, model: str = "scratch:small"
) -> dict[str, Any]:
    """What each cut took, by name; in the order of the table."""
    import torch

    from mltrack.hardware import choose_precision

    start = prepare(folder / f"cuts-{task}", task, records=records, model=model)
    mixed = choose_precision("auto", torch.device(device))
    found: dict[str, Any] = {}
    for precision in ("off", mixed):
        for size, accumulation in CUTS:
            name = f"{size}x{accumulation}, {'fp32' if precision == 'off' else precision}"
            if precision == "off" and "skipped" not in found and mixed == "off":
                found["skipped"] = (
                    "no mixed precision here: this CPU does not multiply bf16 itself, and emulating it is slower than"
                    " fp32"
                )
            if name in found:
                continue
            place = folder / f"cuts-{task}" / name.replace(", ", "-")
            job = Job(
                side="mltrack",
                folder=str(place),
                uri=start.store(place.with_suffix(".db")),
                batch_size=size,
                accumulation=accumulation,
                precision=precision,
                device=device,
                options={"speedups": "tf32=off"} if precision == "off" else {},  # fp32 is fp32 here
                **start.places,
            )
            found[name] = train(job)
            print(
                f"{task} {name}: {found[name]['steady']['tokens_per_second']:,.0f} tokens/s,"
                f" {found[name]['peak_mib']:,.0f} MiB",
                flush=True,
            )
    work = {(one["steps"], one["real_tokens"]) for name, one in found.items() if name != "skipped"}
    assert len(work) == 1, f"the cuts did not do the same work: {work}"
    return found


def show_cuts(task: str, found: dict[str, Any]) -> None:
    """A row a cut."""
    whole = found["8x1, fp32"]
    rows = []
    for name, one in found.items():
        if name == "skipped":
            continue
        steady = one["steady"]
        rate, of_fp32 = steady["tokens_per_second"], steady["tokens_per_second"] / whole["steady"]["tokens_per_second"]
        rows.append(
            (
                name,
                f"{steady['step_ms']:.0f} ms",
                f"{rate:,.0f}",
                f"{of_fp32:.2f}x",
                f"{one['peak_mib']:,.0f} MiB",
                f"{one['eval_loss']:.4f}",
            )
        )
    if "skipped" in found:
        rows += [(f"{size}x{accumulation}, mixed", "-", "-", "-", "-", "-") for size, accumulation in CUTS]
    title = f"{task}: eight examples a step, as micro-batch x accumulation"
    notes = (
        [found["skipped"]] if "skipped" in found else [f"on a GPU mixed precision is to be >= {MIXED_GOAL:g}x of fp32"]
    )
    show(title, ("cut", "step", "real tokens/s", "of 8x1 in fp32", "peak memory", "eval_loss"), rows, notes)


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", default="text_classification,code_generation")
    parser.add_argument("--records", type=int)
    parser.add_argument("--model", default="scratch:small")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    options = parser.parse_args()
    end_with_sigterm()
    results: dict[str, Any] = {**circumstances(), "tasks": {}}
    with tempfile.TemporaryDirectory(prefix="mltrack-bench-") as folder:
        for task in options.tasks.split(","):
            results["tasks"][task] = measure(
                Path(folder), task, device=options.device, records=options.records, model=options.model
            )
            show_cuts(task, results["tasks"][task])
    write("cuts", results)


if __name__ == "__main__":
    main()
