"""What data costs: records/s and peak memory of reading, tokenizing and batching, and the time to the first batch once
all is cached.

    python benchmarks/data.py --sizes 10000 100000 1000000 --format jsonl

For each size a file of generated pairs (a description and a function of about 400 characters, all different) is read,
tokenized and batched in a new process with an empty cache folder, and then once more with the cache that it left.
Memory is sampled every 20 ms: what the process has allocated (`anonymous`), and all that is resident; mapped files
count in the second only as long as nobody else needs the memory. Times leave out the imports. With `--split true` the
records are also split, near-duplicates kept together: a step of its own at the end.

A start that takes longer than `--limit` seconds is ended, and its row has what it has measured until then; a size that
would fill the disk is left out; what a size has written is removed before the next one. Prints one table and writes one
JSON (`--output`), with the load of the machine at the end of each start."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

BATCH_SIZE, MAX_LENGTH = 16, 256
DISK_BYTES = 2500
"""A record's share of its file, the table, the token ids and what a split keeps, with room to spare."""


class Memory:
    """The peaks of this process's memory in MB since the last look, from /proc."""

    def __init__(self) -> None:
        self._peaks = {"RssAnon": 0.0, "VmRSS": 0.0}
        self._stop = threading.Event()
        threading.Thread(target=self._watch, daemon=True).start()

    def peaks(self) -> dict[str, float]:
        self._sample()
        found = {"anonymous_mb": round(self._peaks["RssAnon"]), "resident_mb": round(self._peaks["VmRSS"])}
        self._peaks = dict.fromkeys(self._peaks, 0.0)
        return found

    def _watch(self) -> None:
        while not self._stop.wait(0.02):
            self._sample()

    def _sample(self) -> None:
        for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
            name, _, rest = line.partition(":")
            if name in self._peaks:
                self._peaks[name] = max(self._peaks[name], int(rest.split()[0]) / 1024)


def function(number: int) -> dict[str, str]:
    """A pair like no other."""
    names = [f"{word}_{number % (7 + at)}" for at, word in enumerate(("value", "total", "index", "row", "price"))]
    lines = [
        f"    {name} = helper_{(number * (at + 3)) % 997}({names[at - 1]}, {number + at})"
        for at, name in enumerate(names)
    ]
    loop = [
        f"    for item in range({number % 89}):",
        f"        {names[0]} += item * {number}",
        f"        log.debug('%s at {number}', {names[1]})",
    ]
    code = "\n".join([f"def function_{number}({names[4]}, log):", *lines, *loop, f"    return {' + '.join(names)}"])
    return {"description": f"Combine the {number}th value with what the helpers make of it", "code": code}


def write_records(path: Path, count: int, file_format: str) -> None:
    """A file of generated pairs, without ever holding them all."""
    if file_format == "jsonl":
        with path.open("w", encoding="utf-8") as file:
            for number in range(count):
                file.write(json.dumps(function(number)) + "\n")
    elif file_format == "csv":
        import csv

        with path.open("w", encoding="utf-8", newline="") as file:
            rows = csv.DictWriter(file, ["description", "code"])
            rows.writeheader()
            rows.writerows(function(number) for number in range(count))
    else:
        import pyarrow as pa
        import pyarrow.parquet as pq

        schema = pa.schema([("description", pa.string()), ("code", pa.string())])
        with pq.ParquetWriter(path, schema) as parquet:
            for start in range(0, count, 10_000):
                parquet.write_table(
                    pa.Table.from_pylist(
                        [function(number) for number in range(start, min(start + 10_000, count))], schema
                    )
                )


def measure(path: Path, tokenizer_folder: Path, splits: bool) -> None:
    """One start: read, tokenize, all batches of an epoch; and split. Prints a line of JSON behind each of them, the
    last one with all figures.
    """
    import pyarrow  # noqa: F401  imports are not what is measured
    from transformers import PreTrainedTokenizerFast

    from mltrack.config import TrainingConfig
    from mltrack.data import DatasetLoader
    from mltrack.data.batches import TrainingBatches

    tokenizer = PreTrainedTokenizerFast.from_pretrained(tokenizer_folder)
    tokenizer("x")
    memory = Memory()
    found: dict[str, Any] = {"imports": memory.peaks()}
    started = begun = time.perf_counter()
    cpu_started = time.process_time()

    def lap(name: str, count: int) -> None:
        nonlocal started, cpu_started
        seconds, cpu_s = time.perf_counter() - started, time.process_time() - cpu_started
        found[name] = {
            "seconds": round(seconds, 3),
            "per_s": round(count / seconds),
            "cpu_s": round(cpu_s, 3),
            **memory.peaks(),
        }
        found["readers_loaded"] = [name for name in ("datasets", "pandas") if name in sys.modules]
        print(json.dumps(found), flush=True)
        started, cpu_started = time.perf_counter(), time.process_time()

    loader = DatasetLoader(path, tokenizer, "code_generation", MAX_LENGTH)
    records = loader.records
    lap("read", len(records))
    dataset = loader.dataset(records)
    lap("tokenize", len(records))
    groups = TrainingBatches(dataset, TrainingConfig(batch_size=BATCH_SIZE, seed=1), rank=0, world=1, pin=False).groups(
        0, 0
    )
    found["tokens"] = next(groups)[0].tokens
    found["first_batch_s"] = round(time.perf_counter() - begun, 3)
    for group in groups:
        found["tokens"] += group[0].tokens
    lap("batch", len(dataset))
    if splits:
        loader.split_records(0.1)
        lap("split", len(records))


def main() -> None:
    """Parse the options, start a process for each measurement, print and write what they say."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--format", choices=("jsonl", "csv", "parquet"), default="jsonl")
    parser.add_argument("--output", type=Path, default=Path("data.json"))
    parser.add_argument("--split", choices=("true", "false"), default="false")
    parser.add_argument("--limit", type=float, default=1200.0, help="seconds of one start")
    parser.add_argument("--measure", nargs=2, type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        measure(*options.measure, options.split == "true")
        return
    results: dict[str, Any] = {}
    print(f"| {' | '.join(COLUMNS)} |\n" + "|---" * len(COLUMNS) + "|")
    with tempfile.TemporaryDirectory(prefix="mltrack-data-") as folder:
        tokenizer = Path(folder) / "tokenizer"
        from mltrack.models.tokenizers import train_tokenizer
        from mltrack.records.readers.paths import SETTLED_S

        train_tokenizer([function(number)["code"] for number in range(2000)], 8000, "decoder").save_pretrained(
            tokenizer
        )
        for size in options.sizes:
            if shutil.disk_usage(folder).free < size * DISK_BYTES:
                print(
                    f"| {size:,} | left out: {folder} has less than {size * DISK_BYTES / 1e9:.1f} GB of room |",
                    flush=True,
                )
                continue
            path, cache = Path(folder) / f"records-{size}.{options.format}", Path(folder) / f"cache-{size}"
            write_records(path, size, options.format)
            time.sleep(SETTLED_S)  # records of a file that changed just now are not kept
            for start in ("cold", "cached"):
                words = [sys.executable, __file__, "--split", options.split, "--measure", str(path), str(tokenizer)]
                environment = {**os.environ, "MLTRACK_CACHE_DIR": str(cache), "HF_HUB_OFFLINE": "1"}
                try:
                    said = subprocess.run(
                        words, env=environment, stdout=subprocess.PIPE, check=True, timeout=options.limit
                    ).stdout
                except subprocess.TimeoutExpired as error:
                    said = error.stdout or b""
                one = results[f"{size} {start}"] = {
                    **json.loads(said.splitlines()[-1] if said else "{}"),
                    "load": os.getloadavg()[0],
                }
                print(f"| {size:,} | {start} | {row(one)} |", flush=True)
            path.unlink()
            shutil.rmtree(cache, ignore_errors=True)
            options.output.write_text(
                json.dumps(
                    {"format": options.format, "batch_size": BATCH_SIZE, "max_length": MAX_LENGTH, "results": results},
                    indent=1,
                )
            )


COLUMNS = (
    "records",
    "start",
    "read/s",
    "tokenize/s",
    "batch/s",
    "split/s",
    "tokenized per s of CPU",
    "first batch, s",
    "anonymous MB: imports, read, tokenize, batch, split",
    "resident MB",
    "load",
)


def row(one: dict[str, Any]) -> str:
    """The cells of a start behind its name; "-" for what it has not come to, or is in no time."""
    phases = [one[name] for name in ("imports", "read", "tokenize", "batch", "split") if name in one]
    rates = [f"{one[name]['per_s']:,}" if name in one else "-" for name in ("read", "tokenize", "batch", "split")]
    made = one.get("tokenize", {"cpu_s": 0.0})
    per_cpu_s = f"{made['per_s'] * made['seconds'] / made['cpu_s']:,.0f}" if made["cpu_s"] > 1 else "-"
    anonymous = ", ".join(f"{phase['anonymous_mb']:,}" for phase in phases)
    resident = max((phase["resident_mb"] for phase in phases), default=0)
    return " | ".join(
        [*rates, per_cpu_s, str(one.get("first_batch_s", "-")), anonymous, f"{resident:,}", f"{one['load']:.1f}"]
    )


if __name__ == "__main__":
    main()
