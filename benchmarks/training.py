"""How fast mltrack trains beside the trainers that people use: the same weights, records, steps and evaluations, in
alternation.

Invariant: every training is a process of its own; that the work was the same (optimizer steps, real tokens trained and
evaluated) is asserted from what went through each side's model, and every side's final weights go through one and the
same evaluation.

    python benchmarks/training.py                              # `make bench`: both tasks, three pairs, start-up; below
    30 minutes on two cores python benchmarks/training.py --pairs 5                    # five seeds python
    benchmarks/training.py --five-epochs --cuts         # further tables after the first one python
    benchmarks/training.py --startup-only python benchmarks/training.py --tasks code_generation --sides mltrack --pairs
    1 --profile --no-startup python benchmarks/training.py --device cuda
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

import cuts
import startup
from report import circumstances, met, of_pairs, show, shown_ratio, write
from side_process import end_with_sigterm, train
from training_job import Job
from training_records import GPU_RECORDS, prepare
from training_side import SIDES

NAMES = {
    "mltrack": "mltrack",
    "hf": "HF Trainer + MLflow",
    "hf_tuned": "HF, tuned by hand",
    "lightning": "Lightning + MLFlowLogger",
}
GOALS = {
    "cpu": {
        "text_classification": {"hf": 5.0, "lightning": 4.0, "hf_tuned": 1.5},
        "code_generation": {"hf": 4.0, "lightning": 3.5, "hf_tuned": 1.4},
    },
    "cuda": {"text_classification": {"hf": 2.0}, "code_generation": {"hf": 2.0}},
}
LIMIT_GOALS = {
    "cpu": {"text_classification": 0.40, "code_generation": 0.45},
    "cuda": {"text_classification": 0.45, "code_generation": 0.45},
}
LOSS_GOAL, MEMORY_GOAL, REST_GOAL = 0.02, 1.25, 0.03


def compare(folder: Path, task: str, options: argparse.Namespace, *, epochs: int, pairs: int) -> dict[str, Any]:
    """All sides in alternation."""
    start = prepare(folder, task, records=options.records, held_out=options.held_out, model=options.model)
    runs: dict[str, list[dict[str, Any]]] = {side: [] for side in options.sides}
    for pair in range(pairs):
        for side in options.sides if pair % 2 == 0 else reversed(options.sides):
            job = Job(
                side=side,
                folder=str(folder / f"{side}-{pair}"),
                uri=start.store(folder / f"{side}.db"),
                epochs=epochs,
                seed=pair + 1,
                device=options.device,
                precision="bf16" if options.device == "cuda" and side != "mltrack" else "auto",
                batch_size=options.batch_size,
                max_length=options.max_length,
                log_every=options.log_every,
                warm_up=options.warm_up,
                limit=side == "mltrack",
                options=options.mltrack,
                **start.places,
            )
            found = train(job)
            runs[side].append(found)
            shown = {
                name: found[name] for name in ("seconds", "tokens_per_second", "eval_loss", "first_step_s", "peak_mib")
            }
            print(
                f"{task} {pair + 1}/{pairs} {NAMES[side]}:"
                f" {json.dumps({name: round(value, 4) for name, value in shown.items()})}",
                flush=True,
            )
    work = {(one["steps"], one["real_tokens"], one["evaluated_tokens"]) for found in runs.values() for one in found}
    assert len(work) == 1, f"the sides did not do the same work: (steps, tokens trained, tokens evaluated) {work}"
    begun = {(one["initial_weights"], *one["dropouts"]) for found in runs.values() for one in found}
    assert len(begun) == 1, f"the sides did not begin with the same model: (its weights, its dropouts) {begun}"
    profile = None
    if options.profile and "mltrack" in runs:
        job = Job(
            side="mltrack",
            folder=str(folder / "profile"),
            uri=start.store(folder / "profile.db"),
            device=options.device,
            batch_size=options.batch_size,
            max_length=options.max_length,
            warm_up=options.warm_up,
            profile=True,
            options=options.mltrack,
            **start.places,
        )
        profile = train(job)["profile"]
    return {
        "work": dict(zip(("steps", "real_tokens", "evaluated_tokens"), work.pop(), strict=True)),
        "runs": runs,
        "profile": profile,
        "epochs": epochs,
    }


def show_comparison(task: str, found: dict[str, Any], device: str) -> None:
    """A column a side."""
    runs, work = found["runs"], found["work"]
    sides = list(runs)
    middle = {
        side: {
            name: statistics.median(one[name] for one in runs[side])
            for name in ("seconds", "trained_s", "tokens_per_second", "first_step_s", "peak_mib")
        }
        for side in sides
    }
    loss = {side: statistics.fmean(one["eval_loss"] for one in runs[side]) for side in sides}
    steady = {side: _steady_median(runs[side]) for side in sides}
    ours = runs.get("mltrack")
    rows = [
        (
            "optimizer steps, real tokens, tokens evaluated",
            *[f"{work['steps']}, {work['real_tokens']:,}, {work['evaluated_tokens']:,}"] * len(sides),
            "the same: yes",
        ),
        ("training, evaluation, saving", *[f"{middle[side]['seconds']:.1f} s" for side in sides], ""),
        (
            "the whole process, imports and export included",
            *[f"{middle[side]['trained_s']:.1f} s" for side in sides],
            "",
        ),
        (
            "real tokens/s, evaluation and saving included",
            *[f"{middle[side]['tokens_per_second']:,.0f}" for side in sides],
            "",
        ),
        (
            "real tokens/s, steady in the first epoch",
            *["-" if steady[side] is None else f"{steady[side]:,.0f}" for side in sides],
            "",
        ),
        ("process start to first step", *[f"{middle[side]['first_step_s']:.1f} s" for side in sides], ""),
        ("peak memory (PSS)", *[f"{middle[side]['peak_mib']:,.0f} MiB" for side in sides], _memory_goal(middle)),
        (
            f"mean eval_loss, {len(runs[sides[0]])} seeds",
            *[_shown_loss(loss, side) for side in sides],
            _loss_goal(loss),
        ),
    ]
    if device == "cuda":
        rows.insert(
            -1,
            (
                "peak memory of the GPU, allocated",
                *[f"{max(one['gpu_mib'] for one in runs[side]):,.0f} MiB" for side in sides],
                "",
            ),
        )
    if ours:
        whole = {
            side: of_pairs([one["seconds"] for one in runs[side]], [one["seconds"] for one in ours]) for side in sides
        }
        in_steps = {
            side: of_pairs(
                [1 / one["steady_tokens_per_second"] for one in runs[side]],
                [1 / one["steady_tokens_per_second"] for one in ours],
            )
            for side in sides
            if steady[side] and steady["mltrack"]
        }
        goals = GOALS[device][task]
        of_steps, of_all = ({}, goals) if device == "cpu" else (goals, {})
        rows.insert(3, ("mltrack is faster by", *[_cell(side, whole, of_all) for side in sides], "in each column"))
        rows.insert(
            6,
            (
                "mltrack's steady rate is higher by",
                *[_cell(side, in_steps, of_steps) for side in sides],
                "in each column",
            ),
        )
        rows += [(name, cell, *["-"] * (len(sides) - 1), goal) for name, cell, goal in _steady_rows(task, ours, device)]
    epochs = "one epoch" if found["epochs"] == 1 else f"{found['epochs']} epochs"
    show(f"{task}, {epochs}, {device}", ("", *[NAMES[side] for side in sides], "goal"), rows)
    if found["profile"]:
        lines = [
            (one["operator"], f"{one['ms_a_step']:.1f} ms", f"{100 * one['share']:.1f} %", f"{one['calls_a_step']:.0f}")
            for one in found["profile"]
        ]
        show(f"{task}: where mltrack's step goes", ("operator", "own time a step", "share", "calls a step"), lines)


def _steady_median(runs: list[dict[str, Any]]) -> float | None:
    rates = [one["steady_tokens_per_second"] for one in runs]
    return None if None in rates else statistics.median(rates)


def _cell(side: str, ratios: dict[str, dict[str, float]], goals: dict[str, float]) -> str:
    """A ratio, and whether it is the goal's."""
    if side == "mltrack" or side not in ratios:
        return "-"
    goal = f"\n>= {goals[side]:g}x: {met(ratios[side]['ratio'], goals[side])}" if side in goals else ""
    return shown_ratio(ratios[side]) + goal


def _memory_goal(middle: dict[str, Any]) -> str:
    if not {"mltrack", "hf"} <= set(middle):
        return ""
    ratio = middle["mltrack"]["peak_mib"] / middle["hf"]["peak_mib"]
    return f"<= {MEMORY_GOAL:g}x HF: {met(ratio, MEMORY_GOAL, at_most=True)} ({ratio:.2f}x)"


def _shown_loss(loss: dict[str, float], side: str) -> str:
    beside = (
        ""
        if side == "mltrack" or "mltrack" not in loss
        else f"\nmltrack {100 * (loss['mltrack'] / loss[side] - 1):+.1f} %"
    )
    return f"{loss[side]:.4f}{beside}"


def _loss_goal(loss: dict[str, float]) -> str:
    if "mltrack" not in loss or len(loss) == 1:
        return ""
    furthest = max(abs(loss["mltrack"] / other - 1) for side, other in loss.items() if side != "mltrack")
    return f"within {100 * LOSS_GOAL:g} % of each: {met(furthest, LOSS_GOAL, at_most=True)}"


def _steady_rows(task: str, runs: list[dict[str, Any]], device: str) -> list[tuple[str, str, str]]:
    """(what, mltrack's cell, goal) of the steady state."""
    seen = [one for one in runs if one.get("limit")]
    if not seen:
        return []
    steady = {name: statistics.median(one["steady"][name] for one in seen) for name in seen[0]["steady"]}
    achieved = statistics.median(one["limit"]["flops_per_second"] for one in seen)
    product = max(one["limit"]["best_product"] for one in seen)
    limit = seen[0]["limit"]
    peak = limit["stated_peak"] if device == "cuda" and limit["stated_peak"] else product
    share, goal = achieved / peak, LIMIT_GOALS[device][task]
    precision = "fp32" if limit["precision"] == "off" else limit["precision"]
    rest, saving = steady["rest_share"], steady["saving_s"]
    bookkeeping = steady["evaluation_s"] - steady["evaluation_forward_s"]
    together = (rest * steady["seconds_sum"] + bookkeeping + saving) / (
        steady["seconds_sum"] + steady["evaluation_s"] + saving
    )
    return [
        (
            "steady state",
            (
                f"{steady['tokens_per_second']:,.0f} tokens/s, {steady['step_ms']:.0f} ms a step,"
                f" {100 * steady['padding_share']:.0f} % padding"
            ),
            "",
        ),
        (
            f"share of the {precision} limit",
            (
                f"{100 * share:.0f} %: {achieved / 1e9:,.0f} of {peak / 1e9:,.0f} GFLOP/s (best product"
                f" {product / 1e9:,.0f})\n{limit['flops_per_token'] / 1e6:.1f} MFLOP a token,"
                f" {100 * limit['attention_share']:.0f} % attention"
            ),
            f">= {100 * goal:.0f} %: {met(share, goal)}",
        ),
        (
            "step beside gradient and optimizer",
            (
                f"{100 * rest:.2f} % (data {100 * steady['data_share']:.2f}, tracking"
                f" {100 * steady['tracking_share']:.2f})"
            ),
            "",
        ),
        (
            "the same, with evaluation beside its forward passes and saving",
            (
                f"{100 * together:.2f} % (evaluation {1000 * bookkeeping:.0f} ms of {steady['evaluation_s']:.2f} s,"
                f" saving {1000 * saving:.0f} ms)"
            ),
            f"< {100 * REST_GOAL:g} %: {met(together, REST_GOAL, at_most=True)}",
        ),
    ]


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", default="text_classification,code_generation")
    parser.add_argument("--sides", default=",".join(SIDES))
    parser.add_argument("--pairs", type=int, default=3, help="rounds of all sides, each with a seed of its own")
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--records", type=int, help="training records; not set: 640, and 5,120 on a GPU")
    parser.add_argument("--batch-size", type=int, help="not set: 16, and 64 on a GPU")
    parser.add_argument("--max-length", type=int, help="tokens; not set: 256, and 512 on a GPU")
    parser.add_argument(
        "--held-out", type=int, help="evaluation records; not set: 160, or 128 where the source has no more"
    )
    parser.add_argument("--model", help="scratch:tiny|small|base, or large; not set: small, and large on a GPU")
    parser.add_argument(
        "--log-every",
        type=int,
        default=1,
        help="steps between the peers' log lines; mltrack logs every step, and their defaults are 500 and 50",
    )
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--warm-up", type=int, default=Job.warm_up, help="first optimizer steps that are not steady")
    parser.add_argument(
        "--mltrack",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="an option of mltrack alone; may come several times",
    )
    parser.add_argument("--profile", action="store_true", help="one more training of mltrack: where a step's time goes")
    parser.add_argument("--five-epochs", action="store_true", help="one more comparison, once, over five epochs")
    parser.add_argument(
        "--cuts", action="store_true", help="one more table: 8x1, 4x2 and 1x8, with and without mixed precision"
    )
    parser.add_argument("--startup-only", action="store_true")
    parser.add_argument("--no-startup", action="store_true")
    parser.add_argument("--startup-rounds", type=int, default=3)
    parser.add_argument("--startup-records", type=int, default=startup.RECORDS)
    options = parser.parse_args()
    options.sides, options.tasks = options.sides.split(","), options.tasks.split(",")
    if options.warm_up < 1:
        parser.error(f"--warm-up: seen {options.warm_up}; accepted: a whole number >= 1")
    options.mltrack = dict(one.split("=", 1) for one in options.mltrack)
    options.cut_records = options.records
    on_gpu = options.device == "cuda"
    options.model = options.model or ("large" if on_gpu else "scratch:small")
    options.records = options.records or (GPU_RECORDS if on_gpu else None)
    options.batch_size, options.max_length = (
        options.batch_size or (64 if on_gpu else 16),
        options.max_length or (512 if on_gpu else 256),
    )
    return options


def main() -> None:
    """Measure, print, write; what was measured is written after each part."""
    options = parsed()
    end_with_sigterm()
    results: dict[str, Any] = {**circumstances(), "device": options.device, "model": options.model}
    print(f"{results['date']}, {results['machine']}", flush=True)
    with tempfile.TemporaryDirectory(prefix="mltrack-bench-") as name:
        folder = Path(name)
        if not options.startup_only:
            _train_all(folder, options, results)
        if options.startup_only or not options.no_startup:
            results["startup"] = startup.measure(
                folder,
                rounds=options.startup_rounds,
                device=options.device,
                records=options.startup_records,
                model="scratch:small",
            )
            startup.show_startup(results["startup"])
    print(f"written: {write('training', results)}")


def _train_all(folder: Path, options: argparse.Namespace, results: dict[str, Any]) -> None:
    for part, epochs, pairs, wanted in (
        ("tasks", options.epochs, options.pairs, True),
        ("five_epochs", 5, 1, options.five_epochs),
    ):
        for task in options.tasks if wanted else ():
            found = compare(folder / part / task, task, options, epochs=epochs, pairs=pairs)
            results.setdefault(part, {})[task] = found
            show_comparison(task, found, options.device)
            write("training", results)
    for task in options.tasks if options.cuts else ():
        results.setdefault("cuts", {})[task] = cuts.measure(
            folder, task, device=options.device, records=options.cut_records, model=options.model
        )
        cuts.show_cuts(task, results["cuts"][task])
        write("training", results)


if __name__ == "__main__":
    main()
