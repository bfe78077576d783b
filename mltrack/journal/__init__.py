"""The journal: the truth about a run, on local disk. Imports neither torch nor mlflow."""

from mltrack.journal import records
from mltrack.journal.kept_checkpoints import KeptCheckpoints
from mltrack.journal.reader import JournalReader, read_journal, read_tail
from mltrack.journal.run_directory import RunDirectory, RunInfo, make_output_dir, write_json
from mltrack.journal.run_index import find_run_directories, find_run_directory, known_runs
from mltrack.journal.writer import DiskFullError, JournalWriter

__all__ = [
    "DiskFullError",
    "JournalReader",
    "JournalWriter",
    "KeptCheckpoints",
    "RunDirectory",
    "RunInfo",
    "find_run_directories",
    "find_run_directory",
    "known_runs",
    "make_output_dir",
    "read_journal",
    "read_tail",
    "records",
    "write_json",
]
