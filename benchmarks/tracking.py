"""What tracking costs and what it loses: MLflow's logging, synchronous and asynchronous, and mltrack side by side in
one run.

Invariant: every figure comes from processes of their own that log the public way (`mlflow.log_metrics`,
`TrainingMetricsTracker(..., run_id=...)`) to a real store, and what is stored is read from the store itself.

    python benchmarks/tracking.py                                  # all rows, about ten minutes
    python benchmarks/tracking.py --only call,kill --pairs 4
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from local_server import LocalServer
from training_process import METRICS, WAYS, Job, TrainingProcess, products_for

RESULTS = Path(__file__).resolve().parent / "results" / "tracking.json"
PER_STEP = len(METRICS)
SETTLED = 80
"""Steps of 50 ms until the relay has started."""
Cells = dict[str, dict[str, Any]]
"""{way: figures}"""


@dataclass
class Bench:
    """What the rows share."""

    folder: Path
    options: argparse.Namespace
    made: int = 0

    def place(self) -> Path:
        """A folder that nobody used yet."""
        self.made += 1
        return self.folder / str(self.made)

    def sqlite(self) -> str:
        """The one database of the rows without a server."""
        return f"sqlite:///{self.folder}/bench.db"

    def job(self, way: str, uri: str, **fields: Any) -> Job:
        """A job with a run of its own."""
        run_id = client(uri).create_run("0").info.run_id if way != "off" else None
        return Job(way=way, uri=uri, run_id=run_id, folder=str(self.place()), **fields)


def client(uri: str) -> Any:
    """mlflow's, imported when it is needed."""
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=uri)


def stored(uri: str, run_id: str | None) -> dict[str, Any]:
    """What the store holds of the loop's points, and the status it gives the run."""
    api = client(uri)
    points = twice = 0
    for name in METRICS:
        steps = [point.step for point in api.get_metric_history(run_id, name)]
        points += len(steps)
        twice += len(steps) - len(set(steps))
    return {"stored": points, "twice": twice, "status": api.get_run(run_id).info.status}


def shown_time(microseconds: float) -> str:
    """In the unit that reads well."""
    return f"{microseconds:.0f} us" if microseconds < 1000 else f"{microseconds / 1000:.1f} ms"


# -- the rows


def call(bench: Bench) -> Cells:
    """Time of one logging call of 4 metrics on the training thread: between steps of about 1 ms of computing, and in a
    loop of nothing else.
    """
    cells: Cells = {way: {} for way in WAYS}
    work = products_for(0.001)

    def measure(store: str, uri: str) -> None:
        for way, steps in (("sync", 120), ("async", 600), ("mltrack", 5000)):
            for around, products in (("training", work), ("tight", 0)):
                with TrainingProcess(bench.job(way, uri, steps=steps, work=products)) as process:
                    cells[way][f"{store}, {around}"] = process.wait_for("loop")
                    process.wait_for("closed")

    measure("sqlite", bench.sqlite())
    with LocalServer(bench.place()) as server:
        measure("server", server.uri)
    for cell in cells.values():
        measured = list(cell.items())
        cell["shown"] = "\n".join(
            f"{name}: p50 {shown_time(seen['p50_us'])}, p99 {shown_time(seen['p99_us'])}" for name, seen in measured
        )
        cell["met"] = all(seen["p50_us"] <= 20 and seen["p99_us"] <= 100 for _, seen in measured)
    return cells


def rate(bench: Bench) -> Cells:
    """Points delivered per second while there is a backlog, against raw log_batch of 999, alternating on the same
    store.
    """
    cells: Cells = {way: {} for way in WAYS}
    points = bench.options.rate_points

    def measure(store: str, uri: str) -> None:
        for way, steps in (("sync", 150), ("async", 500)):
            with TrainingProcess(bench.job(way, uri, steps=steps)) as process:
                begin, closed = process.wait_for("begin"), process.wait_for("closed")
                assert begin is not None
                assert closed is not None
                cells[way][store] = {"points_per_second": steps * PER_STEP / (closed["time"] - begin["time"])}
        raw, ours = [], []
        for _ in range(bench.options.rounds):
            raw.append(_raw_rate(uri, points))
            ours.append(_drain_rate(bench.job("mltrack", uri, steps=points // PER_STEP)))
        share = statistics.median(one / other for one, other in zip(ours, raw, strict=True))
        cells["mltrack"][store] = {
            "points_per_second": statistics.median(ours),
            "raw": statistics.median(raw),
            "share_of_raw": share,
            "all": [ours, raw],
        }

    measure("sqlite", bench.sqlite())
    with LocalServer(bench.place()) as server:
        measure("server", server.uri)
    for cell in cells.values():
        cell["shown"] = "\n".join(
            f"{store} {figures['points_per_second']:,.0f}/s"
            + (f" ({figures['share_of_raw']:.0%} of raw)" if "raw" in figures else "")
            for store, figures in cell.items()
        )
    cells["mltrack"]["met"] = all(cells["mltrack"][store]["share_of_raw"] >= 0.9 for store in ("sqlite", "server"))
    return cells


def _raw_rate(uri: str, points: int) -> float:
    """Without the first request, as the other side is measured."""
    from mlflow.entities import Metric

    api = client(uri)
    run_id = api.create_run("0").info.run_id
    rows = [
        Metric(name, float(step), 1_700_000_000_000 + step, step)
        for step in range(1, points // PER_STEP + 1)
        for name in METRICS
    ]
    api.log_batch(run_id, metrics=rows[:999])
    start = time.perf_counter()
    for first in range(999, len(rows), 999):
        api.log_batch(run_id, metrics=rows[first : first + 999])
    return (len(rows) - 999) / (time.perf_counter() - start)


def _drain_rate(job: Job) -> float:
    """Points per second between the relay's first acknowledgement and its last."""
    delivery = Path(job.folder) / "delivery.json"
    seen: list[tuple[float, int]] = []
    with TrainingProcess(job):
        while True:
            time.sleep(0.005)
            progress = json.loads(delivery.read_text()) if delivery.exists() else {}
            sent = progress.get("sent", 0)
            if sent and (not seen or sent != seen[-1][1]):
                seen.append((progress["acknowledged_ms"] / 1000, sent))
            if sent >= job.steps * PER_STEP:
                break
    (start, first), (end, last) = seen[0], seen[-1]
    return (last - first) / (end - start)


def kill(bench: Bench) -> Cells:
    """10,000 points as fast as they can be logged, then SIGKILL of the trainer; what the store holds 30 s later (or
    when it is complete).
    """
    cells: Cells = {}
    for way in WAYS:
        job = bench.job(way, bench.sqlite(), steps=2500, hold_at=2500)
        with TrainingProcess(job) as process:
            process.wait_for("holding")
            process.kill()
            start = time.monotonic()
            while (held := stored(job.uri, job.run_id))["stored"] < 10_000 or held["status"] == "RUNNING":
                if time.monotonic() - start > 30:
                    break
                time.sleep(0.2)
            held["seconds"] = time.monotonic() - start
        cells[way] = {
            **held,
            "shown": (
                f"{held['stored']:,}, {held['status']}"
                + (f"\nafter {held['seconds']:.1f} s" if held["seconds"] < 30 else "")
            ),
        }
        cells[way]["met"] = held["stored"] == 10_000 and held["twice"] == 0 and held["status"] == "FAILED"
    return cells


def outage(bench: Bench) -> Cells:
    """A run of 20 steps/s; the server is killed at 30 % of its time and started again at 60 %."""
    cells: Cells = {}
    steps, pace = bench.options.outage_steps, 0.05
    planned = steps * pace
    limit = 2 * planned + bench.options.patience
    for way in WAYS:
        with LocalServer(bench.place()) as server:
            job = bench.job(way, server.uri, steps=steps, pace_s=pace, announce=(round(0.3 * steps),))
            with TrainingProcess(job) as process:
                begin = process.wait_for("begin")
                assert begin is not None
                process.wait_for("step", planned + 60)
                server.kill()
                time.sleep(0.3 * planned)
                server.start()
                loop = process.wait_for("loop", limit)
                ended = process.exit_code(bench.options.patience) if loop is not None else None
                if way == "mltrack":
                    _wait_until_complete(Path(job.folder), 60)
            held = stored(server.database, job.run_id)
        took = (
            f"{loop['seconds']:.1f} s, planned {planned:.0f}"
            if loop
            else f"not done after {limit:.0f} s, planned {planned:.0f}"
        )
        cells[way] = {**held, "loop": loop, "exit_code": ended, "planned_s": planned}
        cells[way]["shown"] = f"{held['stored']:,} of {steps * PER_STEP:,}, {held['status']}\n{took}"
        cells[way]["met"] = (
            held["stored"] == steps * PER_STEP
            and held["twice"] == 0
            and loop is not None
            and loop["seconds"] < 1.03 * planned
        )
    return cells


def _wait_until_complete(folder: Path, limit_s: float) -> None:
    deadline = time.monotonic() + limit_s
    while time.monotonic() < deadline and not json.loads((folder / "delivery.json").read_text()).get("complete"):
        time.sleep(0.1)


def dead(bench: Bench) -> Cells:
    """The server is killed after 200 steps, the training does 20 more and ends: from its last step to the end of the
    process.
    """
    cells: Cells = {}
    for way in WAYS:
        with LocalServer(bench.place()) as server:
            job = bench.job(way, server.uri, steps=220, pace_s=0.01, hold_at=200)
            with TrainingProcess(job) as process:
                process.wait_for("holding")
                time.sleep(2.0)
                server.kill()
                start = time.monotonic()
                process.go_on()
                code = process.exit_code(bench.options.patience)
                seconds = time.monotonic() - start - 20 * job.pace_s
        shown = (
            f"{seconds:.1f} s, exit code {code}"
            if code is not None
            else f"still hanging after {bench.options.patience:.0f} s"
        )
        cells[way] = {"seconds": seconds, "exit_code": code, "shown": shown, "met": code == 0 and seconds <= 10.5}
    return cells


def slowdown(bench: Bench) -> Cells:
    """Time of a computing loop of 20 steps/s, with tracking (sqlite) and without, in alternating pairs; bootstrap
    interval of the median ratio.

    Counted after the first `SETTLED` steps, in which the relay starts and imports MLflow; the whole loop is told beside
    it."""
    work, steps = products_for(0.05), SETTLED + bench.options.pair_steps
    settled, whole, exits = [], [], []
    for pair in range(bench.options.pairs):
        seconds: dict[str, tuple[float, float]] = {}
        for way in ("off", "mltrack") if pair % 2 == 0 else ("mltrack", "off"):
            with TrainingProcess(
                bench.job(way, bench.sqlite(), steps=steps, work=work, announce=(SETTLED,))
            ) as process:
                mark, loop, closed = process.wait_for("step"), process.wait_for("loop"), process.wait_for("closed")
                assert mark is not None
                assert loop is not None
                assert closed is not None
                seconds[way] = (loop["time"] - mark["time"], loop["seconds"])
                if way == "mltrack":
                    exits.append(closed["time"] - loop["time"])
        settled.append(seconds["mltrack"][0] / seconds["off"][0])
        whole.append(seconds["mltrack"][1] / seconds["off"][1])
    cell: dict[str, Any] = {"exit_s": statistics.median(exits)}
    for name, ratios in (("settled", settled), ("whole", whole)):
        cell[name] = {"ratios": ratios, "median": statistics.median(ratios), "interval": _interval_of_median(ratios)}
    cell["shown"] = (
        f"{_percents(cell['settled'])}, {len(settled)} pairs\nwith the first {SETTLED} of {steps} steps:"
        f" {_percents(cell['whole'])}"
    )
    cell["met"] = cell["settled"]["interval"][1] <= 1.03
    return {"sync": {"shown": "-"}, "async": {"shown": "-"}, "mltrack": cell}


def _interval_of_median(ratios: list[float]) -> tuple[float, float]:
    """95 %, by 10,000 bootstrap resamples."""
    draw = random.Random(0)
    medians = sorted(statistics.median(draw.choices(ratios, k=len(ratios))) for _ in range(10_000))
    return medians[249], medians[9749]


def _percents(figures: dict[str, Any]) -> str:
    low, high = figures["interval"]
    return f"{100 * (figures['median'] - 1):+.1f} % [{100 * (low - 1):+.1f}, {100 * (high - 1):+.1f}]"


def growth(bench: Bench) -> Cells:
    """A call and the process's memory after many points, against its start; the journal alone, without a relay beside
    it.
    """
    steps = bench.options.points // PER_STEP
    marks = tuple(max(1, steps * share // 50) for share in range(1, 51))
    with TrainingProcess(Job(way="mltrack", folder=str(bench.place()), steps=steps, announce=marks)) as process:
        seen = []
        while len(seen) < len(marks) and (one := process.wait_for("step")) is not None:
            seen.append(one)
        process.wait_for("closed")
    ratio = seen[-1]["p50_us"] / seen[0]["p50_us"]
    grown = seen[-1]["memory_mb"] - seen[0]["memory_mb"]
    cell = {"points": steps * PER_STEP, "first": seen[0], "last": seen[-1], "ratio": ratio, "memory_grown_mb": grown}
    cell["shown"] = f"{ratio:.2f}x after {steps * PER_STEP:,} points\n{grown:+.1f} MB"
    cell["met"] = ratio <= 1.1 and grown <= 20
    return {"sync": {"shown": "-"}, "async": {"shown": "-"}, "mltrack": cell}


ROWS: dict[str, tuple[Callable[[Bench], Cells], str, str]] = {
    "call": (call, "one call of 4 metrics on the training thread", "p50 <= 20 us, p99 <= 100 us"),
    "rate": (rate, "points delivered per second", ">= 90 % of raw log_batch"),
    "kill": (kill, "10,000 points, then SIGKILL: stored", "all within 30 s, FAILED"),
    "outage": (outage, "server killed at 30 %, back at 60 %: stored, time of the loop", "all, on time"),
    "dead": (dead, "exit with the server dead", "<= 10 s, exit code 0"),
    "slowdown": (slowdown, "slowdown of 20 steps/s", "upper bound <= 3 %"),
    "growth": (growth, "one call after many points against the first, memory", "1.0x, flat"),
}


def main() -> None:
    """Run the rows, print the table, write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(ROWS), help=f"rows, separated by commas: {', '.join(ROWS)}")
    parser.add_argument("--pairs", type=int, default=20, help="pairs of the slowdown")
    parser.add_argument("--pair-steps", type=int, default=120, help="counted steps of each run of a pair, 20 a second")
    parser.add_argument("--points", type=int, default=1_000_000, help="points of the growth")
    parser.add_argument("--rate-points", type=int, default=20_000, help="points of each run of the rate")
    parser.add_argument("--rounds", type=int, default=3, help="alternations of raw log_batch and mltrack")
    parser.add_argument("--outage-steps", type=int, default=600, help="steps of the run with the outage, 20 a second")
    parser.add_argument("--patience", type=float, default=60.0, help="seconds to wait for something that hangs")
    options = parser.parse_args()
    names = [name.strip() for name in options.only.split(",")]
    if unknown := [name for name in names if name not in ROWS]:
        parser.error(f"--only: seen {', '.join(unknown)}; accepted: {', '.join(ROWS)}")
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
    results: dict[str, Cells] = {}
    with tempfile.TemporaryDirectory(prefix="mltrack-bench-") as folder:
        bench = Bench(Path(folder), options)
        client(bench.sqlite()).search_experiments(max_results=1)
        for name in names:
            start = time.monotonic()
            print(f"{name}: {ROWS[name][1]} ...", file=sys.stderr, flush=True)
            results[name] = ROWS[name][0](bench)
            print(
                f"{name}: {time.monotonic() - start:.0f} s; "
                + "; ".join(f"{way}: {cell['shown']}" for way, cell in results[name].items()),
                file=sys.stderr,
            )
    _print_table(results)
    _write(results)


def _print_table(results: dict[str, Cells]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"tracking, {datetime.date.today()}, {os.cpu_count()} cores", show_lines=True)
    for column in ("", "MLflow sync", "MLflow async", "mltrack", "goal", "met"):
        table.add_column(column)
    for name, cells in results.items():
        table.add_row(
            ROWS[name][1],
            *(cells[way]["shown"] for way in WAYS),
            ROWS[name][2],
            "yes" if cells["mltrack"]["met"] else "no",
        )
    console = Console()
    if not console.is_terminal:
        console.width = 150
    console.print(table)


def _write(results: dict[str, Cells]) -> None:
    """Rows that were not run keep what an earlier run wrote, each with its date."""
    from importlib.metadata import version

    made = {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": " ".join(["python", "benchmarks/tracking.py", *sys.argv[1:]]),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[1]:.1f}",
        "versions": {name: version(name) for name in ("mlflow", "psutil")} | {"python": platform.python_version()},
    }
    earlier = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(
        json.dumps(
            earlier | {name: {**made, "goal": ROWS[name][2], **cells} for name, cells in results.items()}, indent=1
        )
        + "\n",
        encoding="utf-8",
    )


if __name__ == "__main__":
    main()
