"""Which records are the same code, and which nearly.

Two records are near-duplicates where their normalised tokens (`mltrack.records.similar.normalize`) are alike: the sets
of their runs of 5 tokens have a Jaccard similarity of 0.8 or more. MinHash finds the candidates, the sets themselves
decide; who is alike to somebody who is alike is in the same group. Code of less than 16 different runs is too short to
be told from other code by its shape: there literals count, and its names do by their place (for a completion its
description, too).

Invariant: the groups are a pure function of the set of contents, whatever the records' order, the process and the
machine.

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
"""Part of the cache's name; whatever changes the groups raises it."""

RUN = 5
"""Tokens of a run."""
SIMILARITY = 0.8
"""Jaccard similarity from which two records are near-duplicates."""
FEWEST_RUNS = 16
"""Different runs that code must have to be compared by similarity."""
MOST_COMPARED = 250_000
"""Of more distinct records than this only those with equal normalised tokens are near-duplicates: similarity would take
minutes and gigabytes.
"""

_BANDS, _ROWS = 25, 5  # at a similarity of 0.8 a pair is missed once in 20,000, at 0.9 never
_NEIGHBOURS = 64  # compared within a bucket, next in order: a bucket of thousands would cost their square
_CACHED_FROM = 1000
_REPORT_EVERY = 200

Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class DuplicateGroups:
    """A group's number per record; records of one group have the same number, numbers mean nothing else."""

    near: np.ndarray
    """Near-duplicates, and what is alike through others: int64 [N]."""
    same: np.ndarray
    """The same code but for layout, comments and the names that it gives: int64 [N]."""


def duplicate_groups(
    records: Sequence[Record], *, keys: np.ndarray | None = None, progress: Progress | None = None
) -> DuplicateGroups:
    """The groups of near-duplicates among these records; kept in the cache folder from 1,000 distinct records on.

    Args:
        keys: the records' content keys, V16 [N], where the caller has them already.
        progress: called with (done, total) while there is nothing in the cache.
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
    """(distinct keys in order V16 [M], position of each one's first record int64 [M], which of them each record has
    int64 [N]).
    """
    halves = np.ascontiguousarray(keys).view(">u8").reshape(-1, 2)
    order = np.lexsort((halves[:, 1], halves[:, 0]))
    ordered = halves[order]
    first = np.ones(len(order), dtype=bool)
    first[1:] = (ordered[1:] != ordered[:-1]).any(axis=1)
    back = np.empty(len(order), dtype=np.int64)
    back[order] = np.cumsum(first) - 1
    return keys[order[first]], order[first], back


def joined(count: int, groupings: Sequence[np.ndarray]) -> np.ndarray:
    """One numbering of `count` records in which whoever has a number in common in any of the groupings has the same:
    int64 [count].

    Args:
        groupings: int64 [count] each; a negative number is in common with nobody.
    """
    sets = _DisjointSets(count)
    for numbers in groupings:
        order = np.argsort(numbers, kind="stable")
        ordered = numbers[order]
        for i in np.flatnonzero((ordered[1:] == ordered[:-1]) & (ordered[1:] >= 0)):
            sets.join(int(order[i]), int(order[i + 1]))
    return sets.numbers()


def _grouped(records: Sequence[Record], order: np.ndarray, report: Progress) -> list[list[int]]:
    """[near, same]: a group's number for each of the distinct records at these positions, which are in the order of
    their keys.
    """
    count = len(order)
    sets = _DisjointSets(count)
    same: dict[bytes, int] = {}
    short: dict[bytes, int] = {}
    shapes: dict[bytes, int] = {}
    compared: list[int] = []
    runs: list[np.ndarray] = []
    same_numbers = []
    by_similarity = count <= MOST_COMPARED
    if not by_similarity:
        warnings.warn(
            f"{count:,} distinct records are more than {MOST_COMPARED:,}: kept together are those with the same"
            " normalised tokens, not those with similar ones",
            stacklevel=4,
        )
    codes = _TokenCodes()
    for index, record in enumerate(records[int(position)] for position in order):
        code = normalize(record.text)
        same_numbers.append(same.setdefault(code.same_code, index))
        found = _runs(np.fromiter(map(codes.__getitem__, code.tokens), dtype=np.uint64, count=len(code.tokens)))
        if len(found) < FEWEST_RUNS:
            sets.join(
                index,
                short.setdefault(code.same_code + (record.description or "").encode("utf-8", "surrogatepass"), index),
            )
        else:
            shape = found.tobytes() if by_similarity else "\0".join(code.tokens).encode("utf-8", "surrogatepass")
            first = shapes.setdefault(blake2b(shape, digest_size=16).digest(), index)
            sets.join(index, first)
            if first == index and by_similarity:
                compared.append(index)
                runs.append(found)
        if index % _REPORT_EVERY == 0:
            report(index, count)
    for a, b in _candidates(runs):
        if sets.find(compared[a]) != sets.find(compared[b]) and _similarity(runs[a], runs[b]) >= SIMILARITY:
            sets.join(compared[a], compared[b])
    report(count, count)
    return [sets.numbers().tolist(), same_numbers]


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

    empty = MinHash(num_perm=_BANDS * _ROWS, hashfunc=int)
    made = np.empty((len(runs), _BANDS * _ROWS), dtype=empty.hashvalues.dtype)
    for row, found in enumerate(runs):
        sketch = empty.copy()
        sketch.update_batch(found.tolist())
        made[row] = sketch.hashvalues
    return made


class _DisjointSets:
    """Union-find; a set is named by its smallest member."""

    def __init__(self, count: int):
        self._parents = list(range(count))

    def find(self, member: int) -> int:
        parents = self._parents
        while parents[member] != member:
            parents[member] = parents[parents[member]]
            member = parents[member]
        return member

    def join(self, a: int, b: int) -> None:
        low, high = sorted((self.find(a), self.find(b)))
        self._parents[high] = low

    def numbers(self) -> np.ndarray:
        return np.array([self.find(member) for member in range(len(self._parents))], dtype=np.int64)
