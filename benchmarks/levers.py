"""What each lever gives alone: a training with it against one without it, everything else as it is, in pairs of
processes.

Invariant: a pair has one seed and one set of records, and its order changes from pair to pair; the evaluation loss
stands beside the speed. A lever that this version or this machine does not have is a row that says so.

    python benchmarks/levers.py
    python benchmarks/levers.py --levers buckets,dropout_masks --tasks text_classification --pairs 5
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from report import circumstances, of_pairs, show, shown_ratio, write
from side_process import end_with_sigterm, train
from training_job import Job
from training_records import Start, prepare


@dataclass(frozen=True, kw_only=True)
class Lever:
    """One thing that is on or off."""

    what: str
    on: Mapping[str, str] = field(default_factory=dict)
    """Options of `mltrack train`, as typed; empty: the defaults."""
    off: Mapping[str, str] = field(default_factory=dict)
    off_patches: tuple[str, ...] = ()
    """What `observed_training.PATCHES` changes where the lever is off."""
    tasks: tuple[str, ...] = ("text_classification", "code_generation")
    devices: tuple[str, ...] = ("cpu", "cuda")
    """Where it does anything."""
    of: str = "step"
    """What its ratio is of: `step`, seconds a real token in the steady state; `evaluation`, seconds of the evaluations;
    `training`, all of it.
    """

    def missing(self) -> str:
        """Why it cannot be measured here; empty: it can."""
        from mltrack.config import OPTIONS
        from mltrack.errors import ConfigurationError

        for name, word in {**self.on, **self.off}.items():
            if name not in OPTIONS:
                return f"no option {name} in this version"
            try:
                OPTIONS[name].parse(word)
            except ConfigurationError as error:
                return str(error)
        return ""


def _switch(name: str, what: str, *, off: Mapping[str, str] | None = None, **more: Any) -> tuple[str, Lever]:
    return name, Lever(what=what, off={"speedups": f"{name}=off", **(off or {})}, **more)


LEVERS = dict(
    (
        _switch("allocator", "glibc keeps freed memory", devices=("cpu",)),
        _switch("buckets", "batches of like length"),
        _switch("dropout_masks", "cheap dropout masks", devices=("cpu",), tasks=("text_classification",)),
        _switch(
            "fused_adamw", "AdamW in one kernel, against torch's default; on a GPU with the late loss, which needs it"
        ),
        _switch("any_shape_attention", "attention without cuDNN, which plans each shape", devices=("cuda",)),
        _switch(
            "tf32",
            "fp32 products with TF32",
            devices=("cuda",),
            on={"use_mixed_precision": "off"},
            off={"use_mixed_precision": "off"},
        ),
        (
            "no_mask",
            Lever(
                what="no mask where nothing is padded, against always one",
                off_patches=("whole_mask",),
                tasks=("text_classification",),
            ),
        ),
        (
            "relay",
            Lever(
                what="delivery to MLflow by a process beside, against local files alone: what it costs",
                off={"offline": "true"},
            ),
        ),
        (
            "sorted_evaluation",
            Lever(
                what="evaluation by length, against as the records come",
                off_patches=("unsorted_evaluation",),
                of="evaluation",
            ),
        ),
        _switch("first_token", "last layer for the token that the head reads", tasks=("text_classification",)),
        _switch("target_logits", "logits only where a loss is taken", tasks=("code_generation",)),
        (
            "bf16",
            Lever(what="mixed precision where the device has it, against fp32", off={"use_mixed_precision": "off"}),
        ),
        ("attention_eager", Lever(what="attention as chosen, against eager", off={"attention": "eager"})),
        ("attention_sdpa", Lever(what="attention as chosen, against SDPA", off={"attention": "sdpa"})),
        ("padding_1", Lever(what="padded to multiples of 8, against 1", off_patches=("padding_1",))),
        ("padding_32", Lever(what="padded to multiples of 8, against 32", off_patches=("padding_32",))),
        (
            "eval_batch_size",
            Lever(what="evaluation batches as by default, against 8", off={"eval_batch_size": "8"}, of="evaluation"),
        ),
        ("packing", Lever(what="packed sequences, an option", on={"packing": "true"}, tasks=("code_generation",))),
        (
            "max_batch_tokens",
            Lever(
                what="at most 64 examples and 4,096 tokens a batch, against 16 examples; an option",
                on={"max_batch_tokens": "4096", "batch_size": "64"},
            ),
        ),
        ("compile", Lever(what="torch.compile, an option", on={"compile": "true"}, of="training")),
    )
)


def unavailable(name: str, device: str) -> str:
    """Why a lever has no figure here; empty: it has one."""
    import torch

    from mltrack.hardware import choose_precision

    if name == "bf16" and choose_precision("auto", torch.device(device)) == "off":
        return "this CPU does not multiply bf16 itself"
    if device not in LEVERS[name].devices:
        return f"nothing on {device}"
    return LEVERS[name].missing()


def seconds_of(lever: Lever, found: Mapping[str, Any]) -> float:
    """What the lever's ratio is of; a token's share for steps, since a lever may change how many there are."""
    steady = found["steady"]
    if lever.of == "evaluation":
        return float(steady["evaluation_s"])
    if lever.of == "training":
        return float(found["seconds"])
    return float(steady["seconds_sum"] / steady["tokens_sum"])


def measure(folder: Path, start: Start, name: str, options: argparse.Namespace) -> dict[str, Any]:
    """All pairs of one lever and task."""
    lever, found = LEVERS[name], {"on": [], "off": []}
    for pair in range(options.pairs):
        for side in ("on", "off") if pair % 2 == 0 else ("off", "on"):
            place = folder / f"{name}-{side}-{pair}"
            job = Job(
                side="mltrack",
                folder=str(place),
                uri=start.store(folder / f"{name}.db"),
                seed=pair + 1,
                device=options.device,
                options=dict(lever.on if side == "on" else lever.off),
                patches=lever.off_patches if side == "off" else (),
                **start.places,
            )
            found[side].append(train(job))
        print(
            f"{start.places['task']} {name} {pair + 1}/{options.pairs}:"
            f" {seconds_of(lever, found['off'][-1]) / seconds_of(lever, found['on'][-1]):.2f}x",
            flush=True,
        )
    ratio = of_pairs(*([seconds_of(lever, one) for one in found[side]] for side in ("off", "on")))
    whole = of_pairs(*([one["seconds"] for one in found[side]] for side in ("off", "on")))
    return {**found, "ratio": ratio, "whole": whole}


def row_of(task: str, name: str, found: Mapping[str, Any]) -> tuple[str, ...]:
    """One row of the table."""
    lever = LEVERS[name]
    if "missing" in found:
        return task, name, lever.what, "-", "-", "-", "-", found["missing"]
    step_ms = [statistics.median(one["steady"]["step_ms"] for one in found[side]) for side in ("on", "off")]
    loss = [statistics.fmean(one["eval_loss"] for one in found[side]) for side in ("on", "off")]
    memory = [statistics.median(one["peak_mib"] for one in found[side]) for side in ("on", "off")]
    return (
        task,
        name,
        lever.what,
        f"{shown_ratio(found['ratio'])} of {lever.of}",
        shown_ratio(found["whole"]),
        f"{step_ms[0]:.0f} / {step_ms[1]:.0f} ms",
        f"{memory[0]:,.0f} / {memory[1]:,.0f}",
        f"{loss[0]:.4f} / {loss[1]:.4f} ({100 * (loss[0] / loss[1] - 1):+.1f} %)",
    )


def show_levers(results: Mapping[str, Any]) -> None:
    columns = (
        "task",
        "lever",
        "on, against off",
        "faster by",
        "whole training",
        "step on / off",
        "peak MiB on / off",
        "mean eval_loss on / off",
    )
    rows: Sequence[tuple[str, ...]] = [
        row_of(task, name, found) for task, levers in results["tasks"].items() for name, found in levers.items()
    ]
    show(
        f"each lever alone, {results['pairs']} pairs, {results['date']}, {results['machine']}",
        columns,
        rows,
        ["a ratio below 1.15 is no evidence on a shared machine"],
    )


def main() -> None:
    """Measure, print, write; after each lever what there is so far is written."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--levers", default=",".join(LEVERS), help="separated by commas; default: all")
    parser.add_argument("--tasks", default="text_classification,code_generation")
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--records", type=int, default=320, help="training records")
    parser.add_argument("--held-out", type=int, default=128, help="evaluation records")
    parser.add_argument("--model", default="scratch:small")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    options = parser.parse_args()
    end_with_sigterm()
    names = options.levers.split(",")
    unknown = [name for name in names if name not in LEVERS]
    if unknown:
        parser.error(f"--levers: seen {unknown[0]}; accepted: {', '.join(LEVERS)}")
    results: dict[str, Any] = {**circumstances(), "pairs": options.pairs, "records": options.records, "tasks": {}}
    with tempfile.TemporaryDirectory(prefix="mltrack-bench-") as folder:
        for task in options.tasks.split(","):
            start = prepare(
                Path(folder) / task, task, records=options.records, held_out=options.held_out, model=options.model
            )
            levers = results["tasks"].setdefault(task, {})
            for name in names:
                if task not in LEVERS[name].tasks:
                    continue
                why = unavailable(name, options.device)
                levers[name] = {"missing": why} if why else measure(Path(folder) / task, start, name, options)
                write("levers", results)
    show_levers(json.loads(json.dumps(results)))


if __name__ == "__main__":
    main()
