"""The parameter file: valid values, and the errors for invalid ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pipeline.core.console import UserError
from pipeline.core.params import load_params, validate
from pipeline.presets.merged import PRESETS, load_preset, preset_text, preset_values


@pytest.fixture
def values() -> Any:
    return preset_values("laptop")


def put(values: Any, key: str, value: Any) -> None:
    *parents, last = key.split(".")
    for parent in parents:
        values = values[parent]
    values[last] = value


# What is allowed


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_are_valid_and_contain_their_name(preset: str) -> None:
    assert load_preset(preset).preset == preset


def test_the_committed_parameters_are_the_laptop_preset() -> None:
    assert Path("params.yaml").read_bytes() == preset_text("laptop").encode()


def test_the_paper_preset_has_the_papers_scale() -> None:
    params = load_preset("paper")
    lunet, realnvp = params.recipe("lunet"), params.recipe("realnvp")
    assert lunet.training is not None
    assert realnvp.training is not None
    assert (lunet.classes, lunet.model.options["layers"], lunet.training.epochs) == ("each", 4, 40)
    assert (realnvp.classes, realnvp.training.epochs, realnvp.model.options["planes"]) == ("each", 100, 64)


def test_margin_may_be_a_pair(values: Any) -> None:
    put(values, "recipes.realnvp.margin", [0.05, 0])
    assert validate(values, "params.yaml").recipe("realnvp").margin == (0.05, 0)


@pytest.mark.parametrize("name", ["kmnist", "names", "get", "model_dump"])
def test_a_custom_data_set_may_have_any_valid_name(values: Any, name: str) -> None:
    put(values, f"data.{name}", {"path": "a.npz"})
    put(values, "grid.datasets", [name, "mnist"])
    params = validate(values, "params.yaml")
    assert params.dataset(name).path == "a.npz"  # type: ignore[union-attr]
    assert params.dataset("mnist").source == "auto"  # type: ignore[union-attr]
    assert params.data.names == ("mnist", "fashion_mnist", name)
    with pytest.raises(UserError, match=f"data has: mnist, fashion_mnist, {name}"):
        params.dataset("cifar")


# What is refused, with the key, the value and what is allowed


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("device", "gpu", ["device", "'gpu'", "'auto', 'cpu' or 'cuda'"]),
        ("grid.datasets", ["cifar"], ["grid.datasets", "'cifar'", "mnist, fashion_mnist"]),
        ("grid.recipes", ["lunett"], ["grid.recipes", "'lunett'", "lunet, lunet_learned"]),
        ("grid.seeds", [0, 0], ["grid.seeds", "twice"]),
        ("measure.datasets", ["mnist", "mnist"], ["measure.datasets", "twice"]),
        ("measure.datasets", [], ["measure.datasets", "at least 1"]),
        ("measure.datasets", ["cifar"], ["measure.datasets", "'cifar'", "mnist, fashion_mnist"]),
        ("grid.seeds", [], ["grid.seeds", "at least 1"]),
        ("recipes.lunet.training.epochs", 1e300, ["recipes.lunet.training.epochs", "1e+300", "1000000"]),
        ("recipes.lunet.training.batch_size", 10**30, ["recipes.lunet.training.batch_size", "1000000"]),
        ("grid.seeds", [2**64], ["grid.seeds.0", "less than 4294967296"]),
        ("checkpoint_seconds", -1, ["checkpoint_seconds", "-1", "greater than or equal to 0"]),
        ("deterministic", "yes", ["deterministic", "'yes'", "boolean"]),
        ("recipes.lunet.model", {"layers": 4}, ["recipes.lunet.model.kind", "missing"]),
        ("recipes.lunet.margin", 0.7, ["recipes.lunet.margin", "0.7", "below 0.5"]),
        ("recipes.realnvp.training.epochs", "3", ["recipes.realnvp.training.epochs", "'3'", "number"]),
        ("recipes.realnvp.training.learning_rate", float("nan"), ["learning_rate", "nan"]),
        ("recipes.lunet.training.warmup", None, ["recipes.lunet.training", "warmup", "one_cycle", "a number"]),
        ("recipes.lunet.training.halve_every", 3, ["halve_every is 3", "one_cycle", "null"]),
        ("recipes.lunet.training.holdout", 0.7, ["recipes.lunet.training.holdout", "0.7", "at most 0.5", "test"]),
        ("evaluate.draws", 0, ["evaluate.draws", "0"]),
        ("measure.repetitions", 1.5, ["measure.repetitions", "1.5", "integer"]),
        ("data.kmnist", {}, ["data.kmnist.path", "missing"]),
        ("data.kmnist", {"path": "a", "folder": None}, ["data.kmnist.folder", "unknown key"]),
        ("data.minst", {"source": "auto", "folder": None}, ["data.minst.source", "unknown key", "data.minst.path"]),
        ("data.KMNIST", {"path": "a"}, ["data", "'KMNIST' cannot name a data set", "small letters"]),
        ("sead", 1, ["sead", "unknown key", "'seeds'"]),
    ],
)  # fmt: skip
def test_a_mistake_is_named(values: Any, key: str, value: Any, words: list[str]) -> None:
    put(values, key, value)
    with pytest.raises(UserError) as caught:
        validate(values, "params.yaml")
    for word in ["params.yaml", *words]:
        assert word in str(caught.value)


def test_every_mistake_is_reported_at_once(values: Any) -> None:
    put(values, "device", "gpu")
    put(values, "evaluate.draws", 0)
    with pytest.raises(UserError, match=r"2 mistake\(s\)"):
        validate(values, "params.yaml")


@pytest.mark.parametrize("text", ["a: [", "", "- 1", "\x00", "just words", "2001-99-99", "a: !!int x", "[" * 1000])
def test_a_file_that_is_not_a_set_of_parameters_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=r"params\.yaml"):
        load_params(path)


def test_a_missing_file_says_how_to_write_one(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"python -m pipeline\.preset laptop"):
        load_params(tmp_path / "params.yaml")


def test_the_error_for_an_unknown_recipe_lists_the_known_ones() -> None:
    with pytest.raises(UserError, match="lunet, lunet_learned, realnvp, lunet_released, realnvp_released, gaussian"):
        load_preset("laptop").recipe("glow")
