"""The MLflow run of a training: where it comes from, its stages, and a run directory made again from what MLflow holds.

Nothing is imported here: `remote_run` and `provenance` are used by commands that load neither torch nor transformers.
"""
