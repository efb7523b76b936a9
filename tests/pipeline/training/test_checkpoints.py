"""Checkpoints: exact resumption, damage, the interval between two, and one folder for each training."""

from __future__ import annotations

import contextlib
import errno
import importlib
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.optim import SGD, Adam, lr_scheduler

from pipeline.core.console import UserError
from pipeline.core.params import read_yaml
from pipeline.training import checkpoints
from pipeline.training.checkpoints import Checkpoint, random_state, restore_random_state

ROOT = Path(__file__).parents[3]


def advance(parts: Any, steps: int) -> None:
    model, optimizer, schedule, generator = parts
    for _ in range(steps):
        loss = model(torch.randn(5, 3, generator=generator) + torch.randn(3)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()


SCHEDULES: dict[str, Any] = {
    "one cycle": lambda optimizer: lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=20, cycle_momentum=False),
    "milestones": lambda optimizer: lr_scheduler.MultiStepLR(optimizer, [3, 7]),
    "steps": lambda optimizer: lr_scheduler.StepLR(optimizer, 3),
    "function": lambda optimizer: lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step)),
    "constant": lambda optimizer: lr_scheduler.ConstantLR(optimizer, factor=1.0),
}
OPTIMIZERS: dict[str, Any] = {
    "adam": lambda parameters: Adam(parameters, lr=0.1, fused=True),
    "sgd": lambda parameters: SGD(parameters, lr=0.1, momentum=0.9),
}


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_training_resumes_from_a_checkpoint_exactly(tmp_path: Path, schedule: str, optimizer: str) -> None:
    def parts() -> Any:
        model = torch.nn.Linear(3, 3)
        stepper = OPTIMIZERS[optimizer](model.parameters())
        return model, stepper, SCHEDULES[schedule](stepper), torch.Generator().manual_seed(0)

    first, second, checkpoint = parts(), parts(), Checkpoint(tmp_path / "x.pt", 0)
    advance(first, 5)
    state = {str(index): part.state_dict() for index, part in enumerate(first[:3])}
    checkpoint.write(state | {"random": random_state({"noise": first[3]})}, "here")
    advance(first, 5)
    saved = checkpoint.read()
    assert saved is not None
    for index, part in enumerate(second[:3]):
        part.load_state_dict(saved[str(index)])
    restore_random_state({"noise": second[3]}, saved["random"])
    advance(second, 5)
    for one, other in zip(first[0].parameters(), second[0].parameters(), strict=True):
        assert torch.equal(one, other)
    assert first[2].get_last_lr() == second[2].get_last_lr()


def test_without_a_checkpoint_nothing_is_read(tmp_path: Path) -> None:
    assert Checkpoint(tmp_path / "x.pt").read() is None
    assert Checkpoint().read() is None
    Checkpoint().write({"step": 1}, "here")


def flipped(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


@pytest.mark.parametrize(
    "damage",
    [lambda content: content[:-1], lambda content: b"", lambda content: b"{}", flipped],
    ids=["cut", "empty", "another", "flipped"],
)
def test_a_damaged_checkpoint_is_named_with_what_to_do(tmp_path: Path, damage: Any) -> None:
    path = tmp_path / "all.pt"
    Checkpoint(path, 0).write({"weights": torch.ones(100)}, "here")
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(UserError, match=r"all\.pt is damaged; delete it, and"):
        Checkpoint(path).read()


class Harmful:
    def __reduce__(self) -> Any:
        return Path.touch, (Path("harm"),)


def test_a_checkpoint_contains_no_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Checkpoint(tmp_path / "all.pt", 0).write({"weights": Harmful()}, "here")
    with pytest.raises(UserError, match=r"all\.pt is damaged"):
        Checkpoint(tmp_path / "all.pt").read()
    assert not Path("harm").exists()


def test_a_full_disk_spoils_neither_the_training_nor_the_last_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = Checkpoint(tmp_path / "all.pt", 0)
    checkpoint.write({"step": 1}, "here")

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    checkpoint.write({"step": 2}, "there")
    assert "there: " in (said := capsys.readouterr().out)
    assert "all.pt cannot be written: No space left on device; the training goes on" in said
    assert checkpoint.read() == {"step": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["all.pt"]


def test_a_folder_that_cannot_be_made_does_not_end_the_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    Checkpoint(tmp_path / "file/all.pt", 0).write({"step": 1}, "there")
    assert re.search(r"all\.pt cannot be written: .*; the training goes on", capsys.readouterr().out)


# Interval


def test_checkpoints_cost_less_than_two_percent_of_the_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: clock[0])

    def slow(*_: object) -> None:
        clock[0] += 3

    monkeypatch.setattr(torch, "save", slow)
    checkpoint, spent = Checkpoint(tmp_path / "all.pt", 60), 0.0
    for _ in range(10_000):
        clock[0] += 1
        if checkpoint.is_due():
            before = clock[0]
            checkpoint.write({}, "here")
            spent += clock[0] - before
    assert 0 < spent < 0.02 * clock[0]


def test_checkpoints_keep_a_minimum_interval(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: clock[0])
    checkpoint, often = Checkpoint(tmp_path / "all.pt", 60), Checkpoint(tmp_path / "all.pt", 0)
    clock[0] = 59
    assert not checkpoint.is_due()
    assert often.is_due()
    clock[0] = 60
    assert checkpoint.is_due()
    checkpoint.write({}, "here")
    assert not checkpoint.is_due()


# Folder


def folder_of(monkeypatch: pytest.MonkeyPatch, out: str = "runs/a", seed: int = 0, **code: str) -> Path:
    """The folder of a training that fails."""
    monkeypatch.setattr(checkpoints, "code", lambda: code)
    with contextlib.suppress(ZeroDivisionError), checkpoints.checkpoints(Path(out), {"seed": seed}) as folder:
        raise ZeroDivisionError
    return folder


def test_every_training_has_a_separate_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    first = folder_of(monkeypatch)
    assert first == folder_of(monkeypatch) == folder_of(monkeypatch, str(tmp_path / "runs/../runs/a"))
    identities = [{"out": "runs/b"}, {"seed": 1}, {"lu_net": "changed"}]
    assert len({first, *(folder_of(monkeypatch, **identity) for identity in identities)}) == 1 + len(identities)  # type: ignore[arg-type]
    monkeypatch.setattr(torch, "__version__", "99")
    assert folder_of(monkeypatch) != first


def test_the_folder_is_removed_when_the_training_succeeds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = folder_of(monkeypatch)
    (path / "all.pt").touch()
    with checkpoints.checkpoints(Path("runs/a"), {"seed": 0}) as folder:
        assert folder == path
        assert (folder / "all.pt").exists()
    assert not path.exists()


def test_the_code_is_all_that_dvc_trains_again_for() -> None:
    importlib.import_module("pipeline.train")
    deps = read_yaml(ROOT / "dvc.yaml")["stages"]["train"]["deps"]
    files = [Path(dep) for dep in deps if dep.endswith(".py")]
    files += [path.relative_to(ROOT) for path in (ROOT / "lunet").glob("[!_]*.py")]
    assert {".".join(path.with_suffix("").parts) for path in files} <= set(checkpoints.code())


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".checkpoints").touch()
    with pytest.raises(UserError, match=r"cannot write \.checkpoints"):
        checkpoints.checkpoints(Path("x"), {}).__enter__()
