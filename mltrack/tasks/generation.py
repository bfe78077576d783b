"""Code generation: a completion for each description.

Invariant: importing this module loads no torch.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from mltrack.config import TrainingConfig
from mltrack.errors import Interrupted
from mltrack.records.builtin.stdlib_source import described_functions
from mltrack.records.record import PROMPT_TEMPLATE, RawRecord, Record
from mltrack.tasks.contract import Batch, Card, Encoding, Head, Objective, Part, Progress, Rows, Serving, Task, Trained
from mltrack.tasks.names import TaskType

if TYPE_CHECKING:
    import torch

    from mltrack.tasks.token_loss import GenerationEvaluator

SAMPLE_TOKENS = 128
# A scratch model is small and learns from a few thousand records: the rate of a small transformer (5e-4 to 1e-3),
# 256 tokens (78 % of the stdlib pairs fit). Pretrained: a decoder takes 5e-5.
_SCRATCH = {"epochs": 2, "batch_size": 16, "learning_rate": 1e-3, "max_length": 256}
_PRETRAINED = {"epochs": 3, "batch_size": 4, "learning_rate": 5e-5, "max_length": 512}


@dataclass(frozen=True, eq=False)
class Generation(Task):
    """A completion for each description."""

    fields: ClassVar = ("description", "code")
    counts_tokens: ClassVar = True
    packs: ClassVar = True
    truncations: ClassVar = ("head", "drop")
    """A completion can only lose its tail: one without its beginning or with a hole would be learned that way."""
    head: ClassVar = Head("AutoModelForCausalLM", "LlamaForCausalLM", causal=True)
    card: ClassVar = Card(
        "It completes in the style of its training data; what it writes may not run and must be read by a person.",
        predict_params=', params={"max_new_tokens": 64, "temperature": 0.0, "stop": ["\\n\\n"]}',
    )
    serving: ClassVar = Serving(
        file=Path(__file__).parent / "shipped" / "mltrack_pyfunc.py",
        inputs=({"type": "string", "required": True},),
        outputs=({"type": "string", "required": True},),
        params=(
            {"name": "max_new_tokens", "default": 128, "shape": None, "type": "long"},
            {"name": "temperature", "default": 0.0, "shape": None, "type": "double"},
            {"name": "stop", "default": [], "shape": [-1], "type": "string"},
        ),
        example="Return the absolute path of a file",
        pipeline="TextGenerationPipeline",
        pipeline_task="text-generation",
    )

    def parse(self, raw: RawRecord) -> Record:
        """`description` and `code`."""
        return raw.record(raw.text("code"), description=raw.text("description"))

    def columns(self, record: Record) -> dict[str, Any]:
        """`description` and `code`."""
        return {"description": record.description, "code": record.text}

    def builtin_records(self, progress: Progress | None = None) -> list[Record]:
        """Functions of the standard library with their docstrings."""
        return described_functions(progress)

    def encoding(self, tokenizer: Any, max_length: int, truncation: str) -> Encoding:
        """The description in a prompt, the code, the end token."""
        from mltrack.data.encoding import PairEncoding

        return PairEncoding(tokenizer, max_length, truncation)

    def targets(self, records: Sequence[Record], rows: Rows, label_mapping: Mapping[str, int]) -> TokensBehindPrompt:
        """The tokens of the completion."""
        return TokensBehindPrompt(rows)

    def settings(self) -> dict[str, Any]:
        """The prompt of a description."""
        return {"prompt_template": PROMPT_TEMPLATE}

    def defaults(self, model_name: str) -> dict[str, Any]:
        """A folder or a registered model that was once trained from scratch counts as pretrained."""
        return dict(_SCRATCH if model_name.startswith("scratch:") else _PRETRAINED)

    def sums(self, model: torch.nn.Module, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """(summed cross entropy in nats, number of target tokens)."""
        from mltrack.tasks.token_loss import token_loss

        return token_loss(model, batch)

    def objective(self, config: TrainingConfig, dataset: Any) -> Objective:
        """Computes logits only where a token is predicted, unless that is switched off."""
        from mltrack.tasks.token_loss import AllLogits

        super().objective(config, dataset)
        return self if config.effective_speedups.target_logits else AllLogits()

    def fingerprint(self, config: TrainingConfig) -> dict[str, Any]:
        """Where logits are computed."""
        at_targets = config.effective_speedups.target_logits
        return super().fingerprint(config) | ({"logits": "where a loss is taken"} if at_targets else {})

    def evaluator(
        self, label_names: Sequence[str] | None = None, *, keeps_predictions: bool = False
    ) -> GenerationEvaluator:
        """Loss, perplexity and token accuracy; there are no classes to name."""
        from mltrack.tasks.token_loss import GenerationEvaluator

        return GenerationEvaluator(keeps_predictions=keeps_predictions)

    def baselines(self, train_dataset: Any, eval_dataset: Any, vocab_size: int) -> dict[str, float]:
        """The frequencies of the tokens."""
        from mltrack.evaluation.baselines import unigram_loss

        return unigram_loss(train_dataset, eval_dataset, vocab_size)

    def report(self, trained: Trained) -> list[Part]:
        """Completions of a few descriptions of the evaluation set."""
        if not len(trained.dataset.records):  # a caller's own data set, which has no prompts
            return []
        return [("samples", lambda: _samples(trained))]


class TokensBehindPrompt:
    """The token ids themselves, -100 on the prompt."""

    def __init__(self, rows: Rows):
        self._num_prompt = rows.num_prompt
        self.counts: np.ndarray = rows.lengths - rows.num_prompt

    def of(self, index: int, input_ids: np.ndarray) -> np.ndarray:
        """int64 [T]."""
        labels = input_ids.copy()
        labels[: self._num_prompt[index]] = -100
        return labels


def _samples(trained: Trained) -> list[tuple[Path, str]]:
    from mltrack.evaluation.samples import Sample, fixed_prompts, generate_samples, syntax_valid_share

    trained.check_stop()
    dataset, folder = trained.dataset, trained.folder
    chosen = fixed_prompts(dataset.records)
    with trained.autocast():
        samples = generate_samples(
            trained.model,
            dataset.tokenizer,
            [record.description or "" for record in chosen],
            max_new_tokens=min(SAMPLE_TOKENS, dataset.max_length // 2),
            references=[record.text for record in chosen],
            stop_requested=lambda: _stopped(trained),
        )
    trained.check_stop()
    trained.log_metrics({"eval_syntax_valid": syntax_valid_share(samples)})
    (folder / "samples.json").write_text(json.dumps([asdict(one) for one in samples], indent=1), encoding="utf-8")
    columns = [field.name for field in fields(Sample)]
    table = {"columns": columns, "data": [[getattr(one, column) for column in columns] for one in samples]}
    (folder / "samples_table.json").write_text(json.dumps(table), encoding="utf-8")
    trained.show_table(folder / "samples_table.json")
    return [(folder / "samples.json", "evaluation"), (folder / "samples_table.json", "evaluation")]


def _stopped(trained: Trained) -> bool:
    try:
        trained.check_stop()
    except Interrupted:
        return True
    return False


GENERATION = Generation(TaskType.CODE_GENERATION.value)
