"""The trainers that people use, each as its documentation recommends: the Hugging Face Trainer as installed or tuned by
hand, and Lightning.

Invariant: nothing is slowed down; what is counted is what went through the model.

    found = run_hf(job, tuned=True, tracked=False)      # {"seconds", "steps", "real_tokens", "evaluated_tokens",
    "model"}
"""

from __future__ import annotations

import time
from typing import Any

from training_job import Job, Pace, TokenCount, datasets_of, model_from, say, wait_for_gpu


def rows_of(dataset: Any) -> list[dict[str, Any]]:
    """A plain list of {"input_ids", "labels"}."""
    rows = []
    for number in range(len(dataset)):
        example = dataset[number]
        labels = example["labels"]
        rows.append(
            {
                "input_ids": example["input_ids"].tolist(),
                "labels": labels if isinstance(labels, int) else labels.tolist(),
            }
        )
    return rows


def collator_of(job: Job, tokenizer: Any) -> Any:
    """The collator that the documentation of transformers names for the task."""
    from transformers import DataCollatorForSeq2Seq, DataCollatorWithPadding

    if job.task == "code_generation":
        return DataCollatorForSeq2Seq(tokenizer, pad_to_multiple_of=8)  # pads the labels with -100
    return DataCollatorWithPadding(tokenizer, pad_to_multiple_of=8)


def run_hf(job: Job, *, tuned: bool, tracked: bool) -> dict[str, Any]:
    """transformers.Trainer; tuned: bf16 where the device multiplies it, and grouped lengths."""
    import torch
    from transformers import Trainer, TrainerCallback, TrainingArguments, set_seed

    from mltrack.hardware import choose_precision

    set_seed(job.seed)
    train, valid, tokenizer = datasets_of(job)
    model = model_from(job.weights, job.task)
    arguments = TrainingArguments(
        output_dir=job.folder,
        num_train_epochs=job.epochs,
        max_steps=job.max_steps,
        per_device_train_batch_size=job.batch_size,
        per_device_eval_batch_size=2 * job.batch_size,
        gradient_accumulation_steps=job.accumulation,
        learning_rate=job.learning_rate,
        weight_decay=0.01,
        lr_scheduler_type="linear",
        warmup_steps=0.06,
        eval_strategy="epoch",
        save_strategy="epoch",
        logging_steps=job.log_every,
        report_to="mlflow" if tracked else "none",
        bf16=job.precision == "bf16" or (tuned and choose_precision("auto", torch.device(job.device)) == "bf16"),
        use_cpu=job.device == "cpu",
        seed=job.seed,
        **({"train_sampling_strategy": "group_by_length"} if tuned else {}),
    )

    pace, tokens = Pace(job, len(train)), TokenCount(model, tokenizer.pad_token_id)

    class Steps(TrainerCallback):
        seen = 0

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            self.seen += 1
            pace.step_ended(self.seen)

    steps = Steps()
    trainer = Trainer(
        model=model,
        args=arguments,
        train_dataset=rows_of(train),
        eval_dataset=rows_of(valid),
        data_collator=collator_of(job, tokenizer),
        callbacks=[steps],
    )
    say("start")
    started = time.perf_counter()
    trainer.train()
    wait_for_gpu(job)
    seconds = time.perf_counter() - started
    counts = {"steps": steps.seen, "real_tokens": tokens.trained, "evaluated_tokens": tokens.evaluated}
    return {
        "seconds": seconds,
        **counts,
        "steady_tokens_per_second": pace.tokens_per_second(tokens),
        **tokens.begun_with,
        "model": trainer.model,
    }


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
            self.model = model_from(job.weights, job.task)

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

    pace = Pace(job, len(train))

    class Steps(Callback):
        seen = 0

        def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
            if trainer.global_step > self.seen:
                self.seen = trainer.global_step
                pace.step_ended(self.seen)

    trainer = lightning.Trainer(
        max_epochs=job.epochs,
        max_steps=job.max_steps,
        accelerator="cpu" if job.device == "cpu" else "gpu",
        devices=1,
        precision="bf16-mixed" if job.precision == "bf16" else "32-true",
        accumulate_grad_batches=job.accumulation,
        gradient_clip_val=1.0,
        log_every_n_steps=job.log_every,
        num_sanity_val_steps=0,
        enable_progress_bar=False,
        logger=MLFlowLogger(experiment_name="lightning", tracking_uri=job.uri),
        callbacks=[ModelCheckpoint(dirpath=job.folder), Steps()],
    )
    module = Module()
    module.train()  # from_pretrained gives a model in evaluation mode, which Lightning keeps
    tokens = TokenCount(module.model, tokenizer.pad_token_id)
    say("start")
    started = time.perf_counter()
    trainer.fit(
        module,
        DataLoader(rows_of(train), batch_size=job.batch_size, shuffle=True, collate_fn=collate),
        DataLoader(rows_of(valid), batch_size=2 * job.batch_size, collate_fn=collate),
    )
    wait_for_gpu(job)
    seconds = time.perf_counter() - started
    counts = {"steps": trainer.global_step, "real_tokens": tokens.trained, "evaluated_tokens": tokens.evaluated}
    return {
        "seconds": seconds,
        **counts,
        "steady_tokens_per_second": pace.tokens_per_second(tokens),
        **tokens.begun_with,
        "model": module.model,
    }
