"""The journal: what was appended is read back, whatever a crash or a bad disk left of it."""

from __future__ import annotations

import math
import subprocess
import sys

import pytest

from mltrack.errors import TrackingError
from mltrack.journal import DiskFullError, JournalReader, JournalWriter, read_journal, records


def _journal(path, count=20):
    writer = JournalWriter(path, mltrack_version="0.1.0")
    for step in range(1, count + 1):
        writer.append(records.metrics(step, {"train_loss": 1 / step}, {"tokens_per_second": 10.0 * step}, epoch=0))
    writer.close()
    return path


def _steps(path):
    return [record["step"] for record in read_journal(path) if record["type"] == "metrics"]


def test_what_was_appended_is_read_back_exactly(tmp_path):
    path = tmp_path / "journal"
    writer = JournalWriter(path, mltrack_version="0.1.0")
    values = {"a": 0.1 + 0.2, "nan": math.nan, "inf": -math.inf, "tiny": 5e-324}
    writer.append(records.metrics(3, values, {}, epoch=None))
    writer.append(records.tags({"note": "zwei\nZeilen, \u00fc"}))
    writer.close()
    header, metrics, tags = read_journal(path)
    assert header["format_version"] == records.FORMAT_VERSION
    assert metrics["values"]["a"] == values["a"]
    assert metrics["values"]["tiny"] == values["tiny"]
    assert math.isnan(metrics["values"]["nan"])
    assert metrics["values"]["inf"] == -math.inf
    assert tags["values"] == {"note": "zwei\nZeilen, \u00fc"}


def test_a_torn_tail_is_an_end_of_file_at_every_byte(tmp_path):
    whole = _journal(tmp_path / "whole", 3).read_bytes()
    ends = [i + 1 for i, byte in enumerate(whole) if byte == 10]
    for length in range(len(whole) + 1):
        cut = tmp_path / "cut"
        cut.write_bytes(whole[:length])
        reader = JournalReader(cut)
        found = list(reader.read_new())
        complete = sum(end <= length for end in ends)
        assert len(found) == complete, length
        assert reader.damaged == [], length
        assert reader.offset == (ends[complete - 1] if complete else 0)


def test_only_damaged_records_are_lost_for_any_flipped_byte(tmp_path):
    """Every bit of every byte, and each byte inverted as a whole."""
    whole, path = _journal(tmp_path / "whole", 5).read_bytes(), tmp_path / "damaged"
    ends = [position + 1 for position, byte in enumerate(whole) if byte == 10]
    for position in range(len(whole)):
        hit = sum(end <= position for end in ends)  # the record that the byte belongs to; the first is the header
        for mask in (1, 2, 4, 8, 16, 32, 64, 128, 255):
            damaged = bytearray(whole)
            damaged[position] ^= mask
            path.write_bytes(damaged)
            reader = JournalReader(path)
            found = [record["step"] for record in reader.read_new() if record["type"] == "metrics"]
            missing = {1, 2, 3, 4, 5} - set(found)
            assert found == sorted(found), (position, mask)
            assert missing <= {hit}, (position, mask)
            at_the_end = position >= len(whole) - 1
            assert not missing or reader.damaged or at_the_end, (position, mask)


def test_a_torn_tail_is_closed_and_what_follows_is_read(tmp_path):
    path = _journal(tmp_path / "journal", 3)
    path.write_bytes(path.read_bytes()[:-7])
    writer = JournalWriter(path)
    writer.append(records.end("FINISHED", 0))
    writer.close()
    reader = JournalReader(path)
    found = list(reader.read_new())
    assert [record["type"] for record in found] == ["journal", "metrics", "metrics", "end"]
    assert len(reader.damaged) == 1


def test_a_reader_follows_a_writer_and_continues_from_an_offset(tmp_path):
    path = tmp_path / "journal"
    reader = JournalReader(path)
    assert list(reader.read_new()) == []
    writer = JournalWriter(path)
    writer.append(records.resumed(5, 1))
    assert [record["type"] for record in reader.read_new()] == ["journal", "resumed"]
    writer.append(records.end("FAILED", 1))
    later = JournalReader(path, reader.offset)
    assert [record["type"] for record in later.read_new()] == ["end"]
    writer.close()


def test_a_second_writer_is_refused_while_the_first_lives(tmp_path):
    first = JournalWriter(tmp_path / "journal")
    with pytest.raises(TrackingError, match="another process is writing this journal"):
        JournalWriter(tmp_path / "journal")
    first.close()
    JournalWriter(tmp_path / "journal").close()


def test_a_newer_format_is_refused_with_the_remedy(tmp_path):
    from mltrack.journal.frame import encode

    path = tmp_path / "journal"
    path.write_bytes(
        encode({"type": "journal", "format_version": records.FORMAT_VERSION + 1, "mltrack_version": "9.0"})
    )
    with pytest.raises(TrackingError, match=r"format 3 is newer than 2.*install mltrack 9\.0 or later"):
        read_journal(path)


def test_what_was_logged_survives_sigkill(tmp_path):
    script = (
        "import os, signal, sys\n"
        "from mltrack.journal import JournalWriter, records\n"
        "writer = JournalWriter(sys.argv[1])\n"
        "for step in range(1, 5001): writer.append(records.metrics(step, {'x': step / 3}, {}))\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    finished = subprocess.run([sys.executable, "-c", script, str(tmp_path / "journal")], check=False)
    assert finished.returncode == -9
    assert _steps(tmp_path / "journal") == list(range(1, 5001))


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="/dev/full is Linux's")
def test_a_full_disk_is_one_clear_line(tmp_path):
    import os

    writer = JournalWriter(tmp_path / "journal")
    full = os.open("/dev/full", os.O_WRONLY)
    os.dup2(full, writer._fd)
    with pytest.raises(
        DiskFullError,
        match=r"journal: \d+ bytes could not be written: No space left on device; what was written before is intact",
    ):
        writer.append(records.end("FINISHED", 0))


SMALL_DISK = """
import resource, signal, sys
from mltrack.journal import DiskFullError, JournalWriter, records

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
writer = JournalWriter(sys.argv[1])
writer.append(records.tags({"note": "before"}))
size = writer.path.stat().st_size
resource.setrlimit(resource.RLIMIT_FSIZE, (size + 20, resource.RLIM_INFINITY))
for _ in range(3):
    try:
        writer.append(records.tags({"note": "does not fit"}))
    except DiskFullError as error:
        print(error)
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
writer.append(records.tags({"note": "after"}))
writer.close()
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits as Linux has them")
def test_a_record_that_a_full_disk_cut_in_two_costs_no_other(tmp_path):
    """The first 20 bytes of the record fit; then somebody makes room."""
    finished = subprocess.run(
        [sys.executable, "-c", SMALL_DISK, str(tmp_path / "journal")], capture_output=True, text=True, check=False
    )
    assert finished.returncode == 0, finished.stderr
    first, second, _ = finished.stdout.splitlines()
    assert first.endswith("bytes were needed; what was written before is intact")
    assert "could not be written: File too large" in second
    reader = JournalReader(tmp_path / "journal")
    assert [record["values"]["note"] for record in reader.read_new() if record["type"] == "tags"] == ["before", "after"]
    assert len(reader.damaged) == 1
