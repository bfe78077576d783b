"""The journal: the truth about a run, on local disk. Imports neither torch nor mlflow."""

from mltrack.journal import records
from mltrack.journal.heartbeat import Heartbeat
from mltrack.journal.machine import Machine
from mltrack.journal.reader import JournalReader, read_journal, read_tail
from mltrack.journal.retained_checkpoints import RetainedCheckpoints
from mltrack.journal.run_directory import KINDS, RunDirectory, RunInfo, make_output_dir, read_json, write_json
from mltrack.journal.run_index import find_run_directories, find_run_directory, known_runs, own_run_directories
from mltrack.journal.shape import shown
from mltrack.journal.writer import DiskFullError, JournalInUse, JournalLock, JournalWriter
