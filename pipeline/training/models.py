"""The models of recipes: checked against the constructors of flows, built, and initialised."""

from __future__ import annotations

import contextlib
import inspect
import json
import math
import sys
import traceback
from collections.abc import Iterator, Mapping
from functools import cache
from itertools import product
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_type_hints

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model
from torch import Tensor

from lunet import Activation, BrokenFlowError, Flow, ImageFlow, LUNet, check_flow
from lunet.activation import activation_arguments
from pipeline.core.console import UserError
from pipeline.core.dataset import Dataset
from pipeline.core.params import Model, Params, Recipe, mistakes, refusal
from pipeline.training.objectives import RELEASED
from pipeline.training.optimisation import OPTIMIZERS

Shape = tuple[int, int, int]
T = TypeVar("T", Flow, Activation)
# A model is tried on images of these sizes until it takes one, if it has no more parameters than these.
TRIED_SIZES, MOST_PARAMETERS = (4, 8, 28, 32), 20_000_000
DISTURBANCE, PROPORTION = 0.3, 0.03  # of all parameters that are zero together, and of each other one
SETTLING_IMAGES, SETTLING_PASSES = 16, 10  # in train mode, for running averages, and norms that are iterated
CHECKED_IMAGES = 3
LARGEST: dict[Any, float] = {int: 4096, float: 1e6}  # a number beyond it, of layers or channels say, is a typing error


def check(params: Params, source: str) -> None:
    """Check the models of all recipes, and that each recipe's training fits its model.

    Raises:
        UserError: If a recipe's model has an unknown kind or setting, a value that the constructor refuses, or a
            training that does not fit it; the message names every mistake, and ``source``.
    """
    sentences = [sentence for name, recipe in params.recipes.items() for sentence in _mistakes(name, recipe)]
    if sentences:
        raise refusal(source, sentences)


def checked_recipe(params: Params, name: str, source: str) -> Recipe:
    """The recipe ``name``, checked as in `check`."""
    recipe = params.recipe(name)
    if sentences := [*_mistakes(name, recipe)]:
        raise refusal(source, sentences)
    return recipe


def _mistakes(name: str, recipe: Recipe) -> list[str]:
    key = f"recipes.{name}"
    sentences = [*_settings_mistakes(f"{key}.model", recipe.model), *_training_mistakes(key, recipe)]
    return sentences or [*_flow_mistakes(f"{key}.model", recipe)]


def _training_mistakes(key: str, recipe: Recipe) -> Iterator[str]:
    model, training = recipe.model, recipe.training
    if model.kind not in Flow.kinds:
        return
    flow_class = Flow.kinds[model.kind]
    closed_form = "fit" in flow_class.starts
    if flow_class.unit_interval != (recipe.margin is None):
        yield f"{key}: margin must be null for a flow on values between 0 and 1, and a number for all others"
    if closed_form and training is not None:
        yield f"{key}: training must be null for a {model.kind}, which is fitted in closed form"
    if training is None:
        if not closed_form:
            yield f"{key}: training is needed for a {model.kind}"
        return
    if training.optimizer not in OPTIMIZERS:
        yield f"{key}.training.optimizer: is {training.optimizer!r}; input should be {_one_of(OPTIMIZERS)}"
    if training.elementwise_rate is not None and not issubclass(flow_class, LUNet):
        yield f"{key}: training.elementwise_rate must be null for a {model.kind}, which has no LU layers"
    if flow_class.conditioners is Flow.conditioners:
        if training.precision != "float32":
            yield (
                f"{key}: training.precision must be float32 for a {model.kind}, whose map would lose digits that its "
                "inverse needs; reduced precision is for networks that parameterise a map, as in a RealNVP"
            )
        if training.compile:
            yield f"{key}: training.compile must be false for a {model.kind}, which has no networks to compile"
    if training.precision != "float32" and recipe.dtype != "float32":
        yield f"{key}: training.precision must be float32 with dtype {recipe.dtype}"
    if training.objective == "released" and flow_class not in RELEASED:
        yield f"{key}: training.objective is released, which no {model.kind} has; it must be likelihood"


def _settings_mistakes(key: str, model: Model) -> Iterator[str]:
    if model.kind not in Flow.kinds:
        yield f"{key}.kind: is {model.kind!r}; input should be {_one_of(Flow.kinds)}"
        return
    flow_class = Flow.kinds[model.kind]
    if not _by_images(flow_class):
        yield f"{key}: the constructor of {flow_class.__name__} has no argument called 'features' or 'shape'"
    yield from (
        f"{key}.start: {start} is among the starts of {flow_class.__name__}, which has no method {start}_"
        for start in flow_class.starts
        if not hasattr(flow_class, f"{start}_")
    )
    yield from _argument_mistakes(key, flow_class, model.options)


def _argument_mistakes(key: str, cls: type[Flow | Activation], settings: Mapping[str, Any]) -> Iterator[str]:
    """The mistakes in the arguments of a constructor, those of an activation among them included."""
    schema = _schema(cls)
    try:
        _validated(schema, settings)
    except ValidationError as error:
        yield from mistakes(error, schema.model_fields, *key.split("."))
    for name, kind, options in _activations(cls, settings):
        if kind in Activation.kinds:
            yield from _argument_mistakes(f"{key}.{name}", Activation.kinds[kind], options)
        else:
            yield f"{key}.{name}.kind: is {kind!r}; input should be {_one_of(Activation.kinds)}"


def _flow_mistakes(key: str, recipe: Recipe) -> Iterator[str]:
    """What is wrong with the model of a recipe at all sizes of images, and what `check_flow` finds at the first."""
    failure, dtypes = "", dict.fromkeys(("float64", recipe.dtype))  # the first is more accurate, but a flow may lack it
    for size, dtype in product(TRIED_SIZES, dtypes):
        try:
            if _parameters(recipe, size) <= MOST_PARAMETERS:
                _exercise(recipe, size, getattr(torch, dtype))
        except BrokenFlowError as error:
            yield f"{key}: {error}"
        except ValueError as error:
            failure = str(error)
            continue
        except Exception as error:
            failure = f"the code of the model fails: {_with_place(error)}"
            continue
        return
    yield f"{key}: {failure}"


def _parameters(recipe: Recipe, size: int) -> int:
    """The number of a model's parameters, without memory for them; 0 if the constructor computes with values."""
    try:
        with torch.device("meta"):
            return _image_flow(recipe, (1, size, size)).flow.free_parameters()
    except Exception as error:
        if "meta" not in str(error):
            raise
        return 0


def _exercise(recipe: Recipe, size: int, dtype: torch.dtype) -> None:
    """Disturb an untrained model as training would, check it, and score images of noise in the recipe's dtype.

    Raises:
        BrokenFlowError: If the flow is wrong.
    """
    noise = torch.Generator().manual_seed(0)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        model = _image_flow(recipe, (1, size, size)).to(dtype)
    images = torch.randint(256, (SETTLING_IMAGES + CHECKED_IMAGES, size, size), generator=noise, dtype=torch.uint8)
    settling, checked = model.preprocess(images, noise)[0].split([SETTLING_IMAGES, CHECKED_IMAGES])
    parameters = [parameter for parameter in model.flow.parameters() if parameter.requires_grad]
    with torch.no_grad():
        for parameter in parameters:
            # In proportion, so that positive numbers stay positive and ordered ones ordered; zeros by absolute numbers.
            scale = DISTURBANCE / (len(parameters) * max(1, math.prod(parameter.shape[1:]))) ** 0.5
            share = torch.randn(parameter.shape, generator=noise, dtype=torch.float64).to(parameter)
            parameter.add_(share * torch.where(parameter == 0, scale, PROPORTION * parameter))
        for _ in range(SETTLING_PASSES):
            model.flow.train()(settling)
    check_flow(model.flow, checked)
    model.to(getattr(torch, recipe.dtype)).eval().bits_per_dim(images[-CHECKED_IMAGES:], generator=noise)


def _with_place(error: Exception) -> str:
    """An error with its place, the innermost one in the file of a flow or an activation."""
    frames = traceback.extract_tb(error.__traceback__)
    modules = [sys.modules.get(cls.__module__) for cls in (*Flow.kinds.values(), *Activation.kinds.values())]
    files = {getattr(module, "__file__", None) for module in modules}
    place = [frame for frame in frames if frame.filename in files] or frames
    return f"{type(error).__name__}: {error} ({Path(place[-1].filename).name}, line {place[-1].lineno})"


def _one_of(names: object) -> str:
    *others, last = map(repr, names)  # type: ignore[call-overload]
    return f"{', '.join(others)} or {last}"


@cache
def _schema(cls: type[Flow | Activation]) -> type[BaseModel]:
    """The arguments of a constructor that images do not determine, and the ``start`` of a flow."""
    fields: dict[str, Any] = {}
    if issubclass(cls, Flow):
        starts = (*cls.starts,) if "fit" in cls.starts else (*cls.starts, "identity")
        fields["start"] = (Literal[starts], starts[0])
    hints: dict[str, Any] = {}
    with contextlib.suppress(NameError):  # a name that is imported for type checkers alone
        hints = get_type_hints(cls.__init__)
    for name, parameter in inspect.signature(cls).parameters.items():
        if name not in _by_images(cls) and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            hint = hints.get(name, Any)
            if hint in LARGEST:
                hint = Annotated[hint, Field(le=LARGEST[hint])]
            elif name in activation_arguments(cls):  # in YAML, its description
                hint = dict[str, Any] | None
            fields[name] = (hint, ... if parameter.default is parameter.empty else parameter.default)
    config = ConfigDict(
        extra="forbid", strict=True, allow_inf_nan=False, arbitrary_types_allowed=True, protected_namespaces=()
    )
    return create_model(cls.__name__, __config__=config, **fields)


def _by_images(cls: type[Flow | Activation]) -> list[str]:
    """The arguments of a constructor that images determine."""
    names = ["features", "shape"] if issubclass(cls, Flow) else ["features"]
    return [name for name in names if name in inspect.signature(cls).parameters]


def _activations(
    cls: type[Flow | Activation], settings: Mapping[str, Any]
) -> Iterator[tuple[str, Any, dict[str, Any]]]:
    """The activations among the settings of a flow: the name of the argument, and their kind and arguments."""
    for name in activation_arguments(cls):
        if isinstance(settings.get(name), dict):
            options = dict(settings[name])
            yield name, options.pop("kind", None), options


def _validated(schema: type[BaseModel], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings with the types of the arguments; JSON's arrays may be the lists or the tuples of a constructor."""
    validated = schema.model_validate_json(json.dumps(settings, default=repr))
    return {name: getattr(validated, name) for name in schema.model_fields}


def _construct(cls: type[T], settings: Mapping[str, Any], shape: Shape) -> T:
    """A flow or an activation for images of a shape (channels, height, width)."""
    sizes = {"shape": shape, "features": math.prod(shape)}
    arguments: dict[str, Any] = {name: sizes[name] for name in _by_images(cls)}
    arguments |= _validated(_schema(cls), settings)
    arguments.pop("start", None)
    for name, kind, options in _activations(cls, settings):
        arguments[name] = _construct(Activation.kinds[kind], options, shape)
    return cls(**arguments)


def build(recipe: Recipe, shape: Shape) -> ImageFlow:
    """An untrained model of the recipe's architecture for images with shape (channels, height, width).

    Raises:
        UserError: If the recipe is not one that `check` accepts, or its architecture cannot take images of that size.
    """
    if sentences := [*_settings_mistakes("model", recipe.model)]:
        raise refusal("the recipe", sentences)
    try:
        return _image_flow(recipe, shape).to(getattr(torch, recipe.dtype))
    except ValueError as error:
        raise UserError(
            f"a {recipe.model.kind} cannot take images of {shape[2]}x{shape[1]} pixels: {error}; take the recipe or "
            "the data set out of the grid, or give images of another size"
        ) from None


def _image_flow(recipe: Recipe, shape: Shape) -> ImageFlow:
    return ImageFlow(_construct(Flow.kinds[recipe.model.kind], recipe.model.options, shape), shape, recipe.margin)


def initialise_(model: ImageFlow, recipe: Recipe, images: Tensor, generator: torch.Generator) -> None:
    """Initialise a model from data before any step; a model in closed form needs no other training.

    Args:
        model: The untrained model.
        recipe: Its recipe.
        images: The training images, uint8, with shape (N, H, W).
        generator: The source of the dequantisation noise.

    Raises:
        UserError: If the images cannot determine the model, for example a covariance from too few of them.
    """
    start = _validated(_schema(type(model.flow)), recipe.model.options)["start"]
    if start == "identity":
        return
    method, rows = getattr(model.flow, f"{start}_"), model.flow.starts[start]
    arguments: dict[str, Any] = {}
    try:
        if "x" in (parameters := inspect.signature(method).parameters):
            arguments["x"] = model.preprocess(images[:rows], generator)[0]
        if "generator" in parameters:
            arguments["generator"] = generator
        method(**arguments)
    except ValueError as error:
        raise UserError(f"the start {start} of a {recipe.model.kind} fails on {len(images)} images: {error}") from None


def groups(dataset: Dataset, recipe: Recipe) -> dict[str, int | None]:
    """The names of a recipe's models, with the class of each: one model for all classes (None), or one per class."""
    if recipe.classes == "all":
        return {"all": None}
    return {str(label): label for label in range(len(dataset.class_names))}
