"""No password and no token that a user may give is written, sent outside of the Authorization header, printed, or seen
among a process's arguments.
"""

from __future__ import annotations

import base64
import json
import logging
import os
import re
import stat
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import commands
import pytest
from faulty_proxy import FaultyProxy, faulty_proxy
from mlflow import MlflowClient
from servers import free_port, mlflow_server
from tracked_runs import complete, delivered, kill, recorded_run, until

from mltrack import TrainingMetricsTracker, TrainModelRequest, TrainModelUseCase, cli
from mltrack.journal import RunDirectory, RunInfo, find_run_directories, write_json
from mltrack.relay import Progress
from mltrack.store import StoreRejected, StoreUnavailable, connect, default_tracking_uri, get_run, ping

TRAIN = ("train", "--task", "text_classification", *commands.TINY, "--max-steps", "2")
PASSWORD = "S3cr/et@Pw:1"
FORMS = (PASSWORD, "S3cr%2Fet%40Pw", "et@Pw", "S3cr/et", base64.b64encode(f"alice:{PASSWORD}".encode()).decode())
"""The password and what is left of it where it is cut, decoded or encoded."""


def files_with(words: tuple[str, ...], *folders: Path) -> list[str]:
    """The files below that hold one of the words, in their bytes or their names."""
    return [
        str(path)
        for folder in folders
        for path in folder.rglob("*")
        if path.is_file() and holds(f"{path}\n".encode() + path.read_bytes(), words)
    ]


def holds(content: bytes | str, words: tuple[str, ...]) -> bool:
    content = content.encode() if isinstance(content, str) else content
    return any(word.encode() in content for word in words)


@contextmanager
def command_lines() -> Iterator[list[bytes]]:
    """The command lines of all processes of this machine, as they were meanwhile."""
    seen: set[bytes] = set()
    over = threading.Event()

    def look() -> None:
        while not over.wait(0.02):
            for entry in Path("/proc").glob("[0-9]*/cmdline"):
                with suppress(OSError):
                    seen.add(entry.read_bytes())

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    found: list[bytes] = []
    try:
        yield found
    finally:
        over.set()
        thread.join()
        found.extend(seen)


def test_the_files_of_a_run_are_their_owners_alone_and_hold_no_credentials(tmp_path: Path) -> None:
    directory, uri = RunDirectory(tmp_path / "run"), f"http://alice:{PASSWORD}@127.0.0.1:5000/"
    directory.write_run(RunInfo(local_id="a" * 32, tracking_uri=uri, tags={"from": f"see {uri.replace('/et', '')}"}))
    Progress(tracking_uri=uri, failed=[f"artifact: {connect.__name__} https://TOKEN@host"]).write(directory)
    assert json.loads(directory.run_file.read_text())["tracking_uri"] == "http://127.0.0.1:5000/"
    assert json.loads(directory.run_file.read_text())["tags"] == {"from": "see http://127.0.0.1:5000/"}
    assert files_with((*FORMS, "alice", "TOKEN"), tmp_path) == []
    for path in (directory.run_file, directory.delivery_file):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_file_is_closed_to_others_before_anything_is_in_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    modes = []
    monkeypatch.setattr(
        json, "dump", lambda content, file, **_: modes.append(stat.S_IMODE(os.fstat(file.fileno()).st_mode))
    )
    path = tmp_path / "run.json"
    path.write_text("{}")
    path.chmod(0o644)
    (tmp_path / f".run.json.{os.getpid()}").write_text("left by an earlier process of this number")
    write_json(path, {})
    assert modes == [0o600]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_run_directory_of_0_1_keeps_working_and_forgets_its_password_when_it_is_written(tmp_path: Path) -> None:
    directory, uri = RunDirectory(tmp_path / "run"), "postgresql://me:S3cret@host/db"
    directory.path.mkdir()
    directory.run_file.write_text(json.dumps({"local_id": "a" * 32, "tracking_uri": uri, "format_version": 1}))
    directory.delivery_file.write_text(json.dumps({"tracking_uri": uri, "sent": 7, "format_version": 1}))
    info = directory.read_run()
    assert info.tracking_uri == uri
    assert info.address == "postgresql://me@host/db"
    assert "S3cret" not in repr(info)
    progress = Progress.read(directory, uri)
    assert progress.sent == Progress.read(directory, info.address).sent == 7, "it is the same server"
    directory.write_run(info)
    progress.write(directory)
    assert files_with(("S3cret",), tmp_path) == []


def test_credentials_come_from_the_environment_where_the_address_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:pw@host:5000")
    assert default_tracking_uri("http://host:5000/") == default_tracking_uri() == "http://me:pw@host:5000"
    assert default_tracking_uri("http://other:5000") == "http://other:5000"


@pytest.mark.parametrize("user_info", [f"alice:{PASSWORD}", "S3cr-TOKEN", "S3cr/TOKEN/x"])
def test_no_error_and_no_traceback_holds_them(user_info: str, caplog: pytest.LogCaptureFixture) -> None:
    uri = f"http://{user_info}@127.0.0.1:{free_port()}"
    try:
        ping(connect(uri))
    except (StoreUnavailable, StoreRejected) as error:
        logging.getLogger("mltrack").exception("failed")
        shown = "".join(traceback.format_exception(error))
    assert not holds(shown + caplog.text, (*FORMS, "S3cr", "alice"))


def test_what_a_user_of_the_tracker_logs_is_recorded_without_them(tmp_path: Path) -> None:
    tracker = TrainingMetricsTracker(tmp_path / "run")
    tracker.log_params({"source": "https://alice:S3cret@host/x.jsonl", "lr": 0.1})
    tracker.set_tags({"remote": "https://ghp_S3cret@github.com/a/b.git"})
    tracker.log_inputs(
        [{"name": "x", "digest": "d", "source": {"uri": "https://host/x?token=S3cret"}, "context": "training"}]
    )
    tracker.close()
    assert files_with(("S3cret",), tmp_path) == []
    assert "https://github.com/a/b.git" in (tmp_path / "run" / "journal").read_text()


def test_a_relay_has_them_in_its_environment_alone(tmp_path: Path) -> None:
    """The whole way of somebody's own loop, towards a server that is away: its process, its log, its files."""
    uri = f"http://alice:{PASSWORD}@127.0.0.1:{free_port()}"
    tracker = TrainingMetricsTracker(tmp_path / "run", run_id="0" * 32, tracking_uri=uri)
    relay = tracker.delivery._process.pid
    try:
        until(lambda: "refused" in (tmp_path / "run" / "relay.log").read_text(), "the relay's first try")
        assert not holds(Path(f"/proc/{relay}/cmdline").read_bytes(), FORMS)
        assert f"MLFLOW_TRACKING_URI={uri}".encode() in Path(f"/proc/{relay}/environ").read_bytes().split(b"\0")
        tracker.set_tags({"mltrack.failure": f"cannot reach {uri.replace('/et', '')}"})
        assert tracker.close(exit_wait_s=0.0) == "pending"
    finally:
        tracker.delivery._stopped.set()
        kill(relay)
    assert files_with((*FORMS, "alice"), tmp_path) == []


@pytest.mark.parametrize(
    "form",
    [
        f"http://alice:{PASSWORD}@127.0.0.1:1",
        "http://S3cr-TOKEN@127.0.0.1:1",
        "alice:S3cr/et@host",
        "http://S3cr/TOKEN@host",
    ],
)
def test_commands_that_fail_print_none(
    form: str, here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", form)
    assert cli.run(["models", "list"]) != 0
    assert cli.run(["doctor", f"http://{form.removeprefix('http://')}"]) == 2, "no option, but shown in the message"
    out, errors = capsys.readouterr()
    assert len(errors.splitlines()) == 2
    assert not holds(out + errors, (*FORMS, "S3cr", "alice"))


@pytest.mark.parametrize(
    "option", ["dataset_path", "validation_path", "model_name", "registered_model_name", "tracking_uri"]
)
def test_a_request_that_is_refused_says_so_without_them(option: str, here: Path, records_file, caplog, capsys) -> None:
    values = {
        "task": "text_classification",
        "dataset_path": str(records_file("text_classification")),
        "model_name": "scratch:tiny",
        "debug": True,
    }
    values[option] = (
        "alice:S3cr/et@host" if option == "tracking_uri" else "https://alice:S3cr/et@host/x.jsonl?token=S3cr"
    )
    response = TrainModelUseCase().execute(TrainModelRequest(**values))
    assert not response.success
    out, errors = capsys.readouterr()
    assert "Traceback" in errors
    assert not holds("".join((*response.errors, out, errors, caplog.text)), ("S3cr", "alice"))
    assert files_with(("S3cr", "alice"), here) == []


class GuardedProxy:
    """A proxy that lets in whoever shows one user's password or token, and keeps all that it was sent but that header.

    Args:
        proxy: in front of the real server.
        authorization: the header that it wants.
    """

    def __init__(self, proxy: FaultyProxy, authorization: str):
        self.address = proxy.uri.removeprefix("http://")
        self.sent: list[bytes] = []
        self._forward, self._authorization = proxy.forward, authorization
        proxy.forward = self.forward  # type: ignore[method-assign]

    def forward(
        self, method: str, path: str, headers: dict[str, str], body: bytes
    ) -> tuple[int, list[tuple[str, str]], bytes]:
        shown = headers.pop("Authorization", "")
        self.sent.append(f"{method} {path} {headers}\n".encode() + body)
        if shown != self._authorization:
            return 401, [("Content-Type", "text/plain")], b"You are not authenticated."
        return self._forward(method, path, headers, body)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """The URI of a tracking server, and the folder of its database and artifacts."""
    folder = tmp_path_factory.mktemp("server")
    with mlflow_server(folder) as uri:
        yield uri, folder


@pytest.fixture
def guarded(server: tuple[str, Path]) -> Iterator[GuardedProxy]:
    """In front of it, for alice."""
    with faulty_proxy(server[0]) as proxy:
        yield GuardedProxy(proxy, "Basic " + base64.b64encode(f"alice:{PASSWORD}".encode()).decode())


@pytest.mark.long
def test_a_training_leaves_its_password_nowhere(
    guarded: GuardedProxy, server: tuple[str, Path], here: Path, records_file, monkeypatch, capsys
) -> None:
    """Written, sent, printed, seen by `ps`; and what it prints works where the environment holds the password."""
    full, words = f"http://alice:{PASSWORD}@{guarded.address}/", (*FORMS, "alice")
    (here / "tmp").mkdir()
    environment = {"MLFLOW_TRACKING_URI": full, "TMPDIR": str(here / "tmp")}
    train = (
        *TRAIN,
        "--dataset-path",
        records_file("text_classification", 40),
        "--run-name",
        f"from {full.replace('/et', '')}",
    )
    with command_lines() as seen:
        finished = commands.mltrack(*train, cwd=here, **environment)
    assert finished.returncode == 0, finished.stderr
    assert finished.stderr.count("MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN") == 1
    (directory,) = find_run_directories("mltrack-runs")
    until(lambda: complete(directory), "the delivery")
    resume = re.search(r"^continue +(.*)$", finished.stdout, re.MULTILINE)
    assert resume is not None
    resumed = commands.run("sh", "-c", resume[1], cwd=here, **environment)
    assert resumed.returncode == 0, resumed.stderr
    until(lambda: delivered(directory), "the delivery of the rest")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", full)
    run_id = directory.read_run().run_id
    for command in (
        "runs",
        "runs --output json",
        f"data show {run_id}",
        "doctor",
        f"sync {run_id}",
        "models show mltrack-text_classification",
    ):
        assert cli.run(command.split()) == 0
    shown = capsys.readouterr()
    assert not holds(
        "".join((finished.stdout, finished.stderr, resumed.stdout, resumed.stderr, shown.out, shown.err)), words
    )
    assert not any(holds(one, FORMS) for one in seen)
    assert not [one for one in guarded.sent if holds(one, words)]
    assert files_with(words, here, server[1]) == []
    for name in ("run.json", "delivery.json", "config.json"):
        assert stat.S_IMODE((directory.path / name).stat().st_mode) == 0o600
    assert MlflowClient(server[0]).get_run(run_id).info.status == "FINISHED"


@pytest.mark.long
def test_a_later_delivery_finds_them_or_says_where_they_belong(
    guarded: GuardedProxy, here: Path, monkeypatch, capsys
) -> None:
    directory = recorded_run(here / "mltrack-runs" / "one", f"http://alice:{PASSWORD}@{guarded.address}")
    assert cli.run(["sync", "one"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN" in line
    with monkeypatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_USERNAME", "alice")
        patch.setenv("MLFLOW_TRACKING_PASSWORD", PASSWORD)
        assert cli.run(["sync", "one"]) == 0
    for words in (["sync", "one"], ["runs", "--reap", "true"]):
        assert cli.run([*words, "--tracking-uri", f"http://alice:{PASSWORD}@{guarded.address}"]) == 0
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://alice:{PASSWORD}@{guarded.address}/")
    for words in (["sync", "one"], ["runs"]):
        assert cli.run(words) == 0
    shown = capsys.readouterr()
    assert shown.out.count("0 points sent, 1 already there") == 2
    assert not holds(shown.out + shown.err, (*FORMS, "alice"))
    assert directory.read_delivery()["complete"]
    assert files_with((*FORMS, "alice"), here) == []


@pytest.mark.long
def test_a_param_of_mlflow_run_that_holds_one_is_named(
    guarded: GuardedProxy, server: tuple[str, Path], tmp_path: Path, records_file
) -> None:
    """MLflow logs it before mltrack begins, and takes no change; mltrack writes it nowhere else."""
    password = quoted = PASSWORD.replace("/", "%2F").replace("@", "%40")
    full = f"http://alice:{quoted}@{guarded.address}"
    words = [
        "-P",
        "task=text_classification",
        "-P",
        f"dataset_path={records_file('text_classification', 40)}",
        "-P",
        f"tracking_uri={full}",
    ]
    words += [
        "-P",
        "model_name=scratch:tiny",
        "-P",
        "max_length=64",
        "-P",
        "batch_size=8",
        "-P",
        "max_steps=2",
        "-P",
        f"output_dir={tmp_path}/runs",
    ]
    finished = commands.run(
        "mlflow", "run", commands.ROOT, "--env-manager", "local", *words, cwd=tmp_path, MLFLOW_TRACKING_URI=server[0]
    )
    assert finished.returncode == 0, finished.stderr
    (directory,) = find_run_directories(tmp_path / "runs")
    run_id = directory.path.name
    held = get_run(connect(server[0]), run_id)
    assert password in held.params["tracking_uri"], "MLflow's own doing"
    (line,) = (line for line in finished.stdout.splitlines() if line.startswith("secret "))
    assert f"the param tracking_uri of run {run_id} holds a password" in line
    assert "mlflow runs delete" in line
    assert "MLFLOW_TRACKING_USERNAME" in line
    assert password not in line
    assert not holds(json.dumps({**held.params, **held.tags, "tracking_uri": ""}), (password, *FORMS))
    assert files_with((password, *FORMS), tmp_path, server[1] / "artifacts") == []
