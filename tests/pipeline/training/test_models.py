"""The model of each recipe: its settings, architecture, size limits, classes and initialisation."""

from __future__ import annotations

import copy
import math
import re
from typing import Any

import pytest
import torch
from small_trainings import recipe_of
from torch import nn
from torch.nn.functional import conv2d

from lunet import Activation, Flow, Gaussian
from pipeline.core.console import UserError
from pipeline.core.dataset import Dataset
from pipeline.core.params import Params, validate
from pipeline.presets.merged import preset_values
from pipeline.training.models import build, check, checked_recipe, groups, initialise_


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("lunet", "LUNet"),
        ("lunet_learned", "LearnedLUNet"),
        ("realnvp", "RealNVP"),
        ("lunet_released", "LUNet"),
        ("realnvp_released", "ReleasedRealNVP"),
        ("gaussian", "Gaussian"),
        ("histogram", "Histogram"),
    ],
)
def test_each_recipe_has_its_flow_and_dtype(params: Params, name: str, kind: str) -> None:
    model = build(params.recipe(name), (1, 8, 8))
    assert (type(model.flow).__name__, model.flow.features, model.shape) == (kind, 64, (1, 8, 8))
    floating = {tensor.dtype for tensor in model.state_dict().values() if tensor.is_floating_point()}
    assert floating == {torch.float64 if name == "lunet_released" else torch.float32}


def test_a_size_that_an_architecture_cannot_take_is_refused(params: Params) -> None:
    with pytest.raises(
        UserError, match=r"a realnvp cannot take images of 7x7 pixels: .*take the recipe or the data set"
    ):
        build(params.recipe("realnvp"), (1, 7, 7))


def test_a_recipe_has_one_model_for_all_classes_or_one_per_class(smoke_values: Any, dataset: Dataset) -> None:
    assert groups(dataset, recipe_of(smoke_values, "lunet", classes="all")) == {"all": None}
    assert groups(dataset, recipe_of(smoke_values, "lunet", classes="each")) == {"0": 0, "1": 1}


def test_images_that_do_not_determine_a_model_are_refused(smoke_values: Any) -> None:
    smoke_values["recipes"]["lunet"]["model"]["start"] = "whiten"
    recipe = recipe_of(smoke_values, "lunet")
    images = torch.zeros(3, 8, 8, dtype=torch.uint8)
    with pytest.raises(UserError, match="the start whiten of a lunet fails on 3 images"):
        initialise_(build(recipe, (1, 8, 8)), recipe, images, torch.Generator().manual_seed(0))


# Settings

ACTIVATION = "lunet.model.activation"
SOFTPLUS, SPLINE = {"kind": "LeakySoftplus"}, {"kind": "LearnedMonotone"}


@pytest.fixture(scope="module")
def laptop() -> Any:
    return preset_values("laptop")


@pytest.mark.parametrize("preset", ["smoke", "laptop", "overnight", "paper"])
def test_presets_are_accepted(preset: str) -> None:
    check(validate(preset_values(preset), preset), preset)


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("lunet.model.slope", 2, ["recipes.lunet.model", "slope is 2", "between 0.001 and 1"]),
        ("lunet.model.slope", "x", ["recipes.lunet.model.slope: is 'x'", "number"]),
        ("lunet.model.layers", 0, ["recipes.lunet.model", "layers is 0", "at least 1"]),
        ("lunet.model.layers", 10**30, ["recipes.lunet.model.layers", "less than or equal to 4096"]),
        ("lunet.model.layerz", 3, ["recipes.lunet.model.layerz", "unknown key", "'layers'"]),
        ("lunet.model.start", "fit", ["recipes.lunet.model.start", "'fit'", "'copula'", "'identity'"]),
        (ACTIVATION, {"kind": "Sine"}, [f"recipes.{ACTIVATION}.kind: is 'Sine'", "LeakySoftplus"]),
        (ACTIVATION, {"slope": 0.1}, [f"recipes.{ACTIVATION}.kind: is None", "LeakySoftplus"]),
        (ACTIVATION, {**SOFTPLUS, "slope": "x"}, [f"recipes.{ACTIVATION}.slope: is 'x'", "number"]),
        (ACTIVATION, {**SOFTPLUS, "slop": 0.1}, [f"recipes.{ACTIVATION}.slop", "unknown", "'slope'"]),
        (ACTIVATION, {**SPLINE, "features": 3}, [f"recipes.{ACTIVATION}.features: unknown key"]),
        (ACTIVATION, {**SPLINE, "bins": 8}, ["recipes.lunet.model: slope and activation are both given"]),
        ("lunet.model.leading", {**SPLINE, "bins": 1}, ["recipes.lunet.model: bins is 1"]),
        ("lunet_learned.model.start", "copula", ["recipes.lunet_learned.model.start", "'copula'", "'whiten'"]),
        ("lunet_learned.model.bins", 1, ["recipes.lunet_learned.model", "bins is 1"]),
        ("realnvp.model.couplings", [3, 3], ["recipes.realnvp.model.couplings.2", "missing"]),
        ("realnvp.model.couplings", [3, -1, 2], ["recipes.realnvp.model", "couplings are (3, -1, 2)"]),
        ("realnvp.model.networks", "both", ["recipes.realnvp.model.networks", "'separate' or 'shared'"]),
        ("realnvp.model.planes", 0, ["recipes.realnvp.model", "planes is 0"]),
        ("gaussian.model.kind", "gauss", ["recipes.gaussian.model.kind", "'gauss'", "'gaussian'"]),
        ("gaussian.model.ridge", float("nan"), ["recipes.gaussian.model.ridge", "finite"]),
        ("gaussian.margin", None, ["recipes.gaussian", "margin must be null for a flow on values between 0 and 1"]),
        ("histogram.margin", 0.1, ["recipes.histogram", "margin must be null for a flow on values between 0 and 1"]),
        ("lunet.training", None, ["recipes.lunet", "training is needed"]),
        ("lunet.training.optimizer", "adamw", ["recipes.lunet.training.optimizer", "'adamw'", "'adam' or 'sgd'"]),
        ("realnvp.training.elementwise_rate", 0.1, ["recipes.realnvp", "elementwise_rate", "no LU layers"]),
        ("realnvp.training.objective", "released", ["recipes.realnvp", "no realnvp has", "likelihood"]),
    ],
)  # fmt: skip
def test_a_mistake_is_named(laptop: Any, key: str, value: Any, words: list[str]) -> None:
    values = copy.deepcopy(laptop)
    *parents, last = key.split(".")
    section = values["recipes"]
    for parent in parents:
        section = section[parent]
    section[last] = value
    params = validate(values, "params.yaml")
    for refuse in (lambda: check(params, "params.yaml"), lambda: checked_recipe(params, parents[0], "params.yaml")):
        with pytest.raises(UserError) as caught:
            refuse()
        for word in ["params.yaml has 1 mistake(s)", *words]:
            assert word in str(caught.value)
    other = "histogram" if parents[0] == "gaussian" else "gaussian"
    assert checked_recipe(params, other, "params.yaml") == params.recipe(other)


def test_every_mistake_is_reported_at_once(laptop: Any) -> None:
    values = copy.deepcopy(laptop)
    values["recipes"]["lunet"]["model"] |= {"slope": "x", "layers": 0.5}
    values["recipes"]["realnvp"]["training"] = None
    with pytest.raises(UserError, match=r"3 mistake\(s\)"):
        check(validate(values, "params.yaml"), "params.yaml")


def test_a_size_of_ones_own_is_accepted() -> None:
    class Only32(Gaussian, kind="only_32"):
        def __init__(self, features: int) -> None:
            if features != 32 * 32:
                raise ValueError(f"features is {features}")
            super().__init__(features)

        def config(self) -> dict[str, Any]:
            return {"features": self.features}

    values = preset_values("smoke")
    values["recipes"]["gaussian"]["model"] = {"kind": "only_32"}
    check(validate(values, "params.yaml"), "params.yaml")
    del Flow.kinds["only_32"]


class Odd(Gaussian, kind="odd_of_this_test"):
    """A constructor with all that Python allows."""

    def __init__(self, features, sizes: list[int], pairs: tuple[tuple[int, int], ...] = (), free=3, **more: Any):  # type: ignore[no-untyped-def]
        torch.randperm(features).tolist()
        super().__init__(features)
        self.given = (sizes, pairs, free, more)

    def config(self) -> dict[str, Any]:
        sizes, pairs, free, _ = self.given
        return {"features": self.features, "sizes": sizes, "pairs": pairs, "free": free}


class Activated(Gaussian, kind="activated_of_this_test"):
    """A flow that takes an activation, and no description of one."""

    def __init__(self, features: int, activation: Activation, *, wrong: bool = False) -> None:
        super().__init__(features)
        self.activation = activation
        if wrong:
            self.missing  # noqa: B018


def with_own_model(recipe: str = "gaussian", **model: Any) -> Params:
    values = preset_values("smoke")
    values["recipes"] = {name: values["recipes"][name] for name in ("lunet", "gaussian", "realnvp")}
    values["grid"]["recipes"] = ["lunet"]
    values["recipes"][recipe]["model"] = model
    return validate(values, "params.yaml")


def test_any_flow_is_given_the_activation_that_its_recipe_describes() -> None:
    params = with_own_model(kind="activated_of_this_test", activation={**SPLINE, "bins": 4})
    flow = build(params.recipe("gaussian"), (1, 4, 4)).flow
    assert isinstance(flow, Activated)
    assert flow.activation.describe() == {"kind": "LearnedMonotone", "features": 16, "bins": 4, "bound": 4.0}


class Wrong(Flow, kind="wrong_of_this_test"):
    """The map x e^s with a log-determinant that is wrong, except at s = 0."""

    def __init__(self, features: int) -> None:
        super().__init__(features)
        self.log_scale = nn.Parameter(torch.zeros(features))

    def _forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return x * self.log_scale.exp(), x.new_zeros(len(x))

    def _inverse(self, z: torch.Tensor) -> torch.Tensor:
        return z * (-self.log_scale).exp()

    def config(self) -> dict[str, Any]:
        return {"features": self.features}


class Sizeless(Wrong, kind="sizeless_of_this_test"):
    """A flow that does not say how many features it has."""

    def __init__(self) -> None:
        super().__init__(16)


class Unfinished(Wrong, kind="unfinished_of_this_test"):
    """A flow without an inverse."""

    def _forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return super()._forward(x)[0], self.log_scale.sum().expand(len(x))

    def _inverse(self, z: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError("to do")


class Lossy(Wrong, kind="lossy_of_this_test"):
    """A flow that maps everything to zero."""

    def _forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return 0 * x, x.new_zeros(len(x))


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("activated", r"Activated .*: Activated\.config\(\) lacks 'activation', an argument of the constructor"),
        ("failing", r"the code of the model fails: AttributeError: .*'missing' \(test_models\.py, line \d+\)"),
        ("wrong", r"Wrong\._forward: log-determinants differ from the Jacobian's by up to \d"),
        ("unfinished", r"the code of the model fails: NotImplementedError: to do \(test_models\.py, line \d+\)"),
        ("lossy", r"Lossy\._inverse: the inverse of latents differs from the data by up to \d"),
        ("sizeless", r"the constructor of Sizeless has no argument called 'features' or 'shape'"),
    ],
)
def test_a_mistake_in_a_flow_is_distinguished_from_one_in_the_parameters(kind: str, words: str) -> None:
    activated = {"kind": "activated_of_this_test", "activation": SOFTPLUS}
    settings: dict[str, Any] = {"activated": activated, "failing": activated | {"wrong": True}}
    recipe = "gaussian" if kind in settings else "realnvp"
    params = with_own_model(recipe, **settings.get(kind, {"kind": f"{kind}_of_this_test"}))
    with pytest.raises(UserError, match=rf"recipes\.{recipe}\.model: {words}"):
        check(params, "params.yaml")


class Needy(Flow, kind="needy_of_this_test"):
    """The map x a, with what a flow may need: positive parameters, large images, or one dtype."""

    def __init__(self, features: int, needs: str) -> None:
        super().__init__(features)
        self.needs = needs
        self.scale = nn.Parameter(torch.full((features,), 0.1))
        self.nothing = nn.Parameter(torch.zeros(features, 0))
        if needs == "large images" and features < 500:
            raise AssertionError(features)
        self.side = math.isqrt(features)
        self.part = 100 // (self.side // 20) if needs == "division" else 0

    def _forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        if self.needs == "a large network":
            conv2d(x.view(-1, 1, self.side, self.side), x.new_zeros(1, 1, 9, 9))
        if self.needs == "float32":
            torch.zeros(self.features) @ x.T
        return x * self.scale, self.scale.log().sum().expand(len(x))

    def _inverse(self, z: torch.Tensor) -> torch.Tensor:
        return z / self.scale

    def config(self) -> dict[str, Any]:
        return {"features": self.features, "needs": self.needs}


@pytest.mark.parametrize("needs", ["positive numbers", "large images", "division", "a large network", "float32"])
def test_what_a_right_flow_may_need_is_no_mistake(needs: str) -> None:
    check(with_own_model("realnvp", kind="needy_of_this_test", needs=needs), "params.yaml")


@pytest.mark.parametrize(
    ("recipe", "model"),
    [
        ("lunet", {"kind": "lunet", "layers": 100}),
        ("lunet", {"kind": "lunet_learned", "layers": 50}),
        ("realnvp", {"kind": "realnvp", "couplings": [16, 16, 16], "planes": 8, "blocks": 1}),
    ],
)
def test_a_deep_model_is_no_mistake(recipe: str, model: dict[str, Any]) -> None:
    check(with_own_model(recipe, **model), "params.yaml")


def test_any_constructor_is_checked_and_called() -> None:
    values = preset_values("smoke")
    model = {"kind": "odd_of_this_test", "sizes": [64, 64], "pairs": [[1, 2]], "free": "text"}
    values["recipes"]["gaussian"]["model"] = model
    params = validate(values, "params.yaml")
    check(params, "params.yaml")
    flow = build(params.recipe("gaussian"), (1, 4, 4)).flow
    assert isinstance(flow, Odd)
    assert flow.given == ([64, 64], ((1, 2),), "text", {})
    values["recipes"]["gaussian"]["model"] = {**model, "sizes": ["x"]}
    with pytest.raises(UserError, match=r"recipes\.gaussian\.model\.sizes\.0: is 'x'"):
        check(validate(values, "params.yaml"), "params.yaml")
    with pytest.raises(UserError, match=r"the recipe has 1 mistake\(s\):\n  model\.sizes\.0: is 'x'"):
        build(validate(values, "params.yaml").recipe("gaussian"), (1, 4, 4))


@pytest.mark.parametrize(
    ("name", "changes", "words"),
    [
        ("lunet", {"precision": "bfloat16"}, "training.precision must be float32 for a lunet, whose map would lose"),
        ("lunet_learned", {"precision": "tf32"}, "training.precision must be float32 for a lunet_learned"),
        ("lunet", {"compile": True}, "training.compile must be false for a lunet, which has no networks to compile"),
        (
            "realnvp",
            {"precision": "float16"},
            "precision: is 'float16'; input should be 'float32', 'tf32' or 'bfloat16'",
        ),
    ],
)
def test_reduced_precision_and_compilation_are_for_networks(
    smoke_values: Any, name: str, changes: dict[str, Any], words: str
) -> None:
    smoke_values["recipes"][name]["training"] |= changes
    with pytest.raises(UserError, match=re.escape(words)):
        check(validate(smoke_values, "params.yaml"), "params.yaml")


def test_reduced_precision_is_of_float32(smoke_values: Any) -> None:
    smoke_values["recipes"]["realnvp"] |= {"dtype": "float64"}
    smoke_values["recipes"]["realnvp"]["training"] |= {"precision": "tf32"}
    with pytest.raises(UserError, match=r"training\.precision must be float32 with dtype float64"):
        check(validate(smoke_values, "params.yaml"), "params.yaml")
    smoke_values["recipes"]["realnvp"] |= {"dtype": "float32"}
    check(validate(smoke_values, "params.yaml"), "params.yaml")
