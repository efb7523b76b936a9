"""Random streams: no two share a number, in their seeds and in what a training and an evaluation draw."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from small_trainings import CPU, recipe_of
from torch import Tensor

from lunet import load_flow
from pipeline.core import holdout, streams
from pipeline.core.dataset import Dataset
from pipeline.core.params import Params
from pipeline.core.streams import Stream, generator, stream_seed
from pipeline.evaluation import bases, latents, scores
from pipeline.evaluation.scores import evaluate
from pipeline.train import train
from pipeline.training import fit

NUMBERS = 16  # of each draw; as many in sequence are equal only if the streams are


def test_every_stream_of_every_seed_and_model_has_a_seed_of_its_own() -> None:
    models = ("all", *map(str, range(10)))
    seeds = [stream_seed(name, seed, model) for name in get_args(Stream) for seed in range(20) for model in models]
    assert len(set(seeds)) == len(seeds)


def test_a_stream_is_the_same_in_every_call_and_on_every_machine() -> None:
    assert stream_seed("test", 0) == 502_759_225
    assert torch.equal(torch.rand(3, generator=generator("test", 1)), torch.rand(3, generator=generator("test", 1)))


@pytest.mark.parametrize(("name", "classes"), [("lunet", "all"), ("lunet", "each"), ("realnvp_released", "all")])
def test_no_two_streams_of_a_run_share_a_number(
    params: Params, smoke_values: Any, dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str,
    classes: str,
) -> None:  # fmt: skip
    owners: dict[int, str] = {}
    drawn: dict[bytes, set[str]] = {}
    generators = []  # kept, so that no two have the same id

    def named(stream: Stream, seed: int, model: str = "all", device: Any = "cpu") -> torch.Generator:
        generators.append(streams.generator(stream, seed, model, device))
        owners[id(generators[-1])] = f"{stream} {model}"
        return generators[-1]

    def recording(draw: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def wrapped(*arguments: Any, generator: torch.Generator | None = None, **options: Any) -> Tensor:
            numbers = draw(*arguments, generator=generator, **options)
            if generator is not None and numbers.numel() >= NUMBERS:
                first = numbers.flatten()[:NUMBERS].double().numpy().tobytes()
                drawn.setdefault(first, set()).add(owners.get(id(generator), "algorithm"))
            return numbers

        return wrapped

    for module in (fit, holdout, scores, bases, latents):
        monkeypatch.setattr(module, "generator", named)
    for function in ("rand", "randn", "randperm"):
        monkeypatch.setattr(torch, function, recording(getattr(torch, function)))
    recipe = recipe_of(smoke_values, name, classes=classes)
    fits, _ = train(dataset, recipe, 0, CPU, tmp_path, name)
    evaluate({key: load_flow(tmp_path / key) for key in fits}, dataset, recipe, params.evaluate, 0)
    seen = {owner.partition(" ")[0] for names in drawn.values() for owner in names}
    assert {"split", "order", "training", "validation", "diagnosis", "test", "round", "samples"} <= seen
    assert {"start", "base"} <= seen or name != "lunet"
    assert ("classification" in seen) == (classes == "each")
    assert {frozenset(names) for names in drawn.values() if len(names) > 1} == set()
