"""A model whose files are elsewhere is fetched once, checked at each use, kept within a bound, and nothing of it is
left in the temporary folder.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import commands
import pytest
from artifact_stores import ArtifactStore, artifact_store
from faulty_proxy import faulty_proxy
from hf_folders import encoder_folder, write_model_folder
from servers import mlflow_server
from tracked_runs import kill

from mltrack import registry
from mltrack.cli import run as mltrack
from mltrack.errors import ConfigurationError
from mltrack.store import (
    Store,
    StoreUnavailable,
    artifacts,
    connect,
    create_run,
    fetching,
    model_cache,
    publish,
    register,
    resolve,
)

LAST = {1: 1000.0, 2: 2000.0, 3: 3000.0}


@pytest.fixture(scope="module")
def there(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ArtifactStore]:
    with artifact_store("s3", tmp_path_factory.mktemp("store")) as there:
        yield there


@pytest.fixture(scope="module")
def store(there: ArtifactStore, tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Three versions of the model m."""
    return with_models(there.uri, tmp_path_factory.mktemp("models"), there.experiment)


def with_models(uri: str, folder: Path, experiment: str | None = None) -> Store:
    store = connect(uri)
    source = encoder_folder(folder / "encoder")
    ours = json.loads((source / "config.json").read_text())["mltrack"]
    written = write_model_folder(
        source, folder / "model", task="text_classification", hf_config={"mltrack": ours}, requirements=["mlflow"]
    )
    run = create_run(store, experiment_name=experiment, run_name="r", tags={}, idempotency_key="k", start_time_ms=1)
    for step in LAST:
        register(
            store, "m", publish(store, run.run_id, written, name="m", step=step, tags={}, metrics={}, timestamp_ms=1)
        )
    for file in (path for path in written.rglob("*") if path.is_file()):
        artifacts.put_file(store, run.run_id, file, (Path("by-hand") / file.relative_to(written).parent).as_posix())
    store.client.create_registered_model("no-id")
    store.client.create_model_version("no-id", source=f"{run.artifact_uri}/by-hand", run_id=run.run_id)
    return store


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder of the cached models; at the end this process uses none of them, and the temporary folder is as empty
    as it was.
    """
    monkeypatch.setenv("MLTRACK_CACHE_DIR", str(tmp_path / "cache"))
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    yield tmp_path / "cache" / "models"
    let_go()
    assert not list(temporary.glob("mltrack-model*"))


def let_go() -> None:
    """As the end of a process does."""
    for descriptor in model_cache._held.values():
        os.close(descriptor)
    model_cache._held.clear()


def state(folder: Path) -> dict[str, tuple[int, int]]:
    return {
        str(path.relative_to(folder)): (path.stat().st_ino, path.stat().st_mtime_ns)
        for path in folder.rglob("*")
        if path.is_file()
    }


def names(cache: Path) -> set[str]:
    return {path.name for path in cache.iterdir() if path.is_dir()}


@pytest.mark.parametrize("uri", ["models:/m/1", "models:/no-id/1"])
def test_fetched_once(store: Store, cache: Path, uri: str) -> None:
    folder = resolve(store, uri)
    before = state(folder)
    assert {"MLmodel", "config.json", "model.safetensors"} < set(before)
    assert resolve(store, uri) == folder
    let_go()
    (folder / "registered_model_meta").write_text("as MLflow leaves it")
    assert state(resolve(store, uri)).items() >= before.items()
    assert folder.parent.parent == cache
    assert not list(cache.rglob("*.part")), "nothing half fetched"
    assert registry.local_folder(uri, store.tracking_uri) == str(folder)


def test_what_is_damaged_is_fetched_anew_whatever_the_damage(store: Store) -> None:
    folder = resolve(store, "models:/m/1")
    whole = {name: (folder / name).read_bytes() for name in state(folder)}
    damages = [
        lambda path: path.write_bytes(bytes([whole[path.name][0] ^ 1]) + whole[path.name][1:]),
        lambda path: path.write_bytes(whole[path.name][:-1]),
        lambda path: path.unlink(),
    ]
    for damage in damages:
        for name in ("MLmodel", "model.safetensors"):
            os.utime(folder.parent / "files.json", (1, 1))
            damage(folder / name)
            assert resolve(store, "models:/m/1") == folder
            assert {name: (folder / name).read_bytes() for name in whole} == whole
    (folder.parent / "files.json").write_text("{")
    assert {name: (resolve(store, "models:/m/1") / name).read_bytes() for name in whole} == whole


def test_within_the_bound_the_ones_used_longest_ago_go_first_and_none_that_is_used(
    store: Store, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = {}
    for version, used in LAST.items():
        folders[version] = resolve(store, f"models:/m/{version}").parent
        os.utime(folders[version] / "files.json", (used, used))
    let_go()
    assert [one.name for one in model_cache.cached_models()] == [folders[version].name for version in (3, 2, 1)]
    one = sum(path.stat().st_size for path in folders[1].rglob("*") if path.is_file())
    monkeypatch.setenv(model_cache.LIMIT_VARIABLE, str(2.5 * one / 1e9))
    resolve(store, "models:/m/1")  # used now, and longest ago no more
    let_go()
    resolve(store, "models:/m/2")
    os.utime(folders[2] / "files.json", (1, 1))  # used by this process, however long ago
    resolve(store, "models:/no-id/1")
    assert folders[2].exists()
    assert not folders[3].exists()
    assert len(names(cache)) == 2
    monkeypatch.setenv(model_cache.LIMIT_VARIABLE, "much")
    with pytest.raises(ConfigurationError, match="MLTRACK_MODEL_CACHE_GB is 'much'; set it to a number of gigabytes"):
        resolve(store, "models:/m/3")


@pytest.mark.parametrize("given", ["nan", "inf", "-1", "much"])
def test_a_bound_that_is_none_is_refused(cache: Path, monkeypatch: pytest.MonkeyPatch, given: str) -> None:
    monkeypatch.setenv(model_cache.LIMIT_VARIABLE, given)
    with pytest.raises(ConfigurationError, match=f"MLTRACK_MODEL_CACHE_GB is '{given}'; set it to a number of gigaby"):
        model_cache.free_space(1)


def test_what_another_process_uses_stays_until_it_is_gone(
    store: Store, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    script = (
        f"from mltrack.store import connect, resolve; print(resolve(connect({store.tracking_uri!r}), 'models:/m/1'),"
        " flush=True); input()"
    )
    words = [sys.executable, "-c", script]
    with subprocess.Popen(
        words,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(commands.ROOT)},
    ) as other:
        folder = Path(other.stdout.readline().strip())
        assert mltrack(["cache", "list", "--output", "json"]) == 0
        (row,) = json.loads(capsys.readouterr().out)
        assert (row["kind"], row["in_use"], row["name"], row["source"]) == (
            "model",
            True,
            folder.parent.name,
            f"models:/m/1 of {store.shown_uri}",
        )
        assert mltrack(["cache", "clear"]) == 0
        assert f"kept model {folder.parent.name}: a process uses it" in capsys.readouterr().out
        assert (folder / "MLmodel").exists()
        kill(other.pid)
    assert mltrack(["cache", "clear", "--output", "json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert ([one["name"] for one in said["removed"]], said["kept"]) == ([folder.parent.name], [])
    assert not list(cache.iterdir())


def test_list_and_clear_know_what_is_kept_of_data_and_leave_other_files_alone(
    store: Store, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    resolve(store, "models:/m/1")
    let_go()
    for name in (
        "tokens-ab.bin",
        "tokens-ab.lock",
        "records-a-b-f1.arrow",
        "records-a-b-f1.arrow.json",
        "stdlib-pairs-f1.jsonl.gz",
        "notes.txt",
    ):
        (cache.parent / name).write_text("12345")
    assert mltrack(["cache", "list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["model", "tokens", "records", "rows", "4"]
    assert mltrack(["cache", "clear", "--kind", "tokens"]) == 0
    assert not list(cache.parent.glob("tokens-*"))
    assert len(names(cache)) == 1
    assert mltrack(["cache", "clear"]) == 0
    assert [path.name for path in cache.parent.iterdir() if path != cache] == ["notes.txt"]
    assert not list(cache.iterdir())
    assert mltrack(["cache", "clear", "--kind", "all-of-it"]) == 2


def test_where_the_cache_cannot_be_written_the_model_goes_with_the_process(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MLTRACK_CACHE_DIR", str(tmp_path / "file"))
    with pytest.warns(UserWarning, match="set MLTRACK_CACHE_DIR to a writable folder"):
        folder = resolve(store, "models:/m/1")
    assert (folder / "MLmodel").exists()
    model_cache._temporary.pop().cleanup()


@pytest.mark.long
def test_over_a_bad_line_it_goes_on_where_it_was(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetching, "PAUSES_S", (0.05,))
    with mlflow_server(tmp_path / "server") as uri, faulty_proxy(uri, matching="model.safetensors") as proxy:
        with_models(uri, tmp_path)
        store = connect(proxy.uri)
        proxy.next_faults.append("half_reply")
        proxy.fault = "unavailable"
        with pytest.raises(StoreUnavailable, match="the same command continues from there"):
            resolve(store, "models:/m/1")
        proxy.fault = "none"
        before = proxy.replied_bytes.copy()
        folder = resolve(store, "models:/m/1")
        weights = (folder / "model.safetensors").stat().st_size
        again = proxy.replied_bytes - before
        assert 0 < again["model.safetensors"] <= weights // 2 + (1 << 17)
        assert not again["MLmodel"]
        assert (folder / "model.safetensors").read_bytes() == (tmp_path / "model" / "model.safetensors").read_bytes()
        assert names(cache) == {folder.parent.name}


@pytest.mark.long
def test_a_command_line_leaves_nothing_in_the_temporary_folder(
    there: ArtifactStore, store: Store, cache: Path, tmp_path: Path
) -> None:
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    given = {name: os.environ[name] for name in os.environ if name.startswith(("AWS_", "MLFLOW_S3"))}
    environment = {**given, "TMPDIR": str(temporary), "MLTRACK_CACHE_DIR": str(cache.parent)}
    words = (
        "predict",
        "--model-uri",
        "models:/m/1",
        "--text",
        "def f(): pass",
        "--tracking-uri",
        there.uri,
        "--output",
        "json",
    )
    answers = [commands.mltrack(*words, cwd=tmp_path, **environment) for _ in range(2)]
    assert answers[0].returncode == 0, answers[0].stderr
    assert answers[0].stdout == answers[1].stdout
    assert not [path for path in temporary.rglob("*") if path.is_file() and path.stat().st_size > 10_000]
    assert not list(temporary.glob("mltrack-model*"))
    assert len(names(cache)) == 1
