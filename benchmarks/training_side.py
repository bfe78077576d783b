"""One training by one side, in a process of its own: told by its parent what to do, it says in one JSON line per event
how it went.

Events: `start` (imports are over), `first_step`, `trained` (with what was done), `limit` (of the machine, where asked
for), `done`.

    python training_side.py '{"side": "hf", "task": "text_classification", "weights": "...", "train": "...", "valid":
    "...", ...}'
"""

from __future__ import annotations

import json
import sys
from typing import Any

from training_job import Job, evaluated, say

SIDES = ("mltrack", "hf", "hf_tuned", "lightning")


def run(job: Job) -> dict[str, Any]:
    """Train as that side does it."""
    if job.side == "mltrack":
        from observed_training import run_mltrack

        return run_mltrack(job)
    from peers import run_hf, run_lightning

    if job.side == "lightning":
        return run_lightning(job)
    return run_hf(job, tuned=job.side == "hf_tuned", tracked=job.side == "hf")


def say_limit(job: Job, model: Any, found: dict[str, Any]) -> None:
    """What the steady steps needed, and what the machine could do."""
    import torch
    from matrix_limit import Arithmetic, best_product_rate, stated_peak

    steady = found.get("steady")
    if not steady:
        return
    device, work = torch.device(job.device), Arithmetic.of(model)
    flops = work.of_step(
        tokens=steady["tokens_sum"], targets=steady["targets_sum"], squared_lengths=steady["squared_lengths_sum"]
    )
    attention = work.of_step(tokens=0, targets=0, squared_lengths=steady["squared_lengths_sum"])
    rates = best_product_rate(model, rows=int(steady["rows"]), precision=found["precision"], device=device)
    say(
        "limit",
        arithmetic=work.to_dict(),
        flops_per_second=flops / steady["seconds_sum"],
        flops_per_token=flops / steady["tokens_sum"],
        attention_share=attention / flops,
        precision=found["precision"],
        product_rates=rates,
        best_product=max(rates.values()),
        stated_peak=stated_peak(),
    )


def main() -> None:
    """Train as the job says, then judge the weights."""
    job = Job(**json.loads(sys.argv[1]))
    found = run(job)
    model = found.pop("model")
    if job.device == "cuda":
        import torch

        found["gpu_mib"] = torch.cuda.max_memory_allocated() / (1 << 20)
    say("trained", **found)
    if not hasattr(model, "parameters"):
        model = model()
    if job.limit:
        say_limit(job, model, found)
    say("done", eval_loss=evaluated(job, model))


if __name__ == "__main__":
    main()
