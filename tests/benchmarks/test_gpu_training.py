"""Trainings of the GPU benchmark: no trace of earlier ones, batches, schedule, memory and likelihoods."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from gpu_setting import SETTING

from benchmarks import gpu_training, gpu_works
from benchmarks.gpu_training import Trainer
from benchmarks.gpu_works import FIGURES, QUICK, Key


def test_a_trainer_keeps_nothing_of_the_class_before() -> None:
    (first, _), (second, _) = gpu_works.class_images(SETTING)
    states = []
    for earlier in ([], [second]):
        trainer = Trainer(SETTING, "eager", "float32")
        for images in (*earlier, first):
            trainer.initialise(images)
            torch.manual_seed(0)
            trainer.initialise(images)
            trainer.train(images, 4)
        states.append(trainer.model.state_dict())
    assert all(torch.equal(states[0][name], value) for name, value in states[1].items())


def test_the_steps_before_a_capture_leave_no_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    replays: list[bool] = []

    def captured(step: Callable[[], None]) -> Callable[[], None]:
        """Replaces a CUDA graph without a GPU: the steps before the capture, then the step itself."""
        for _ in range(gpu_works.WARMUP):
            step()

        def replay() -> None:
            replays.append(True)
            step()

        return replay

    monkeypatch.setattr(gpu_training, "captured", captured)
    images, _ = gpu_works.class_images(SETTING)[0]
    states = []
    for variant in ("eager", "graph"):
        trainer = Trainer(SETTING, variant, "float32")
        torch.manual_seed(0)
        trainer.initialise(images)
        trainer.train(images, 4)
        states.append(trainer.model.state_dict())
    assert len(replays) == 4
    assert all(torch.equal(states[0][name], value) for name, value in states[1].items())


def test_training_lowers_the_loss() -> None:
    images = torch.randint(0, 40, (64, 1, 28, 28), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    trainer = Trainer(SETTING, "eager", "float32")
    trainer.initialise(images)
    before = trainer.model.bits_per_dim(images).mean()
    trainer.train(images, 24)
    assert trainer.model.bits_per_dim(images).mean() < before - 0.01


def test_every_epoch_contains_every_image(monkeypatch: pytest.MonkeyPatch) -> None:
    images = torch.arange(20, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, 28, 28).contiguous()
    trainer, batches, rates = Trainer(SETTING, "eager", "float32"), [], []

    def step() -> None:
        batches.append(trainer._batch[:, 0, 0, 0].tolist())
        rates.append(float(trainer._rate))

    monkeypatch.setattr(trainer, "_step", step)
    trainer.train(images, 6)
    for epoch in (batches[:3], batches[3:]):
        assert {value for batch in epoch for value in batch} == set(range(20))
    assert batches[:3] != batches[3:]
    assert max(rates) == pytest.approx(Trainer.RATE, rel=0.1)
    assert min(rates) < Trainer.RATE / 2


def test_memory_is_reported_with_its_workspaces(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("init", "empty_cache", "reset_peak_memory_stats", "synchronize"):
        monkeypatch.setattr(torch.cuda, name, lambda: None)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: 90 * 2**20)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda: 32 * 2**20)
    rows = gpu_training.measure_memory(
        SETTING, [Key(f"{name} training peak", "eager", "float32") for name in ("lunet", "realnvp")]
    )
    figures = [(row["figure"], row["value"]) for row in rows]
    assert figures == [
        (f"{n} {f}", v) for n in ("lunet", "realnvp") for f, v in (("training peak", 90), ("workspaces", 32))
    ]
    assert all(figure in FIGURES for figure, _ in figures)


def test_the_training_of_all_classes_is_timed_and_scored() -> None:
    key = Key("lunet training", "eager", "tf32")
    set_up, training, single, tf32 = gpu_training.train_all(SETTING, [key])
    assert (set_up["figure"], training["figure"]) == ("lunet training set-up", "lunet training")
    assert min(set_up["value"], training["value"]) > 0
    assert [(row["trained_in"], row["scored_in"]) for row in (single, tf32)] == [("tf32", "float32"), ("tf32", "tf32")]
    assert single["images"] == 100 * SETTING.classes
    # On a CPU both precisions are float32.
    assert single["bits_per_dim"] == tf32["bits_per_dim"] > 8
    assert single["largest_difference"] == tf32["largest_difference"] == 0


def test_the_rate_rises_and_falls() -> None:
    rates = [gpu_training.one_cycle(number, 100, 1.0) for number in range(100)]
    assert rates[0] == pytest.approx(0.04)
    assert rates[10] == max(rates) == pytest.approx(1.0)
    assert rates[99] < 0.001


def test_likelihoods_in_all_precisions_are_of_the_same_images() -> None:
    key = Key("realnvp likelihood", "eager", "float32")
    rows = list(gpu_training.likelihoods(SETTING, [key]))
    assert [row["scored_in"] for row in rows] == ["float64", "float32", "tf32", "bfloat16"]
    exact, single, _, half = rows
    assert exact["largest_difference"] == 0
    assert single["largest_difference"] < 1e-4
    assert single["largest_difference"] < half["largest_difference"] < 0.1
    assert {row["images"] for row in rows} == {QUICK["likelihood_images"]}
    assert exact["pixels_exact"] == 1
