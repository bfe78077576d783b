"""Records `<version>.tar.xz`: a project as a released version of mltrack leaves it behind. Run once for each release:

    .venv/bin/python tests/recorded/record.py 0.1

The archive holds a SQLite store with a champion and a challenger, a run killed in mid-epoch, a finished run that was
never delivered, and `uninterrupted.json`, what the killed run would have recorded. `PLACE` stands in it where the
project lay."""

from __future__ import annotations

import json
import shutil
import signal
import sys
import tarfile
import tempfile
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
sys.path[:0] = [str(FOLDER.parent), str(FOLDER.parents[1])]

import commands  # noqa: E402
import tiny  # noqa: E402
from conftest import _records  # noqa: E402
from mlflow import MlflowClient  # noqa: E402
from tracked_runs import delivered, until  # noqa: E402

from mltrack.journal import RunDirectory  # noqa: E402

PLACE = "/tmp/mltrack-recorded"
"""Where the project lay, in every archive."""
GENERATION = (
    *(
        "--task",
        "code_generation",
        "--dataset-path",
        "code_generation.jsonl",
        "--model-name",
        "scratch:tiny",
        "--max-length",
        "64",
    ),
    *(
        "--batch-size",
        "4",
        "--learning-rate",
        "2e-3",
        "--epochs",
        "6",
        "--warmup-ratio",
        "0.2",
        "--save-every",
        "7",
        "--max-checkpoints",
        "1",
        "--upload",
        "model",
    ),
)


SMALL = ("--max-checkpoints", 1, "--upload", "model")
"""What keeps the archive small."""


def train(project: Path, *words: object) -> dict:
    """The response of a training that ended well."""
    finished = commands.mltrack("train", *words, "--output", "json", cwd=project)
    assert finished.returncode == 0, finished.stderr
    return tiny.last_json_line(finished.stdout)


def killed_in_mid_epoch(project: Path) -> str:
    """Kill a training as soon as its second checkpoint lies there; returns the run's id once its end is in MLflow."""
    before = set(project.glob("mltrack-runs/*"))
    process = commands.start("train", *GENERATION, cwd=project)
    until(
        lambda: list(project.glob("mltrack-runs/*/checkpoints/step-00000014/metadata.json")),
        "the checkpoint of step 14",
    )
    process.send_signal(signal.SIGKILL)
    process.wait()
    (directory,) = set(project.glob("mltrack-runs/*")) - before
    until(lambda: delivered(RunDirectory(directory)), "its delivery")
    return str(json.loads((directory / "run.json").read_text())["run_id"])


def main(version: str) -> None:
    """Record the project and pack it."""
    project = Path(PLACE)
    shutil.rmtree(project, ignore_errors=True)
    project.mkdir()
    for task in ("text_classification", "security_classification", "code_generation"):
        lines = [json.dumps(record) + "\n" for record in _records(task, 40)]
        (project / f"{task}.jsonl").write_text("".join(lines), encoding="utf-8")
    classes = (
        "--task",
        "text_classification",
        "--dataset-path",
        "text_classification.jsonl",
        *commands.TINY,
        "--epochs",
        2,
        *SMALL,
    )
    with tempfile.TemporaryDirectory() as elsewhere:
        for path in project.glob("*.jsonl"):
            shutil.copy(path, elsewhere)
        whole = train(Path(elsewhere), *GENERATION)
        client = MlflowClient(f"sqlite:///{elsewhere}/mlflow.db")
        keys = ("train_loss", "learning_rate", "eval_loss")
        uninterrupted = {
            key: {str(point.step): point.value for point in client.get_metric_history(whole["run_id"], key)}
            for key in keys
        }
    champion = train(project, *classes)
    challenger = train(project, *classes, "--seed", 1, "--promote", "never")
    killed = killed_in_mid_epoch(project)
    for run in (champion, challenger):  # the store alone is what a colleague has
        link = project / "mltrack-runs" / run["run_id"]
        shutil.rmtree(link.resolve())
        link.unlink()
    security = ("--task", "security_classification", "--dataset-path", "security_classification.jsonl", *commands.TINY)
    offline = train(project, *security, "--epochs", 1, "--max-checkpoints", 1, "--offline", "true")
    runs = {
        "champion": champion["run_id"],
        "challenger": challenger["run_id"],
        "killed": killed,
        "undelivered": offline["run_id"],
    }
    (project / "runs.json").write_text(json.dumps(runs, indent=1), encoding="utf-8")
    (project / "uninterrupted.json").write_text(json.dumps(uninterrupted, indent=1), encoding="utf-8")
    with tarfile.open(FOLDER / f"{version}.tar.xz", "w:xz", preset=9) as archive:
        archive.add(project, arcname="project")
    shutil.rmtree(project)


if __name__ == "__main__":
    main(sys.argv[1])
