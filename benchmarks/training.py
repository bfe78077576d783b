"""How fast mltrack trains beside the trainers that people use: the same weights, records, steps and evaluations, in alternation.

Invariant: every training is a process of its own; that the work was the same (steps, real tokens) is asserted from what each side
counted, and every side's final weights go through one and the same evaluation.

    python benchmarks/training.py                              # both tasks, three pairs, about half an hour on two cores
    python benchmarks/training.py --tasks text_classification --pairs 1
    python benchmarks/training.py --device cuda
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from training_side import SIDES, Job

ROOT = Path(__file__).resolve().parents[1]
RESULTS = Path(__file__).resolve().parent / "results" / "training.json"
NAMES = {"mltrack": "mltrack", "hf": "HF Trainer + MLflow", "hf_tuned": "HF, tuned by hand", "lightning": "Lightning + MLFlowLogger"}
GOALS = {
    "text_classification": {"hf": 5.0, "lightning": 4.0, "hf_tuned": 1.5},
    "code_generation": {"hf": 4.0, "lightning": 3.5, "hf_tuned": 1.4},
}
RECORDS, HELD_OUT = 640, 160
MIB = 1 << 20


def prepare(folder: Path, task: str, seed: int) -> dict[str, str]:
    """Records of the standard library in two files, and a small model with its tokenizer as a Hugging Face folder."""
    import numpy as np

    from mltrack.data import DatasetLoader
    from mltrack.models import resolve_model, save_pretrained

    folder.mkdir(parents=True)
    loader = DatasetLoader("stdlib", task=task)
    chosen = np.random.default_rng(seed).permutation(len(loader.records))[: RECORDS + HELD_OUT].tolist()
    records = [loader.records[number] for number in chosen]
    places = {"train": folder / "train.jsonl", "valid": folder / "valid.jsonl"}
    for path, part in zip(places.values(), (records[:RECORDS], records[RECORDS:]), strict=True):
        with path.open("w", encoding="utf-8") as file:
            for record in part:
                row = {"code": record.text, "label": record.label} if record.label is not None else {"description": record.description, "code": record.text}
                file.write(json.dumps(row) + "\n")
    source = resolve_model("scratch:small", task)
    source.train_tokenizer([text for record in records[:RECORDS] for text in (record.description, record.text) if text])
    mapping = DatasetLoader(places["train"], task=task).label_mapping if task != "code_generation" else None
    save_pretrained(source.build(label_mapping=mapping, max_length=256, seed=seed), source.tokenizer, folder / "weights")
    return {"weights": str(folder / "weights"), **{name: str(path) for name, path in places.items()}}


def family(pid: int) -> Iterator[int]:
    """The process and everything that it started, the relay included."""
    import psutil

    try:
        process = psutil.Process(pid)
        yield pid
        for child in process.children(recursive=True):
            yield child.pid
    except psutil.NoSuchProcess:
        return


def proportional_bytes(pid: int) -> int:
    """Memory of a process with shared pages divided among those that share them (PSS); 0 where it is gone."""
    try:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return 0


def train(job: Job) -> dict[str, Any]:
    """Run one side in a process of its own; what it said, and its peak memory."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}
    environment |= {"MLFLOW_DISABLE_TELEMETRY": "true", "HF_HUB_OFFLINE": "1", "MLFLOW_TRACKING_URI": job.uri, "PYTHONPATH": str(ROOT)}
    if job.side == "hf_tuned":  # what a careful user sets for a CPU; glibc reads it when the process starts
        environment |= {"MALLOC_MMAP_THRESHOLD_": "1073741824", "MALLOC_TRIM_THRESHOLD_": "2147483647", "MALLOC_TOP_PAD_": "268435456"}
    started = time.time()
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("training_side.py")), json.dumps(asdict(job))],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            start_new_session=True,
        )
        peak, over = [0], threading.Event()

        def watch() -> None:
            while not over.wait(0.5):
                peak[0] = max(peak[0], sum(map(proportional_bytes, family(process.pid))))

        watcher = threading.Thread(target=watch, daemon=True)
        watcher.start()
        events: dict[str, Any] = {}
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith('{"event"'):
                event = json.loads(line)
                events[event["event"]] = {**event, "since_launch_s": time.time() - started}
                if event["event"] == "trained":
                    over.set()  # what follows is this benchmark's own evaluation
        code = process.wait()
        over.set()
        watcher.join()
        if code or "done" not in events:
            errors.seek(0)
            raise SystemExit(f"{job.side} ended with {code}:\n{errors.read()[-3000:]}")
    trained = events["trained"]
    return {
        "seconds": trained["seconds"],
        "steps": trained["steps"],
        "real_tokens": trained["real_tokens"],
        "tokens_per_second": trained["real_tokens"] / trained["seconds"],
        "first_step_s": events["first_step"]["since_launch_s"],
        "eval_loss": events["done"]["eval_loss"],
        "peak_mib": peak[0] / MIB,
    }


def compare(folder: Path, task: str, options: argparse.Namespace) -> dict[str, Any]:
    """All sides in alternation; asserts that the work was the same."""
    places = prepare(folder / task, task, seed=7)
    runs: dict[str, list[dict[str, Any]]] = {side: [] for side in options.sides}
    for pair in range(options.pairs):
        for side in options.sides if pair % 2 == 0 else reversed(options.sides):
            place = folder / task / f"{side}-{pair}"
            job = Job(
                side=side,
                task=task,
                folder=str(place),
                uri=f"sqlite:///{folder}/{task}/{side}.db",
                epochs=options.epochs,
                seed=pair + 1,
                device=options.device,
                **places,
            )
            found = train(job)
            runs[side].append(found)
            print(f"{task} {pair + 1}/{options.pairs} {NAMES[side]}: {json.dumps(found)}", flush=True)
    work = {(one["steps"], one["real_tokens"]) for found in runs.values() for one in found}
    assert len(work) == 1, f"the sides did not do the same work: {work}"
    return {side: summary(found, runs["mltrack"], GOALS[task].get(side)) for side, found in runs.items()}


def summary(found: list[dict[str, Any]], ours: list[dict[str, Any]], goal: float | None) -> dict[str, Any]:
    """Medians of one side, and what mltrack's are beside them."""
    middle = {name: statistics.median(one[name] for one in found) for name in found[0]}
    ratios = [other["seconds"] / mine["seconds"] for other, mine in zip(found, ours, strict=True)]
    return {
        **middle,
        "mean_eval_loss": statistics.fmean(one["eval_loss"] for one in found),
        "mltrack_is_faster_by": statistics.median(ratios),
        "spread": [min(ratios), max(ratios)],
        "goal": goal,
        "runs": found,
    }


def show(results: dict[str, Any]) -> None:
    """One table."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"training, {results['date']}, {results['machine']}")
    for name in ("task", "side", "epoch", "real tokens/s", "mltrack is faster by", "goal", "eval_loss", "first step after", "peak memory"):
        table.add_column(name)
    for task, sides in results["tasks"].items():
        for side, one in sides.items():
            low, high = one["spread"]
            table.add_row(
                task,
                NAMES[side],
                f"{one['seconds']:.1f} s",
                f"{one['tokens_per_second']:,.0f}",
                "-" if side == "mltrack" else f"{one['mltrack_is_faster_by']:.2f}x [{low:.2f}, {high:.2f}]",
                "-" if one["goal"] is None else f">= {one['goal']:g}x",
                f"{one['mean_eval_loss']:.4f}",
                f"{one['first_step_s']:.1f} s",
                f"{one['peak_mib']:,.0f} MiB",
            )
    Console(width=170).print(table)


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", default="text_classification,code_generation")
    parser.add_argument("--sides", default=",".join(SIDES))
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    options = parser.parse_args()
    options.sides = options.sides.split(",")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    with tempfile.TemporaryDirectory(prefix="mltrack-bench-") as folder:
        tasks = {task: compare(Path(folder), task, options) for task in options.tasks.split(",")}
    results = {
        "date": datetime.date.today().isoformat(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, {options.device}",
        "epochs": options.epochs,
        "tasks": tasks,
    }
    show(results)
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(results, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
