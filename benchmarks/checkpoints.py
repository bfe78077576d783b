"""What a checkpoint costs the training thread: torch.save in the loop, torch.distributed.checkpoint.async_save and
mltrack side by side.

Invariant: each way is measured in processes of its own on the same state (weights and AdamW's moments), and each save
is set against a plain memory copy of that state made right before it in the same process, so that the ratio holds on a
busy machine too. Both begin after a rest: what comes second would else be more often at the end of its time slice.

    python benchmarks/checkpoints.py                           # 10 MB and 500 MB, about three minutes
    python benchmarks/checkpoints.py --device cuda             # and 4 GB
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

RESULTS = Path(__file__).resolve().parent / "results" / "checkpoints.json"
WAYS = {
    "torch.save": "torch.save in the loop",
    "async_save": "torch.distributed.checkpoint\nasync_save",
    "mltrack": "mltrack",
}
CLEANED = 100
REST_S = 0.01
SMALL_MB, MORE_ROUNDS = 100, 10
"""Saves of less than that are counted ten times as often: each takes a few milliseconds."""
OBJECTS_BYTES = 1_000_000
"""Of extra memory that is no part of a copy: the writer's stack, names, headers. Two copies of 10 MB are told from one
and that.
"""
Figures = dict[str, Any]


class Block(nn.Module):
    """The weights of a transformer block."""

    def __init__(self, width: int):
        super().__init__()
        self.attention, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.norms = nn.ModuleList([nn.LayerNorm(width), nn.LayerNorm(width)])


def training(megabytes: float, device: str) -> tuple[nn.Module, torch.optim.Optimizer]:
    """Eight blocks and their AdamW after a step: `megabytes` of state, 4 bytes a number, three numbers a weight."""
    width = max(8, int((megabytes * 1e6 / 12 / (8 * 12)) ** 0.5) // 8 * 8)
    model = nn.Sequential(*(Block(width) for _ in range(8))).to(device)
    optimizer = torch.optim.AdamW(model.parameters())
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return model, optimizer


def state_of(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    """Every tensor of it."""
    return [*model.state_dict().values(), *(value for held in optimizer.state.values() for value in held.values())]


# -- the ways: each gives save(step), finish() and the folder or file of a step


class TorchSave:
    """Weights and optimizer in one file, written by the training thread."""

    def __init__(self, folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer):
        self.folder, self.model, self.optimizer = folder, model, optimizer

    def save(self, step: int) -> None:
        self.last = self.folder / f"{step}.pt"
        torch.save({"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}, self.last)

    def finish(self) -> None:
        with self.last.open("rb") as file:
            os.fsync(file.fileno())

    def clean(self) -> float:
        started = time.perf_counter()
        for path in self.folder.glob("*.pt"):
            path.unlink()
        return time.perf_counter() - started


class AsyncSave:
    """With one staging copy that is used again, as its documentation advises."""

    def __init__(self, folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer):
        from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions

        self.folder, self.model, self.optimizer = folder, model, optimizer
        gpu = next(model.parameters()).is_cuda
        self.stager = DefaultStager(
            StagingOptions(
                use_pinned_memory=gpu, use_shared_memory=False, use_async_staging=False, use_non_blocking_copy=gpu
            )
        )

    def save(self, step: int) -> None:
        import torch.distributed.checkpoint as dcp

        state = {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}
        self.future: Any = dcp.async_save(
            state, checkpoint_id=self.folder / str(step), async_stager=self.stager, no_dist=True
        )

    def finish(self) -> None:
        self.future.result()

    def clean(self) -> float:
        started = time.perf_counter()
        for path in self.folder.iterdir():
            shutil.rmtree(path)
        return time.perf_counter() - started


class Mltrack:
    """Hashed, synced and renamed into place behind the training thread."""

    def __init__(self, folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer):
        from mltrack import CheckpointManager

        self.folder, self.model, self.optimizer = folder, model, optimizer
        self.written_at = 0.0
        self.manager = CheckpointManager(folder, max_checkpoints=10_000, background=True, on_written=self._written)

    def _written(self, *_: Any) -> None:
        self.written_at = time.perf_counter()

    def save(self, step: int) -> None:
        self.manager.save_checkpoint(
            model=self.model, optimizer=self.optimizer, epoch=0, step=step, metric_value=float(step)
        )

    def finish(self) -> None:
        self.manager.finish()

    def clean(self) -> float:
        """From the moment the next save is on the disk until the 99 that it does not keep, and the one before, are
        gone.
        """
        self.manager.max_checkpoints = 1
        self.save(CLEANED + 1)
        self.finish()
        return time.perf_counter() - self.written_at


MADE: dict[str, Callable[[Path, nn.Module, torch.optim.Optimizer], Any]] = {
    "torch.save": TorchSave,
    "async_save": AsyncSave,
    "mltrack": Mltrack,
}


# -- in the process of one way


def measure_time(way: str, megabytes: float, device: str, rounds: int, folder: Path) -> Figures:
    """Stalls, their ratios to a copy, and times until the bytes are on the disk, in ms; the first save apart."""
    model, optimizer = training(megabytes, device)
    state = state_of(model, optimizer)
    buffers = [torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda) for tensor in state]
    made = MADE[way](folder, model, optimizer)
    copies, stalls, durable = [], [], []
    rounds *= MORE_ROUNDS if megabytes < SMALL_MB else 1
    for number in range(rounds + 1):
        optimizer_like_step(model)
        wait_for_device(device)
        time.sleep(REST_S)
        started = time.perf_counter()
        for buffer, tensor in zip(buffers, state, strict=True):
            buffer.copy_(tensor, non_blocking=True)
        wait_for_device(device)
        copies.append(1000 * (time.perf_counter() - started))
        time.sleep(REST_S)
        started = time.perf_counter()
        made.save(number + 1)
        wait_for_device(device)
        stalls.append(1000 * (time.perf_counter() - started))
        made.finish()
        durable.append(1000 * (time.perf_counter() - started))
    ratios = [stall / copy for stall, copy in zip(stalls[1:], copies[1:], strict=True)]
    return {
        "state_bytes": sum(tensor.nbytes for tensor in state),
        "tensors": len(state),
        "copy_ms": statistics.median(copies[1:]),
        "stall_ms": statistics.median(stalls[1:]),
        "first_stall_ms": stalls[0],
        "ratio": statistics.median(ratios),
        "on_disk_ms": statistics.median(durable[1:]),
        "all": {"copies": copies, "stalls": stalls, "on_disk": durable},
    }


def measure_memory(way: str, megabytes: float, device: str, rounds: int, folder: Path) -> Figures:
    """How much the process's peak grows by saving, as a multiple of the state; a small save before it has loaded the
    code.
    """
    small = MADE[way](folder / "small", *training(0.1, device)) if (folder / "small").mkdir() is None else None
    small.save(1)
    small.finish()
    model, optimizer = training(megabytes, device)
    made = MADE[way](folder, model, optimizer)
    state_bytes = sum(tensor.nbytes for tensor in state_of(model, optimizer))
    before = memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from here
    for number in range(rounds):
        optimizer_like_step(model)
        made.save(number + 1)
        made.finish()
    return {"extra_bytes": memory("VmHWM") - before, "extra_copies": (memory("VmHWM") - before) / state_bytes}


def measure_cleaning(way: str, megabytes: float, device: str, rounds: int, folder: Path) -> Figures:
    """Seconds until 100 checkpoints are gone."""
    made = MADE[way](folder, *training(megabytes, device))
    for number in range(CLEANED):
        made.save(number + 1)
        made.finish()
    return {"clean_ms": 1000 * made.clean()}


MEASURES = {"time": measure_time, "memory": measure_memory, "cleaning": measure_cleaning}


@torch.no_grad()
def optimizer_like_step(model: nn.Module) -> None:
    """Every weight changes, as between two checkpoints."""
    for parameter in model.parameters():
        parameter.add_(1e-3)


def wait_for_device(device: str) -> None:
    """Until the GPU is idle."""
    if device == "cuda":
        torch.cuda.synchronize()


def memory(name: str) -> int:
    """A line of this process's status, in bytes."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith(f"{name}:"))


# -- the run


def in_own_process(measure: str, way: str, megabytes: float, options: argparse.Namespace) -> Figures:
    """Run one measure there; its last line is its result."""
    print(f"{measure}, {megabytes:g} MB, {way} ...", file=sys.stderr, flush=True)
    command = [
        sys.executable,
        __file__,
        "--measure",
        measure,
        "--way",
        way,
        "--megabytes",
        str(megabytes),
        "--device",
        options.device,
    ]
    command += ["--rounds", str(options.rounds), "--threads", str(options.threads)]
    with tempfile.TemporaryDirectory(prefix="mltrack-bench-", dir=options.folder) as folder:
        ended = subprocess.run([*command, "--folder", folder], stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(ended.stdout.splitlines()[-1])


def shown_size(megabytes: float) -> str:
    return f"{megabytes:g} MB" if megabytes < 1000 else f"{megabytes / 1000:g} GB"


def beyond_a_copy(one: Figures) -> int:
    """Extra bytes, but for those of one copy of the state."""
    return int(one["extra_bytes"] - one["state_bytes"])


def rows_of(megabytes: float, seen: dict[str, Figures]) -> list[tuple[str, list[str], str, str]]:
    """(what, a cell for each way, goal, met)"""
    ours, size = seen["mltrack"], shown_size(megabytes)
    stall = [
        f"{one['stall_ms']:.1f} ms = {one['ratio']:.2f}x\n(first {one['first_stall_ms']:.0f} ms)"
        for one in seen.values()
    ]
    extra = [f"{one['extra_copies']:.2f} copies\n(1 {beyond_a_copy(one) / 1e6:+.1f} MB)" for one in seen.values()]
    return [
        (f"{size}: stall, of a copy", stall, "<= 1.5x", "yes" if ours["ratio"] <= 1.5 else "no"),
        (f"{size}: until on the disk", [f"{one['on_disk_ms']:.0f} ms" for one in seen.values()], "", ""),
        (f"{size}: extra memory", extra, "<= 1 copy", "yes" if beyond_a_copy(ours) <= OBJECTS_BYTES else "no"),
    ]


def main() -> None:
    """Run, print the table, write the figures; with --measure, one of the processes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument(
        "--rounds",
        type=int,
        default=9,
        help="saves that are counted, ten times as many of small states; one more comes first",
    )
    parser.add_argument("--threads", type=int, default=2, help="of PyTorch, in all ways")
    parser.add_argument(
        "--only",
        help="megabytes of state, and cleaning, separated by commas; default: 10,500,cleaning, and 4000 on a GPU",
    )
    parser.add_argument("--folder", help="where checkpoints go; default: the folder of temporary files")
    parser.add_argument("--measure", choices=MEASURES, help=argparse.SUPPRESS)
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--megabytes", type=float, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        torch.set_num_threads(options.threads)
        print(
            json.dumps(
                MEASURES[options.measure](
                    options.way, options.megabytes, options.device, options.rounds, Path(options.folder)
                )
            )
        )
        return
    parts = (options.only or ("10,500,4000,cleaning" if options.device == "cuda" else "10,500,cleaning")).split(",")
    load_before = os.getloadavg()[0]
    rows: list[tuple[str, list[str], str, str]] = []
    results: dict[str, Any] = {}
    for part in parts:
        if part == "cleaning":
            results[part] = {way: in_own_process("cleaning", way, 1, options) for way in WAYS}
            rows.append(
                (
                    f"{CLEANED} checkpoints of 1 MB removed",
                    [f"{one['clean_ms']:.0f} ms" for one in results[part].values()],
                    "",
                    "",
                )
            )
        else:
            size, megabytes = shown_size(float(part)), float(part)
            results[size] = {
                way: in_own_process("time", way, megabytes, options) | in_own_process("memory", way, megabytes, options)
                for way in WAYS
            }
            rows += rows_of(megabytes, results[size])
    _print_table(rows, options)
    _write(results, options, load_before)


def _print_table(rows: list[tuple[str, list[str], str, str]], options: argparse.Namespace) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(
        title=(
            f"checkpoints, {datetime.date.today()}, {options.device}, {options.threads} threads of {os.cpu_count()}"
            " cores"
        ),
        show_lines=True,
    )
    for column in ("", *WAYS.values(), "goal", "met"):
        table.add_column(column)
    for what, cells, goal, met in rows:
        table.add_row(what, *cells, goal, met)
    console = Console()
    if not console.is_terminal:
        console.width = 150
    console.print(table)


def _write(results: dict[str, Any], options: argparse.Namespace, load_before: float) -> None:
    """Parts that were not run keep what an earlier run wrote, each with its date."""
    from importlib.metadata import version

    device = torch.cuda.get_device_name() if options.device == "cuda" else platform.machine()
    made = {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": " ".join(["python", "benchmarks/checkpoints.py", *sys.argv[1:]]),
        "machine": f"{device}, {os.cpu_count()} cores, load {load_before:.1f} before",
        "versions": {
            "torch": torch.__version__,
            "safetensors": version("safetensors"),
            "python": platform.python_version(),
        },
    }
    earlier = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(
        json.dumps(
            {
                **earlier,
                options.device: (
                    earlier.get(options.device, {}) | {part: {**made, **seen} for part, seen in results.items()}
                ),
            },
            indent=1,
        )
        + "\n",
        encoding="utf-8",
    )


if __name__ == "__main__":
    main()
