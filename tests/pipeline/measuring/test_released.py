"""The times that the stopwatch of the released code would report."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from small_trainings import CPU
from torch.utils._python_dispatch import TorchDispatchMode

from lunet import ImageFlow, LUNet
from pipeline.core.params import validate
from pipeline.measuring.quantities import QUANTITIES
from pipeline.measuring.released import sample_as_released
from pipeline.measuring.stopwatch import Milliseconds
from pipeline.measuring.work import Work


class Reads(TorchDispatchMode):
    """Records the operations that read a value from the device."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.names: list[str] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if str(function) in ("aten._local_scalar_dense.default", "aten.nonzero.default"):
            self.names.append(str(function))
        return function(*args, **(kwargs or {}))


def released_work(values: Any, name: str, monkeypatch: pytest.MonkeyPatch, images: int) -> Work:
    """The input of a measuring process, with a clock that advances by one second at each reading."""
    readings = iter(range(1000))
    monkeypatch.setattr("pipeline.measuring.stopwatch.time.perf_counter", lambda: next(readings))
    params = validate(values, "params.yaml")
    pixels = torch.arange(images * 64).remainder(251).to(torch.uint8).reshape(images, 8, 8)
    return Work(params.recipe(name), pixels, CPU, params.measure)


@pytest.mark.parametrize(("name", "size"), [("lunet", 256), ("realnvp", 128)])
def test_the_released_density_is_a_pass_over_the_batch_size(
    smoke_values: Any, monkeypatch: pytest.MonkeyPatch, name: str, size: int
) -> None:
    seen: list[int] = []
    bits_per_dim = ImageFlow.bits_per_dim

    def counted(self: ImageFlow, images: torch.Tensor, **options: Any) -> torch.Tensor:
        seen.append(len(images))
        return bits_per_dim(self, images, **options)

    monkeypatch.setattr(ImageFlow, "bits_per_dim", counted)
    monkeypatch.setattr("pipeline.measuring.released.CPU_IMAGES", 300)
    timing = QUANTITIES["times.released_density"](released_work(smoke_values, name, monkeypatch, 1500))
    assert seen == ([256, 44] if name == "lunet" else [128, 128, 44])
    # The clock gives one second for the first batch and one for the others of 300 images; in all there are 1,500.
    assert timing.samples == [pytest.approx((1000 + 1000 * (1500 - size) / (300 - size)) / size)]
    assert (timing.batch, timing.images, timing.of) == (size, 300, 1500)


@pytest.mark.parametrize(("name", "count"), [("lunet", 100), ("realnvp", 64)])
def test_the_released_sampling_is_one_call_over_its_images(
    smoke_values: Any, monkeypatch: pytest.MonkeyPatch, name: str, count: int
) -> None:
    monkeypatch.setattr("pipeline.measuring.released.RELEASED_POINTS", (-1000, 1000.5, 0.5))
    timing = QUANTITIES["times.released_sampling"](released_work(smoke_values, name, monkeypatch, 8))
    assert timing.samples == [1000 / count]
    assert timing.batch == count


def test_the_released_step_is_the_first_update_alone(smoke_values: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[str] = []
    monkeypatch.setattr("torch.optim.Adam.step", lambda self: steps.append("step"))
    monkeypatch.setattr("torch.optim.SGD.step", lambda self: steps.append("step"))
    timing = QUANTITIES["times.released_optimizer_step"](released_work(smoke_values, "lunet", monkeypatch, 32))
    assert steps == ["step"]
    assert (timing.samples, timing.batch) == ([1000.0], 32)


@pytest.mark.parametrize("quantity", ["optimizer_step", "density", "sampling"])
@pytest.mark.parametrize("name", ["lunet", "realnvp", "realnvp_released"])
def test_the_released_stopwatch_reads_no_value_from_the_device(
    smoke_values: Any, monkeypatch: pytest.MonkeyPatch, name: str, quantity: str
) -> None:
    timed = []

    def watched(call: Any, device: None) -> Milliseconds:
        with Reads() as reads:
            call()
        timed.append(reads.names)
        return Milliseconds(1.0, 1.0)

    monkeypatch.setattr("pipeline.measuring.released.clock", watched)
    monkeypatch.setattr("pipeline.measuring.released.RELEASED_POINTS", (-1000, 1000.5, 0.5))
    # On a GPU no matrix is folded, for which a CPU reads values.
    monkeypatch.setattr("lunet.folding._pays", lambda lu, x: False)
    QUANTITIES[f"times.released_{quantity}"](released_work(smoke_values, name, monkeypatch, 200))
    assert timed
    assert not any(timed)


def test_a_checked_flow_reads_a_value(smoke_values: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with Reads() as reads:
        released_work(smoke_values, "realnvp", monkeypatch, 8).model().eval().sample(2)
    assert reads.names


@pytest.mark.parametrize("quantity", ["optimizer_step", "density", "sampling"])
@pytest.mark.parametrize("name", ["lunet_learned", "gaussian", "histogram"])
def test_the_released_stopwatch_times_only_the_paper_s_models(
    smoke_values: Any, monkeypatch: pytest.MonkeyPatch, name: str, quantity: str
) -> None:
    assert QUANTITIES[f"times.released_{quantity}"](released_work(smoke_values, name, monkeypatch, 8)) is None


def test_sampling_as_released_inverts_the_flow() -> None:
    torch.manual_seed(0)
    flow = LUNet(6, 4).double()
    with torch.no_grad():
        for layer in flow.layers:
            layer.lu.add_(0.1 * torch.randn(6, 6))
            # Far below, the inverse leaves the points to which the splines are fitted.
            layer.bias.sub_(2)
        torch.manual_seed(1)
        samples = sample_as_released(flow, 50)
        torch.manual_seed(1)
        latents = torch.randn(50, 6, dtype=torch.float64)
        # Cubic splines at a step of 0.001.
        torch.testing.assert_close(samples, flow.inverse(latents), rtol=1e-7, atol=1e-7)
