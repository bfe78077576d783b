"""A model's figures beside those of the baselines on the same evaluation set, and a verdict in words.

verdict({"eval_macro_f1": 0.91}, {"baseline_tfidf_macro_f1": 0.88}, "eval_loss")
# "better than every baseline: eval_macro_f1 0.9100 (tfidf 0.8800)"
"""

from __future__ import annotations

from collections.abc import Mapping

from mltrack.evaluation.metrics import metric_mode


def by_metric(baselines: Mapping[str, float]) -> dict[str, dict[str, float]]:
    """{metric: {baseline: value}}, such as {"eval_macro_f1": {"majority": 0.40, "tfidf": 0.88}}.

    Args:
        baselines: by their names in a run, `baseline_<name>_<metric>`.
    """
    found: dict[str, dict[str, float]] = {}
    for key, value in baselines.items():
        who, _, metric = key.removeprefix("baseline_").partition("_")
        found.setdefault(f"eval_{metric}", {})[who] = value
    return found


def verdict(metrics: Mapping[str, float], baselines: Mapping[str, float], judged_by: str) -> str:
    """Whether the model is better than its baselines, in one clause; empty if they share no metric.

    Args:
        metrics: of the model, by their `eval_` names.
        judged_by: the metric that chooses the best checkpoint. If no baseline has it, the last shared metric decides.
    """
    beside = {name: held for name, held in by_metric(baselines).items() if name in metrics}
    if not beside:
        return ""
    metric = judged_by if judged_by in beside else list(beside)[-1]
    value, sign = metrics[metric], -1 if metric_mode(metric) == "min" else 1
    unbeaten = [who for who, other in beside[metric].items() if not sign * value > sign * other]
    others = ", ".join(f"{who} {other:.4f}" for who, other in beside[metric].items())
    result = f"no better than {' and '.join(unbeaten)}" if unbeaten else "better than every baseline"
    return f"{result}: {metric} {value:.4f} ({others})"
