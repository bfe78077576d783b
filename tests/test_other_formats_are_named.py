"""A model name that leads to something else than a whole model says what it is, and what to use instead, in one
line.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import hf_folders
import pytest

from mltrack.cli import run
from mltrack.errors import ConfigurationError, MltrackError
from mltrack.models import resolve_model

LORA = {"peft_type": "LORA", "base_model_name_or_path": "someone/base-1b", "r": 8}
PARTS = [
    {"idx": 0, "name": "0", "path": "0_Transformer", "type": "sentence_transformers.models.Transformer"},
    {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return hf_folders.decoder_folder(tmp_path_factory.mktemp("whole") / "model")


def _fill(folder: Path, files: dict[str, object]) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        text = content if isinstance(content, str) else json.dumps(content)
        (folder / name).write_text(text, encoding="utf-8", errors="surrogatepass")
    return folder


def _line(name: object) -> str:
    with pytest.raises(MltrackError) as caught:
        resolve_model(str(name), "code_generation")
    line = str(caught.value)
    assert line.startswith(f"model_name: {name} "), line
    assert line.isprintable()
    assert len(line.removeprefix(f"model_name: {name}")) < 700
    return line


CONFIG = {"model_type": "llama"}
OTHERS: dict[str, tuple[dict[str, object], list[str]]] = {
    "an adapter": (
        {"adapter_config.json": LORA, "adapter_model.safetensors": ""},
        ["adapter", "someone/base-1b", "merge_and_unload"],
    ),
    "an adapter with a tokenizer and a configuration": (
        {"adapter_config.json": LORA, "adapter_model.safetensors": "", "config.json": CONFIG, "tokenizer.json": {}},
        ["adapter", "someone/base-1b"],
    ),
    "an adapter that names no base": (
        {"adapter_config.json": {"peft_type": "LORA"}},
        ["adapter", "does not name its base model"],
    ),
    "an adapter with a broken configuration": (
        {"adapter_config.json": "[[["},
        ["adapter", "does not name its base model"],
    ),
    "an adapter of a list": ({"adapter_config.json": ["x"]}, ["adapter", "does not name its base model"]),
    "an adapter of a crafted name": (
        {"adapter_config.json": {"base_model_name_or_path": "\x1b[2J\n" + "x" * 5000}},
        [r"\x1b[2J\nxxx", "..."],
    ),
    "an adapter of half a character": ({"adapter_config.json": {"base_model_name_or_path": "\ud800x"}}, [r"\ud800x"]),
    "an adapter's weights": ({"adapter_model.safetensors": ""}, ["adapter (adapter_model.safetensors)"]),
    "a GGUF file": ({"model.Q4_K_M.gguf": "GGUF", "README.md": ""}, ["GGUF", "use the file, ", "model.Q4_K_M.gguf"]),
    "a GGUF file with a configuration": ({"model.gguf": "GGUF", "config.json": CONFIG}, ["GGUF", "model.gguf"]),
    "ONNX": ({"model.onnx": "", "config.json": CONFIG, "tokenizer.json": {}}, ["ONNX", "model.onnx"]),
    "ONNX in a folder of its own": (
        {"onnx/model_quantized.onnx": "", "config.json": CONFIG},
        ["ONNX", "onnx/model_quantized.onnx"],
    ),
    "OpenVINO": ({"openvino_model.xml": "", "openvino_model.bin": "", "config.json": CONFIG}, ["OpenVINO"]),
    "TensorFlow": ({"tf_model.h5": "", "config.json": CONFIG}, ["TensorFlow", "tf_model.h5"]),
    "a sentence-transformers folder": (
        {"modules.json": PARTS, "0_Transformer/config.json": CONFIG, "1_Pooling/config.json": {}},
        ["sentence-transformers", "0_Transformer", "use its Transformer"],
    ),
    "static embeddings": (
        {
            "modules.json": [{"path": "0_Static", "type": "sentence_transformers.models.StaticEmbedding"}],
            "0_Static/model.safetensors": "",
        },
        ["sentence-transformers", "StaticEmbedding"],
    ),
    "modules.json that leads out": (
        {"modules.json": [{"path": "../..", "type": "x.Transformer"}]},
        ["sentence-transformers", "without a Transformer"],
    ),
    "modules.json of numbers": ({"modules.json": [1, {"path": 2, "type": 3}]}, ["sentence-transformers"]),
    "a tokenizer": (
        {"tokenizer.json": {}, "tokenizer_config.json": {}, "special_tokens_map.json": {}},
        ["a tokenizer alone", "tokenizer.json"],
    ),
    "a slow tokenizer": ({"vocab.json": {}, "merges.txt": ""}, ["a tokenizer alone", "vocab.json"]),
    "a pipeline of pictures": ({"model_index.json": {}, "unet/config.json": {}}, ["diffusers", "model_index.json"]),
}


@pytest.mark.parametrize("what", OTHERS)
def test_a_folder_that_is_no_whole_model_says_what_it_is(tmp_path: Path, what: str) -> None:
    files, said = OTHERS[what]
    line = _line(_fill(tmp_path / "given", files))
    for part in said:
        assert part in line


def test_a_configuration_and_a_tokenizer_alone_have_no_weights(tmp_path: Path) -> None:
    folder = _fill(
        tmp_path / "given", {"config.json": {"model_type": "llama", "hidden_size": 4096}, "tokenizer.json": {}}
    )
    with pytest.raises(ConfigurationError, match=r"model_name: no weights in .*given"):
        resolve_model(str(folder), "code_generation")


@pytest.mark.parametrize(("file", "kind"), [("model.gguf", "GGUF"), ("model.onnx", "ONNX")])
def test_a_file_of_other_weights_says_what_it_is(tmp_path: Path, file: str, kind: str) -> None:
    (tmp_path / file).write_bytes(b"x")
    assert kind in _line(tmp_path / file)


@pytest.mark.parametrize("command", ["predict", "evaluate"])
def test_a_model_that_is_asked_says_so_too(tmp_path: Path, command: str, capsys: pytest.CaptureFixture[str]) -> None:
    folder = _fill(tmp_path / "given", {"adapter_config.json": LORA})
    rest = ["--text", "x"] if command == "predict" else ["--dataset-path", "stdlib"]
    assert run([command, "--model-uri", str(folder), *rest]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"mltrack: model_uri: {folder} is an adapter")
    assert "someone/base-1b" in line


@pytest.mark.parametrize("beside", ["adapter_config.json", "modules.json", "model.gguf", "model.onnx"])
def test_a_whole_model_with_another_format_beside_it_is_a_model(whole: Path, tmp_path: Path, beside: str) -> None:
    folder = _fill(
        tmp_path / "model", {beside: LORA if beside.startswith("adapter") else [{"path": "", "type": "x.Transformer"}]}
    )
    for file in whole.iterdir():
        (folder / file.name).hardlink_to(file)
    assert resolve_model(str(folder), "code_generation").max_positions == 128


# -- the hub


class Hub:
    """What a hub answers about one repository."""

    def __init__(self, files: dict[str, object]):
        self.files = files
        hub = self

        class Answers(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                if self.path.startswith("/api/models/someone/something/tree/main"):
                    self._answer([{"type": "file", "path": name, "oid": "0" * 40, "size": 9} for name in hub.files])
                else:
                    self._answer(hub.files.get(self.path.partition("/resolve/main/")[2]))

            do_HEAD = do_GET

            def _answer(self, content: object) -> None:
                body = json.dumps(content).encode()
                self.send_response(404 if content is None else 200)
                self.send_header("Content-Length", str(len(body)))
                self.send_header("Content-Type", "application/json")
                self.end_headers()
                if self.command == "GET":
                    self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
        self.address = f"http://127.0.0.1:{self.server.server_port}"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[dict[str, object]], None]]:
    from huggingface_hub import constants

    served: list[Hub] = []

    def serve(files: dict[str, object]) -> None:
        one = Hub(files)
        served.append(one)
        threading.Thread(target=one.server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "ENDPOINT", one.address)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", one.address + "/{repo_id}/resolve/{revision}/{filename}"
        )

    yield serve
    for one in served:
        one.server.shutdown()
        one.server.server_close()


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"adapter_config.json": LORA, "adapter_model.safetensors": ""}, ["adapter", "someone/base-1b"]),
        ({"model.gguf": ""}, ["GGUF", "model.gguf"]),
        ({"model.gguf": "", "config.json": CONFIG}, ["GGUF", "model.gguf"]),
        (
            {"modules.json": PARTS, "0_Transformer/config.json": CONFIG},
            ["sentence-transformers", "someone/something/0_Transformer"],
        ),
    ],
    ids=lambda value: "+".join(value),
)
def test_a_repository_that_is_no_whole_model_says_what_it_is(
    hub: Callable[..., None], files: dict[str, object], said: list[str]
) -> None:
    hub(files)
    line = _line("someone/something")
    for part in said:
        assert part in line


def test_an_adapter_in_the_hubs_cache_says_so_without_a_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    repository = tmp_path / "models--someone--something"
    _fill(repository, {"refs/main": "abc", "snapshots/abc/adapter_config.json": LORA})
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    assert "someone/base-1b" in _line("someone/something")
