"""The cells of a grid that have no figures yet."""

from __future__ import annotations

from typing import Literal

from pipeline.core.cell import Key
from pipeline.core.record import Message, Record


class Unfinished(Record):
    """A cell of the grid that has no figures yet: its training is partial, or its stage is missing or failed."""

    stage: Literal["train", "evaluate", "measure"]
    dataset: str
    recipe: str
    seed: int | None = None
    status: Literal["partial", "missing", "failed"]
    message: Message

    @property
    def key(self) -> Key:
        """The key of the cell."""
        return Key(self.dataset, self.recipe, self.seed)
