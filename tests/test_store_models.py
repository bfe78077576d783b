"""A checkpoint becomes a model that anybody can load, once, and goes again with its bytes; what is registered stays."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import mlflow
import pytest
from hf_folders import PROMPT, decoder_folder, encoder_folder, load_folder, write_model_folder
from ready_store import ready_store

from mltrack.errors import CheckpointError, ConfigurationError, TrackingError
from mltrack.store import (
    RunInfo,
    Store,
    StoreRejected,
    connect,
    create_run,
    get_alias,
    get_run,
    list_models,
    list_versions,
    load_pyfunc,
    log_points,
    models_of_run,
    prune,
    publish,
    register,
    resolve,
    set_alias,
)
from mltrack.store.connection import as_default
from mltrack.store.registered import is_registered

STATE = {"optimizer.safetensors", "optimizer.json", "state.json", "metadata.json"}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    folder = tmp_path_factory.mktemp("models")
    before = os.getcwd()
    os.chdir(folder)
    try:
        return connect(ready_store(folder))
    finally:
        os.chdir(before)


@pytest.fixture
def run(store: Store, request: pytest.FixtureRequest) -> RunInfo:
    return create_run(
        store, experiment_name=None, run_name="r", tags={}, idempotency_key=request.node.name, start_time_ms=1000
    )


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint whose weights are large enough to be linked."""
    return decoder_folder(tmp_path_factory.mktemp("decoder") / "step-1", hidden_size=256)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return encoder_folder(tmp_path_factory.mktemp("encoder") / "step-1")


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory, decoder: Path, encoder: Path) -> dict[str, Path]:
    """task -> model folder"""
    out = tmp_path_factory.mktemp("written")
    return {
        task: written_model(source, out / task, task)
        for task, source in (("code_generation", decoder), ("text_classification", encoder))
    }


def written_model(source: Path, out: Path, task: str) -> Path:
    config = json.loads((source / "config.json").read_text())
    return write_model_folder(
        source,
        out,
        task=task,
        hf_config={"mltrack": config["mltrack"]},
        requirements=["mlflow", "torch", "transformers", "pandas"],
        model_type=config["architectures"][0],
        tokenizer_type="PreTrainedTokenizerFast",
        source_model_name="scratch:tiny",
        metadata={"mltrack_step": 1},
        immutable=True,
    )


def published(store: Store, run: RunInfo, folder: Path, step: int = 1, **metrics: float) -> str:
    return publish(
        store,
        run.run_id,
        folder,
        name=f"step-{step}",
        step=step,
        tags={"kept": "best"},
        metrics=metrics,
        timestamp_ms=2000 + step,
        immutable=True,
    )


def test_the_folder_holds_the_weights_once_and_no_training_state(written: dict[str, Path], decoder: Path) -> None:
    folder = written["code_generation"]
    names = [path.name for path in folder.rglob("*") if path.is_file()]
    assert not STATE & set(names)
    assert names.count("model.safetensors") == 1
    assert (folder / "model.safetensors").samefile(decoder / "model.safetensors")
    assert {path.name for path in (folder / "components" / "tokenizer").iterdir()} == {
        "tokenizer.json",
        "tokenizer_config.json",
    }
    assert {"MLmodel", "requirements.txt", "conda.yaml", "python_env.yaml", "input_example.json"} <= set(names)


def test_mlflow_reads_the_mlmodel_as_one_of_its_own(written: dict[str, Path]) -> None:
    from mlflow.models import Model

    model = Model.load(written["code_generation"])
    assert model.get_input_schema().is_tensor_spec() is False
    assert model.get_input_schema().has_input_names() is False
    assert {param.name: param.default for param in model.get_params_schema().params}["max_new_tokens"] == 128
    assert model.load_input_example(str(written["code_generation"])) == ["Return the absolute path of a file"]
    assert model.metadata == {"mltrack_step": 1}
    again = Model.from_dict(model.to_dict()).to_dict()
    assert again == model.to_dict()


@pytest.mark.parametrize(
    ("missing", "said"), [("model.safetensors", "no model.safetensors"), ("config.json", "no config.json")]
)
def test_a_folder_that_is_no_model_is_refused(encoder: Path, tmp_path: Path, missing: str, said: str) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    for path in encoder.iterdir():
        if path.name != missing:
            (broken / path.name).write_bytes(path.read_bytes())
    with pytest.raises(CheckpointError, match=said):
        write_model_folder(
            broken,
            tmp_path / "out",
            task="text_classification",
            hf_config={},
            requirements=[],
            model_type="X",
            tokenizer_type="Y",
        )


def test_published_once_ready_with_links_and_without_a_nan(
    store: Store, run: RunInfo, written: dict[str, Path], decoder: Path
) -> None:
    links = (decoder / "model.safetensors").stat().st_nlink
    log_points(store, run.run_id, [("eval_loss", 0.5, 700, 1), ("eval_loss", 0.4, 900, 2)])
    first = published(store, run, written["code_generation"], eval_loss=0.5, perplexity=math.nan)
    assert published(store, run, written["code_generation"], eval_loss=0.5, perplexity=math.inf) == first
    (row,) = models_of_run(store, run.run_id)
    assert (row["model_id"], row["step"], row["status"], row["metrics"]) == (first, 1, "READY", {"eval_loss": 0.5})
    assert "mltrack.metrics_rejected" not in row["tags"]
    held = store.client.get_run(run.run_id)
    assert [(output.model_id, output.step) for output in held.outputs.model_outputs] == [(first, 1)]
    history = store.client.get_metric_history(run.run_id, "eval_loss")
    assert [(point.value, point.step, point.timestamp) for point in history] == [(0.5, 1, 700), (0.4, 2, 900)]
    assert (decoder / "model.safetensors").stat().st_nlink == links + 1
    assert get_run(store, run.run_id).status == "RUNNING"


def test_cut_off_after_each_request_and_called_again_it_still_is_one_model(
    store: Store, run: RunInfo, written: dict[str, Path]
) -> None:
    class CutOffError(BaseException):
        pass

    def cut_off(*args: Any, **kwargs: Any) -> Any:
        raise CutOffError

    real = store.client
    for verb in ("create_logged_model", "log_outputs", "log_batch", "finalize_logged_model", None):
        if verb:
            store.client = type(
                "Cut",
                (),
                {"__getattr__": lambda self, name, verb=verb: cut_off if name == verb else getattr(real, name)},
            )()
        try:
            model_id = published(store, run, written["text_classification"], step=4, eval_loss=0.25)
        except CutOffError:
            assert verb
        finally:
            store.client = real
    (row,) = models_of_run(store, run.run_id)
    assert (row["model_id"], row["status"], row["metrics"]) == (model_id, "READY", {"eval_loss": 0.25})
    assert len(store.client.get_run(run.run_id).outputs.model_outputs) == 1
    location = Path(row["artifact_location"].removeprefix("file://"))
    assert {path.name for path in location.iterdir()} == {
        path.name for path in written["text_classification"].iterdir()
    }
    assert [path.name for path in location.parent.iterdir()] == [location.name]


def test_pruned_with_its_bytes_and_again_and_never_when_registered(
    store: Store, run: RunInfo, written: dict[str, Path]
) -> None:
    model_ids = [published(store, run, written["code_generation"], step=step, eval_loss=1.0 / step) for step in (1, 2)]
    locations = [Path(row["artifact_location"].removeprefix("file://")) for row in models_of_run(store, run.run_id)]
    register(store, "kept-model", model_ids[1])
    assert [prune(store, model_id) for model_id in model_ids] == ["pruned", "registered"]
    assert [prune(store, model_id) for model_id in model_ids] == ["gone", "registered"]
    assert not locations[0].parent.exists()
    assert (locations[1] / "model.safetensors").exists()
    assert [row["step"] for row in models_of_run(store, run.run_id)] == [2]
    assert [is_registered(store, model_id) for model_id in model_ids] == [False, True]
    # bytes gone, entry still there: where a pruning was cut off
    third = published(store, run, written["code_generation"], step=3)
    (row,) = [row for row in models_of_run(store, run.run_id) if row["step"] == 3]
    for path in sorted(Path(row["artifact_location"].removeprefix("file://")).rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    assert prune(store, third) == "pruned"


def test_what_mlflow_has_copied_or_registered_by_its_folder_stays_too(
    store: Store, run: RunInfo, written: dict[str, Path]
) -> None:
    ids = [published(store, run, written["text_classification"], step=step) for step in (1, 2, 3, 4)]
    location = next(row["artifact_location"] for row in models_of_run(store, run.run_id) if row["model_id"] == ids[2])
    register(store, "it's first", ids[0])
    register(store, "second", ids[1])
    with as_default(store):
        store.client.copy_model_version("models:/it's first/1", "copied")
        mlflow.register_model("models:/copied/1", "copied-again")
        mlflow.register_model("models:/second/1", "of-second")
        mlflow.register_model(location, "by-its-folder")
    for name in ("it's first", "copied"):  # what a copy was made from may be gone
        store.client.delete_model_version(name, "1")
    assert [prune(store, model_id) for model_id in ids] == ["registered", "registered", "registered", "pruned"]
    assert [is_registered(store, model_id) for model_id in ids] == [True, True, True, False]
    for name in ("copied-again", "of-second", "by-its-folder"):
        assert (resolve(store, f"models:/{name}/1") / "model.safetensors").exists()
    store.client.delete_model_version("copied-again", "1")
    assert prune(store, ids[0]) == "pruned"


def test_the_registry(store: Store, run: RunInfo, written: dict[str, Path]) -> None:
    ids = [published(store, run, written["text_classification"], step=step, eval_loss=float(step)) for step in (1, 2)]
    assert [register(store, "reg", model_id, {"task": "t"}, "said") for model_id in (*ids, ids[0])] == ["1", "2", "1"]
    assert get_alias(store, "reg", "champion") is None
    assert get_alias(store, "no-such-model", "champion") is None
    set_alias(store, "reg", "champion", "1")
    set_alias(store, "reg", "challenger", 2)
    assert get_alias(store, "reg", "champion") == "1"
    newest, oldest = list_versions(store, "reg")
    assert (newest["version"], newest["aliases"], newest["model_id"], newest["run_id"]) == (
        "2",
        ["challenger"],
        ids[1],
        run.run_id,
    )
    assert (oldest["aliases"], oldest["metrics"], oldest["tags"], oldest["description"]) == (
        ["champion"],
        {"eval_loss": 1.0},
        {"task": "t"},
        "said",
    )
    assert {"champion": "1", "challenger": "2"} in [
        model["aliases"] for model in list_models(store) if model["name"] == "reg"
    ]
    folders = [resolve(store, uri) for uri in ("models:/reg@champion", "models:/reg/1", f"models:/{ids[0]}")]
    assert len(set(folders)) == 1
    assert (folders[0] / "MLmodel").is_file()
    assert resolve(store, "models:/reg/latest") == resolve(store, "models:/reg/2") != folders[0]
    register(store, "it's", ids[0])
    assert resolve(store, "models:/it's/latest") == folders[0]


def test_a_logged_model_names_its_versions_as_mlflows_pages_read_them(
    store: Store, run: RunInfo, written: dict[str, Path]
) -> None:
    model_id = published(store, run, written["text_classification"], step=1, eval_loss=1.0)
    for name in ("linked", "linked-too", "linked"):
        register(store, name, model_id)
    ours = store.client.get_logged_model(model_id).tags["mlflow.modelVersions"]
    other_id = published(store, run, written["text_classification"], step=2, eval_loss=1.0)
    with as_default(store):
        for name in ("linked-by-mlflow", "linked-by-mlflow-too"):
            mlflow.register_model(f"models:/{other_id}", name)
    theirs = store.client.get_logged_model(other_id).tags["mlflow.modelVersions"]
    assert json.loads(ours) == [{"name": "linked", "version": "1"}, {"name": "linked-too", "version": "1"}]
    assert [one | {"name": "", "version": str(one["version"])} for one in json.loads(theirs)] == [
        one | {"name": ""} for one in json.loads(ours)
    ]


@pytest.mark.parametrize(
    ("uri", "said"),
    [
        ("models:/nowhere@champion", "no models:/nowhere@champion in sqlite:.*MLFLOW_TRACKING_URI"),
        ("models:/nowhere/1", "no models:/nowhere/1 in sqlite:.*MLFLOW_TRACKING_URI"),
        ("models:/m-" + "0" * 32, "no models:/m-0.* in sqlite:.*MLFLOW_TRACKING_URI"),
        ("models:/nowhere/latest", "MLFLOW_TRACKING_URI"),
        ("nowhere", "'nowhere' names no model; use models:/name@alias"),
    ],
)
def test_what_is_not_there_is_said_in_one_line(store: Store, uri: str, said: str) -> None:
    with pytest.raises(TrackingError, match=said) as caught:
        resolve(store, uri)
    assert "\n" not in str(caught.value)


def test_a_missing_alias_names_those_that_are_there(store: Store, run: RunInfo, written: dict[str, Path]) -> None:
    set_alias(store, "one", "champion", register(store, "one", published(store, run, written["text_classification"])))
    with pytest.raises(
        TrackingError, match=r"one in sqlite:.* has no alias 'winner'; its aliases: champion; .*MLFLOW_TRACKING_URI"
    ):
        resolve(store, "models:/one@winner")
    for alias in ("latest", "v3", "a b", ""):
        with pytest.raises(StoreRejected, match=f"alias '{alias}' must have letters"):
            set_alias(store, "one", alias, 1)


def test_a_model_that_is_not_complete_is_not_registered(store: Store, run: RunInfo) -> None:
    pending = store.client.create_logged_model(run.experiment_id, name="pending", source_run_id=run.run_id)
    with pytest.raises(StoreRejected, match="PENDING"):
        register(store, "pending-model", pending.model_id)


def test_classification_through_pyfunc(
    store: Store, run: RunInfo, written: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import numpy as np
    import pandas as pd

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///elsewhere.db")
    register(store, "classifier", published(store, run, written["text_classification"]))
    model = load_pyfunc(store, "models:/classifier/1")
    texts = ["eval(x)", "def add(a, b):\n    return a + b\n" * 20]
    answers = model.predict(texts)
    assert [set(answer["scores"]) for answer in answers] == [{"safe", "unsafe"}] * 2
    for answer in answers:
        assert answer["score"] == max(answer["scores"].values()) == answer["scores"][answer["label"]]
        assert math.isclose(sum(answer["scores"].values()), 1.0, abs_tol=1e-6)
    alone = model.predict(texts[0])
    assert math.isclose(alone[0]["score"], answers[0]["score"], abs_tol=1e-6)
    for same in (pd.DataFrame({"code": texts}), pd.DataFrame(texts), np.array(texts)):
        assert [answer["label"] for answer in model.predict(same)] == [answer["label"] for answer in answers]
    assert list(pd.DataFrame(answers).columns) == ["label", "score", "scores"]
    assert list(tmp_path.iterdir()) == [], "a stray database"
    assert os.environ["MLFLOW_TRACKING_URI"] == "sqlite:///elsewhere.db"


CODE = "def f(x):\n    return eval(x)"


def tables() -> dict[str, tuple[Any, bool, bool]]:
    """{what: (data, answered through MLflow, answered by the model itself)}; MLflow hands on a table's first column
    alone.
    """
    import numpy as np
    import pandas as pd

    both = pd.DataFrame({"id": ["7"], "code": [CODE]})
    return {
        "the column alone": (both[["code"]], True, True),
        "the column first": (both[["code", "id"]], True, True),
        "the column behind another": (both, False, True),
        "another column alone": (both[["id"]], False, False),
        "a description": (pd.DataFrame({"description": ["7"]}), False, False),
        "the column twice": (pd.DataFrame([[CODE, CODE]], columns=["code", "code"]), False, False),
        "a column without a name": (pd.DataFrame([CODE]), True, True),
        "a column of another number": (pd.DataFrame({1: [CODE]}), False, False),
        "a series": (both["code"], True, True),
        "a series of another name": (both["id"], False, False),
        "an array": (np.array([CODE]), True, True),
        "an array of one column": (np.array([[CODE]]), True, True),
        "records": ([{"code": CODE}], True, True),
        "records with another field first": ([{"id": "7", "code": CODE}], False, True),
        "a record": ({"id": "7", "code": CODE}, False, True),
    }


@pytest.mark.parametrize("what", tables())
def test_a_table_is_answered_from_the_records_own_column_or_not_at_all(written: dict[str, Path], what: str) -> None:
    import mlflow.pyfunc

    folder = written["text_classification"]
    data, *answered = tables()[what]
    (expected,) = load_folder(folder).predict([CODE])
    for model, fits in zip((mlflow.pyfunc.load_model(str(folder)), load_folder(folder)), answered, strict=True):
        if fits:
            (answer,) = model.predict(data)
            assert answer["scores"] == pytest.approx(expected["scores"], abs=1e-6)
        else:
            with pytest.raises(Exception, match=r"one column named code or text|has no attribute 'dtype'"):
                model.predict(data)


def test_tables_of_several_columns_without_names_are_refused_where_they_are_seen(written: dict[str, Path]) -> None:
    import numpy as np
    import pandas as pd

    for data in (pd.DataFrame([["7", CODE]]), np.array([["7", CODE]])):
        with pytest.raises(ValueError, match=r"one column named code or text, not \[0, 1\]"):
            load_folder(written["text_classification"]).predict(data)


@pytest.mark.parametrize(
    ("params", "said"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens must be a whole number >= 1, not 0"),
        ({"max_new_tokens": -3}, "max_new_tokens must be a whole number >= 1, not -3"),
        ({"temperature": -1.0}, r"temperature must be a number >= 0, not -1\.0"),
        ({"temperature": math.nan}, "temperature must be a number >= 0, not nan"),
        ({"temperature": math.inf}, "temperature must be a number >= 0, not inf"),
    ],
)
def test_params_that_mean_nothing_are_refused(written: dict[str, Path], params: dict[str, float], said: str) -> None:
    import mlflow.pyfunc

    from mltrack import registry

    folder = str(written["code_generation"])
    with pytest.raises(ValueError, match=f"^{said}$"):
        mlflow.pyfunc.load_model(folder).predict(["x"], params=params)
    with pytest.raises(ConfigurationError, match=f": {said}$"):
        registry.predict(folder, ["x"], params=params)


def test_half_a_surrogate_pair_is_refused(written: dict[str, Path]) -> None:
    from mltrack import registry

    with pytest.raises(ConfigurationError, match="text 2 holds half a surrogate pair"):
        registry.predict(str(written["text_classification"]), ["x", "\ud800"])


def test_generation_through_pyfunc_equals_greedy_decoding_by_hand(
    store: Store, run: RunInfo, written: dict[str, Path], decoder: Path
) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    register(store, "generator", published(store, run, written["code_generation"]))
    model = load_pyfunc(store, "models:/generator/1")
    hf, words = AutoModelForCausalLM.from_pretrained(decoder).eval(), AutoTokenizer.from_pretrained(decoder)

    def by_hand(text: str, count: int) -> str:
        ids = [0, *words(PROMPT.format(description=text), add_special_tokens=False)["input_ids"]]
        start = len(ids)
        for _ in range(count):
            with torch.inference_mode():
                token = int(hf(input_ids=torch.tensor([ids])).logits[0, -1].argmax())
            if token == 2:
                break
            ids.append(token)
        return words.decode(ids[start:], skip_special_tokens=True, clean_up_tokenization_spaces=False)

    texts = ["Reverse a string", "x", "Return {braces} and the rest"]
    expected = [by_hand(text, 12) for text in texts]
    assert model.predict(texts, params={"max_new_tokens": 12}) == expected
    assert model.predict(texts[1], params={"max_new_tokens": 12}) == expected[1:2]
    assert any(expected)
    stop = next(text for text in expected if len(text) > 3)[2]
    for cut_text, whole in zip(
        model.predict(texts, params={"max_new_tokens": 12, "stop": [stop]}), expected, strict=True
    ):
        assert cut_text == whole.split(stop)[0]
    sampled = {tuple(model.predict(texts, params={"max_new_tokens": 12, "temperature": 5.0})) for _ in range(3)}
    assert len(sampled) > 1
    assert len(model.predict(["word " * 500, "x"], params={"max_new_tokens": 500})) == 2


def test_both_tasks_load_by_mlflow_in_a_process_that_has_no_mltrack(
    store: Store, run: RunInfo, written: dict[str, Path], tmp_path: Path
) -> None:
    for name, task, step in (("anywhere-gen", "code_generation", 1), ("anywhere-cls", "text_classification", 2)):
        set_alias(store, name, "champion", register(store, name, published(store, run, written[task], step=step)))
    program = """
import importlib.util, os, sys
sys.path[:] = [path for path in sys.path if path and not os.path.exists(os.path.join(path, "mltrack"))]
sys.meta_path[:] = [finder for finder in sys.meta_path if "editable" not in repr(finder)]
assert importlib.util.find_spec("mltrack") is None
import mlflow
made = mlflow.pyfunc.load_model("models:/anywhere-gen@champion").predict(["Reverse a string"], params={"max_new_tokens": 4})
assert isinstance(made[0], str), made
seen = mlflow.pyfunc.load_model("models:/anywhere-cls@champion").predict(["eval(x)"])
assert seen[0]["label"] in ("safe", "unsafe"), seen
pipe = mlflow.transformers.load_model("models:/anywhere-gen@champion")
assert pipe("def f", max_new_tokens=2)[0]["generated_text"].startswith("def f")
pipe = mlflow.transformers.load_model("models:/anywhere-cls@champion")
assert pipe("eval(x)")[0]["label"] == seen[0]["label"]
assert "mltrack" not in sys.modules
"""
    environment = {
        **os.environ,
        "MLFLOW_TRACKING_URI": store.tracking_uri,
        "HF_HUB_OFFLINE": "1",
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }
    environment.pop("PYTHONPATH", None)
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
