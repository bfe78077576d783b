"""One training that a side does, told as JSON: what it starts from, where it writes, and how its result is judged.

Invariant: tokens come from one tokenizer, cut at one length; every side's final weights go through one and the same
evaluation, over all targets, divided once.

    job = Job(**json.loads(sys.argv[1]))
    say("start")
    say("done", eval_loss=evaluated(job, model))
"""

from __future__ import annotations

import hashlib
import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

BORN = time.time()


@dataclass(kw_only=True)
class Job:
    """What a side does; it travels as JSON."""

    side: str
    """mltrack, hf, hf_untracked, hf_tuned or lightning."""
    task: str
    weights: str
    """Hugging Face folder of model and tokenizer that every side starts from."""
    train: str
    valid: str
    folder: str
    """Where this side writes."""
    uri: str
    """MLflow's tracking URI."""
    batch_size: int = 16
    max_length: int = 256
    epochs: int = 1
    max_steps: int = -1
    """Optimizer steps after which training ends; -1: after the epochs."""
    warm_up: int = 3
    """First steps that are not steady."""
    learning_rate: float = 3e-4
    seed: int = 1
    device: str = "cpu"
    precision: str = "auto"
    """mltrack's `use_mixed_precision`; bf16: of every side."""
    accumulation: int = 1
    log_every: int = 1
    """Optimizer steps between the peers' log lines; mltrack logs each step."""
    options: dict[str, str] = field(default_factory=dict)
    """More options of `mltrack train`, as typed."""
    patches: tuple[str, ...] = ()
    """Names of what `observed_training.PATCHES` changes in mltrack, for levers that have no option."""
    profile: bool = False
    """Profile some of mltrack's steps; their times mean nothing then."""
    limit: bool = False
    """Measure the matrix limit after mltrack's training."""


def say(event: str, **fields: Any) -> None:
    """One event for the parent."""
    print(json.dumps({"event": event, "since_start_s": time.time() - BORN, **fields}), flush=True)


def model_from(folder: str | Path, task: str) -> Any:
    """The model as transformers loads it."""
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    kind = AutoModelForCausalLM if task == "code_generation" else AutoModelForSequenceClassification
    return kind.from_pretrained(folder)


def datasets_of(job: Job) -> tuple[Any, Any, Any]:
    """(training set, evaluation set, tokenizer): mltrack's own, from which the other sides take their token ids."""
    from transformers import AutoTokenizer

    from mltrack.data import DatasetLoader

    tokenizer = AutoTokenizer.from_pretrained(job.weights)
    train = DatasetLoader(job.train, tokenizer, task=job.task, max_length=job.max_length)
    mapping = train.label_mapping if job.task != "code_generation" else None
    valid = DatasetLoader(job.valid, tokenizer, task=job.task, max_length=job.max_length, label_mapping=mapping)
    return train.load(), valid.load(), tokenizer


def evaluated(job: Job, model: Any) -> float:
    """Mean loss per target of the evaluation records, in fp32."""
    import torch

    from mltrack.evaluation.evaluate import evaluate
    from mltrack.hardware.precision import Precision

    _, valid, _ = datasets_of(job)
    device = torch.device(job.device)
    values, _ = evaluate(model.to(device), valid, batch_size=32, device=device, precision=Precision("off", device))
    return float(values["loss"])


class Pace:
    """When the first epoch's steady part began and ended; a GPU is waited for at these two moments alone."""

    def __init__(self, job: Job, records: int):
        self._micro_batches = -(-records // job.batch_size)
        epoch = -(-self._micro_batches // job.accumulation)
        self.last = min(epoch, job.max_steps) if job.max_steps > 0 else epoch
        self._job, self._times = job, dict[int, float]()

    def step_ended(self, number: int) -> None:
        """The optimizer step of that number, counted from 1."""
        if number == 1:
            say("first_step")
        if number in (self._job.warm_up, self.last):
            wait_for_gpu(self._job)
            self._times[number] = time.perf_counter()

    def tokens_per_second(self, tokens: TokenCount) -> float | None:
        """Real tokens, between the two; None where there were too few steps."""
        first, last, accumulation = self._job.warm_up, self.last, self._job.accumulation
        if last <= first:
            return None
        passes = min(last * accumulation, self._micro_batches)  # the epoch's last step may have fewer
        return tokens.of_passes(first * accumulation + 1, passes) / (self._times[last] - self._times[first])


def wait_for_gpu(job: Job) -> None:
    """Until it has done what it was given."""
    if job.device == "cuda":
        import torch

        torch.cuda.synchronize()


class TokenCount:
    """Counts what really went through a model, the same way for every side: ids that are not padding, in training and
    in evaluation.

    Args:
        model: gets `input_ids` by name; padding that a tokenizer gives no other meaning.
    """

    def __init__(self, model: Any, pad_token_id: int):
        self._pad_token_id = pad_token_id
        self.initial_weights = hashlib.sha256(
            b"".join(weight.detach().cpu().numpy().tobytes() for weight in model.state_dict().values())
        ).hexdigest()[:12]
        modules = {
            f"modules {part.p}" for part in model.modules() if type(part).__name__ in ("Dropout", "CheapDropout")
        }
        self.dropouts = sorted(
            modules | {f"{name} {value}" for name, value in model.config.to_dict().items() if "drop" in name}
        )
        self._seen: dict[bool, list[Any]] = {True: [], False: []}
        model.register_forward_pre_hook(self._count, with_kwargs=True)

    def _count(self, model: Any, _: Any, given: dict[str, Any]) -> None:
        self._seen[model.training].append(
            (given["input_ids"] != self._pad_token_id).sum()
        )  # not read here: that would wait for a GPU

    def of_passes(self, first: int, last: int) -> int:
        """Trained in forward passes number `first` to `last`, both counted from 1 and included."""
        return sum(int(count) for count in self._seen[True][first - 1 : last])

    @property
    def begun_with(self) -> dict[str, Any]:
        """What every side must begin with: digest of the weights, probabilities of the dropouts, of modules and as
        configured (attention has no module for its own).
        """
        return {"initial_weights": self.initial_weights, "dropouts": self.dropouts}

    def forget(self) -> None:
        """What went through so far was a look at the model, no work."""
        self._seen = {True: [], False: []}

    @property
    def trained(self) -> int:
        return sum(int(count) for count in self._seen[True])

    @property
    def evaluated(self) -> int:
        return sum(int(count) for count in self._seen[False])
