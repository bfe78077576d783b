"""The MLflow run of a training: its provenance, its stages, and a run directory rebuilt from MLflow.

Nothing is imported here: `remote_run` and `provenance` are used by commands that load neither torch nor transformers.
"""
