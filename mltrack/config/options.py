"""Every option of `mltrack train`, declared once as a dataclass field: type, default, range, help, what it is part of.

`TrainModelRequest` and `TrainingConfig` are made of these classes. The command line, the docs' table, MLflow's
params and what a resume compares and inherits are each a loop over `OPTIONS`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from mltrack.config import speedups
from mltrack.config.option import Option, declared, option
from mltrack.tasks.names import TaskType, task_fields, task_names

PRECISIONS = ("auto", "fp16", "bf16", "off")
PRECISION_ALIASES = {"true": "auto", "false": "off", "fp32": "off", "no": "off"}


@dataclass(kw_only=True)
class Data:
    """Which records are trained on and evaluated on, and how much of each."""

    dataset_path: str = option(
        "stdlib",
        kind="path",
        fixes_data=True,
        help="Records: a .json, .jsonl, .csv or .parquet file (each also .gz or .zst), a folder or a glob of them, a"
        " Hugging Face data set (its folder, or `hf:name:split`), or `stdlib`, Python's own standard library. Of a"
        " folder with files for training, validation and test: those for training. `folder:all` is every file.",
    )
    task: str = option(
        TaskType.CODE_GENERATION.value,
        choices=tuple(TaskType),
        more_choices=task_names,
        fixes_data=True,
        help="The task, of mltrack or of an installed package.",
    )
    columns: str | Mapping[str, str] | None = option(
        kind="pairs",
        choices=("code", "label", "description"),
        more_choices=task_fields,
        fixes_data=True,
        help="Which columns of the data hold what: `code=func,label=target`.",
    )
    labels: str | Mapping[str, str] | None = option(
        kind="pairs", fixes_data=True, help="Which class each label of the data means: `0=safe,1=unsafe`."
    )
    group: str | None = option(
        kind="text",
        fixes_data=True,
        help="A column whose equal values stay on one side of the split, such as the commit of a function before and"
        " after its fix.",
    )
    validation_path: str | None = option(
        kind="path",
        fixes_data=True,
        help="Evaluation records, from where `dataset_path` could be. Without it, the validation files of that"
        " folder are used, or `validation_split` of the records is held out.",
    )
    validation_split: float = option(
        0.1,
        above=0,
        below=1,
        fixes_data=True,
        help="Share of the records held out for evaluation, stratified by label. Given, the validation files of a"
        " folder are left out.",
    )
    num_labels: int | None = option(
        kind="int", minimum=2, fixes_data=True, help="Number of classes. Only checked against the data."
    )
    max_length: int = option(
        kind="int",
        by_task=True,
        minimum=8,
        help="Longest sequence in tokens. `truncation` says what happens to longer ones.",
    )
    truncation: str = option(
        "head",
        choices=("head", "tail", "both", "drop"),
        help="What is kept of a text beyond `max_length`: its beginning, its end, half of each. `drop` leaves the"
        " record out and counts it. A completion can only lose its tail: `head` or `drop`.",
    )
    on_bad_record: str = option(
        "stop",
        choices=("stop", "skip"),
        fixes_data=True,
        help="What a bad record does: stop with its place, or be left out and counted.",
    )


@dataclass(kw_only=True)
class Model:
    """Which model is trained."""

    model_name: str = option(
        "scratch:small",
        help="`scratch:tiny|small|base`, a Hugging Face hub name, a local folder, a `.gguf` file, or"
        " `models:/name@alias`.",
    )
    model_revision: str | None = option(
        kind="text",
        help="Branch, tag or commit of a hub model. Not set: `main`. The commit is recorded, and a resumed run loads"
        " that one.",
    )
    attention: str = option(
        "auto",
        choices=("auto", "eager", "sdpa", "flash_attention_2"),
        help="How attention is computed. `auto` chooses by device, precision and the model's dropout.",
    )
    trust_remote_code: bool = option(False, inherited=False, help="Let a hub model run its own Python code.")


@dataclass(kw_only=True)
class Duration:
    """Passes over the data; a class of its own, since `TrainingConfig` calls it `num_epochs`."""

    epochs: int = option(
        kind="int",
        by_task=True,
        trainer_default=3,
        minimum=1,
        group="optimization",
        help="Passes over the training records.",
    )


@dataclass(kw_only=True)
class Optimization:
    """The optimizer step, and when training ends."""

    max_steps: int | None = option(
        kind="int", minimum=1, help="Optimizer steps after which training ends, whatever `epochs` says."
    )
    early_stopping_patience: int | None = option(
        kind="int", minimum=1, help="Evaluations without improvement after which training ends. Not set: never."
    )
    early_stopping_min_delta: float = option(
        0.0, minimum=0, help="Smallest change of the metric that counts as an improvement."
    )
    batch_size: int = option(
        kind="int", by_task=True, trainer_default=8, minimum=1, fixes_result=True, help="Examples per micro-batch."
    )
    eval_batch_size: int | None = option(
        kind="int",
        minimum=1,
        help="Examples per evaluation batch. Not set: twice `batch_size`. Results do not depend on it.",
    )
    gradient_accumulation_steps: int = option(1, minimum=1, fixes_result=True, help="Micro-batches per optimizer step.")
    learning_rate: float = option(
        kind="float",
        by_task=True,
        trainer_default=2e-5,
        above=0,
        fixes_result=True,
        help="Peak learning rate of AdamW.",
    )
    weight_decay: float = option(
        0.01, minimum=0, fixes_result=True, help="Decoupled weight decay. Never on biases and norms."
    )
    warmup_steps: int | None = option(
        kind="int",
        minimum=0,
        fixes_result=True,
        help="Optimizer steps of linear warmup. Overrides `warmup_ratio`.",
    )
    warmup_ratio: float = option(0.06, minimum=0, maximum=1, help="Linear warmup as a share of all optimizer steps.")
    max_grad_norm: float = option(1.0, above=0, fixes_result=True, help="Gradients are clipped to this norm.")
    max_batch_tokens: int | None = option(
        kind="int",
        minimum=8,
        help="Most tokens of a batch, padding included, in training and evaluation: short examples come in larger"
        " batches, up to `batch_size`. Not set: always `batch_size` examples.",
    )
    packing: bool = option(
        False, help="Generation: several examples in one row of `max_length` tokens, none of which sees another."
    )
    class_weights: str = option(
        "none",
        choices=("none", "balanced"),
        fixes_result=True,
        help="`balanced` counts rare classes more in the training loss. Evaluation is never weighted.",
    )
    on_non_finite: str = option(
        "stop",
        choices=("stop", "skip"),
        help="What a NaN or infinite loss or gradient does: stop the run, or skip the step and count it.",
    )
    seed: int = option(
        42,
        minimum=0,
        fixes_data=True,
        fixes_result=True,
        help="Seeds the split, the order, the weights and the dropout.",
    )


@dataclass(kw_only=True)
class Performance:
    """Precision and speed."""

    precision: str | bool = option(
        "auto",
        formerly="use_mixed_precision",
        kind="text",
        choices=PRECISIONS,
        aliases=PRECISION_ALIASES,
        help="`auto` takes bf16 where the device has the instruction, fp16 on older GPUs, else off. true means auto,"
        " false means off.",
    )
    gradient_checkpointing: bool = option(
        False, help="Recompute activations in the backward pass: less memory, more time."
    )
    device: str = option("auto", choices=("auto", "cpu", "cuda", "mps"), help="Where the model runs.")
    parallel: str = option(
        "auto",
        choices=("auto", "none", "dp", "ddp"),
        help="How many GPUs compute: `auto` and `none` use one, `dp` all that are visible (DataParallel, which has run"
        " on no such machine yet).",
    )
    compile: bool = option(
        False,
        help="Compile the model's layers with torch.compile: 15 s or more before the first step, which a GPU earns back"
        " within some hundred steps.",
    )
    speedups: str | Mapping[str, str] | None = option(
        kind="pairs",
        choices=speedups.NAMES,
        values=(speedups.ON, speedups.OFF),
        ignored=speedups.ALWAYS_ON,
        help="Which of the speed-ups that are on by default are off: `buckets=off`.",
    )
    num_workers: int = option(0, minimum=0, help="Worker processes that collate batches. 0: a thread of this process.")
    deterministic: bool = option(
        False,
        fixes_result=True,
        help="Refuse operations that torch cannot repeat exactly on a GPU. A CPU run repeats as it is.",
    )


@dataclass(kw_only=True)
class Checkpoints:
    """Evaluation and checkpoints."""

    eval_every: int | str = option(
        "epoch",
        kind="interval",
        help="When to evaluate: each epoch, or every so many optimizer steps and at each epoch's end.",
    )
    save_every: int | str = option(
        "epoch", kind="interval", help="When to save a checkpoint. One is also saved at the end."
    )
    metric_name: str = option("eval_loss", help="The metric that ranks checkpoints and stops early.")
    metric_mode: str | None = option(
        kind="text",
        choices=("min", "max"),
        help="Whether lower or higher is better. Not set: known from the metric's name.",
    )
    max_checkpoints: int = option(3, minimum=1, help="Best checkpoints kept, beside the latest.")
    keep_every: int | None = option(
        kind="int", minimum=1, help="Also keep each checkpoint whose step is a multiple of this."
    )
    on_disk_full: str = option(
        "stop",
        choices=("stop", "continue"),
        help="What a full disk does: stop the training, or go on without what cannot be written.",
    )
    strict_resume: bool = option(
        True,
        formerly="exact",
        is_param=False,
        inherited=False,
        help="Refuse to resume where something that decides the result has changed. false goes on and says so in a"
        " tag.",
    )


@dataclass(kw_only=True)
class Tracking:
    """Tracking and registry."""

    tracking_uri: str | None = option(
        kind="text",
        is_param=False,
        inherited=False,
        help="MLflow tracking URI. Not set: MLFLOW_TRACKING_URI, else sqlite:///mlflow.db in the working directory.",
        repr=False,
    )
    experiment_name: str | None = option(
        kind="text",
        is_param=False,
        help="MLflow experiment. Not set: MLFLOW_EXPERIMENT_NAME, else Default. Ignored under `mlflow run`.",
    )
    run_name: str | None = option(
        kind="text", is_param=False, help="Name of the run. Not set: task and model. Ignored under `mlflow run`."
    )
    upload: str = option(
        "all",
        choices=("all", "model", "none"),
        is_param=False,
        help="What of a kept checkpoint goes to MLflow: all of it, so that another machine can resume the run; its"
        " model alone; nothing, which goes with `register=never` alone.",
    )
    register: str = option(
        "best", choices=("best", "never"), help="Whether the best model becomes a version of the registered model."
    )
    registered_model_name: str | None = option(
        kind="text", help="Registry name of the best model. Not set: `mltrack-<task>`."
    )
    promote: str = option(
        "auto",
        choices=("auto", "never", "always"),
        help="When the new version becomes `champion`: where it is better than the champion on the same evaluation data"
        " (or there is none), never, or always.",
    )
    promote_margin: float = option(0.0, minimum=0, help="By how much it must be better, in units of `metric_name`.")
    offline: bool = option(
        False, is_param=False, inherited=False, help="Keep everything in the run directory until `mltrack sync`."
    )
    exit_wait: float = option(
        600.0,
        minimum=0,
        is_param=False,
        inherited=False,
        help="Seconds to wait at the end while deliveries to MLflow make progress.",
    )


@dataclass(kw_only=True)
class Run:
    """The run and its folder."""

    output_dir: str = option(
        "mltrack-runs", kind="path", is_param=False, inherited=False, help="Folder of the run directories."
    )
    resume: str = option(
        "auto",
        is_param=False,
        inherited=False,
        help="`never`; `latest`: the newest run directory; a run id; `auto`: only the run that MLFLOW_RUN_ID names, if"
        " it has a checkpoint.",
    )
    fork: bool = option(
        False,
        formerly="new_run",
        is_param=False,
        inherited=False,
        help="Continue the resumed run's checkpoint in a new run.",
    )
    force: bool = option(
        False,
        is_param=False,
        inherited=False,
        help="Resume a run whose directory names no host, so that nobody can tell whether its trainer is alive.",
    )
    save_when_busy: str = option(
        "wait",
        choices=("wait", "skip"),
        group="checkpoints",
        help="What a checkpoint that is neither the best nor the last does while the one before is still being written:"
        " wait for it, or be left out.",
    )
    debug: bool = option(False, is_param=False, inherited=False, help="Show tracebacks.")
    output: str = option(
        "text",
        choices=("text", "json"),
        is_param=False,
        inherited=False,
        help="`json`: the last line of stdout is the whole response.",
    )


GROUPS: dict[str, tuple[type, ...]] = {
    "data": (Data,),
    "model": (Model,),
    "optimization": (Duration, Optimization),
    "precision and speed": (Performance,),
    "checkpoints": (Checkpoints,),
    "tracking and registry": (Tracking,),
    "run": (Run,),
}
"""The classes by the heading under which `--help` and the table show their options."""

OPTIONS: dict[str, Option] = {
    one.name: one for group, classes in GROUPS.items() for kind in classes for one in declared(kind, group)
}

DATA_OPTIONS = {name: one for name, one in OPTIONS.items() if one.fixes_data}
"""Those that decide which records are trained on and which are evaluated on."""
