"""What the JSON files of all stages have in common; each stage builds its file from the record in its own room."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, FiniteFloat

from pipeline.core.cell import Key
from pipeline.core.files import without_paths

Message = Annotated[str, AfterValidator(without_paths)]
PositiveTime = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Status = Literal["complete", "diverged", "out_of_memory"]


class Record(BaseModel):
    """The part of a stage's file that collect reads: every number is finite, and other keys are ignored."""

    model_config = ConfigDict(frozen=True)


class Environment(Record):
    """Where and when a cell ran."""

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


class StageRecord(Record):
    """The fields that the files of all three stages have in common."""

    dataset: str
    recipe: str
    seed: int | None = None
    status: Status
    message: Message | None
    environment: Environment

    @property
    def key(self) -> Key:
        """The key of the file's cell."""
        return Key(self.dataset, self.recipe, self.seed)


class Parameters(Record):
    """The number of stored parameters of a model, and the number of free ones among them."""

    stored: int
    free: int
