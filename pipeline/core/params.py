"""The schema of `params.yaml`; errors name the key, its value, and what is allowed."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from pipeline.core.console import UserError

# Upper bounds prevent integer overflow and catch typing errors.
Count = Annotated[int, Field(ge=1, le=1_000_000)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]
Positive = Annotated[float, Field(gt=0, le=1e6)]
Share = Annotated[float, Field(gt=0, lt=1)]
Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$", max_length=40)]
T = TypeVar("T")
Precision = Literal["float32", "tf32", "bfloat16"]


class Section(BaseModel):
    """A part of `params.yaml`: immutable, without unknown keys, and with numbers never read from text."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


def _distinct(values: list[T]) -> list[T]:
    if len(set(values)) < len(values):
        raise ValueError(f"names a value twice: {values}")
    return values


Names = Annotated[list[Name], Field(min_length=1), AfterValidator(_distinct)]


class Grid(Section):
    """The cells to run: every data set with every recipe and seed."""

    datasets: Names
    recipes: Names
    seeds: Annotated[list[Seed], Field(min_length=1), AfterValidator(_distinct)]


class DataSource(Section):
    """The source of a data set; ``auto`` tries mirrors, folder and packages in this order."""

    source: Literal["auto", "mirrors", "folder", "packages", "bundled"]
    folder: str | None


class CustomData(Section):
    """A custom data set: ``path`` is a .npz file, a folder of IDX files, or one of PNG files in class folders."""

    path: Annotated[str, Field(min_length=1, max_length=1000)]
    title: Annotated[str, Field(min_length=1, max_length=80)] | None = None


class Data(Section):
    """The sources of the paper's data sets; every other key is a custom data set."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, CustomData]

    mnist: DataSource
    fashion_mnist: DataSource

    @model_validator(mode="after")
    def _custom_names_are_valid(self) -> Self:
        for name in self.__pydantic_extra__:
            try:
                TypeAdapter(Name).validate_python(name)
            except ValidationError:
                raise ValueError(f"{name!r} cannot name a data set; use small letters, digits and _") from None
        return self

    @property
    def names(self) -> tuple[str, ...]:
        """The names of all data sets."""
        return (*type(self).model_fields, *self.__pydantic_extra__)

    def get(self, name: str) -> DataSource | CustomData:
        """The source of a data set."""
        custom: dict[str, CustomData] = self.__pydantic_extra__
        return custom[name] if name in custom else getattr(self, name)


class Model(Section):
    """The model of a recipe: the name of a flow, the arguments of its constructor, and the name of its ``start``.

    `pipeline.training.models.check` compares them with the constructor, which needs torch.
    """

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, Any]

    kind: Annotated[str, Field(min_length=1, max_length=80)]

    @property
    def options(self) -> dict[str, Any]:
        """All keys but ``kind``."""
        return dict(self.__pydantic_extra__)


def _holdout(value: Any) -> float | Literal["test"]:
    """A share of the training images, or the word test; pydantic's own message for such a union names neither."""
    if value == "test" or (type(value) in (int, float) and 0 < value <= 0.5):
        return value
    raise ValueError(f"is {value!r}; give a share of the training images above 0 and at most 0.5, or the word test")


class Training(Section):
    """The settings of training by gradient steps."""

    objective: Literal["likelihood", "released"]
    epochs: Positive
    batch_size: Count
    optimizer: Name
    learning_rate: Positive
    elementwise_rate: Positive | None
    schedule: Literal["constant", "one_cycle", "halving"]
    warmup: Share | None
    halve_every: Positive | None
    clip_norm: Positive | None
    holdout: Annotated[Any, AfterValidator(_holdout)]
    validations: Count
    precision: Precision = "float32"
    capture: bool = False
    compile: bool = False

    @model_validator(mode="after")
    def _schedule_has_its_settings(self) -> Self:
        for name, schedule in (("warmup", "one_cycle"), ("halve_every", "halving")):
            value, needed = getattr(self, name), self.schedule == schedule
            if (value is not None) != needed:
                wanted = "a number" if needed else "null"
                raise ValueError(f"{name} is {value}; with the schedule {self.schedule} it must be {wanted}")
        return self


def _margin(value: Any) -> float | tuple[float, float] | None:
    """One number, a pair of numbers, or null; pydantic's own message for such a union names none of the three."""
    ends = value if isinstance(value, list) and len(value) == 2 else [value, value]
    if value is None or all(type(end) in (int, float) and 0 <= end < 0.5 for end in ends):
        return tuple(value) if isinstance(value, list) else value
    raise ValueError(f"is {value!r}; give one number, a pair [low, high], each at least 0 and below 0.5, or null")


class Recipe(Section):
    """A named way to train a model: architecture, preprocessing, objective and optimiser."""

    model: Model
    classes: Literal["all", "each"]
    margin: Annotated[Any, AfterValidator(_margin)]
    dtype: Literal["float32", "float64"] = "float32"
    training: Training | None


class Evaluate(Section):
    """The settings of the evaluation on the test set."""

    draws: Count
    batch_size: Count
    sample_rows: Count
    sample_columns: Count
    class_samples: Count = 100
    base_images: Annotated[Count, Field(ge=20)] = 20_000
    round_trip_images: Count


class Measure(Section):
    """The settings of the measurements of time and memory; without ``datasets``, they are the grid's."""

    datasets: Names | None = None
    processes: Annotated[Count, Field(le=100)] = 1
    repetitions: Annotated[Count, Field(ge=5)]
    warmup: Count
    seconds: Positive
    large_batch: Annotated[Count, Field(ge=2)]


class Mixture(Section):
    """The paper's experiment in two dimensions: an LU-Net of ``layers`` layers on points of a mixture of Gaussians."""

    layers: Annotated[Count, Field(ge=2)]
    slope: Annotated[float, Field(ge=0.001, lt=1)]
    train_points: Annotated[Count, Field(ge=10)]
    test_points: Annotated[Count, Field(ge=10)]
    starts: Count
    steps: Count
    batch_size: Count
    learning_rate: Positive
    clip_norm: Positive
    random_seed: Seed


class Report(Section):
    """The texts of the report."""

    title: Annotated[str, Field(min_length=1, max_length=200)]


class Params(Section):
    """The whole of `params.yaml`."""

    preset: Name
    device: Literal["auto", "cpu", "cuda"]
    deterministic: bool
    checkpoint_seconds: Annotated[float, Field(ge=0, le=1e6)]
    grid: Grid
    data: Data
    recipes: dict[Name, Recipe]
    evaluate: Evaluate
    measure: Measure
    mixture: Mixture
    report: Report

    @model_validator(mode="after")
    def _names_exist(self) -> Self:
        for section, names in (("grid", self.grid.datasets), ("measure", self.measure.datasets or ())):
            for name in names:
                if name not in self.data.names:
                    known = ", ".join(self.data.names)
                    raise ValueError(f"{section}.datasets names {name!r}, which data lacks; it has: {known}")
        for name in self.grid.recipes:
            if name not in self.recipes:
                raise ValueError(f"grid.recipes names {name!r}, which recipes lacks; it has: {', '.join(self.recipes)}")
        return self

    def dataset(self, name: str) -> DataSource | CustomData:
        """The source of the data set ``name``; raises a `UserError` that lists the known names if it is unknown."""
        if name not in self.data.names:
            raise UserError(f"data set {name!r} is not in params.yaml; data has: {', '.join(self.data.names)}")
        return self.data.get(name)

    def recipe(self, name: str) -> Recipe:
        """The recipe ``name``; raises a `UserError` that lists the known names if it is unknown."""
        if name not in self.recipes:
            raise UserError(f"recipe {name!r} is not in params.yaml; it has: {', '.join(self.recipes)}")
        return self.recipes[name]


def load_params(path: Path = Path("params.yaml")) -> Params:
    """Read and validate a parameter file.

    Raises:
        UserError: If the file is missing, is not YAML, or contains a value that is not allowed; the message names
            each key, its value, and what is allowed.
    """
    return validate(read_yaml(path), str(path))


def read_yaml(path: Path) -> Any:
    """Read a YAML file; raises a `UserError` that names it if it is missing or malformed."""
    try:
        return YAML(typ="safe", pure=True).load(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} is missing; write one with: python -m pipeline.preset laptop") from None
    # The parser also raises the errors of invalid values, such as an impossible date, and of endless nesting.
    except (OSError, ValueError, RecursionError, YAMLError) as error:
        raise UserError(f"{path} cannot be read as YAML: {' '.join(str(error).split())}") from None


def validate(values: Any, source: str) -> Params:
    """Check plain values against the schema; ``source`` names them in the error."""
    try:
        return Params.model_validate(values)
    except ValidationError as error:
        raise refusal(source, mistakes(error, known_keys())) from None


def refusal(source: str, sentences: Sequence[str]) -> UserError:
    """The error for a set of parameters with mistakes, a sentence each."""
    return UserError(f"{source} has {len(sentences)} mistake(s):\n  " + "\n  ".join(sentences))


def mistakes(error: ValidationError, known: Collection[str], *section: str) -> list[str]:
    """Each mistake as a sentence: the key as in the file, its value, and what is allowed.

    Args:
        error: The error of a section's schema.
        known: The keys that an unknown one may be meant to be.
        section: The keys above the section.
    """
    return [_sentence(problem, known, section) for problem in error.errors(include_url=False)]


def known_keys() -> set[str]:
    """The keys of all sections of `params.yaml`."""
    sections = [section for section in Section.__subclasses__() if section.__module__ == __name__]
    return {key for section in sections for key in section.model_fields}


def _sentence(problem: Any, known: Collection[str], section: Sequence[str]) -> str:
    location = (*section, *problem["loc"])
    key = ".".join(map(str, location))
    match problem["type"]:
        case "extra_forbidden":
            near = difflib.get_close_matches(str(location[-1]), {*known} - {str(location[-1])}, n=1)
            return f"{key}: unknown key" + (f"; did you mean {near[0]!r}?" if near else "")
        case "missing":
            return f"{key}: is missing"
        case "value_error":
            return f"{key}: {problem['ctx']['error']}" if key else str(problem["ctx"]["error"])
        case _:
            value = repr(problem["input"])
            shown = value if len(value) <= 80 else value[:77] + "..."
            return f"{key or 'the file'}: is {shown}; {problem['msg'][0].lower()}{problem['msg'][1:]}"
