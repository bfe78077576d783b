"""`mltrack cache list` and `mltrack cache clear`."""

from __future__ import annotations

import json
from dataclasses import asdict
from datetime import datetime

from mltrack.cache import Cached, cache_folder
from mltrack.config import OPTIONS, Option
from mltrack.records import row_cache as data_cache
from mltrack.store import model_cache

KIND = Option(name="kind", kind="text", choices=("all", "model", "tokens", "records", "rows"), help="")


def list_cache(kind: str, output: str) -> None:
    """Print one line for each item in the cache folder, and the sum."""
    OPTIONS["output"].check(output)
    found = _found(kind)
    if output == "json":
        print(json.dumps([asdict(one) for one in found]))
        return
    for one in found:
        used = datetime.fromtimestamp(one.used).strftime("%Y-%m-%d %H:%M")
        print(
            f"{one.kind:<8} {one.num_bytes / 1e6:>12,.1f} MB  used {used}{'  in use' if one.in_use else ''}  {one.name}"
            f"  {one.source}".rstrip()
        )
    print(f"{len(found)} in {cache_folder()}, {_megabytes(found)}")


def clear_cache(kind: str, output: str) -> None:
    """Delete what no process uses, and print how much it was."""
    OPTIONS["output"].check(output)
    removed: list[Cached] = []
    kept: list[Cached] = []
    for one in _found(kind):
        (removed if _removed(one) else kept).append(one)
    if output == "json":
        print(json.dumps({"removed": [asdict(one) for one in removed], "kept": [asdict(one) for one in kept]}))
        return
    print(f"deleted {len(removed)} from {cache_folder()}, {_megabytes(removed)}")
    for one in kept:
        print(f"kept {one.kind} {one.name}: a process uses it")


def _found(kind: str) -> list[Cached]:
    KIND.check(kind)
    return [one for one in (*model_cache.cached_models(), *data_cache.kept_files()) if kind in ("all", one.kind)]


def _removed(one: Cached) -> bool:
    if one.kind == "model":
        return model_cache.remove_model(one.name)
    if not one.in_use:
        data_cache.remove_file(one.name)
    return not one.in_use


def _megabytes(found: list[Cached]) -> str:
    return f"{sum(one.num_bytes for one in found) / 1e6:,.1f} MB"
