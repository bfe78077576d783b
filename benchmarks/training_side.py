"""One training by one side: mltrack, the Hugging Face Trainer, the same tuned by hand, or Lightning, told by its parent.

Invariant: each side is used as its documentation recommends, on the same folder of weights and the same two files of records; the
tokens are made by the same tokenizer, cut at the same length; nothing is slowed down.

    python training_side.py '{"side": "hf", "task": "text_classification", "weights": "...", "train": "...", "valid": "...", ...}'

It prints one JSON line per event: `start` (imports are over), `first_step`, `trained` (with what was done), `done`.
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

BORN = time.time()
SIDES = ("mltrack", "hf", "hf_tuned", "lightning")


@dataclass(kw_only=True)
class Job:
    """What a side does; it travels as JSON."""

    side: str
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
    learning_rate: float = 3e-4
    seed: int = 1
    device: str = "cpu"
    precision: str = "auto"
    accumulation: int = 1


def say(event: str, **fields: Any) -> None:
    """One event for the parent."""
    print(json.dumps({"event": event, "since_start_s": time.time() - BORN, **fields}), flush=True)


def datasets_of(job: Job) -> tuple[Any, Any, Any]:
    """(training set, evaluation set, tokenizer): lists of {"input_ids", "labels"}, tokenized as mltrack does it, for every side but mltrack."""
    from transformers import AutoTokenizer

    from mltrack.data import DatasetLoader

    tokenizer = AutoTokenizer.from_pretrained(job.weights)
    train = DatasetLoader(job.train, tokenizer, task=job.task, max_length=job.max_length)
    mapping = train.label_mapping if job.task != "code_generation" else None
    valid = DatasetLoader(job.valid, tokenizer, task=job.task, max_length=job.max_length, label_mapping=mapping)

    def rows(loader: Any) -> list[dict[str, Any]]:
        dataset = loader.load()
        found = []
        for number in range(len(dataset)):
            example = dataset[number]
            labels = example["labels"]
            found.append({"input_ids": example["input_ids"].tolist(), "labels": labels if isinstance(labels, int) else labels.tolist()})
        return found

    return rows(train), rows(valid), tokenizer


def model_of(job: Job) -> Any:
    """The model as transformers loads it."""
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    kind = AutoModelForCausalLM if job.task == "code_generation" else AutoModelForSequenceClassification
    return kind.from_pretrained(job.weights)


def collator_of(job: Job, tokenizer: Any) -> Any:
    """The collator that the documentation of transformers names for the task."""
    from transformers import DataCollatorForSeq2Seq, DataCollatorWithPadding

    if job.task == "code_generation":
        return DataCollatorForSeq2Seq(tokenizer, pad_to_multiple_of=8)  # pads the labels with -100
    return DataCollatorWithPadding(tokenizer, pad_to_multiple_of=8)


def run_hf(job: Job, tuned: bool) -> dict[str, Any]:
    """transformers.Trainer; tuned: bf16 where the device multiplies it, grouped lengths, no tracking."""
    import torch
    from transformers import Trainer, TrainerCallback, TrainingArguments, set_seed

    from mltrack.hardware import choose_precision

    set_seed(job.seed)
    train, valid, tokenizer = datasets_of(job)
    model = model_of(job)
    arguments = TrainingArguments(
        output_dir=job.folder,
        num_train_epochs=job.epochs,
        per_device_train_batch_size=job.batch_size,
        per_device_eval_batch_size=2 * job.batch_size,
        gradient_accumulation_steps=job.accumulation,
        learning_rate=job.learning_rate,
        weight_decay=0.01,
        lr_scheduler_type="linear",
        warmup_steps=0.06,
        eval_strategy="epoch",
        save_strategy="epoch",
        logging_steps=1,
        report_to="none" if tuned else "mlflow",
        bf16=job.precision == "bf16" or (tuned and choose_precision("auto", torch.device(job.device)) == "bf16"),
        use_cpu=job.device == "cpu",
        seed=job.seed,
        **({"train_sampling_strategy": "group_by_length"} if tuned else {}),
    )

    class FirstStep(TrainerCallback):
        steps = 0

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            self.steps += 1
            if self.steps == 1:
                say("first_step")

    counter = FirstStep()
    trainer = Trainer(model=model, args=arguments, train_dataset=train, eval_dataset=valid, data_collator=collator_of(job, tokenizer), callbacks=[counter])
    say("start")
    started = time.perf_counter()
    trainer.train()
    seconds = time.perf_counter() - started
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return {"seconds": seconds, "steps": counter.steps, "real_tokens": job.epochs * sum(len(row["input_ids"]) for row in train), "model": trainer.model}


def run_lightning(job: Job) -> dict[str, Any]:
    """lightning.Trainer with MLFlowLogger."""
    import lightning
    import torch
    from lightning.pytorch.callbacks import Callback, ModelCheckpoint
    from lightning.pytorch.loggers import MLFlowLogger
    from torch.utils.data import DataLoader
    from transformers import get_linear_schedule_with_warmup

    lightning.seed_everything(job.seed, verbose=False)
    train, valid, tokenizer = datasets_of(job)
    collate = collator_of(job, tokenizer)

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = model_of(job)

        def training_step(self, batch: Any, index: int) -> Any:
            loss = self.model(**batch).loss
            self.log("train_loss", loss)
            return loss

        def validation_step(self, batch: Any, index: int) -> None:
            self.log("eval_loss", self.model(**batch).loss, batch_size=len(batch["input_ids"]))

        def configure_optimizers(self) -> Any:
            optimizer = torch.optim.AdamW(self.parameters(), lr=job.learning_rate, weight_decay=0.01)
            total = int(self.trainer.estimated_stepping_batches)
            schedule = get_linear_schedule_with_warmup(optimizer, -(-total * 6 // 100), total)
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    class FirstStep(Callback):
        def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
            if trainer.global_step == 1:
                say("first_step")

    trainer = lightning.Trainer(
        max_epochs=job.epochs,
        accelerator="cpu" if job.device == "cpu" else "gpu",
        devices=1,
        accumulate_grad_batches=job.accumulation,
        gradient_clip_val=1.0,
        log_every_n_steps=1,
        enable_progress_bar=False,
        logger=MLFlowLogger(experiment_name="lightning", tracking_uri=job.uri),
        callbacks=[ModelCheckpoint(dirpath=job.folder), FirstStep()],
    )
    module = Module()
    say("start")
    started = time.perf_counter()
    trainer.fit(
        module,
        DataLoader(train, batch_size=job.batch_size, shuffle=True, collate_fn=collate),
        DataLoader(valid, batch_size=2 * job.batch_size, collate_fn=collate),
    )
    seconds = time.perf_counter() - started
    real_tokens = job.epochs * sum(len(row["input_ids"]) for row in train)
    return {"seconds": seconds, "steps": trainer.global_step, "real_tokens": real_tokens, "model": module.model}


def run_mltrack(job: Job) -> dict[str, Any]:
    """mltrack, as `mltrack train` does it."""
    from mltrack.hardware import keep_freed_memory

    keep_freed_memory()
    from mltrack import TrainModelRequest, TrainModelUseCase

    class Clock:
        started = ended = 0.0

        def on_start(self, *_: Any) -> None:
            say("start")
            self.started = time.perf_counter()

        def on_step(self, state: Any, metrics: Any) -> None:
            if state.step == 1:
                say("first_step")
            self.ended = time.perf_counter()

        def on_evaluation_batch(self, *_: Any) -> None: ...

        def on_evaluation(self, state: Any, metrics: Any) -> None:
            self.ended = time.perf_counter()

    clock = Clock()
    request = TrainModelRequest(
        task=job.task,
        dataset_path=job.train,
        validation_path=job.valid,
        model_name=job.weights,
        batch_size=job.batch_size,
        gradient_accumulation_steps=job.accumulation,
        max_length=job.max_length,
        epochs=job.epochs,
        learning_rate=job.learning_rate,
        seed=job.seed,
        device=job.device,
        use_mixed_precision=job.precision,
        output_dir=job.folder,
        tracking_uri=job.uri,
        experiment_name="mltrack",
        resume="never",
    )
    use_case = TrainModelUseCase(listeners=[clock])
    response = use_case.execute(request)
    if not response.success:
        raise SystemExit(f"mltrack: {response.errors}")
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    kind = AutoModelForCausalLM if job.task == "code_generation" else AutoModelForSequenceClassification
    run = Path(job.folder) / str(response.run_id)
    last = max((run / "checkpoints").glob("step-*"))
    tokens = job.epochs * sum(len(row["input_ids"]) for row in datasets_of(job)[0])
    return {"seconds": clock.ended - clock.started, "steps": response.steps_run, "real_tokens": tokens, "model": kind.from_pretrained(last)}


def evaluated(job: Job, model: Any) -> float:
    """Loss of the weights that a side ends with, by one and the same evaluation: over all targets, divided once."""
    import torch
    from transformers import AutoTokenizer

    from mltrack.data import DatasetLoader
    from mltrack.training import Precision, evaluate

    tokenizer = AutoTokenizer.from_pretrained(job.weights)
    mapping = DatasetLoader(job.train, tokenizer, task=job.task, max_length=job.max_length).label_mapping if job.task != "code_generation" else None
    dataset = DatasetLoader(job.valid, tokenizer, task=job.task, max_length=job.max_length, label_mapping=mapping).load()
    device = torch.device(job.device)
    values, _ = evaluate(model.to(device), dataset, batch_size=32, device=device, precision=Precision("off", device))
    return float(values["loss"])


def main() -> None:
    """Train as the job says."""
    job = Job(**json.loads(sys.argv[1]))
    runs = {
        "mltrack": run_mltrack,
        "hf": lambda job: run_hf(job, tuned=False),
        "hf_tuned": lambda job: run_hf(job, tuned=True),
        "lightning": run_lightning,
    }
    found = runs[job.side](job)
    model = found.pop("model")
    say("trained", **found)
    say("done", eval_loss=evaluated(job, model), job=asdict(job))


if __name__ == "__main__":
    main()
