"""Where a model can come from: `SOURCES` has one entry per kind, and `resolve_model` asks them in order.

Invariant: the first source that claims a name looks it up. No weights are read, except that a GGUF file is dequantized
into the cache.

    source = resolve_model("Salesforce/codegen-350M-mono", "code_generation", revision="main")
    source.origin                                       # {"model_commit": "4db1..."}
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from mltrack.data.special_tokens import keep_as_tokens, read_as_text
from mltrack.errors import ConfigurationError, printable
from mltrack.models import presets
from mltrack.models.gguf_file import dequantized, is_gguf
from mltrack.models.hub import content_on_hub, find_on_hub
from mltrack.models.pretrained import ModelSource, model_folder, open_pretrained
from mltrack.tasks.contract import Task
from mltrack.tasks.names import task_named


@dataclass(frozen=True, kw_only=True)
class Lookup:
    """What a model is looked up for."""

    task: Task
    """Decides which head it must support."""
    trust_remote_code: bool = False
    """Let the model run its own Python code."""
    revision: str | None = None
    """Branch, tag or commit of a hub model."""
    registry_resolver: Callable[[str], str] | None = None
    """models:/ URI -> local folder."""


class Source(Protocol):
    """One kind of place that models come from."""

    @property
    def name(self) -> str:
        """Becomes `ModelSource.kind`."""

    @property
    def has_revisions(self) -> bool:
        """Whether a name has several versions, of which `revision` chooses one."""

    def claims(self, model_name: str) -> bool:
        """Whether this source looks the name up."""

    def find(self, model_name: str, lookup: Lookup) -> ModelSource:
        """The model of that name.

        Raises:
            ConfigurationError, CheckpointError: one line; there is no such model, or it cannot do the task.
        """


@dataclass(frozen=True)
class Scratch:
    """Presets that are trained from scratch, with a tokenizer trained on the training split."""

    name: str = "scratch"
    prefix: str = "scratch:"
    has_revisions: bool = False

    def claims(self, model_name: str) -> bool:
        return model_name.startswith(self.prefix)

    def find(self, model_name: str, lookup: Lookup) -> ModelSource:
        presets.preset_named(model_name)
        return ModelSource(model_name, self.name, lookup.task)


@dataclass(frozen=True)
class Registry:
    """Versions of registered models."""

    name: str = "registry"
    prefix: str = "models:/"
    has_revisions: bool = False

    def claims(self, model_name: str) -> bool:
        return model_name.startswith(self.prefix)

    def find(self, model_name: str, lookup: Lookup) -> ModelSource:
        if lookup.registry_resolver is None:
            raise ConfigurationError(
                f"model_name: there is no registry to look for {model_name} in; use scratch:tiny|small|base, a hub name"
                " or a local folder"
            )
        location = model_folder(model_name, Path(lookup.registry_resolver(model_name)))
        return open_pretrained(self.name, model_name, location, lookup.task, trust_remote_code=lookup.trust_remote_code)


@dataclass(frozen=True)
class GgufFile:
    """A file of llama.cpp, dequantized once into a folder in the cache."""

    name: str = "gguf"
    has_revisions: bool = False

    def claims(self, model_name: str) -> bool:
        return is_gguf(Path(model_name).expanduser())

    def find(self, model_name: str, lookup: Lookup) -> ModelSource:
        folder, digest = dequantized(model_name, Path(model_name).expanduser())
        return open_pretrained(
            self.name, model_name, folder, lookup.task, trust_remote_code=False, origin={"model_digest": digest}
        )


@dataclass(frozen=True)
class Folder:
    """A Hugging Face folder on this machine."""

    name: str = "folder"
    has_revisions: bool = False

    def claims(self, model_name: str) -> bool:
        return Path(model_name).expanduser().exists()

    def find(self, model_name: str, lookup: Lookup) -> ModelSource:
        location = model_folder(model_name, Path(model_name).expanduser())
        return open_pretrained(self.name, model_name, location, lookup.task, trust_remote_code=lookup.trust_remote_code)


@dataclass(frozen=True)
class Hub:
    """A repository of the Hugging Face hub, or its copy in the hub's own cache."""

    name: str = "hub"
    has_revisions: bool = True

    def claims(self, model_name: str) -> bool:
        return True

    def find(self, model_name: str, lookup: Lookup) -> ModelSource:
        found = find_on_hub(model_name, lookup.revision)
        revision = found.commit or lookup.revision
        if not found.local_only and (said := content_on_hub(model_name, revision)):
            raise ConfigurationError(f"model_name: {model_name} {said}")
        return open_pretrained(
            self.name,
            model_name,
            model_name,
            lookup.task,
            trust_remote_code=lookup.trust_remote_code,
            local_only=found.local_only,
            revision=revision,
            origin={} if found.commit is None else {"model_commit": found.commit},
        )


SOURCES: tuple[Source, ...] = (Scratch(), Registry(), GgufFile(), Folder(), Hub())
"""In the order in which they are asked; the hub claims every remaining name."""


def resolve_model(
    model_name: str,
    task: str | Task,
    *,
    revision: str | None = None,
    trust_remote_code: bool = False,
    registry_resolver: Callable[[str], str] | None = None,
    as_trained: bool = False,
) -> ModelSource:
    """Look a model name up, without reading its weights.

    Args:
        model_name: scratch:tiny|small|base, a hub name, a local folder, a .gguf file, or models:/name@alias.
        task: decides which head it must support.
        revision: branch, tag or commit of a hub model; None: `main`.
        trust_remote_code: let the model run its own Python code.
        registry_resolver: models:/ URI -> local folder.
        as_trained: encode texts as the saved tokenizer does; else special tokens in a text are plain text.

    Raises:
        ConfigurationError: one line; an unknown name, a folder without a model, a model that cannot do the task, or a
            revision of a model that is not from the hub.
    """
    found = next(one for one in SOURCES if one.claims(model_name))
    if revision is not None and not found.has_revisions:
        raise ConfigurationError(
            f"model_revision: '{printable(revision)}' cannot be a revision of {model_name}, which is no hub model;"
            " leave it out"
        )
    lookup = Lookup(
        task=task_named(task),
        revision=revision,
        trust_remote_code=trust_remote_code,
        registry_resolver=registry_resolver,
    )
    source = found.find(model_name, lookup)
    if source.tokenizer is not None:
        (keep_as_tokens if as_trained else read_as_text)(source.tokenizer)
    return source
