"""`open_pretrained`: a folder or hub model, checked before anything is trained; `ModelSource.build`: the model itself,
in fp32.

Invariant: no code of a model runs unless `trust_remote_code` allows it. Weights are safetensors, or a `.bin` that torch
reads with `weights_only=True`; every other format is refused. A seeded build does not change torch's global random
state."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mltrack.errors import CheckpointError, ConfigurationError
from mltrack.models import presets
from mltrack.models.foreign_errors import first_line, one_line, quiet
from mltrack.models.hub import hub_files
from mltrack.models.inspection import inspect_folder
from mltrack.models.other_formats import WHOLE, content_of, other_file
from mltrack.models.tokenizers import train_tokenizer
from mltrack.models.weights import find_weights
from mltrack.tasks.contract import Task

_LOG = logging.getLogger("mltrack.models")
# learned positions that start after the padding id: the table is that much longer than the longest sequence
_OFFSET_POSITIONS = {
    "camembert",
    "data2vec-text",
    "ibert",
    "longformer",
    "luke",
    "roberta",
    "roberta-prelayernorm",
    "xlm-roberta",
    "xlm-roberta-xl",
    "xmod",
}


class ModelSource:
    """A model name that has been looked up: its tokenizer, its limits, and how to build it. Made by `resolve_model`.

    Attributes:
        name: as the user wrote it.
        kind: which of `mltrack.models.sources` found it: scratch, registry, gguf, folder, hub.
        origin: the exact version: `model_commit` of a hub model, `model_digest` of a GGUF file.
        task: what it is for.
        tokenizer: None for a scratch model until `train_tokenizer`.
    """

    def __init__(
        self,
        name: str,
        kind: str,
        task: Task,
        *,
        location: str = "",
        config: Any = None,
        tokenizer: Any = None,
        options: dict[str, Any] | None = None,
        origin: Mapping[str, str] | None = None,
    ):
        self.name, self.kind, self.task, self.tokenizer = name, kind, task, tokenizer
        self._location, self._config, self._options = location, config, options or {}
        self.origin = dict(origin or {})
        self._preset = presets.preset_named(name) if kind == "scratch" else None

    @property
    def max_positions(self) -> int | None:
        """Longest sequence in tokens that the model takes; None if it names no limit."""
        if self._preset is not None:
            return self._preset.max_positions
        limit = getattr(self._config, "max_position_embeddings", None)
        if not isinstance(limit, int) or limit < 1:
            return None
        return limit - (self._config.pad_token_id or 0) - 1 if self._config.model_type in _OFFSET_POSITIONS else limit

    def check_max_length(self, max_length: int) -> None:
        """Refuse a `max_length` that the model cannot take.

        Raises:
            ConfigurationError: with both numbers.
        """
        limit = self.max_positions
        if limit is not None and max_length > limit:
            raise ConfigurationError(
                f"max_length must be at most {limit}, the longest sequence that {self.name} takes, not {max_length}"
            )

    def train_tokenizer(self, texts: Iterable[str]) -> Any:
        """Train and keep the tokenizer of a scratch model; pass texts of the training split only."""
        assert self._preset is not None, f"{self.name} brings its own tokenizer"
        kind = "decoder" if self.task.head.causal else "encoder"
        self.tokenizer = train_tokenizer(texts, self._preset.vocab_size, kind)
        return self.tokenizer

    def build(
        self, *, label_mapping: Mapping[str, int] | None, max_length: int, seed: int, whole: bool = False
    ) -> nn.Module:
        """The model in fp32 on the CPU, in training mode, without the base model's generation settings.

        Args:
            label_mapping: class -> index; None for a task without classes.
            max_length: longest sequence in tokens, kept in `config.mltrack`.
            seed: for the weights of a scratch model and of a new classification head.
            whole: all weights must be there, the head's too: for a model that is evaluated, not trained.

        Raises:
            ConfigurationError: the length or the model does not fit the task.
            CheckpointError: the weights cannot be read, or only by running code in them.
        """
        from transformers import GenerationConfig

        self.check_max_length(max_length)
        if self.tokenizer is None:
            raise ConfigurationError(
                f"model_name: {self.name} has no tokenizer yet; train it on the training split first (train_tokenizer)"
            )
        assert (label_mapping is not None) == self.task.has_classes, (self.task, label_mapping)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = (
                self._from_preset(label_mapping)
                if self._preset is not None
                else self._from_weights(label_mapping, whole)
            )
        self._complete(model.config, label_mapping, max_length)
        if getattr(model, "generation_config", None) is not None:
            names = ("bos_token_id", "eos_token_id", "pad_token_id")
            model.generation_config = GenerationConfig(**{name: getattr(model.config, name, None) for name in names})
        return model.float().train()

    def _from_preset(self, label_mapping: Mapping[str, int] | None) -> Any:
        import transformers

        assert self._preset is not None
        head = self.task.head
        if head.causal:
            config: Any = presets.decoder_config(self._preset, self.tokenizer)
        else:
            config = presets.encoder_config(self._preset, self.tokenizer, label_mapping or {})
        return getattr(transformers, head.scratch_class)(config)

    def _from_weights(self, label_mapping: Mapping[str, int] | None, whole: bool) -> Any:
        import transformers
        from transformers import AutoConfig, GenerationConfig

        safetensors = find_weights(self.name, self._files(), self._location)
        options = self._options | {
            "use_safetensors": safetensors,
            "weights_only": True,
            "dtype": torch.float32,
            "output_loading_info": True,
        }
        options["ignore_mismatched_sizes"] = True  # reported below; transformers would print several lines
        loaded: Any
        head = self.task.head
        with one_line(f"model_name: {self.name}"):
            config = AutoConfig.from_pretrained(self._location, **self._options)
            if head.causal:
                options["generation_config"] = GenerationConfig()  # the base model's is not read
            if label_mapping is not None:
                config.id2label = {index: label for label, index in label_mapping.items()}
                config.label2id = dict(label_mapping)
                config.problem_type = head.problem_type
            loaded = getattr(transformers, head.auto_class).from_pretrained(self._location, config=config, **options)
        model, info = loaded
        if len(self.tokenizer) > model.get_input_embeddings().num_embeddings:
            raise ConfigurationError(
                f"model_name: {self.name} has embeddings for {model.get_input_embeddings().num_embeddings} tokens, but"
                f" its tokenizer has {len(self.tokenizer)}; use the tokenizer that was saved with the model"
            )
        reshaped = {weight: (list(seen), list(shape)) for weight, seen, shape in sorted(info["mismatched_keys"])}
        for weight, (seen, shape) in reshaped.items():
            of_other_classes = seen and label_mapping and shape == [len(label_mapping), *seen[1:]]
            if whole or not of_other_classes or not _is_head(model, weight):
                raise CheckpointError(
                    f"{self.name}: {weight} must have the shape {shape} by its config.json, not {seen}"
                )
            _LOG.warning(
                "%s: %s is for other classes (shape %s); a new one of shape %s is seeded",
                self.name,
                weight,
                seen,
                shape,
            )
        new = sorted(set(info["missing_keys"]) - set(reshaped))
        if new and (label_mapping is None or whole):
            raise CheckpointError(
                f"{self.name}: {len(new)} weights of a {type(model).__name__} are missing, such as {new[0]};"
                " use a whole model"
            )
        if new:
            _LOG.info("%s: new weights, seeded: %s", self.name, ", ".join(new[:8]))
        if head.causal:
            _check_causal(model, self.name)
        return model

    def _files(self) -> list[str]:
        if self.kind == "hub":
            return [
                file
                for file in hub_files(
                    self._location, self._options.get("revision"), local_only=self._options["local_files_only"]
                )
                if "/" not in file
            ]
        return [file.name for file in Path(self._location).iterdir() if file.is_file()]

    def _complete(self, config: Any, label_mapping: Mapping[str, int] | None, max_length: int) -> None:
        """Write into `config` what a saved folder must say about itself."""
        if label_mapping is not None:
            config.id2label = {index: label for label, index in sorted(label_mapping.items(), key=lambda item: item[1])}
            config.label2id = {label: index for index, label in config.id2label.items()}
        config.pad_token_id = self.tokenizer.pad_token_id
        for name in ("bos_token_id", "eos_token_id"):
            if getattr(self.tokenizer, name) is not None:
                setattr(config, name, getattr(self.tokenizer, name))
        config.mltrack = {
            "task": self.task.name,
            **self.task.settings(),
            **({"task_options": dict(self.task.given)} if self.task.given else {}),
            "max_length": max_length,
        } | self.origin


def save_pretrained(model: nn.Module, tokenizer: Any, folder: str | Path) -> None:
    """Write a Hugging Face folder: config, safetensors, tokenizer. A data-parallel wrapper is removed."""
    inner: Any = getattr(model, "module", model)
    with quiet():
        inner.save_pretrained(folder)
        if tokenizer is not None:
            tokenizer.save_pretrained(folder)


def model_folder(name: str, path: Path) -> str:
    """The folder with config.json: the given one, or `model/` in it, where MLflow saves its own models."""
    if not path.is_dir():
        raise ConfigurationError(f"model_name: {name} {other_file(path)}")
    found = next((folder for folder in (path, path / "model") if (folder / "config.json").is_file()), None)
    there = [file.name for file in (found or path).iterdir()]
    is_whole = bool(set(there).intersection(WHOLE))
    if not is_whole and (said := content_of(found or path)):
        raise ConfigurationError(f"model_name: {name} {said}")
    if found is None:
        raise ConfigurationError(
            f"model_name: no config.json in {path}; use a Hugging Face folder with config.json, weights and tokenizer"
        )
    if not is_whole:
        find_weights(name, there, str(found))  # it raises an error that names the weights
    return str(found)


def open_pretrained(
    kind: str,
    name: str,
    location: str,
    task: Task,
    *,
    trust_remote_code: bool,
    local_only: bool = True,
    revision: str | None = None,
    origin: Mapping[str, str] | None = None,
) -> ModelSource:
    """A pretrained model whose configuration and tokenizer fit the task.

    Args:
        kind, name: of the source.
        location: the folder, or the repository on the hub.
        local_only: do not ask the hub.
        revision: of the repository.
        origin: see `ModelSource`.

    Raises:
        ConfigurationError, CheckpointError: one line that names what is damaged, missing or for another task.
    """
    import transformers
    from transformers import AutoConfig, AutoTokenizer, PretrainedConfig
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    pinned = {} if revision is None else {"revision": revision}
    options: dict[str, Any] = {"trust_remote_code": trust_remote_code, "local_files_only": local_only, **pinned}
    if kind != "hub":
        inspect_folder(f"model_name: {name}", location, trust_remote_code=trust_remote_code)
    where = f"model_name: {name}"
    with one_line(where):
        raw, _ = PretrainedConfig.get_config_dict(location, local_files_only=local_only, **pinned)
    if not isinstance(raw, dict) or not ("model_type" in raw or "auto_map" in raw):
        raise ConfigurationError(
            f"{where}: its config.json has no model_type; use the config.json of a Hugging Face model"
        )
    own_code = raw.get("auto_map") or {}
    if own_code and not trust_remote_code and raw.get("model_type") not in CONFIG_MAPPING:
        raise ConfigurationError(
            f"{where} brings Python code of its own; use a model without any, or --trust-remote-code true if you"
            " trust its author"
        )
    with one_line(where):
        config = AutoConfig.from_pretrained(location, **options)
        try:
            tokenizer = AutoTokenizer.from_pretrained(_tokenizer_folder(location), **options)
        except (OSError, ValueError) as error:
            raise ConfigurationError(
                f"{where}: its tokenizer cannot be loaded ({first_line(error)}); put tokenizer.json beside config.json"
            ) from None
    head = task.head.auto_class
    if type(config) not in getattr(transformers, head)._model_mapping and not (trust_remote_code and head in own_code):
        raise ConfigurationError(
            f"{where} is a {config.model_type}, which {head} cannot load; use a model for {task} that it can load"
        )
    probe = tokenizer("def f(x): return x", add_special_tokens=False).input_ids
    if all(token == tokenizer.unk_token_id for token in probe):  # made empty by transformers if files are missing
        raise ConfigurationError(
            f"{where}: its tokenizer knows no word, as if its files were missing; put tokenizer.json beside config.json"
        )
    if tokenizer.pad_token is None:
        if tokenizer.eos_token is None:
            raise ConfigurationError(
                f"{where}: its tokenizer has neither a padding nor an end token; use one that has an end token"
            )
        tokenizer.pad_token = tokenizer.eos_token  # mask and labels tell padding from an end; no new token is needed
    if task.head.causal and tokenizer.eos_token_id is None:
        raise ConfigurationError(
            f"{where}: its tokenizer has no end token, so a completion could not end; use one with eos_token"
        )
    tokenizer.padding_side = "right"
    return ModelSource(
        name, kind, task, location=location, config=config, tokenizer=tokenizer, options=options, origin=origin
    )


def _tokenizer_folder(location: str) -> str:
    """The model's folder, or the folder of MLflow's transformers flavor."""
    beside = Path(location).parent / "components" / "tokenizer"
    inside = Path(location) / "components" / "tokenizer"
    if Path(location).is_dir() and not any(Path(location).glob("tokenizer*")):
        return next((str(folder) for folder in (inside, beside) if folder.is_dir()), location)
    return location


def _is_head(model: Any, name: str) -> bool:
    """True for a weight outside the pretrained body: the classification head, which is new for new classes."""
    prefix = getattr(model, "base_model_prefix", "")
    return not prefix or not hasattr(model, prefix) or not name.startswith(f"{prefix}.")


def _check_causal(model: Any, name: str) -> None:
    """Refuse an encoder loaded as a language model: it sees the tokens to predict, so its low loss would mean nothing.

    The last of eight tokens is changed; the logits before it must not move, relative to how far its own move."""
    size = model.get_input_embeddings().num_embeddings
    ids = torch.arange(8).unsqueeze(0) % size
    changed = ids.clone()
    changed[0, -1] = (ids[0, -1] + 1) % size
    model.eval()
    with torch.inference_mode():
        moved = (model(input_ids=ids).logits[0] - model(input_ids=changed).logits[0]).float().abs().amax(dim=-1)
    if moved[:-1].max() > 1e-4 * moved[-1]:
        raise ConfigurationError(
            f"model_name: {name} sees the tokens that it should predict (it is an encoder); use a decoder"
        )
