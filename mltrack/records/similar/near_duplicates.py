"""Finds records with the same or nearly the same code.

Two records are near-duplicates if the sets of their runs of 5 normalised tokens (`mltrack.records.similar.normalize`)
have a Jaccard similarity of 0.8 or more. MinHash finds the candidates, the sets decide. A group also contains records
that are similar through others. Code with fewer than 16 different runs is too short to compare by shape: there literals
count, and names by their position (and a completion's description).

Invariant: the groups are a pure function of the set of contents, in any order, process and machine.

    groups = duplicate_groups(records)
    groups.near[3] == groups.near[7]        # one of them leaks the other
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b, sha256

import numpy as np

from mltrack.records.record import Record
from mltrack.records.row_cache import cached_rows
from mltrack.records.similar.normalize import normalize
from mltrack.records.table import keys_of

FORMAT_VERSION = 3
"""Part of the cache's name; raise it with any change of the groups."""

RUN = 5
"""Tokens per run."""
SIMILARITY = 0.8
"""Jaccard similarity from which two records are near-duplicates."""
FEWEST_RUNS = 16
"""Different runs that code needs for a comparison by similarity."""
MOST_COMPARED = 250_000
"""With more distinct records, only those with equal normalised tokens are near-duplicates: similarity would take
minutes and gigabytes.
"""

_BANDS, _ROWS = 25, 5  # at a similarity of 0.8 a pair is missed once in 20,000, at 0.9 never
_NEIGHBOURS = 64  # compared with the next ones of a bucket: all pairs of a large bucket would be too many
_CACHED_FROM = 1000
_REPORT_EVERY = 200

Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class DuplicateGroups:
    """The group number of each record; the numbers have no other meaning."""

    near: np.ndarray
    """Near-duplicates, also through other records: int64 [N]."""
    same: np.ndarray
    """The same code, ignoring layout, comments and the names it defines: int64 [N]."""


def duplicate_groups(
    records: Sequence[Record], *, keys: np.ndarray | None = None, progress: Progress | None = None
) -> DuplicateGroups:
    """The groups of near-duplicates among these records; cached for 1,000 or more distinct records.

    Args:
        keys: the records' content keys, V16 [N], if the caller has them.
        progress: called with (done, total) if the result is not cached.
    """
    distinct, order, back = distinct_keys(keys if keys is not None else keys_of(records))
    report: Progress = progress if progress is not None else lambda done, total: None
    if len(order) < _CACHED_FROM:
        rows = _grouped(records, order, report)
    else:
        rows = cached_rows(
            f"near-duplicates-{sha256(distinct.tobytes()).hexdigest()[:32]}-v{FORMAT_VERSION}",
            lambda: _grouped(records, order, report),
        )
    near, same = np.asarray(rows, dtype=np.int64).reshape(2, -1)
    return DuplicateGroups(near[back], same[back])


def distinct_keys(keys: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(sorted distinct keys V16 [M], position of each key's first record int64 [M], each record's key int64 [N])."""
    halves = np.ascontiguousarray(keys).view(">u8").reshape(-1, 2)
    order = np.lexsort((halves[:, 1], halves[:, 0]))
    ordered = halves[order]
    first = np.ones(len(order), dtype=bool)
    first[1:] = (ordered[1:] != ordered[:-1]).any(axis=1)
    back = np.empty(len(order), dtype=np.int64)
    back[order] = np.cumsum(first) - 1
    return keys[order[first]], order[first], back


def joined(count: int, groupings: Sequence[np.ndarray]) -> np.ndarray:
    """Numbers for `count` records; records that share a number in any grouping share one: [count].

    Args:
        groupings: int64 [count] each; a negative number is not shared.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    edges = [np.zeros((2, 0), dtype=np.int64)]
    for numbers in groupings:
        order = np.argsort(numbers, kind="stable")
        ordered = numbers[order]
        same = (ordered[1:] == ordered[:-1]) & (ordered[1:] >= 0)
        edges.append(np.stack([order[:-1][same], order[1:][same]]))
    ends = np.concatenate(edges, axis=1)
    graph = coo_array((np.ones(ends.shape[1], dtype=bool), tuple(ends)), shape=(count, count))
    return np.asarray(connected_components(graph, directed=False)[1], dtype=np.int64)


def _grouped(records: Sequence[Record], order: np.ndarray, report: Progress) -> list[list[int]]:
    """[near, same]: a group number for each of the distinct records at these positions, which are in key order."""
    from scipy.cluster.hierarchy import DisjointSet

    count = len(order)
    same: list[int] = []
    near: list[int] = []
    first_of: dict[bytes, int] = {}  # of the records with the same code, and of those with the same shape
    compared: list[int] = []
    runs: list[np.ndarray] = []
    by_similarity = count <= MOST_COMPARED
    if not by_similarity:
        warnings.warn(
            f"{count:,} distinct records are more than {MOST_COMPARED:,}: only those with the same normalised"
            " tokens are kept together, not those with similar ones",
            stacklevel=4,
        )
    codes = _TokenCodes()
    for index, record in enumerate(records[int(position)] for position in order):
        code = normalize(record.text)
        same.append(first_of.setdefault(b"code" + code.same_code, index))
        found = _runs(np.fromiter(map(codes.__getitem__, code.tokens), dtype=np.uint64, count=len(code.tokens)))
        if len(found) < FEWEST_RUNS:
            shape = b"short" + code.same_code + (record.description or "").encode("utf-8", "surrogatepass")
        else:
            whole = found.tobytes() if by_similarity else "\0".join(code.tokens).encode("utf-8", "surrogatepass")
            shape = b"shape" + blake2b(whole, digest_size=16).digest()
            if by_similarity and shape not in first_of:
                compared.append(index)
                runs.append(found)
        near.append(first_of.setdefault(shape, index))
        if index % _REPORT_EVERY == 0:
            report(index, count)
    alike = DisjointSet(range(len(runs)))
    for a, b in _candidates(runs):
        if not alike.connected(a, b) and _similarity(runs[a], runs[b]) >= SIMILARITY:
            alike.merge(a, b)
    groups = {index: compared[alike[position]] for position, index in enumerate(compared)}
    report(count, count)
    return [[groups.get(index, index) for index in near], same]


class _TokenCodes(dict[str, int]):
    """64 bits per token, the same in every process."""

    def __missing__(self, token: str) -> int:
        if len(self) > 500_000:
            self.clear()
        code = self[token] = int.from_bytes(
            blake2b(token.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little"
        )
        return code


_MULTIPLIERS = np.array(
    [0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9, 0xD6E8FEB86659FD93, 0xA0761D6478BD642F],
    dtype=np.uint64,
)
assert len(_MULTIPLIERS) == RUN


def _runs(codes: np.ndarray) -> np.ndarray:
    """The set of runs of `RUN` tokens, as sorted hashes: uint32 [K]."""
    if len(codes) < RUN:
        return np.zeros(0, dtype=np.uint32)
    windows = np.lib.stride_tricks.sliding_window_view(codes, RUN)
    mixed = (windows * _MULTIPLIERS).sum(axis=1, dtype=np.uint64)
    mixed ^= mixed >> np.uint64(29)
    mixed *= np.uint64(0xBF58476D1CE4E5B9)
    return np.unique((mixed >> np.uint64(32)).astype(np.uint32))


def _similarity(a: np.ndarray, b: np.ndarray) -> float:
    """Jaccard similarity of two sets of hashes."""
    if min(len(a), len(b)) < SIMILARITY * max(len(a), len(b)):
        return 0.0
    common = len(np.intersect1d(a, b, assume_unique=True))
    return common / (len(a) + len(b) - common)


def _candidates(runs: Sequence[np.ndarray]) -> Iterator[tuple[int, int]]:
    """Pairs that share a band of their MinHash signatures."""
    if len(runs) < 2:
        return
    signatures = _signatures(runs)
    for band in range(_BANDS):
        rows = np.ascontiguousarray(signatures[:, band * _ROWS : (band + 1) * _ROWS])
        order = np.lexsort(rows.T)
        ordered = rows[order]
        starts = np.flatnonzero(np.concatenate([[True], (ordered[1:] != ordered[:-1]).any(axis=1)]))
        for start, end in zip(starts, [*starts[1:], len(order)], strict=True):
            if end - start < 2:
                continue
            bucket = np.sort(order[start:end]).tolist()
            for i, a in enumerate(bucket):
                for b in bucket[i + 1 : i + 1 + _NEIGHBOURS]:
                    yield a, b


def _signatures(runs: Sequence[np.ndarray]) -> np.ndarray:
    """MinHash signatures [N, bands x rows]."""
    from datasketch import MinHash

    made = MinHash.generator((found.tolist() for found in runs), num_perm=_BANDS * _ROWS, hashfunc=int)
    return np.array([sketch.hashvalues for sketch in made])
