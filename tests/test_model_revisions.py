"""A hub model is pinned by branch, tag or commit, the commit is recorded, and a resumed run loads the one it began with."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import hf_folders
import pytest
import torch

from mltrack import TrainModelRequest, TrainModelResponse, TrainModelUseCase
from mltrack.errors import ConfigurationError
from mltrack.journal import read_journal
from mltrack.models import SOURCES, resolve_model
from mltrack.models.hub import FoundOnHub, find_on_hub

NAME = "someone/a-decoder"
OLD, NEW = "a" * 40, "b" * 40
REVISIONS = {"v1": OLD, "refs/pr/1": OLD, OLD: OLD, "main": NEW, "dev": NEW, NEW: NEW, None: NEW}


@pytest.fixture
def cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The hub's own cache with two commits of a model, of which `main` and `dev` name the newer one."""
    from huggingface_hub import constants

    repository = tmp_path / "hub" / "models--someone--a-decoder"
    hf_folders.decoder_folder(repository / "snapshots" / OLD)
    shutil.copytree(repository / "snapshots" / OLD, repository / "snapshots" / NEW)
    _scale(repository / "snapshots" / NEW, 0.5)
    for revision, commit in REVISIONS.items():
        if revision not in (None, commit):
            ref = repository / "refs" / revision
            ref.parent.mkdir(parents=True, exist_ok=True)
            ref.write_text(commit)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return repository


def _scale(folder: Path, factor: float) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    save_file(
        {name: factor * tensor for name, tensor in weights.items()},
        folder / "model.safetensors",
        metadata={"format": "pt"},
    )


@pytest.mark.parametrize("revision", REVISIONS)
def test_a_branch_a_tag_and_a_commit_load_their_weights(cached: Path, revision: str | None) -> None:
    source = resolve_model(NAME, "code_generation", revision=revision)
    assert (source.kind, source.origin) == ("hub", {"model_commit": REVISIONS[revision]})
    found = source.build(label_mapping=None, max_length=64, seed=1)
    folder = cached / "snapshots" / REVISIONS[revision]
    expected = resolve_model(str(folder), "code_generation").build(label_mapping=None, max_length=64, seed=1)
    assert all(map(torch.equal, found.state_dict().values(), expected.state_dict().values()))
    assert found.config.mltrack["model_commit"] == REVISIONS[revision]


@pytest.mark.parametrize("revision", ["v2", "c" * 40, "aaaaaaa"])
def test_a_revision_that_is_not_there_is_one_line_with_those_that_are(cached: Path, revision: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        resolve_model(NAME, "code_generation", revision=revision)
    line = str(caught.value)
    assert line.startswith(f"model_revision: '{revision}' of {NAME} is not in the hub's cache")
    assert all(str(one) in line for one in ("dev", "main", "v1", "refs/pr/1"))
    assert line.isprintable()


@pytest.mark.parametrize("revision", ["../../other/refs/main", "-x", "a b", "\x1b[2J", "/etc"])
def test_a_revision_is_no_path(cached: Path, revision: str) -> None:
    with pytest.raises(ConfigurationError, match="is no branch, tag or commit") as caught:
        resolve_model(NAME, "code_generation", revision=revision)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("name", ["scratch:tiny", "models:/mine@champion", "folder", "model.gguf"])
def test_only_a_hub_model_has_revisions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    with pytest.raises(ConfigurationError, match=f"model_revision: 'v1' cannot be a revision of {name}, which is no"):
        resolve_model(name, "code_generation", revision="v1", registry_resolver=lambda uri: uri)


def test_each_name_has_one_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "owner" / "name").mkdir(parents=True)
    (tmp_path / "without-suffix").write_bytes(b"GGUF")
    named = {
        "scratch:anything": "scratch",
        "models:/m-1": "registry",
        "model.Q4_K_M.gguf": "gguf",
        "without-suffix": "gguf",
        "owner/name": "folder",
        "owner/other": "hub",
    }
    found = {name: next(one.name for one in SOURCES if one.claims(name)) for name in named}
    assert found == named


# -- a whole training


@pytest.fixture
def train(cached: Path, records_file: Callable[..., Path], here: Path) -> Callable[..., TrainModelResponse]:
    path = records_file("code_generation", 24)

    def execute(**options: object) -> TrainModelResponse:
        given = {"model_name": NAME} if "resume" not in options else {}
        common = {"dataset_path": str(path), "max_length": 64, "batch_size": 8, "offline": True, "device": "cpu"}
        return TrainModelUseCase().execute(TrainModelRequest(**{**common, **given, **options}))

    return execute


def test_a_run_records_the_commit_and_goes_on_with_it(
    train: Callable[..., TrainModelResponse], cached: Path, here: Path
) -> None:
    first = train(max_steps=2, model_revision="dev")
    assert first.success, first.errors
    directory = here / "mltrack-runs" / str(first.run_id)
    config = json.loads((directory / "config.json").read_text())
    assert (config["model_revision"], config["model_commit"]) == ("dev", NEW)
    read = list(read_journal(directory / "journal"))
    tags = {name: value for one in read if one["type"] == "tags" for name, value in one["values"].items()}
    params = {name: value for one in read if one["type"] == "params" for name, value in one["values"].items()}
    (model,) = (one for one in read if one["type"] == "model")
    assert tags["mltrack.model_commit"] == model["tags"]["mltrack.model_commit"] == NEW
    assert f"commit `{NEW}`" in model["description"]
    assert (params["model_name"], params["model_revision"]) == (NAME, "dev")

    (cached / "refs" / "dev").write_text(OLD)  # the branch has moved
    moved = train(resume=first.run_id, max_steps=3, model_revision="v1")
    assert (moved.success, moved.exit_code) == (False, 2)
    assert f"base model changed from {NEW} to {OLD}" in moved.errors[0]
    for steps, options in ((3, {}), (4, {"model_revision": "dev"})):
        more = train(resume=first.run_id, max_steps=steps, **options)
        assert more.success, more.errors
        assert json.loads((directory / "config.json").read_text())["model_commit"] == NEW
    other = train(resume=first.run_id, max_steps=5, model_revision="v1", exact=False)
    assert other.success, other.errors
    assert json.loads((directory / "config.json").read_text())["model_commit"] == OLD


def test_a_revision_is_not_inherited_by_another_model(
    train: Callable[..., TrainModelResponse], cached: Path, here: Path
) -> None:
    first = train(max_steps=2, model_revision="v1")
    assert first.success, first.errors
    folder = cached / "snapshots" / OLD
    other = train(resume=first.run_id, max_steps=3, model_name=str(folder), exact=False)
    assert other.success, other.errors


# -- the hub itself


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """A hub that knows the model's branch `main`; the paths that it was asked for."""
    from huggingface_hub import constants

    asked: list[str] = []

    class Answers(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            asked.append(self.path)
            known = self.path == f"/{NAME}/resolve/main/config.json"
            self.send_response(200 if known else 404)
            self.send_header(*(("X-Repo-Commit", NEW) if known else ("X-Error-Code", "RevisionNotFound")))
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}")
    yield asked
    server.shutdown()
    server.server_close()


def test_the_hub_says_which_commit_a_revision_is(hub: list[str]) -> None:
    assert find_on_hub(NAME) == FoundOnHub(local_only=False, commit=NEW)
    assert hub == [f"/{NAME}/resolve/main/config.json"]


def test_a_commit_that_the_hub_has_dropped_is_taken_from_the_cache(cached: Path, hub: list[str]) -> None:
    assert find_on_hub(NAME, OLD) == FoundOnHub(local_only=True, commit=OLD)
    with pytest.raises(ConfigurationError, match="has no branch, tag or commit 'v1'"):
        find_on_hub(NAME, "v1")


def test_a_revision_that_the_hub_does_not_know_is_one_line(hub: list[str]) -> None:
    with pytest.raises(ConfigurationError, match=f"model_revision: {NAME} has no branch, tag or commit 'v9' on the"):
        find_on_hub(NAME, "v9")
