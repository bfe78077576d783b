"""Every option of `mltrack train`, declared once: type, default, range, meaning.

The command line, the README's table, `TrainModelRequest`, `TrainingConfig` and the MLflow params follow from `OPTIONS`.
Invariant: `Option.parse(text)` and `Option.check(value)` accept exactly the same values, and say the same sentence
otherwise."""

from __future__ import annotations

from typing import Any

from mltrack.config import speedups
from mltrack.config.option import Option


def _declare(*options: Option) -> dict[str, Option]:
    table = {option.name: option for option in options}
    assert len(table) == len(options), "an option is declared twice"
    return table


TASKS = ("text_classification", "code_generation", "security_classification")
PRECISIONS = ("auto", "fp16", "bf16", "off")

OPTIONS: dict[str, Option] = _declare(
    # what is learned, from what
    Option(name="task", kind="text", default="code_generation", choices=TASKS, help="The task."),
    Option(name="dataset_path", kind="path", default="stdlib", help="Records: a .json, .jsonl, .csv or .parquet file (each also .gz or .zst), a folder or a glob of them, a Hugging Face data set (its folder, or `hf:name:split`), or `stdlib`, the interpreter's own standard library. Of a folder with files for training, validation and test: those for training; `folder:all` is every file."),
    Option(name="columns", kind="pairs", choices=("code", "label", "description"), help="Which columns of the data hold what: `code=func,label=target`."),
    Option(name="labels", kind="pairs", help="Which class each label of the data means: `0=safe,1=unsafe`."),
    Option(name="validation_path", kind="path", help="Evaluation records, from where `dataset_path` could be; without it, the validation files of that folder, or `validation_split` of the records is held out."),
    Option(name="validation_split", kind="float", default=0.1, minimum=0, above=True, maximum=1, below=True, help="Share of the records held out for evaluation, stratified by label; given, the validation files of a folder are left out."),
    Option(name="group", kind="text", help="A column whose equal values stay on one side of the split, such as the commit of a function before and after its fix."),
    Option(name="model_name", kind="text", default="scratch:small", help="`scratch:tiny|small|base`, a Hugging Face hub name, a local folder, or `models:/name@alias`."),
    Option(name="num_labels", kind="int", minimum=2, help="Number of classes; only checked against the data."),
    Option(name="max_length", kind="int", by_task=True, minimum=8, help="Longest sequence in tokens; `truncation` says what happens to longer ones."),
    Option(name="truncation", kind="text", default="head", choices=("head", "tail", "both", "drop"), help="What is kept of a text beyond `max_length`: its beginning, its end, half of each; `drop` leaves the record out and counts it. A completion can only lose its tail: `head` or `drop`."),
    # how long
    Option(name="epochs", kind="int", by_task=True, minimum=1, help="Passes over the training records."),
    Option(name="max_steps", kind="int", minimum=1, help="Optimizer steps after which training ends, whatever `epochs` says."),
    Option(name="early_stopping_patience", kind="int", minimum=1, help="Evaluations without improvement after which training ends; not set: never."),
    Option(name="early_stopping_min_delta", kind="float", default=0.0, minimum=0, help="Smallest change of the metric that counts as an improvement."),
    # the optimizer step
    Option(name="batch_size", kind="int", by_task=True, minimum=1, help="Examples per micro-batch."),
    Option(name="eval_batch_size", kind="int", minimum=1, help="Examples per evaluation batch; not set: twice `batch_size`. Results do not depend on it."),
    Option(name="gradient_accumulation_steps", kind="int", default=1, minimum=1, help="Micro-batches per optimizer step."),
    Option(name="learning_rate", kind="float", by_task=True, minimum=0, above=True, help="Peak learning rate of AdamW."),
    Option(name="weight_decay", kind="float", default=0.01, minimum=0, help="Decoupled weight decay; never on biases and norms."),
    Option(name="warmup_steps", kind="int", minimum=0, help="Optimizer steps of linear warmup; wins over `warmup_ratio`."),
    Option(name="warmup_ratio", kind="float", default=0.06, minimum=0, maximum=1, help="Linear warmup as a share of all optimizer steps."),
    Option(name="max_grad_norm", kind="float", default=1.0, minimum=0, above=True, help="Gradients are clipped to this norm."),
    Option(name="max_batch_tokens", kind="int", minimum=8, help="Most tokens of a batch, in training and evaluation, padding included: short examples come in larger batches than long ones, up to `batch_size`. Not set: always `batch_size` examples."),
    Option(name="packing", kind="bool", default=False, help="Generation: several examples in one row of `max_length` tokens, none of which sees another."),
    Option(name="gradient_checkpointing", kind="bool", default=False, help="Recompute activations in the backward pass: less memory, more time."),
    Option(name="use_mixed_precision", kind="text", default="auto", choices=PRECISIONS, aliases={"true": "auto", "false": "off", "fp32": "off", "no": "off"}, help="`auto` takes bf16 where the device has the instruction, fp16 on older GPUs, else off; true means auto, false means off."),
    Option(name="class_weights", kind="text", default="none", choices=("none", "balanced"), help="`balanced` counts rare classes more in the training loss; evaluation is never weighted."),
    Option(name="on_non_finite", kind="text", default="stop", choices=("stop", "skip"), help="What a NaN or infinite loss or gradient does: stop the run, or skip the step and count it."),
    # evaluation and checkpoints
    Option(name="eval_every", kind="interval", default="epoch", help="When to evaluate: each epoch, or every so many optimizer steps (and at each epoch's end)."),
    Option(name="save_every", kind="interval", default="epoch", help="When to save a checkpoint; one is also saved at the end."),
    Option(name="save_when_busy", kind="text", default="wait", choices=("wait", "skip"), help="What a checkpoint that is neither the best nor the last does while the one before is still being written: wait for it, or be left out."),
    Option(name="metric_name", kind="text", default="eval_loss", help="The metric that ranks checkpoints and stops early."),
    Option(name="metric_mode", kind="text", choices=("min", "max"), help="Whether lower or higher is better; not set: told by the metric's name."),
    Option(name="max_checkpoints", kind="int", default=3, minimum=1, help="Best checkpoints kept, beside the latest."),
    Option(name="keep_every", kind="int", minimum=1, help="Also keep each checkpoint whose step is a multiple of this."),
    # where it runs
    Option(name="device", kind="text", default="auto", choices=("auto", "cpu", "cuda", "mps"), help="Where the model runs."),
    Option(name="parallel", kind="text", default="auto", choices=("auto", "none", "dp", "ddp"), help="How many GPUs compute: `auto` and `none` use one, `dp` all that are visible (DataParallel, which has run on no such machine yet)."),
    Option(name="attention", kind="text", default="auto", choices=("auto", "eager", "sdpa", "flash_attention_2"), help="How attention is computed; `auto` chooses by device, precision and the model's dropout."),
    Option(name="compile", kind="bool", default=False, help="Compile the layers of the model with torch.compile: a quarter of a minute or more before the first step, which a GPU earns back within some hundred steps."),
    Option(name="speedups", kind="pairs", choices=speedups.NAMES, values=(speedups.ON, speedups.OFF), help="Which of the speed-ups that are on by default are off: `buckets=off`."),
    Option(name="num_workers", kind="int", default=0, minimum=0, help="Worker processes that collate batches; 0: a thread of this process."),
    Option(name="seed", kind="int", default=42, minimum=0, help="Seeds the split, the order, the weights and the dropout."),
    Option(name="deterministic", kind="bool", default=False, help="Refuse operations that torch cannot repeat exactly on a GPU (a CPU run repeats as it is)."),
    # MLflow and the run's folder
    Option(name="output_dir", kind="path", default="mltrack-runs", help="Folder of the run directories."),
    Option(name="tracking_uri", kind="text", help="MLflow tracking URI; not set: MLFLOW_TRACKING_URI, else sqlite:///mlflow.db in the working directory."),
    Option(name="experiment_name", kind="text", help="MLflow experiment; not set: MLFLOW_EXPERIMENT_NAME, else Default. Ignored under `mlflow run`."),
    Option(name="run_name", kind="text", help="Name of the run; not set: task and model. Ignored under `mlflow run`."),
    Option(name="upload", kind="text", default="all", choices=("all", "model", "none"), help="What of a kept checkpoint goes to MLflow: all of it, so that another machine can resume the run; its model alone, the training state stays here; nothing, which goes with `register=never` alone."),
    Option(name="register", kind="text", default="best", choices=("best", "never"), help="Whether the best model becomes a version of the registered model."),
    Option(name="registered_model_name", kind="text", help="Registry name of the best model; not set: `mltrack-<task>`."),
    Option(name="promote", kind="text", default="auto", choices=("auto", "never", "always"), help="When the new version becomes `champion`: where it is better than the champion on the same evaluation data (or there is none), never, or always."),
    Option(name="promote_margin", kind="float", default=0.0, minimum=0, help="By how much it must be better, in units of `metric_name`."),
    Option(name="resume", kind="text", default="auto", help="`never`; `latest`: the newest run directory; a run id; `auto`: only the run that MLFLOW_RUN_ID names, if it has a checkpoint."),
    Option(name="exact", kind="bool", default=True, help="Refuse to resume where something that decides the result has changed; false goes on and says so in a tag."),
    Option(name="new_run", kind="bool", default=False, help="Continue the resumed run's checkpoint in a new run."),
    Option(name="force", kind="bool", default=False, help="Resume a run whose directory names no host, so that nobody can tell whether its trainer is alive."),
    Option(name="offline", kind="bool", default=False, help="Keep everything in the run directory until `mltrack sync`."),
    Option(name="exit_wait", kind="float", default=600.0, minimum=0, help="Seconds to wait at the end while deliveries to MLflow make progress."),
    # the rest
    Option(name="on_disk_full", kind="text", default="stop", choices=("stop", "continue"), help="What a full disk does: stop the training, or go on without what cannot be written."),
    Option(name="on_bad_record", kind="text", default="stop", choices=("stop", "skip"), help="What a bad record does: stop with its place, or be left out and counted."),
    Option(name="trust_remote_code", kind="bool", default=False, help="Let a hub model run its own Python code."),
    Option(name="debug", kind="bool", default=False, help="Show tracebacks."),
    Option(name="output", kind="text", default="text", choices=("text", "json"), help="`json`: the last line of stdout is the whole response."),
)  # fmt: skip


DATA_OPTIONS = (
    "dataset_path",
    "task",
    "columns",
    "labels",
    "group",
    "validation_path",
    "validation_split",
    "num_labels",
    "seed",
    "on_bad_record",
)
"""Those that decide which records are trained on and which are evaluated on."""


def setting(name: str) -> Any:
    """The default of an option, for a dataclass field of the same meaning."""
    return OPTIONS[name].default
