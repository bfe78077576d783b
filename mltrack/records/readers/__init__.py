"""Reads JSON, JSON Lines, CSV, Parquet, folders and globs of them, and Hugging Face data sets as records.

Invariant: any bytes give valid records or one `DatasetError` that names the file and, if a record is at fault, its
number and field. Only one record is held in its raw form, and at most `MAX_RECORD_BYTES` of it.

    read_records("data.jsonl", "text_classification", on_bad_record="skip", on_skip=print)
    for record in iterate_records("shards/*.parquet", "code_generation", columns={"code": "func"}):
        ...
"""

from mltrack.records.readers.folder_parts import Parts
from mltrack.records.readers.paths import SUFFIXES, Source, absolute, every_file, find_parts, find_sources, state_of
from mltrack.records.readers.raw import MAX_RECORD_BYTES, Raw
from mltrack.records.readers.reading import OnSkip, iterate_records, read_records
