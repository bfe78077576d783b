"""The same verbs through a real tracking server that carries the artifacts itself; a server that goes away is an error
that says so, soon.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest
from hf_folders import encoder_folder, write_model_folder
from servers import mlflow_server

from mltrack.store import (
    StoreRejected,
    StoreUnavailable,
    artifacts,
    connect,
    create_run,
    get_alias,
    get_run,
    list_versions,
    log_inputs,
    log_params,
    log_points,
    models_of_run,
    ping,
    prune,
    publish,
    register,
    resolve,
    set_alias,
    set_tags,
)


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.long
def test_a_run_its_files_and_its_models_through_the_proxy_and_the_bytes_after_pruning(tmp_path: Path) -> None:
    checkpoint = encoder_folder(tmp_path / "checkpoint")
    model = write_model_folder(
        checkpoint, tmp_path / "model", task="text_classification", hf_config={}, requirements=["mlflow"]
    )
    with mlflow_server(tmp_path / "server") as uri:
        store = connect(uri)
        ping(store)
        run = create_run(store, experiment_name="remote", run_name="r", tags={}, idempotency_key="k", start_time_ms=1)
        assert (
            create_run(
                store, experiment_name="remote", run_name="r", tags={}, idempotency_key="k", start_time_ms=1
            ).run_id
            == run.run_id
        )
        for _ in range(2):
            log_points(
                store,
                run.run_id,
                [("train_loss", 1.0, 100 + step, step) for step in range(1, 1501)] + [("x", float("inf"), 1, 1)],
            )
            assert log_params(store, run.run_id, {"seed": 1}) == {}
            set_tags(store, run.run_id, {"t": "v" * 9000})
            log_inputs(store, run.run_id, [{"name": "d", "digest": "e" * 64, "source": "/x", "context": "training"}])
        assert len(store.client.get_metric_history(run.run_id, "train_loss")) == 1500

        root = tmp_path / "server" / "artifacts"
        for _ in range(2):
            artifacts.put_file(store, run.run_id, checkpoint / "optimizer.safetensors", "checkpoints/1/state")
            artifacts.put_file(store, run.run_id, checkpoint / "config.json", "whole")
            artifacts.put_text(store, run.run_id, "[1]", "checkpoints/index.json")
        listed = artifacts.list_files(store, run.run_id)
        assert listed["checkpoints/1/state/optimizer.safetensors"] == 4096
        assert {"checkpoints/index.json", "whole/config.json"} < set(listed)
        assert json.loads(
            artifacts.download(store, run.run_id, "checkpoints/index.json", tmp_path / "back").read_text()
        ) == [1]
        for _ in range(2):
            artifacts.delete(store, run.run_id, "checkpoints/1")
            artifacts.delete(store, run.run_id, "whole")
        assert {Path(name).name for name in files(root)} == {"index.json"}

        ids = [
            publish(
                store,
                run.run_id,
                model,
                name=f"step-{step}",
                step=step,
                tags={},
                metrics={"eval_loss": 1 / step},
                timestamp_ms=step,
            )
            for step in (1, 2, 2)
        ]
        assert ids[1] == ids[2]
        assert [(row["step"], row["status"], row["metrics"]) for row in models_of_run(store, run.run_id)] == [
            (1, "READY", {"eval_loss": 1.0}),
            (2, "READY", {"eval_loss": 0.5}),
        ]
        version = register(store, "remote-model", ids[1], {}, "d")
        set_alias(store, "remote-model", "champion", version)
        assert (get_alias(store, "remote-model", "champion"), list_versions(store, "remote-model")[0]["model_id"]) == (
            "1",
            ids[1],
        )
        before = sum(path.stat().st_size for path in root.rglob("*") if path.is_file())
        assert [prune(store, model_id) for model_id in ids[:2] * 2] == ["pruned", "registered", "gone", "registered"]
        left = {name for name in files(root) if "/models/" in name}
        assert {name.split("/models/")[1].split("/")[0] for name in left} == {ids[1]}
        weights = (model / "model.safetensors").stat().st_size
        assert before - sum(path.stat().st_size for path in root.rglob("*") if path.is_file()) > weights
        fetched = resolve(store, "models:/remote-model@champion", tmp_path / "fetched")
        assert files(model) <= files(fetched)
        assert (fetched / "model.safetensors").read_bytes() == (model / "model.safetensors").read_bytes()
        with pytest.raises(StoreRejected, match=r"no models:/absent@champion in http.*MLFLOW_TRACKING_URI"):
            resolve(store, "models:/absent@champion")
        with pytest.raises(StoreRejected):
            get_run(store, "0" * 32)
        (checkpoint / "large.bin").write_bytes(os.urandom(1 << 20))
    start = time.monotonic()
    with pytest.raises(StoreUnavailable):
        log_points(store, run.run_id, [("a", 1.0, 1, 1)])
    with pytest.raises(StoreUnavailable):
        artifacts.put_file(store, run.run_id, checkpoint / "large.bin")
    assert time.monotonic() - start < 30
