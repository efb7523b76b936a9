"""What the JSON files of all stages have in common; each stage builds its file from the record in its own room."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, FiniteFloat, ValidationError

from pipeline.core.cell import Key
from pipeline.core.console import UserError
from pipeline.core.files import read_json, without_paths
from pipeline.core.params import mistakes

Message = Annotated[str, AfterValidator(without_paths)]
PositiveTime = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Status = Literal["complete", "diverged", "out_of_memory"]
# A partial cell has the results of some of its classes, and none over all of them.
CellOutcome = Literal[Status, "partial"]


class Record(BaseModel):
    """The part of a stage's file that collect reads: every number is finite, and other keys are ignored."""

    model_config = ConfigDict(frozen=True)


class Environment(Record):
    """Where and when a cell ran; ``tf32`` says whether its float32 arithmetic, outside training steps, may be TF32."""

    time: str
    host: str
    system: str
    processor: str
    cores: int
    memory_gib: FiniteFloat
    device: str
    gpu: str | None
    gpu_driver: str | None
    cuda: str | None
    threads: int
    python: str
    torch: str
    numpy: str
    commit: str | None
    dirty: bool | None
    tf32: bool | None = None


class StageRecord(Record):
    """The fields that the files of all three stages have in common.

    ``other_cores`` is how many cores other processes kept busy on average while the stage ran.
    """

    dataset: str
    recipe: str
    seed: int | None = None
    status: CellOutcome
    message: Message | None
    environment: Environment
    other_cores: FiniteFloat | None = None

    @property
    def key(self) -> Key:
        """The key of the file's cell."""
        return Key(self.dataset, self.recipe, self.seed)


class Parameters(Record):
    """The number of stored parameters of a model, and the number of free ones among them."""

    stored: int
    free: int


R = TypeVar("R", bound=Record)


def load_record(kind: type[R], path: Path, command: str) -> R:
    """The record in a file; raises a `UserError` that names the command that writes the file if it is not there."""
    try:
        return kind.model_validate(read_json(existing(path, command)))
    except ValidationError as error:
        raise UserError(f"{path}: {mistakes(error, ())[0]}; write it again with: {command}") from None


def existing(path: Path, command: str) -> Path:
    """The path of a file; raises a `UserError` that names the command that writes it if it does not exist."""
    if not path.is_file():
        raise UserError(f"{path} is missing; run: dvc repro, or: {command}")
    return path
