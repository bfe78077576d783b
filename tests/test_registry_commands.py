"""`mltrack models ...` on what real trainings registered: lineage, an evaluation that decides, rollback, deletion; and
the answers of predict.
"""

from __future__ import annotations

import io
import json
import shlex
from contextlib import chdir, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import commands
import pytest
import tiny
import yaml
from hf_folders import decoder_folder, write_model_folder
from ready_store import ready_store

from mltrack import cli, registry
from mltrack.errors import ConfigurationError, TrackingError
from mltrack.registry import gate
from mltrack.registry.card import listed_classes
from mltrack.registry.duel import PER_CHARACTER, promote_on
from mltrack.store import Store, connect, create_run, model_tags, publish, resolve

NAME = "mltrack-text_classification"


@dataclass(frozen=True)
class Trained:
    """Two trainings in one folder, the second from the first one's model and judged on other records."""

    folder: Path
    first: dict[str, Any]
    second: dict[str, Any]
    said: str
    """What the second printed."""

    def run(self, *words: object) -> str:
        """What a command prints."""
        code, out, errors = self._called(*words)
        assert code == 0, errors
        return out

    def refused(self, *words: object) -> str:
        """The one line of a command that fails."""
        code, out, errors = self._called(*words)
        assert code in (1, 2), out
        (line,) = errors.strip().splitlines()
        return line

    def _called(self, *words: object) -> tuple[int, str, str]:
        """A command line in this process: a process of its own costs seconds of imports."""
        with chdir(self.folder), redirect_stdout(io.StringIO()) as out, redirect_stderr(io.StringIO()) as errors:
            code = cli.run([str(word) for word in words])
        return code, out.getvalue(), errors.getvalue()

    @property
    def store(self) -> Store:
        return connect(f"sqlite:///{self.folder}/mlflow.db")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    from conftest import _records

    folder = tmp_path_factory.mktemp("registered")
    ready_store(folder)
    records = _records("text_classification", 60)
    for name, part in (("train", records[:40]), ("one", records[40:50]), ("other", records[50:])):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in part))
    words = ("train", "--task", "text_classification", "--dataset-path", "train.jsonl", "--seed", "3")
    first = commands.mltrack(
        *words, *commands.TINY, "--validation-path", "one.jsonl", "--epochs", "1", "--output", "json", cwd=folder
    )
    assert first.returncode == 0, first.stderr
    if tiny.last_json_line(first.stdout)["delivery"] == "pending":  # a slow relay is still at it
        assert commands.mltrack("sync", "--all", "true", cwd=folder).returncode == 0
    start = (
        "--model-name",
        f"models:/{NAME}@champion",
        "--max-length",
        "64",
        "--batch-size",
        "8",
        "--learning-rate",
        "2e-3",
    )
    second = commands.mltrack(
        *words, *start, "--validation-path", "other.jsonl", "--promote-margin", "0.001", "--epochs", "10", cwd=folder
    )
    assert second.returncode == 0, second.stderr
    runs = sorted((folder / "mltrack-runs").iterdir(), key=lambda path: (path / "journal").stat().st_mtime)
    delivery = json.loads((runs[-1] / "delivery.json").read_text())
    return Trained(
        folder,
        tiny.last_json_line(first.stdout),
        {"run_id": delivery["run_id"], "registered": delivery["registered"]},
        second.stdout,
    )


def test_a_version_carries_what_it_is_judged_by(trained: Trained) -> None:
    versions = model_tags.read_model(trained.store, NAME).versions
    tags = versions[1].tags
    assert float(tags[gate.VALUE]) == trained.first["best_metric"]
    assert (tags[gate.METRIC], tags[gate.MODE], tags[gate.POLICY], tags[gate.MARGIN]) == (
        "eval_loss",
        "min",
        "auto",
        "0.0",
    )
    assert tags[gate.EVAL_DIGEST] != versions[2].tags[gate.EVAL_DIGEST]
    assert tags["mltrack.data_digest"] == versions[2].tags["mltrack.data_digest"]
    assert versions[2].tags[gate.MARGIN] == "0.001"
    commit = trained.store.client.get_run(trained.first["run_id"]).data.tags.get("mlflow.source.git.commit")
    assert tags.get("mltrack.git_commit") == commit


def test_the_card_says_what_it_is_and_how_to_load_it(trained: Trained) -> None:
    card = trained.store.client.get_model_version(NAME, "2").description
    for part in (
        "Task `text_classification`",
        "Classes: safe, unsafe",
        "`train.jsonl`",
        "on 10 records (digest",
        "Learning rate 0.002",
        "seed 3",
    ):
        assert part in card, part
    assert f"trained from `models:/{NAME}/1`" in card
    assert f'mlflow.pyfunc.load_model("models:/{NAME}/2")' in card
    assert "finds neither all flaws nor only flaws" in card
    (row,) = [line for line in card.splitlines() if line.startswith("| eval_accuracy |")]
    assert len([cell for cell in row.split("|") if cell.strip()]) == 4, "the model beside two baselines"


def test_a_card_has_room_for_the_names_of_some_classes() -> None:
    assert listed_classes(["safe", "unsafe"]) == "safe, unsafe"
    assert listed_classes([str(number) for number in range(60)]).endswith(", 49 and 10 more")
    long = [f"{number:03d} {'x' * 196}" for number in range(300)]
    assert listed_classes(long) == f"{', '.join(long[:9])} and 291 more"


def test_the_run_and_the_version_name_the_model_they_come_from(trained: Trained) -> None:
    parent = {
        "mltrack.parent": f"models:/{NAME}/1",
        "mltrack.parent_model_id": trained.first["model_uri"].removeprefix("models:/"),
        "mltrack.parent_run_id": trained.first["run_id"],
    }
    assert parent.items() <= trained.store.client.get_run(trained.second["run_id"]).data.tags.items()
    assert parent.items() <= model_tags.read_model(trained.store, NAME).versions[2].tags.items()
    assert "mltrack.parent" not in trained.store.client.get_run(trained.first["run_id"]).data.tags
    shown = trained.run("models", "show", NAME)
    assert f"trained from models:/{NAME}/1 of run {trained.first['run_id']}" in shown
    for version, base in ((1, "scratch:tiny"), (2, f"models:/{NAME}@champion")):
        said = yaml.safe_load((Path(resolve(trained.store, f"models:/{NAME}/{version}")) / "MLmodel").read_text())
        assert said["flavors"]["transformers"]["source_model_name"] == base


def test_a_resumed_run_keeps_its_parent_wherever_the_alias_is(trained: Trained) -> None:
    saved = trained.folder / "mltrack-runs" / trained.second["run_id"] / "config.json"
    found = registry.find_parent(f"models:/{NAME}@challenger", trained.store.tracking_uri, None)
    assert found is not None
    assert found.uri == f"models:/{NAME}/2"
    found = registry.find_parent(f"models:/{NAME}@champion", trained.store.tracking_uri, saved)
    assert found is not None
    assert found.uri == f"models:/{NAME}/1"
    assert registry.find_parent("scratch:tiny", trained.store.tracking_uri) is None


def test_other_evaluation_data_print_the_command_that_decides_and_it_does(trained: Trained) -> None:
    held = trained.second["registered"]
    assert (held["version"], held["aliases"]) == ("2", ["challenger"])
    command = f"mltrack models promote {NAME} --version 2 --dataset-path {trained.folder}/other.jsonl"
    assert held["command"] == command
    (decide,) = [line for line in trained.said.splitlines() if line.startswith("decide ")]
    assert f"{command.removeprefix('mltrack')} --tracking-uri {trained.store.tracking_uri}" in decide, (
        "it is right from anywhere"
    )
    assert f"decide: {command}" in trained.run("models", "show", NAME)
    said = trained.run(*shlex.split(command)[1:], "--output", "json")
    duel = json.loads(said)
    assert duel["metric"] == "eval_loss"
    assert duel["promoted"] == (duel["champion_value"] - duel["challenger_value"] >= 0.001)
    by_hand = json.loads(
        trained.run("evaluate", "--model-uri", f"models:/{NAME}/2", "--dataset-path", "other.jsonl", "--output", "json")
    )
    assert by_hand["loss"] == pytest.approx(duel["challenger_value"], rel=1e-6)
    assert duel["promoted"], "the second training went on from the first one's weights"
    shown = trained.run("models", "show", NAME)
    assert "1 -> 2  evaluate: eval_loss" in shown
    assert f"({trained.folder}/other.jsonl, digest " in shown
    assert "decide:" not in shown
    assert "version 2 is champion already" in trained.refused(*shlex.split(command)[1:])

    assert trained.run("models", "rollback", NAME) == f"{NAME}@champion: version 2 -> 1\n"
    assert "none was before it" in trained.refused("models", "rollback", NAME)
    listed = json.loads(trained.run("models", "list", "--output", "json"))
    assert listed[0]["aliases"] == {"champion": "1", "challenger": "2"}
    champions = json.loads(trained.run("models", "show", NAME, "--output", "json"))["champions"]
    assert [(change["before"], change["version"], change["by"]) for change in champions] == [
        (None, 1, "gate"),
        (1, 2, "evaluate"),
        (2, 1, "rollback"),
    ]


def test_records_under_other_names_are_evaluated_as_train_reads_them(trained: Trained) -> None:
    rows = [json.loads(line) for line in (trained.folder / "other.jsonl").read_text().splitlines()]
    names = {"safe": 0, "unsafe": 1}
    renamed = [json.dumps({"func": row["code"], "target": names[row["label"]]}) for row in rows]
    (trained.folder / "renamed.jsonl").write_text(
        "\n".join([*renamed[:3], '{"func": "x"}', '{"func": "y", "target": 7}', *renamed[3:]]) + "\n"
    )
    plain = ("--dataset-path", "other.jsonl", "--output", "json")
    reading = ("--columns", "code=func,label=target", "--labels", "0=safe,1=unsafe", "--on-bad-record", "skip")
    model = ("evaluate", "--model-uri", f"models:/{NAME}/2")
    code, out, errors = trained._called(*model, "--dataset-path", "renamed.jsonl", *reading, "--output", "json")
    assert code == 0, errors
    assert json.loads(out) == json.loads(trained.run(*model, *plain))
    assert "renamed.jsonl, record 4, field 'target'" in errors
    assert "skipped 2 of the evaluation records" in errors
    assert "bad_records-evaluation.jsonl" in errors
    assert len((trained.folder / "bad_records-evaluation.jsonl").read_text().splitlines()) == 2
    assert "field 'target'" in trained.refused(*model, "--dataset-path", "renamed.jsonl", *reading[:4])
    by_version = [trained.run("evaluate", "--model-uri", f"models:/{NAME}/{version}", *plain) for version in (1, 2)]
    losses = [json.loads(out)["loss"] for out in by_version]
    promote = ("models", "promote", NAME, "--version", "2", "--promote-margin", "1000000")
    duel = json.loads(trained.run(*promote, "--dataset-path", "renamed.jsonl", *reading, "--output", "json"))
    assert [duel["champion_value"], duel["challenger_value"]] == pytest.approx(losses, rel=1e-6)
    for option, word in zip(reading[::2], reading[1::2], strict=True):
        line = trained.refused("models", "promote", NAME, "--version", "2", option, word)
        assert f"{option[2:].replace('-', '_')}='{word}' needs --dataset-path" in line


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("promote", NAME), "promote needs --version N, or --dataset-path FILE"),
        (("promote", NAME, "--version", "9"), "has no version '9'; it has 1, 2"),
        (
            ("promote", NAME, "--version", "1", "--promote-margin", "0.1"),
            "promote_margin works only with --dataset-path",
        ),
        (
            ("promote", NAME, "--dataset-path", "one.jsonl", "--promote-margin", "-1"),
            "promote_margin must be a number >= 0, not -1.0",
        ),
        (("promote", NAME, "--dataset-path", "nowhere.jsonl"), "nowhere.jsonl"),
        (
            ("promote", NAME, "--dataset-path", "one.jsonl", "--alias", "best"),
            "alias must be champion with --dataset-path, not 'best'",
        ),
        (("rollback", "nowhere"), "no nowhere in sqlite"),
        (("delete", NAME), "would be deleted, and what loads by it would fail; use --force true"),
        (("delete", NAME, "--version", "7"), "has no version '7'; it has 1, 2"),
        (("show", "nowhere"), "no models:/nowhere in sqlite"),
    ],
)
def test_what_cannot_be_done_is_one_line(trained: Trained, words: tuple[str, ...], said: str) -> None:
    assert said in trained.refused("models", *words)


def published(store: Store, folder: Path, name: str, out: Path, value: float) -> str:
    """A version of a decoder folder; returns its number."""
    config = json.loads((folder / "config.json").read_text())
    written = write_model_folder(
        folder, out, task="code_generation", hf_config={"mltrack": config["mltrack"]}, requirements=["mlflow"]
    )
    run = create_run(store, experiment_name=None, run_name="r", tags={}, idempotency_key=str(out), start_time_ms=1)
    model_id = publish(store, run.run_id, written, name="m", step=1, tags={}, metrics={}, timestamp_ms=2)
    tags = {
        gate.VALUE: str(value),
        gate.METRIC: "eval_loss",
        gate.MODE: "min",
        gate.POLICY: "auto",
        gate.EVAL_DIGEST: out.name,
        gate.TOKENS: out.name,
    }
    return str(registry.register(store, name, model_id, tags, "").version)


def test_losses_of_different_tokenizers_are_compared_a_character(here: Path) -> None:
    """A loss a token falls when the tokens get shorter; the model is not better for it."""
    store = connect(ready_store(here))
    first = decoder_folder(here / "a", hidden_size=16)
    other = decoder_folder(here / "b", hidden_size=32)
    held = json.loads((other / "tokenizer.json").read_text())
    held["model"]["merges"] = held["model"]["merges"][:2]
    (other / "tokenizer.json").write_text(json.dumps(held))
    for number, folder in enumerate((first, other), start=1):
        assert published(store, folder, "gen", here / f"w{number}", 2.0) == str(number)
    records = here / "short.jsonl"
    records.write_text("".join(json.dumps({"description": f"Do {i}", "code": f"x = {i}"}) + "\n" for i in range(12)))
    duel = promote_on("gen", str(records), "2")
    assert duel.metric == PER_CHARACTER
    assert duel.promoted == (duel.challenger_value < (duel.champion_value or 0))
    alike = published(store, first, "gen", here / "w3", 2.0)
    registry.promote("gen", "1")
    again = promote_on("gen", str(records), alike)
    assert (again.metric, again.promoted) == ("eval_loss", False), "the same weights are not better than themselves"
    assert again.challenger_value == again.champion_value
    long = here / "long.jsonl"
    long.write_text(json.dumps({"description": "x " * 100, "code": "y " * 100}) + "\n")
    with pytest.raises(ConfigurationError, match="every record is longer than 64 tokens"):
        promote_on("gen", str(long), "2")


def test_predict_gives_labels_scores_completions_and_stops(trained: Trained, here: Path) -> None:
    answer = json.loads(
        trained.run("predict", "--model-uri", f"models:/{NAME}@champion", "--text", "eval(x)", "--output", "json")
    )[0]
    assert set(answer) == {"label", "score", "scores"}
    assert answer["score"] == max(answer["scores"].values())
    folder = decoder_folder(here / "decoder")
    whole = registry.predict(str(folder), ["Reverse a string"], params={"max_new_tokens": 12})[0]
    assert len(whole) > 3
    words = (
        "predict",
        "--model-uri",
        folder,
        "--text",
        "Reverse a string",
        "--max-new-tokens",
        "12",
        "--output",
        "json",
    )
    assert json.loads(trained.run(*words)) == [whole]
    assert json.loads(trained.run(*words, "--stop", whole[2], "--stop", "never said")) == [whole.split(whole[2])[0]]


def test_delete_says_what_it_did(trained: Trained) -> None:
    said = trained.run("models", "delete", NAME, "--version", "2").splitlines()
    assert said[0].startswith(f"{NAME}/2: deleted")
    assert said[1].endswith("its files were deleted")
    with pytest.raises(TrackingError):
        registry.local_folder(f"models:/{NAME}/2", trained.store.tracking_uri)
    assert trained.run("models", "delete", NAME, "--force", "true").startswith(f"{NAME}: deleted with its versions 1\n")
    assert "no registered models" in trained.run("models", "list")
