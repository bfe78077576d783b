"""A registered model, loaded and served where mltrack is not: by MLflow's server over HTTP, by its loaders, by
transformers.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import commands
import pytest
from hf_folders import decoder_folder, encoder_folder, write_model_folder
from ready_store import ready_store
from servers import free_port
from tracked_runs import until

from mltrack import registry
from mltrack.store import Store, connect, create_run, publish, set_alias

WITHOUT_MLTRACK = """
import sys

class Refused:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "mltrack":
            raise ModuleNotFoundError("No module named 'mltrack' (refused by the test)", name=name)
        return None

sys.meta_path.insert(0, Refused())
"""
"""Run first in a Python, it makes mltrack one that is not installed."""


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A database with gen@champion and cls@champion."""
    folder = tmp_path_factory.mktemp("serve")
    before = os.getcwd()
    os.chdir(folder)
    try:
        held = connect(ready_store(folder))
    finally:
        os.chdir(before)
    for name, task, make in (
        ("gen", "code_generation", decoder_folder),
        ("cls", "text_classification", encoder_folder),
    ):
        source = make(folder / name)
        config = json.loads((source / "config.json").read_text())
        requirements = ["mlflow", "torch", "transformers", "pandas"]
        written = write_model_folder(
            source,
            folder / f"{name}-model",
            task=task,
            hf_config={"mltrack": config["mltrack"]},
            requirements=requirements,
        )
        run = create_run(held, experiment_name=None, run_name=name, tags={}, idempotency_key=name, start_time_ms=1)
        model_id = publish(held, run.run_id, written, name=name, step=1, tags={}, metrics={}, timestamp_ms=2)
        registry.register(held, name, model_id, {}, "")
        set_alias(held, name, "champion", 1)
    return held


@pytest.fixture(scope="module")
def without_mltrack(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """An environment whose every Python refuses to import mltrack."""
    folder = tmp_path_factory.mktemp("site")
    (folder / "sitecustomize.py").write_text(WITHOUT_MLTRACK)
    return commands.environment(PYTHONPATH=str(folder))


@contextmanager
def served(store: Store, uri: str, folder: Path, environment: dict[str, str]) -> Iterator[str]:
    """The address of `mlflow models serve`, once it answers; its whole process group ends with the block."""
    port = free_port()
    words = [
        "models",
        "serve",
        "-m",
        uri,
        "--env-manager",
        "local",
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
        "--workers",
        "1",
    ]
    with (folder / "serve.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "mlflow", *words],
            cwd=folder,
            env={**environment, "MLFLOW_TRACKING_URI": store.tracking_uri},
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    address = f"http://127.0.0.1:{port}"

    def answers() -> bool:
        assert process.poll() is None, (folder / "serve.log").read_text()[-3000:]
        try:
            with urllib.request.urlopen(f"{address}/ping", timeout=2) as reply:
                return bool(reply.status == 200)
        except (urllib.error.URLError, OSError):
            return False

    try:
        until(answers, "the model server")
        yield address
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def asked(address: str, body: dict[str, Any]) -> Any:
    request = urllib.request.Request(
        f"{address}/invocations", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=60) as reply:
        return json.load(reply)["predictions"]


@pytest.mark.long
def test_a_generation_is_served_with_its_params(store: Store, tmp_path: Path, without_mltrack: dict[str, str]) -> None:
    texts = ["Reverse a string", "x"]
    whole = registry.predict("models:/gen@champion", texts, store.tracking_uri, {"max_new_tokens": 12})
    with served(store, "models:/gen@champion", tmp_path, without_mltrack) as address:
        assert asked(address, {"inputs": texts, "params": {"max_new_tokens": 12}}) == whole
        stop = next(text for text in whole if len(text) > 3)[2]
        assert asked(address, {"inputs": texts, "params": {"max_new_tokens": 12, "stop": [stop]}}) == [
            text.split(stop)[0] for text in whole
        ]
        short = asked(address, {"inputs": texts, "params": {"max_new_tokens": 2}})
        assert all(text.startswith(cut) and cut != text for cut, text in zip(short, whole, strict=True) if text)
        table = {"columns": ["description"], "data": [[text] for text in texts]}
        assert asked(address, {"dataframe_split": table, "params": {"max_new_tokens": 12}}) == whole


@pytest.mark.long
def test_a_classification_is_served_with_a_score_a_class(
    store: Store, tmp_path: Path, without_mltrack: dict[str, str]
) -> None:
    texts = ["eval(x)", "def add(a, b):\n    return a + b\n"]
    expected = registry.predict("models:/cls@champion", texts, store.tracking_uri)
    with served(store, "models:/cls@champion", tmp_path, without_mltrack) as address:
        for body in ({"inputs": texts}, {"dataframe_records": [{"code": text} for text in texts]}):
            found = asked(address, body)
            assert [answer["label"] for answer in found] == [answer["label"] for answer in expected]
            for answer, wanted in zip(found, expected, strict=True):
                assert answer["scores"] == pytest.approx(wanted["scores"], abs=1e-6)
                assert answer["score"] == max(answer["scores"].values())
        other_first = [{"id": "7", "code": "eval(x)"}]
        for body in (
            {"dataframe_records": other_first},
            {"dataframe_split": {"columns": ["label", "code"], "data": [["safe", "eval(x)"]]}},
            {"inputs": other_first},
            {"instances": other_first},
            {"dataframe_records": [{"id": "7"}]},
        ):
            with pytest.raises(urllib.error.HTTPError) as refused:
                asked(address, body)
            assert "one column named code or text" in refused.value.read().decode(), (
                "not a judgement of what is no code"
            )


LOADING = """
import sys
import mlflow, pandas as pd
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer

gen, cls = mlflow.pyfunc.load_model("models:/gen@champion"), mlflow.pyfunc.load_model("models:/cls@champion")
params = {"max_new_tokens": 8}
whole = gen.predict(["Reverse a string"], params=params)
assert gen.predict("Reverse a string", params=params) == whole
assert gen.predict(pd.DataFrame({"description": ["Reverse a string"]}), params=params) == whole
assert gen.predict(pd.DataFrame({"description": ["Reverse a string"], "code": ["x"]}), params=params) == whole
try:
    gen.predict(pd.DataFrame({"code": ["x"], "description": ["Reverse a string"]}), params=params)
    raise SystemExit("the code was taken for a description")
except ValueError as error:
    assert "one column named description or text" in str(error), error
assert not whole[0].startswith("Reverse"), "the completion alone"
assert gen.predict(["Reverse a string"], params={**params, "stop": [whole[0][1]]}) == [whole[0].split(whole[0][1])[0]]
assert len({gen.predict("x", params={"max_new_tokens": 20, "temperature": 9.0})[0] for _ in range(4)}) > 1
answers = cls.predict(["eval(x)", "y"])
assert [answer["label"] for answer in cls.predict(pd.DataFrame({"code": ["eval(x)", "y"], "label": ["a", "b"]}))] == [answer["label"] for answer in answers]
for model in (gen, cls):
    schema = model.metadata.signature.inputs
    assert [str(column.type) for column in schema.inputs] == ["DataType.string"] and not schema.has_input_names(), schema
    example = model.input_example
    assert len(model.predict(example)) == 1, example
assert {param.name for param in gen.metadata.signature.params} == {"max_new_tokens", "temperature", "stop"}
for uri, kind in (("models:/gen@champion", AutoModelForCausalLM), ("models:/cls@champion", AutoModel)):
    folder = mlflow.artifacts.download_artifacts(uri)
    loaded, info = kind.from_pretrained(folder, output_loading_info=True)
    assert kind is AutoModel or not info["missing_keys"], info
    assert len(AutoTokenizer.from_pretrained(folder)("def f(x)").input_ids) > 2
pipeline = mlflow.transformers.load_model("models:/cls@champion")
assert pipeline("eval(x)")[0]["label"] == answers[0]["label"]
assert mlflow.transformers.load_model("models:/gen@champion")("def f", max_new_tokens=2)[0]["generated_text"].startswith("def f")
try:
    import mltrack
except ModuleNotFoundError:
    print("answered without mltrack")
"""


def test_it_loads_by_mlflow_and_transformers_where_mltrack_is_not_installed(
    store: Store, tmp_path: Path, without_mltrack: dict[str, str]
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", LOADING],
        cwd=tmp_path,
        env={**without_mltrack, "MLFLOW_TRACKING_URI": store.tracking_uri},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.strip().splitlines()[-1] == "answered without mltrack"
