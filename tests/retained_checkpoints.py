"""Run directories whose journals say which checkpoints stay, as a training writes them, without a training.

run = RetainedRun(tmp_path / "run", there, encoder)
run.keep(1, 2)
run.keep(2, 3)                # 1 is evicted: its folder goes, as the checkpoint manager lets it go
sync(run.directory)
run.assert_store_holds(2, 3)
"""

from __future__ import annotations

import json
import re
import shutil
import uuid
from pathlib import Path

from artifact_stores import ArtifactStore

from mltrack.journal import JournalWriter, RunDirectory, RunInfo, records
from mltrack.store import connect, light_model, models_of_run

EVALUATION_SET = {
    "name": "records.jsonl-eval",
    "digest": "0123456789abcdef",
    "source": "records.jsonl",
    "context": "evaluation",
}


class RetainedRun:
    """One run directory.

    Args:
        checkpoint: a Hugging Face folder with training state beside it; each checkpoint of the run is a copy.
        upload: as the option of this name.
    """

    def __init__(self, folder: Path, there: ArtifactStore, checkpoint: Path, *, upload: str = "all"):
        self.directory, self.there, self.checkpoint = RunDirectory(folder), there, checkpoint
        self.directory.path.mkdir(parents=True)
        self.directory.write_run(
            RunInfo(
                local_id=uuid.uuid4().hex,
                experiment_name=there.experiment,
                tracking_uri=there.uri,
                created_ms=records.now_ms(),
                run_name=folder.name,
                upload=upload,
            )
        )
        self._on_disk: set[int] = set()
        training_set = {**EVALUATION_SET, "name": "records.jsonl-train", "context": "training"}
        self.record(records.inputs([training_set, EVALUATION_SET]))

    @property
    def run_id(self) -> str:
        return str(self.directory.read_delivery()["run_id"])

    def record(self, *given: records.Record) -> None:
        writer = JournalWriter(self.directory.journal)
        for one in given:
            writer.append(one)
        writer.close()

    def keep(self, *steps: int, best: int | None = None, loss: float | None = None) -> None:
        """Save those of `steps` that are new, say that exactly these stay, and let go of the others."""
        for step in set(steps) - self._on_disk:
            folder = self.folder(step)
            shutil.copytree(self.checkpoint, folder)
            (folder / "state.json").write_text(json.dumps({"step": step}), encoding="utf-8")
            self.record(records.metrics(step, {"eval_loss": self.loss(step) if loss is None else loss}, {}, epoch=0))
        kept = [
            {
                "step": step,
                "epoch": 0,
                "metric_name": "eval_loss",
                "metric_value": self.loss(step),
                "metrics": {"eval_loss": self.loss(step) if loss is None else loss, "eval_perplexity": float("nan")},
                "path": f"checkpoints/{self.folder(step).name}",
                "created_ms": 1000 + step,
                "reasons": ["best"],
            }
            for step in steps
        ]
        self.record(records.checkpoints(kept, best if best is not None else steps[0]))
        for step in self._on_disk - set(steps):
            shutil.rmtree(self.folder(step))
        self._on_disk = set(steps)

    def end(self) -> None:
        self.record(records.end("FINISHED", 0))

    def folder(self, step: int) -> Path:
        return self.directory.checkpoints / f"step-{step:08d}"

    @staticmethod
    def loss(step: int) -> float:
        return 1 / step

    def assert_store_holds(self, *steps: int) -> None:
        """One READY model a step, its bytes and its training state, and no other byte of this run."""
        rows = models_of_run(connect(self.there.uri), self.run_id)
        assert [(row["step"], row["status"]) for row in rows] == [(step, "READY") for step in steps]
        assert {row["step"]: row["metrics"] for row in rows} == {step: {"eval_loss": self.loss(step)} for step in steps}
        files = self.there.files()
        state = {name for name in files if f"/{self.run_id}/" in f"/{name}" and re.search(r"checkpoints/\d+/", name)}
        beside = light_model.files_beside_model(self.checkpoint)
        ends = {f"checkpoints/{step}/state/{name}" for step in steps for name in beside}
        assert {name.split(f"{self.run_id}/artifacts/")[1] for name in state} == ends
        expected = {path.name for path in self.checkpoint.iterdir() if path.is_file()} - set(beside) | {
            "MLmodel",
            "config.json",
        }
        for row in rows:
            held = {name.split("/artifacts/")[-1] for name in files if f"/{row['model_id']}/" in name}
            assert expected <= held, row
            weights = next(name for name in files if name.endswith(f"/{row['model_id']}/artifacts/model.safetensors"))
            assert self.there.read(weights) == (self.checkpoint / "model.safetensors").read_bytes()
        assert not [name for name in files if ".mltrack-" in name]
