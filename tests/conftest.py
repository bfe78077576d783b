"""What every test has: telemetry and hub off, an own working directory for MLflow's files, small records of all three
tasks.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

import pytest

os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")  # the models are tiny; more threads only wait for each other
for name in ("MLFLOW_TRACKING_URI", "MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_ID", "MLFLOW_EXPERIMENT_NAME"):
    os.environ.pop(name, None)

for number in (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT):  # under nohup, or behind an `&`, they are ignored
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)

VERBS = ["add", "scale", "shift", "count", "merge", "split", "clamp", "wrap"]
NOUNS = ["value", "total", "index", "row", "name", "price", "speed", "angle"]


def _records(task: str, count: int) -> list[dict[str, str]]:
    """Distinct small functions whose label or description tells what they do, so that a small model can learn them."""
    levels = ["safe", "low", "medium", "high", "critical"]
    bodies = [
        "return {n} + {i}",
        "assert {n} != {i}",
        "open({n} + '{i}')",
        "eval({n} + '{i}')",
        "os.system({n} + ' {i}')",
    ]
    made = []
    for i in range(count):
        verb, noun = VERBS[i % len(VERBS)], NOUNS[(i // len(VERBS)) % len(NOUNS)]
        if task == "code_generation":
            made.append(
                {
                    "description": f"{verb.capitalize()} the {noun} by {i}",
                    "code": f"def {verb}_{noun}({noun}):\n    return {noun} + {i}",
                }
            )
            continue
        which = i % (5 if task == "security_classification" else 2)
        body = bodies[which if task == "security_classification" else 3 * which].format(n=noun, i=i)
        made.append(
            {
                "code": f"def {verb}_{noun}({noun}):\n    {body}",
                "label": levels[which] if task == "security_classification" else ("safe", "unsafe")[which],
            }
        )
    return made


def write_records(path: Path, task: str = "text_classification", count: int = 40) -> Path:
    """A JSON Lines file of them."""
    path.write_text("".join(json.dumps(record) + "\n" for record in _records(task, count)), encoding="utf-8")
    return path


@pytest.fixture(autouse=True)
def _nothing_stays_in_the_process():
    """MLflow notes a tracking URI in the environment, and the loader of a model that it loaded among the modules: the
    next test has neither.
    """
    before = os.environ.get("MLFLOW_TRACKING_URI")
    yield
    if "mlflow" in sys.modules:
        sys.modules["mlflow"].set_tracking_uri(None)
    sys.modules.pop("mltrack_pyfunc", None)
    if before is not None:
        os.environ["MLFLOW_TRACKING_URI"] = before


@pytest.fixture(scope="session")
def warm():
    """`mltrack` in processes that start in milliseconds; its imports take seconds, once."""
    import commands

    return commands.warm_process()


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory):
    """The URI of a tracking server that all tests share which ask nothing of it but their own runs."""
    from servers import mlflow_server

    with mlflow_server(tmp_path_factory.mktemp("server")) as uri:
        yield uri


@pytest.fixture
def records_file(tmp_path: Path):
    """records_file(task, count) -> path of a JSON Lines file."""

    def write(task: str, count: int = 40, name: str | None = None) -> Path:
        return write_records(tmp_path / (name or f"{task}.jsonl"), task, count)

    return write


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The test's own folder as the working directory: the embedded database and the run directories land there."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def trainer(records_file, tmp_path):
    """trainer(task, count, dropout, name, **options) -> an AdvancedTrainer on small data, with a folder of that
    name.
    """

    def make(task="text_classification", count=40, dropout=None, name="out", **options):
        import tiny

        from mltrack import AdvancedTrainer

        source, train, evaluation = tiny.data(records_file(task, count), task)
        made = tiny.model(source, train, dropout=dropout)
        defaults = {
            "num_epochs": 1,
            "batch_size": 8,
            "learning_rate": 1e-3,
            "warmup_ratio": 0.0,
            "use_mixed_precision": False,
            "device": tiny.DEVICE,
        }
        if tiny.DEVICE == "cuda":  # what is compared to the rounding of fp32 is computed in it
            given = options.get("speedups", {})
            options["speedups"] = f"tf32=off,{given}" if isinstance(given, str) else {"tf32": "off", **given}
        return AdvancedTrainer(made, train, evaluation, output_dir=tmp_path / name, **{**defaults, **options})

    return make
