"""Steps and evaluations of the GPU benchmark: failures, precisions, CUDA graphs, gradients and images."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from unittest.mock import MagicMock

import numpy as np
import pytest
import torch
from gpu_setting import SETTING

from benchmarks import gpu_works
from benchmarks.gpu_works import QUICK, Key, Setting


def test_a_key_that_fails_does_not_stop_the_others() -> None:
    good, bad = Key("lunet step", "eager", "float32"), Key("lunet step", "graph", "tf32")
    seen = []

    def make(setting: Setting, key: Key) -> Callable[[], object]:
        if key == bad:
            raise RuntimeError("operation not permitted\nwhen stream is capturing")
        return lambda: seen.append(torch.backends.cuda.matmul.allow_tf32)

    rows = list(gpu_works.interleave(SETTING, [bad, good], make))
    assert rows[0] == {"kind": "failed", **bad._asdict(), "message": "RuntimeError: operation not permitted"}
    assert [Key(row["figure"], row["variant"], row["precision"]) for row in rows[1:]] == QUICK["rounds"] * [good]
    assert len(seen) == gpu_works.WARMUP + QUICK["rounds"] * QUICK["in_a_row"]


def test_precision_is_set_for_the_call_only() -> None:
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    for precision, allowed in (("float32", False), ("tf32", True), ("bfloat16", False)):
        with gpu_works.matmul_precision(precision):
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
    assert all(bool((parameter != 0).any()) for parameter in stepped)  # none is all zeros
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


def test_a_graph_keeps_its_tensors_alive(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("Stream", "CUDAGraph", "graph", "stream", "current_stream"):
        monkeypatch.setattr(torch.cuda, name, MagicMock())
    weights = torch.zeros(2)
    reference, call = weakref.ref(weights), gpu_works.captured(partial(weights.add_, 1))
    assert weights[0] == gpu_works.WARMUP + 1
    del weights
    gc.collect()
    assert reference() is not None
    call()
    torch.cuda.CUDAGraph().replay.assert_called_once_with()  # type: ignore[attr-defined]


def test_bfloat16_reaches_the_networks_of_a_realnvp() -> None:
    seen = []
    flow = gpu_works.image_flow(SETTING, "realnvp").flow
    flow.full[0].networks[0].last.register_forward_hook(lambda *parts: seen.append(parts[-1].dtype))  # type: ignore[union-attr, index]
    x = torch.randn(2, 784)
    with gpu_works.network_autocast("bfloat16", SETTING):
        assert flow.log_prob(x).dtype == torch.float32
    with gpu_works.network_autocast("float32", SETTING):
        flow.log_prob(x)
    assert seen == [torch.bfloat16, torch.float32]


def test_images_of_a_folder_are_taken_by_class(tmp_path: Path) -> None:
    labels = np.arange(12, dtype=np.uint8) % 3
    for name in ("train", "test"):
        np.save(tmp_path / f"{name}_labels.npy", labels)
        np.save(tmp_path / f"{name}_images.npy", np.broadcast_to(labels[:, None, None], (12, 28, 28)))
    setting = Setting("cpu", data=tmp_path, classes=3)
    for label, (train, test) in enumerate(gpu_works.class_images(setting)):
        assert len(train) == len(test) == 4
        assert bool((train == label).all() & (test == label).all())
    assert len(gpu_works.real_images(setting)[0]) == 12
