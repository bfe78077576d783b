"""What people have - JSON, JSON Lines, CSV, Parquet, folders and globs of them, Hugging Face data sets - as records.

Invariant: whatever the bytes are, the outcome is good records or one `DatasetError` that names the file and, where one
record is at fault, its number and field. One record at a time is held in its raw form, and never more than
`MAX_RECORD_BYTES` of it.

    read_records("data.jsonl", "text_classification", on_bad_record="skip", on_skip=print)
    for record in iterate_records("shards/*.parquet", "code_generation", columns={"code": "func"}):
        ...
"""

from mltrack.records.readers.folder_parts import Parts
from mltrack.records.readers.paths import SUFFIXES, Source, absolute, every_file, find_parts, find_sources, state_of
from mltrack.records.readers.raw import MAX_RECORD_BYTES, Raw
from mltrack.records.readers.reading import OnSkip, iterate_records, read_records
