"""A model folder that was damaged or made to do harm, wherever it is loaded from: one line, and nothing has run; names
that make no legal address.
"""

from __future__ import annotations

import json
import math
import os
import pickle
import resource
import shutil
import struct
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from hf_folders import decoder_folder, encoder_folder, write_model_folder
from ready_store import ready_store
from registered_runs import logged_model
from safetensors.torch import load_file, save_file

from mltrack import registry
from mltrack.errors import CheckpointError, ConfigurationError, MltrackError
from mltrack.evaluation.folder import evaluate_folder
from mltrack.models import resolve_model
from mltrack.store import Store, connect, load_pyfunc, set_alias

Craft = Callable[[Path, Path], None]
"""(model folder, a file that would be made if code of the folder ran)."""


class _Trap:
    def __init__(self, file: Path):
        self.file = file

    def __reduce__(self):
        return os.system, (f"touch {self.file}",)


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return decoder_folder(tmp_path_factory.mktemp("crafted") / "decoder")


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return encoder_folder(tmp_path_factory.mktemp("crafted") / "encoder")


def config(folder: Path, **values: object) -> None:
    held = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**held, **values}))


def program(folder: Path, name: str, trap: Path) -> None:
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_text(
        f"import pathlib\npathlib.Path({str(trap)!r}).touch()\nclass Own: pass\ndef generate(*a, **k): pass\n"
    )


def weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    held = load_file(folder / "model.safetensors")
    change(held)
    save_file(
        {name: tensor.contiguous() for name, tensor in held.items()},
        folder / "model.safetensors",
        metadata={"format": "pt"},
    )


def index_names(file: str) -> Craft:
    """An index that has the weights in `file`; the weights lie where that leads to."""

    def craft(folder: Path, trap: Path) -> None:
        names = list(load_file(folder / "model.safetensors"))
        outside = trap.parent / "outside.safetensors"
        shutil.move(folder / "model.safetensors", outside)
        named = file.format(outside=outside, relative=os.path.relpath(outside, folder))
        (folder / "model.safetensors.index.json").write_text(
            json.dumps({"metadata": {}, "weight_map": dict.fromkeys(names, named)})
        )

    return craft


def replaced(name: str, content: Callable[[Path], bytes]) -> Craft:
    return lambda folder, trap: (folder / name).write_bytes(content(trap)) and None


def header(claimed: int) -> Callable[[Path], bytes]:
    return lambda trap: struct.pack("<Q", claimed) + b"{}" + b" " * 100


def overlapping(_: Path) -> bytes:
    """Two tensors whose bytes lie beyond the end of the file."""
    held = json.dumps({"a.weight": {"dtype": "F32", "shape": [1 << 40], "data_offsets": [0, 1 << 42]}}).encode()
    return struct.pack("<Q", len(held)) + held


def taken(name: str, change: Callable[[torch.Tensor], torch.Tensor | None]) -> Craft:
    def change_one(held: dict[str, torch.Tensor]) -> None:
        found = change(held.pop(name))
        if found is not None:
            held[name] = found

    return lambda folder, trap: weights(folder, change_one)


def custom_generate(folder: Path, trap: Path) -> None:
    program(folder, "custom_generate/generate.py", trap)


def auto_map(folder: Path, trap: Path) -> None:
    program(folder, "own.py", trap)
    config(folder, model_type="own", auto_map={"AutoConfig": "own.Own", "AutoModelForCausalLM": "own.Own"})


def tokenizer_code(folder: Path, trap: Path) -> None:
    program(folder, "own.py", trap)
    held = json.loads((folder / "tokenizer_config.json").read_text())
    held |= {"tokenizer_class": "Own", "auto_map": {"AutoTokenizer": ["own.Own", "own.Own"]}}
    (folder / "tokenizer_config.json").write_text(json.dumps(held))


NORM = "model.norm.weight"
CRAFTED: dict[str, tuple[Craft, str | tuple[str, ...]]] = {
    "an index that leads out of the folder": (index_names("{relative}"), "must name files beside it"),
    "an index with an absolute path": (index_names("{outside}"), "must name files beside it"),
    "an index with backslashes": (index_names("..\\outside.safetensors"), "must name files beside it"),
    "an index that names a folder": (index_names(".."), "must name files beside it"),
    "an index that names nothing": (index_names("model-1.safetensors"), "which is not there"),
    "an index that is a list": (
        lambda folder, trap: (folder / "model.safetensors.index.json").write_text("[]") and None,
        "weight_map, not a list",
    ),
    "a pickle under a safe name": (
        replaced("model.safetensors", lambda trap: pickle.dumps(_Trap(trap))),
        "its weights are damaged",
    ),
    "a header larger than the file": (replaced("model.safetensors", header(1 << 62)), "its weights are damaged"),
    "a header of four gigabytes": (replaced("model.safetensors", header(1 << 32)), "its weights are damaged"),
    "tensors beyond the end of the file": (replaced("model.safetensors", overlapping), "its weights are damaged"),
    "whole numbers as weights": (
        taken(NORM, lambda tensor: tensor.to(torch.int64)),
        "F16, BF16, F32, F64, not I64",
    ),
    "a weight of another shape": (
        taken(NORM, lambda tensor: torch.ones(7)),
        (NORM, "shape", "[32]", "[7]"),
    ),
    "a weight that is missing": (taken(NORM, lambda tensor: None), f"are missing, such as {NORM}"),
    "a configuration that is a pickle": (
        replaced("config.json", lambda trap: pickle.dumps(_Trap(trap))),
        "config.json cannot be read as JSON",
    ),
    "a configuration without end": (
        replaced("config.json", lambda trap: b"[" * 200_000),
        "config.json cannot be read as JSON",
    ),
    "a configuration of another size": (
        lambda folder, trap: config(folder, hidden_size=64, head_dim=32),
        ("[300, 32]", "[300, 64]"),
    ),
    "a tokenizer that is a pickle": (
        replaced("tokenizer.json", lambda trap: pickle.dumps(_Trap(trap))),
        "cannot be loaded",
    ),
    "a class of its own": (auto_map, " code "),
    "a kernel from elsewhere": (
        lambda folder, trap: config(folder, _attn_implementation="somebody/kernel"),
        "code from elsewhere",
    ),
    "a kernel from elsewhere, further in": (
        lambda folder, trap: config(folder, text_config={"attn_implementation": "a/b"}),
        "code from elsewhere",
    ),
    "a kernel from elsewhere, for a part": (
        lambda folder, trap: config(folder, attn_implementation={"": "evil/kernel"}),
        "code from elsewhere",
    ),
    "a kernel from elsewhere, for a part of a part": (
        lambda folder, trap: config(folder, text_config={"_experts_implementation": {"": None, "x": [{"y": "a/b"}]}}),
        "code from elsewhere",
    ),
    "a generation of its own": (custom_generate, "brings Python code of its own"),
    "an absurd width": (lambda folder, trap: config(folder, hidden_size=10**9), "its weights hold 39,840"),
    "a width beyond any number": (
        lambda folder, trap: config(folder, hidden_size=10**30),
        "cannot be loaded: ",
    ),
    "absurdly many layers": (
        lambda folder, trap: config(folder, num_hidden_layers=10**8),
        "num_hidden_layers in its config.json must be a whole number from 0 to 1,024, not 100000000",
    ),
    "fewer layers than none": (
        lambda folder, trap: config(folder, num_hidden_layers=-1),
        "num_hidden_layers in its config.json must be a whole number from 0 to 1,024, not -1",
    ),
    "half a layer": (
        lambda folder, trap: config(folder, num_hidden_layers=1.5),
        "num_hidden_layers in its config.json must be a whole number from 0 to 1,024, not 1.5",
    ),
    "an absurd vocabulary": (lambda folder, trap: config(folder, vocab_size=10**12), "its weights hold 39,840"),
    "absurdly many classes": (
        lambda folder, trap: config(folder, num_labels=10**12),
        "num_labels in its config.json must be a whole number from 0 to 1,000,000, not 1000000000000",
    ),
    "an absurd width of quantized weights": (
        lambda folder, trap: config(folder, hidden_size=10**9, quantization_config={}),
        "its weights hold 322,992",
    ),
    "a width below nothing": (
        lambda folder, trap: config(folder, hidden_size=-8),
        "cannot be loaded: ",
    ),
    "no heads": (
        lambda folder, trap: config(folder, num_attention_heads=0),
        "cannot be loaded: ",
    ),
    "a task that there is not": (
        lambda folder, trap: config(folder, mltrack={"task": ["x"]}),
        "use a model that mltrack trained",
    ),
}


@pytest.mark.parametrize("what", CRAFTED)
def test_it_is_one_line_and_nothing_runs(decoder: Path, tmp_path: Path, what: str) -> None:
    craft, said = CRAFTED[what]
    folder = shutil.copytree(decoder, tmp_path / "model")
    trap = tmp_path / "it-ran"
    craft(folder, trap)
    ways: dict[str, Callable[[], object]] = {
        "load": lambda: registry.load(str(folder)).predict(["x"], {"max_new_tokens": 1}),
        "train": lambda: resolve_model(str(folder), "code_generation").build(label_mapping=None, max_length=64, seed=1),
    }
    for way, load in ways.items():
        if way == "train" and what == "a task that there is not":
            continue  # a model that mltrack did not train may be trained on
        with pytest.raises(MltrackError) as caught:
            load()
        assert "\n" not in str(caught.value), way
        assert all(part in str(caught.value) for part in ((said,) if isinstance(said, str) else said)), way
        assert not trap.exists(), way


@pytest.mark.parametrize(
    "absurd",
    [
        {"hidden_size": 20_000},
        {"vocab_size": 50_000_000},
        {"intermediate_size": 30_000_000},
        {"max_position_embeddings": 30_000_000},
        {"num_hidden_layers": 10**8},
        {"num_labels": 10**9},
        {"hidden_size": 20_000, "quantization_config": {"quant_method": "none"}},
    ],
    ids=str,
)
def test_a_size_that_the_weights_do_not_bear_out_takes_no_memory(
    encoder: Path, tmp_path: Path, absurd: dict[str, object]
) -> None:
    """Each would take more than a gigabyte: a head for other classes is made anew, and what has another shape would be
    with it.
    """
    folder = shutil.copytree(encoder, tmp_path / "model")
    config(folder, **absurd)
    resolve_model(str(encoder), "text_classification").build(
        label_mapping={"a": 0, "b": 1}, max_length=64, seed=1
    )  # loads the code that this takes
    before, random_state = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, torch.get_rng_state()
    for load in (lambda: registry.load(str(folder)), lambda: resolve_model(str(folder), "text_classification")):
        with pytest.raises(ConfigurationError) as caught:
            load()
        assert "\n" not in str(caught.value)
        assert next(iter(absurd)) in str(caught.value) or "its weights hold " in str(caught.value)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000, "kB"
    assert torch.equal(torch.get_rng_state(), random_state)


@pytest.mark.parametrize("length", [0, -5, True, "64", 1.5])
def test_a_length_that_is_none_is_refused(decoder: Path, tmp_path: Path, length: object) -> None:
    folder = shutil.copytree(decoder, tmp_path / "model")
    config(folder, mltrack={"task": "code_generation", "max_length": length})
    with pytest.raises(ConfigurationError, match=rf"config\.json.*{length}.*a model that mltrack trained"):
        registry.load(str(folder))


def test_a_tokenizers_own_code_does_not_run(decoder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(decoder, tmp_path / "model")
    tokenizer_code(folder, tmp_path / "it-ran")
    for load in (lambda: registry.load(str(folder)), lambda: resolve_model(str(folder), "code_generation")):
        with suppress(MltrackError):  # transformers may take the tokenizer for one of its own kinds
            load()
        assert not (tmp_path / "it-ran").exists()


@pytest.mark.parametrize(
    ("key", "mapping"),
    [
        ("label2id", {"safe": 0, "unsafe": 5}),
        ("label2id", {"safe": 0, "unsafe": 0}),
        ("label2id", ["safe"]),
        ("label2id", {"safe": "0"}),
        ("label2id", {"safe": True}),
        ("id2label", {"0": "safe", "5": "unsafe"}),
        ("id2label", {"1": "safe", "2": "unsafe"}),
        ("id2label", {"first": "safe"}),
        ("id2label", ["safe", "unsafe"]),
    ],
)
def test_classes_without_numbers_of_their_own_are_refused(
    encoder: Path, tmp_path: Path, key: str, mapping: object
) -> None:
    folder = shutil.copytree(encoder, tmp_path / "model")
    config(folder, **{key: mapping})
    with pytest.raises(ConfigurationError, match=f"{key} in its config.json must give each class a number.* from 0"):
        registry.load(str(folder))


@pytest.mark.parametrize(
    "maps", [{"label2id": ["safe"]}, {"id2label": ["safe", "unsafe"]}, {"id2label": {"first": "safe"}}], ids=str
)
def test_class_maps_that_transformers_cannot_read_are_refused_of_a_base_model_too(
    encoder: Path, tmp_path: Path, maps: dict[str, object]
) -> None:
    folder = shutil.copytree(encoder, tmp_path / "model")
    config(folder, **maps)
    with pytest.raises(
        ConfigurationError, match=f"{next(iter(maps))} in its config.json must give each class a number"
    ):
        resolve_model(str(folder), "text_classification")


@pytest.mark.parametrize(
    "maps",
    [
        {"label2id": {"a": "0", "b": "1"}},  # as a widely copied tutorial writes it
        {"label2id": {"a": "0", "b": "1"}, "id2label": {"0": "a", "1": "b"}},
        {"label2id": {"safe": 0, "unsafe": 5}, "id2label": {"0": "safe", "5": "unsafe"}},
        {"id2label": {"1": "safe", "2": "unsafe"}},
        {"id2label": {"0": "a", "1": "b", "2": "c"}},
        {"id2label": {"0": "LABEL_0"}, "problem_type": "regression"},
        {"id2label": {"0": None, "1": None}},
        {"label2id": None, "id2label": None},
        {"label2id": {}, "id2label": {}},
        {"num_labels": 7},
    ],
    ids=str,
)
def test_the_class_maps_of_a_base_model_are_replaced_whatever_they_say(
    encoder: Path, tmp_path: Path, maps: dict[str, object]
) -> None:
    folder = shutil.copytree(encoder, tmp_path / "model")
    config(folder, **maps)
    for labels in ({"x": 0, "y": 1}, {"x": 0, "y": 1, "z": 2}):
        model = resolve_model(str(folder), "text_classification").build(label_mapping=labels, max_length=64, seed=1)
        assert model.config.label2id == labels
        assert model.config.id2label == {number: label for label, number in labels.items()}


@pytest.mark.parametrize("classes", [{"0": "safe", "1": "safe"}, {"0": "safe", "1": ["unsafe"]}, {"0": 0, "1": 1}])
def test_classes_that_an_answer_could_not_tell_apart_are_refused(
    encoder: Path, tmp_path: Path, classes: object
) -> None:
    folder = shutil.copytree(encoder, tmp_path / "model")
    config(folder, id2label=classes)
    with pytest.raises(ConfigurationError, match=r"id2label in its config\.json must .*each name once"):
        registry.load(str(folder))


@pytest.mark.parametrize("task", ["code_generation", "text_classification"])
def test_weights_that_are_no_numbers_give_no_answer(decoder: Path, encoder: Path, tmp_path: Path, task: str) -> None:
    """JSON could not hold the answer either."""
    folder = shutil.copytree(decoder if task == "code_generation" else encoder, tmp_path / "model")
    weights(folder, lambda held: held.update({name: tensor * math.nan for name, tensor in held.items()}))
    for params in (None, {"temperature": 2.0} if task == "code_generation" else None):
        with pytest.raises(ConfigurationError, match="the model computes NaN") as caught:
            registry.predict(str(folder), ["x"], params=params)
        assert "\n" not in str(caught.value)


def test_a_body_of_another_shape_is_refused_and_a_head_of_other_classes_is_new(
    encoder: Path, tmp_path: Path, records_file: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    three = {"a": 0, "b": 1, "c": 2}
    model = resolve_model(str(encoder), "text_classification").build(label_mapping=three, max_length=64, seed=1)
    assert model.config.num_labels == 3
    assert "classifier.out_proj.weight is for other classes (shape [2, 32]); a new one of shape [3, 32]" in caplog.text
    for name in (
        "roberta.encoder.layer.0.output.dense.bias",
        "classifier.dense.bias",
    ):  # the second is of the head, but no matter of classes
        folder = shutil.copytree(encoder, tmp_path / name)
        taken(name, lambda tensor: torch.ones(7))(folder, tmp_path)
        for load in (
            lambda folder=folder: resolve_model(str(folder), "text_classification").build(
                label_mapping=three, max_length=64, seed=1
            ),
            lambda folder=folder: registry.predict(str(folder), ["x"]),
        ):
            with pytest.raises(
                MltrackError,
                match=rf"{name} (?=.*\[7\]).* shape .*\[32\]",
            ):
                load()
    headless = shutil.copytree(encoder, tmp_path / "headless")
    taken("classifier.out_proj.weight", lambda tensor: None)(headless, tmp_path)
    with pytest.raises(CheckpointError, match=r"are missing, such as classifier.out_proj.weight"):
        evaluate_folder(headless, str(records_file("text_classification")), task="text_classification", batch_size=4)


def test_a_registered_models_own_loader_does_not_run(encoder: Path, here: Path) -> None:
    """What travels with a model is for MLflow's loader; mltrack's own commands read its files."""
    store = connect(ready_store(here))
    settings = {"mltrack": json.loads((encoder / "config.json").read_text())["mltrack"]}
    written = write_model_folder(
        encoder, here / "written", task="text_classification", hf_config=settings, requirements=["mlflow"]
    )
    program(written, "code/mltrack_pyfunc.py", here / "it-ran")
    registry.register(store, "crafted", logged_model(store, written), {}, "")
    assert registry.predict("models:/crafted/1", ["x"])[0]["label"] in ("safe", "unsafe")
    assert not (here / "it-ran").exists()
    with pytest.raises(Exception):  # noqa: B017, PT011 - the crafted loader has no model to give
        load_pyfunc(store, "models:/crafted/1").predict(["x"])
    assert (here / "it-ran").exists(), "the trap does work"


LEGAL = [
    "a b",
    "it's",
    'say "x"',
    "\u65e5\u672c\u8a9e",
    "\xfcn\xef",
    "a+b&c=d;e",
    "m-1",
    "(x)[y]{z}",
    "~$^!*",
    "v2",
    "x" * 200,
    "-rf",
]


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Store:
    folder = tmp_path_factory.mktemp("names")
    before = os.getcwd()
    os.chdir(folder)
    try:
        return connect(ready_store(folder))
    finally:
        os.chdir(before)


@pytest.mark.parametrize("name", LEGAL)
def test_a_name_that_is_accepted_registers_and_loads(encoder: Path, tmp_path: Path, database: Store, name: str) -> None:
    import mlflow

    registry.check_name(name)
    store = database
    settings = {"mltrack": json.loads((encoder / "config.json").read_text())["mltrack"]}
    written = write_model_folder(
        encoder, tmp_path / "written", task="text_classification", hf_config=settings, requirements=["mlflow"]
    )
    assert registry.register(store, name, logged_model(store, written), {"mltrack.promote": "always"}, "").aliases == [
        "challenger",
        "champion",
    ]
    set_alias(store, name, "mine", 1)
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(store.tracking_uri)
    try:
        for uri in (f"models:/{name}@mine", f"models:/{name}/1"):
            assert (Path(registry.local_folder(uri, store.tracking_uri)) / "config.json").is_file()
            assert Path(mlflow.artifacts.download_artifacts(uri)).is_dir()
    finally:
        mlflow.set_tracking_uri(before)
    assert registry.delete(name, None, store.tracking_uri, force=True)


@pytest.mark.parametrize(
    "name",
    [
        "",
        " ",
        "a/b",
        "a:b",
        "a\\b",
        "a@b",
        "a?b",
        "a%2Fb",
        "a#b",
        "..",
        ".",
        "a\nb",
        "a\0b",
        " a",
        "x" * 201,
        'it\'s "x"',
        "a\u202eb",
    ],
)
def test_a_name_that_could_not_be_loaded_by_is_refused_first(name: str) -> None:
    with pytest.raises(ConfigurationError, match="registered_model_name must be a name without") as caught:
        registry.check_name(name)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "name", ["a/b:c", "..", "../../up", 'it\'s "x"', "a?b#c%2Fd@e", "\u65e5\u672c\u8a9e", "x" * 300]
)
def test_any_name_of_a_run_and_of_an_experiment_keeps_its_files_in_their_place(
    database: Store, tmp_path: Path, name: str
) -> None:
    from mltrack.store import artifacts, create_run

    run = create_run(
        database, experiment_name=name, run_name=name, tags={}, idempotency_key=tmp_path.name, start_time_ms=1
    )
    artifacts.put_text(database, run.run_id, "held", "checkpoints/index.json")
    root = Path(run.artifact_uri.removeprefix("file://"))
    assert (
        root
        == Path(database.tracking_uri.removeprefix("sqlite:///")).parent
        / "mlruns"
        / run.experiment_id
        / run.run_id
        / "artifacts"
    )
    assert (
        artifacts.download(database, run.run_id, "checkpoints/index.json", tmp_path / "fetched").read_text() == "held"
    )
