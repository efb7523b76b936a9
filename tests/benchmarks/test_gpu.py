from __future__ import annotations

import csv
import gc
import json
import subprocess
import sys
import weakref
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from unittest.mock import MagicMock

import numpy as np
import pytest
import torch

from benchmarks import gpu, gpu_works
from benchmarks.gpu_works import FIGURES, QUICK, Key, Row, Setting, Trainer

SETTING = Setting("cpu", **QUICK)


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["gpu", *arguments])
    gpu.main()


# The command


def test_without_a_gpu_it_says_so_and_fails(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match=r"^no CUDA GPU is here, so there is nothing to measure; ") as caught:
        run(monkeypatch, "--out", str(tmp_path / "out"))
    assert "\n" not in str(caught.value.code)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--parts", "lunet steps"], "there is no 'lunet steps'; there are: lunet step"),
        (["--data", "nowhere"], "nowhere"),
    ],
)
def test_mistakes_are_told(
    arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        run(monkeypatch, "--device", "cpu", *arguments)
    assert message in capsys.readouterr().err


def test_a_rehearsal_writes_samples_and_summary(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    run(monkeypatch, "--device", "cpu", "--quick", "--parts", "evaluation", "--out", str(tmp_path))
    with (tmp_path / "samples.csv").open() as file:
        samples = list(csv.DictReader(file))
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert len(samples) == 4 * QUICK["rounds"]
    assert [(row["figure"], row["precision"], row["n"]) for row in summary["figures"]] == [
        (f"lunet {work}", precision, QUICK["rounds"])
        for work in ("density", "sampling")
        for precision in ("float32", "tf32")
    ]
    first = [
        float(row["value"]) for row in samples if row["figure"] == "lunet density" and row["precision"] == "float32"
    ]
    assert summary["figures"][0]["median"] == pytest.approx(np.median(first), rel=1e-4)
    assert summary["environment"]["torch"] == torch.__version__
    assert summary["failed"] == []


def test_what_the_time_limit_leaves_out_is_recorded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    run(monkeypatch, "--device", "cpu", "--quick", "--time-limit", "1", "--out", str(tmp_path))
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["figures"] == summary["likelihood"] == []
    assert len(summary["failed"]) == sum(len(part.keys) for part in gpu.parts(SETTING).values())
    assert {row["message"] for row in summary["failed"]} == {"not measured: the time limit"}


def test_a_process_that_takes_too_long_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "STARTING_SECONDS", 0)
    rows = gpu.run_part(SETTING, "evaluation", 0.2)
    assert [(row["kind"], row["message"]) for row in rows] == 4 * [("failed", "not measured: the time limit")]


def test_a_process_that_breaks_is_recorded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    rows = gpu.run_part(Setting("cpu", data=tmp_path), "training", 60)
    assert {row["message"] for row in rows} == {"its process ended with status 1"}


def test_it_needs_little(tmp_path: Path) -> None:
    missing = ("dvc", "pydantic", "ruamel.yaml", "psutil", "pynvml", "matplotlib", "pandas", "tqdm", "torchvision")
    code = f"import sys; sys.modules.update(dict.fromkeys({missing})); import benchmarks.gpu"
    subprocess.run([sys.executable, "-c", code], check=True)


# What it measures


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_all_targets_have_keys(device: str) -> None:
    keys = [key for part in gpu.parts(Setting(device)).values() for key in part.keys]
    assert len(set(keys)) == len(keys)
    figures = {key.figure for key in keys}
    wanted = {name for name, figure in FIGURES.items() if figure.target is not None}
    assert figures >= (wanted if device == "cuda" else wanted - {"lunet training peak"})
    steps = {(key.variant, key.precision) for key in keys if key.figure == "lunet step"}
    graphs = ["graph", "compiled, graph"] if device == "cuda" else []
    assert steps >= {(variant, p) for variant in ("eager", "compiled", *graphs) for p in ("float32", "tf32")}


def test_whoever_fails_does_not_stop_the_others() -> None:
    good, bad = Key("lunet step", "eager", "float32"), Key("lunet step", "graph", "tf32")
    seen = []

    def make(setting: Setting, key: Key) -> Callable[[], object]:
        if key == bad:
            raise RuntimeError("operation not permitted\nwhen stream is capturing")
        return lambda: seen.append(torch.backends.cuda.matmul.allow_tf32)

    rows = list(gpu_works.in_turn(SETTING, [bad, good], make))
    assert rows[0] == {"kind": "failed", **bad._asdict(), "message": "RuntimeError: operation not permitted"}
    assert [Key(row["figure"], row["variant"], row["precision"]) for row in rows[1:]] == QUICK["rounds"] * [good]
    assert len(seen) == gpu_works.WARMUP + QUICK["rounds"] * QUICK["in_a_row"]


def test_arithmetic_is_set_for_the_call_alone() -> None:
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    for precision, allowed in (("float32", False), ("tf32", True), ("bfloat16", False)):
        with gpu_works.products_in(precision):
            assert torch.backends.cuda.matmul.allow_tf32 == torch.backends.cudnn.allow_tf32 == allowed
    assert (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32) == before


@pytest.mark.filterwarnings("ignore:.*Function'> should not be instantiated")
@pytest.mark.parametrize(
    "key",
    [
        Key("lunet step", "eager", "float32"),
        Key("lunet step", "compiled", "tf32"),
        Key("lunet_learned step", "eager", "float32"),
        Key("8 linear layers step", "eager", "float32"),
        Key("realnvp step", "eager, channels last", "bfloat16"),
    ],
)
def test_a_step_changes_all_parameters(key: Key, monkeypatch: pytest.MonkeyPatch) -> None:
    stepped: list[torch.Tensor] = []

    class Adam(torch.optim.Adam):
        def __init__(self, parameters: Iterator[torch.Tensor], **options: object) -> None:
            stepped.extend(parameters)
            super().__init__(stepped, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(torch.optim, "Adam", Adam)
    torch.compiler.reset()
    call = gpu_works.make_step(SETTING, key)
    assert all(bool((parameter != 0).any()) for parameter in stepped)  # none of them all zeros
    before = [parameter.detach().clone() for parameter in stepped]
    call()
    changed = [not torch.equal(old, new) for old, new in zip(before, stepped, strict=True)]
    assert all(changed)


@pytest.mark.parametrize(("precision", "error", "refused"), [("tf32", 0.02, True), ("tf32", 0.005, False)])
def test_wrong_gradients_are_refused(precision: str, error: float, refused: bool) -> None:
    weight = torch.ones(3, requires_grad=True)
    x = torch.randn(3)

    def check() -> None:
        gpu_works.require_same_gradients(
            lambda x: (1 + error) * (weight * x).sum(), lambda x: (weight * x).sum(), x, [weight], precision
        )

    if refused:
        with pytest.raises(ArithmeticError, match=r"off by 0\.02"):
            check()
    else:
        check()


def test_a_graph_keeps_the_tensors_that_it_works_on(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("Stream", "CUDAGraph", "graph", "stream", "current_stream"):
        monkeypatch.setattr(torch.cuda, name, MagicMock())
    weights = torch.zeros(2)
    seen, call = weakref.ref(weights), gpu_works.captured(partial(weights.add_, 1))
    assert weights[0] == gpu_works.WARMUP + 1
    del weights
    gc.collect()
    assert seen() is not None
    call()
    torch.cuda.CUDAGraph().replay.assert_called_once_with()  # type: ignore[attr-defined]


def test_bfloat16_reaches_the_networks_of_a_realnvp() -> None:
    seen = []
    flow = gpu_works.realnvp(SETTING)
    flow.full[0].networks[0].last.register_forward_hook(lambda *parts: seen.append(parts[-1].dtype))  # type: ignore[union-attr, index]
    x = torch.randn(2, 784)
    with gpu_works.networks_in("bfloat16", SETTING):
        assert flow.log_prob(x).dtype == torch.float32
    with gpu_works.networks_in("float32", SETTING):
        flow.log_prob(x)
    assert seen == [torch.bfloat16, torch.float32]


def test_memory_is_told_with_its_workspaces(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("init", "empty_cache", "reset_peak_memory_stats", "synchronize"):
        monkeypatch.setattr(torch.cuda, name, lambda: None)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: 90 * 2**20)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda: 32 * 2**20)
    rows = gpu_works.weigh(SETTING, [Key(f"{name} training peak", "eager", "float32") for name in ("lunet", "realnvp")])
    found = [(row["figure"], row["value"]) for row in rows]
    assert found == [
        (f"{n} {f}", v) for n in ("lunet", "realnvp") for f, v in (("training peak", 90), ("workspaces", 32))
    ]
    assert all(figure in FIGURES for figure, _ in found)


# Training


def test_a_trainer_begins_anew_with_each_class() -> None:
    (first, _), (second, _) = gpu_works.class_images(SETTING)
    found = []
    for earlier in ([], [second]):
        trainer = Trainer(SETTING, "eager", "float32")
        for images in (*earlier, first):
            trainer.start(images)
            torch.manual_seed(0)
            trainer.start(images)
            trainer.run(images, 4)
        found.append(trainer.model.state_dict())
    assert all(torch.equal(found[0][name], value) for name, value in found[1].items())


def test_what_a_capture_runs_beforehand_leaves_no_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[bool] = []

    def captured(step: Callable[[], None]) -> Callable[[], None]:
        """What stands in for a graph where there is no GPU: the steps before it, and the step itself."""
        for _ in range(gpu_works.WARMUP):
            step()

        def replay() -> None:
            taken.append(True)
            step()

        return replay

    monkeypatch.setattr(gpu_works, "captured", captured)
    images, _ = gpu_works.class_images(SETTING)[0]
    found = []
    for variant in ("eager", "graph"):
        trainer = Trainer(SETTING, variant, "float32")
        torch.manual_seed(0)
        trainer.start(images)
        trainer.run(images, 4)
        found.append(trainer.model.state_dict())
    assert len(taken) == 4
    assert all(torch.equal(found[0][name], value) for name, value in found[1].items())


def test_the_training_of_all_classes_is_timed_and_scored() -> None:
    key = Key("lunet training", "eager", "tf32")
    set_up, spent, single, half = gpu_works.train_all(SETTING, [key])
    assert (set_up["figure"], spent["figure"]) == ("lunet training set-up", "lunet training")
    assert min(set_up["value"], spent["value"]) > 0
    assert [(row["trained_in"], row["scored_in"]) for row in (single, half)] == [("tf32", "float32"), ("tf32", "tf32")]
    assert single["images"] == 100 * SETTING.classes
    # On a CPU both are float32.
    assert single["bits_per_dim"] == half["bits_per_dim"] > 8
    assert single["largest_difference"] == half["largest_difference"] == 0


def test_training_lowers_the_loss() -> None:
    images = torch.randint(0, 40, (64, 1, 28, 28), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    trainer = Trainer(SETTING, "eager", "float32")
    trainer.start(images)
    before = trainer.model.bits_per_dim(images).mean()
    trainer.run(images, 24)
    assert trainer.model.bits_per_dim(images).mean() < before - 0.01


def test_every_image_is_met_in_each_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    images = torch.arange(20, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, 28, 28).contiguous()
    trainer, met, rates = Trainer(SETTING, "eager", "float32"), [], []

    def step() -> None:
        met.append(trainer._batch[:, 0, 0, 0].tolist())
        rates.append(float(trainer._rate))

    monkeypatch.setattr(trainer, "_step", step)
    trainer.run(images, 6)
    for epoch in (met[:3], met[3:]):
        assert {value for batch in epoch for value in batch} == set(range(20))
    assert met[:3] != met[3:]
    assert max(rates) == pytest.approx(Trainer.RATE, rel=0.1)
    assert min(rates) < Trainer.RATE / 2


def test_the_rate_rises_and_falls() -> None:
    rates = [gpu_works.one_cycle(number, 100, 1.0) for number in range(100)]
    assert rates[0] == pytest.approx(0.04)
    assert rates[10] == max(rates) == pytest.approx(1.0)
    assert rates[99] < 0.001


def test_images_of_a_folder_are_taken_by_class(tmp_path: Path) -> None:
    labels = np.arange(12, dtype=np.uint8) % 3
    for name in ("train", "test"):
        np.save(tmp_path / f"{name}_labels.npy", labels)
        np.save(tmp_path / f"{name}_images.npy", np.broadcast_to(labels[:, None, None], (12, 28, 28)))
    setting = Setting("cpu", data=tmp_path, classes=3)
    for label, (own, test) in enumerate(gpu_works.class_images(setting)):
        assert len(own) == len(test) == 4
        assert bool((own == label).all() & (test == label).all())
    assert len(gpu_works.real_images(setting)[0]) == 12


# Likelihoods


def test_likelihoods_are_of_the_same_images() -> None:
    key = Key("realnvp likelihood", "eager", "float32")
    rows = list(gpu_works.likelihoods(SETTING, [key]))
    assert [row["scored_in"] for row in rows] == ["float64", "float32", "tf32", "bfloat16"]
    exact, single, _, half = rows
    assert exact["largest_difference"] == 0
    assert single["largest_difference"] < 1e-4
    assert single["largest_difference"] < half["largest_difference"] < 0.1
    assert {row["images"] for row in rows} == {QUICK["likelihood_images"]}
    assert exact["pixels_exact"] == 1


# The summary


def sample(key: Key, value: float) -> Row:
    return {"kind": "sample", **key._asdict(), "round": 0, "value": value}


@pytest.mark.parametrize(("values", "within"), [([0.1, 0.11, 0.12, 0.5, 0.6], True), ([0.13] * 5, False)])
def test_medians_stand_beside_target_and_poster(values: Sequence[float], within: bool) -> None:
    key, other = Key("lunet step", "graph", "tf32"), Key("realnvp density", "eager", "float32")
    table = gpu.summarise([sample(other, 5.53), *(sample(key, value) for value in values)])
    assert [row["figure"] for row in table] == ["lunet step", "realnvp density"]
    assert table[0]["median"] == np.median(values)
    assert table[0]["low"] <= table[0]["median"] <= table[0]["high"]
    assert table[0]["within_target"] == within
    assert table[0]["poster_over_median"] == pytest.approx(1.2 / np.median(values))
    assert (table[1]["within_target"], table[1]["low"]) == (None, None)
    assert table[1]["poster_over_median"] == pytest.approx(100)
