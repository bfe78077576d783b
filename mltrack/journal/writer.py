"""Appends to a journal.

Contract:
- one record is one `write`: once `append` returns, the record survives `kill -9` of the process;
- one writer: a second one is refused while the first lives, regardless of processes that it has forked;
- a file of an older format gets a header of this one, before the first record that an older reader does not know;
- a torn tail after a crash is closed with a line end and never changed again;
- the data is forced to the disk (`fdatasync`) on `sync()` and, by a separate thread, every few seconds.
"""

from __future__ import annotations

import fcntl
import os
import threading
from pathlib import Path
from weakref import WeakSet

from mltrack.errors import TrackingError
from mltrack.journal import records
from mltrack.journal.frame import Frame, decode, encode, framed

SYNC_INTERVAL_S = 5.0
_HEADER_BYTES = 4096
_fdatasync = getattr(os, "fdatasync", os.fsync)  # macOS has no fdatasync


_LOCKS: WeakSet[JournalLock] = WeakSet()


class DiskFullError(TrackingError):
    """A record could not be written; the journal before it is intact."""


class JournalInUse(TrackingError):
    """Another process is writing the journal."""


class JournalLock:
    """The right to write one journal, held until it is released or this process ends; a forked child does not inherit
    it.

    Args:
        path: of the journal; created empty if it does not exist.

    Raises:
        JournalInUse: another process holds it.
        TrackingError: the journal cannot be opened.
    """

    def __init__(self, path: Path | str):
        self.path = Path(path)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise TrackingError(
                f"{self.path}: the journal cannot be opened: {error.strerror}; use a writable output_dir"
            ) from error
        try:
            fcntl.flock(self.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not os.path.samestat(os.fstat(self.fd), self.path.stat()):
                raise OSError("another process has set this journal aside")
        except OSError as error:
            os.close(self.fd)
            raise JournalInUse(
                f"{self.path}: another process is writing this journal; wait for it, or choose another output_dir"
            ) from error
        self.mutex = threading.Lock()
        """Held while a record is written."""
        self._released = False
        _LOCKS.add(self)

    def release(self) -> None:
        """Release the journal for the next writer. May be called twice."""
        if not self._released:
            self._released = True
            os.close(self.fd)

    def _leave_to_parent(self) -> None:
        """In a forked process, reopen the file, since a lock is held as long as any process has its descriptor."""
        if self._released:
            return
        self.mutex = threading.Lock()  # another thread of the parent may have held it
        try:
            descriptor = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CLOEXEC)
        except OSError:
            descriptor = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        os.dup2(descriptor, self.fd, inheritable=False)
        os.close(descriptor)


class JournalWriter:
    """The only writer of one journal file.

    Args:
        path: created with its folder if it does not exist, else continued.
        mltrack_version: written to the header.
        lock: of this journal, if the caller already holds it; the writer releases it.

    Raises:
        JournalInUse: another process is writing this journal.
        TrackingError: it cannot be written.
    """

    def __init__(self, path: Path | str, *, mltrack_version: str = "", lock: JournalLock | None = None):
        self.path = Path(path)
        self._journal_lock = lock or JournalLock(self.path)
        self._fd = self._journal_lock.fd
        self._dirty = False
        self._closed = False
        self._torn = False
        """The last write was cut off: the next one begins a new line."""
        self._wake = threading.Event()
        self._sync_error: DiskFullError | None = None
        self._start(mltrack_version)
        self._syncer = threading.Thread(target=self._sync_now_and_then, name="journal-sync", daemon=True)
        self._syncer.start()

    def append(self, record: records.Record) -> None:
        """Write one record. Thread-safe; takes microseconds.

        Raises:
            DiskFullError: the disk is full or gone; what was written before stays readable.
        """
        self._write(encode(record))

    def append_json(self, record: str) -> None:
        """The same for a record that is already JSON, in ASCII."""
        self._write(framed(record))

    def sync(self) -> None:
        """Return when everything appended so far is on the disk.

        Raises:
            DiskFullError: the disk refused it.
        """
        self._dirty = False
        try:
            _fdatasync(self._fd)
        except OSError as error:
            raise self._not_forced(error) from error

    def sync_soon(self) -> None:
        """Make the sync thread force the appended records to the disk now."""
        self._wake.set()

    def close(self) -> None:
        """Sync and release the journal. May be called twice."""
        if self._closed:
            return
        self._closed = True
        self._wake.set()
        self._syncer.join()
        try:
            self.sync()
        finally:
            self._journal_lock.release()

    def _start(self, mltrack_version: str) -> None:
        size = os.fstat(self._fd).st_size
        if size == 0:
            self._write(encode(records.journal_header(mltrack_version)))
            return
        if os.pread(self._fd, 1, size - 1) != b"\n":
            self._write(b"\n")
        if self._is_older():
            self._write(encode(records.journal_header(mltrack_version)))

    def _is_older(self) -> bool:
        """True if an earlier mltrack began the file: new records need a reader of this version."""
        first = next(decode(os.pread(self._fd, _HEADER_BYTES, 0)), None)
        return not isinstance(first, Frame) or first.record.get("format_version", 0) < records.FORMAT_VERSION

    def _write(self, data: bytes) -> None:
        with self._journal_lock.mutex:
            if self._sync_error is not None:
                error, self._sync_error = self._sync_error, None
                raise error
            if self._torn:
                data = b"\n" + data
            try:
                written = os.write(self._fd, data)
            except OSError as error:
                raise DiskFullError(
                    f"{self.path}: {len(data)} bytes could not be written: {error.strerror}; what was written before is"
                    " intact"
                ) from error
            self._torn = written != len(data)
            if self._torn:
                raise DiskFullError(
                    f"{self.path}: the disk is full, {len(data)} bytes were needed; what was written before is intact"
                )
            self._dirty = True

    def _not_forced(self, error: OSError) -> DiskFullError:
        return DiskFullError(f"{self.path}: what was written could not be forced to the disk: {error.strerror}")

    def _sync_now_and_then(self) -> None:
        while not self._closed:
            self._wake.wait(SYNC_INTERVAL_S)
            self._wake.clear()
            if self._dirty and not self._closed:
                try:
                    self.sync()
                except DiskFullError as error:
                    self._sync_error = error  # raised by the next append


def _after_fork() -> None:
    for lock in list(_LOCKS):
        lock._leave_to_parent()


os.register_at_fork(after_in_child=_after_fork)
