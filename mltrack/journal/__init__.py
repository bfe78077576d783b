"""The journal: the truth about a run, on local disk. Imports neither torch nor mlflow."""

from mltrack.journal import records
from mltrack.journal.reader import JournalReader, read_journal
from mltrack.journal.run_directory import RunDirectory, RunInfo, find_run_directories, find_run_directory, make_output_dir, write_json
from mltrack.journal.shape import shown
from mltrack.journal.writer import DiskFullError, JournalWriter

__all__ = [
    "DiskFullError",
    "JournalReader",
    "JournalWriter",
    "RunDirectory",
    "RunInfo",
    "find_run_directories",
    "find_run_directory",
    "make_output_dir",
    "read_journal",
    "records",
    "shown",
    "write_json",
]
