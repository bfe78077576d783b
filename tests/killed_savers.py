"""Processes that save one checkpoint after the other until they are killed; run by test_checkpoint_survives_kill.py.

killed_savers.py FOLDER events|instants     one line of JSON a death
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
import warnings
from pathlib import Path

import torch
from torch import nn

from mltrack import CheckpointManager

EVENTS = (
    "model.safetensors",
    "optimizer.json",
    "optimizer.safetensors",
    "state.json",
    "metadata.json",
    "renamed",
    "deleting",
)


def model_of(step: int) -> tuple[nn.Module, torch.optim.Optimizer]:
    """2 MB of weights and 4 MB of moments, all of which say which step they are of."""
    model = nn.Linear(700, 700)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0)
    for parameter in model.parameters():
        parameter.data.fill_(step)
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for held in optimizer.state.values():
        held["exp_avg"].fill_(step)
    return model, optimizer


def save_until_killed(folder: Path, background: bool) -> None:
    """Steps 2, 3, ...; the weights change while they are written. What is complete is noted in a file."""
    noted = os.open(folder.with_suffix(".noted"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    manager = CheckpointManager(
        folder,
        max_checkpoints=2,
        background=background,
        on_written=lambda saved, _: os.write(noted, f"{saved.step}\n".encode()),
    )
    model, optimizer = model_of(1)
    for step in range(1, 1_000_000):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.fill_(step)
            for held in optimizer.state.values():
                held["exp_avg"].fill_(step)
        manager.save_checkpoint(model=model, optimizer=optimizer, epoch=0, step=step, metric_value=float(step % 7))


def wait_for(moment: str, folder: Path, saver: int, after: int) -> None:
    """Return when `moment` is seen in the folder, in a save after step `after`."""
    while os.waitpid(saver, os.WNOHANG) == (0, 0):
        names = os.listdir(folder)
        if moment == "deleting" and any(name.startswith(".deleting-") for name in names):
            return
        if moment == "renamed" and any(name >= f"step-{after:08d}" for name in names if name.startswith("step-")):
            return
        for name in names:
            if (
                name.startswith(".writing-step-")
                and int(name.split("-")[2]) > after
                and (folder / name / moment).exists()
            ):
                return
    raise SystemExit(f"the saver ended by itself before {moment}")


def latest_noted(folder: Path) -> int:
    noted = folder.with_suffix(".noted").read_text().split() if folder.with_suffix(".noted").exists() else []
    return int(noted[-1]) if noted else 0


def death(folder: Path, moment: str | float, background: bool) -> dict:
    """Let a process save into `folder`, kill it, and tell what is there."""
    folder.mkdir()
    saver = os.fork()
    if saver == 0:
        try:
            save_until_killed(folder, background)
        finally:
            os._exit(1)
    while latest_noted(folder) < 1:
        assert os.waitpid(saver, os.WNOHANG) == (0, 0), "the saver ended by itself"
    if isinstance(moment, str):
        wait_for(moment, folder, saver, after=4)
    else:
        time.sleep(moment)
    os.kill(saver, signal.SIGKILL)
    exit_code = os.waitstatus_to_exitcode(os.waitpid(saver, 0)[1])
    seen_complete, left = latest_noted(folder), sorted(path.name for path in folder.glob(".*"))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        manager = CheckpointManager(folder, max_checkpoints=2)
        held = manager.load_latest_checkpoint()
    assert held is not None
    moments = [
        value
        for state in held["optimizer_state_dict"]["state"].values()
        for value in state["exp_avg"].unique().tolist()
    ]
    weights = [value for tensor in held["model_state_dict"].values() for value in tensor.unique().tolist()]
    model, optimizer = model_of(held["step"] + 1)
    manager.save_checkpoint(model=model, optimizer=optimizer, epoch=0, step=held["step"] + 1, metric_value=0.0)
    return {
        "moment": moment,
        "exit": exit_code,
        "left": left,
        "seen_complete": seen_complete,
        "latest": held["step"],
        "weights": sorted(set(weights)),
        "moments": sorted(set(moments)),
        "warnings": [str(one.message) for one in caught],
        "names": sorted(path.name for path in folder.iterdir()),
        "saved_after": manager.get_latest_checkpoint_info().step,
    }


def main() -> None:
    root, moments = Path(sys.argv[1]), sys.argv[2]
    torch.set_num_threads(1)
    draw = random.Random(7)
    kinds = [*EVENTS, *EVENTS] if moments == "events" else [draw.uniform(0.0, 0.12) for _ in range(30)]
    for number, moment in enumerate(kinds):
        print(json.dumps(death(root / f"{number}", moment, background=number % 5 != 3)), flush=True)


if __name__ == "__main__":
    main()
