"""The schemas and the loaders of `claims.yaml`, the paper's claims with their rules, and of `poster.yaml`."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Annotated, Literal, Self, TypeVar, get_args

from pydantic import Field, ValidationError, model_validator

from pipeline.core.console import UserError
from pipeline.core.params import Name, Section, mistakes, read_yaml, refusal
from pipeline.results.statistics import Estimate

CLAIMS = Path(__file__).with_name("claims.yaml")
POSTER = Path(__file__).with_name("poster.yaml")

Decision = Literal["replicated", "partly", "not_replicated"]
Verdict = Literal[Decision, "undecided", "not_tested_at_this_scale", "not_tested", "not_comparable"]
DECISIONS: tuple[Decision, ...] = get_args(Decision)
LABELS: dict[Verdict, str] = {name: name.replace("_", " ").capitalize() for name in get_args(Verdict)}
LABELS["partly"] = "Partly replicated"

Kind = Literal["difference", "epochs", "times", "memory", "determinant", "figures", "samples"]
Level = Literal["smoke", "laptop", "paper"]
S = TypeVar("S", bound=Section)
Number = Annotated[float, Field(strict=False, allow_inf_nan=False)]


class Bounds(Section):
    """The range that a number must lie in, ends included."""

    at_least: Number | None = None
    at_most: Number | None = None

    def hold(self, estimate: Estimate) -> bool:
        """Whether the whole interval of the estimate lies within the bounds; false without an interval."""
        above = self.at_least is None or estimate.least >= self.at_least
        return estimate.low is not None and above and (self.at_most is None or estimate.most <= self.at_most)

    def exclude(self, estimate: Estimate) -> bool:
        """Whether the whole interval of the estimate lies outside the bounds; false without an interval."""
        below = self.at_least is not None and estimate.most < self.at_least
        return estimate.low is not None and (below or (self.at_most is not None and estimate.least > self.at_most))


class Statistic(Section):
    """What is computed, as in `pipeline.results.claim_statistics`, with the quantity and the recipes to compare."""

    kind: Kind
    quantity: str = ""
    above: Name = "lunet"
    below: Name = "realnvp"


class Label(Section):
    """The label and the unit of a number of the evidence.

    A number that the statistic does not compute itself has a source: a metric of `pipeline.results.metrics`, of the
    first compared recipe if ``recipe`` names no other, or two times, the first divided by the second.
    """

    label: str
    unit: str
    metric: str = ""
    recipe: str = ""
    times: Annotated[list[str], Field(min_length=2, max_length=2)] | None = None


class Change(Section):
    """A change of a rule: what it was, why it changed, and whether results that it judges had been seen."""

    date: datetime.date
    change: str
    reason: str
    after_results: bool


class Claim(Section):
    """A claim of the paper with the rule that decides it, whose ``date`` is that of its last change.

    If ``once``, there is one verdict for all data sets; if ``decided_on`` names a data set, that one decides.
    """

    id: Name
    title: str
    words: str
    source: str
    needs: Literal["laptop", "paper"]
    confirms: Literal["paper"] | None = None
    compares: list[Name] = Field(min_length=1)
    statistic: Statistic
    measure: str
    evidence: dict[str, Label]
    replicated: dict[str, Bounds]
    not_replicated: dict[str, Bounds]
    interval: str
    sentence: str
    reason: str
    date: datetime.date
    history: list[Change] = Field(default_factory=list)
    once: bool = False
    decided_on: Name | None = None

    @property
    def judged(self) -> list[str]:
        """The names of the numbers that the rule judges."""
        return list(self.replicated | self.not_replicated)

    @model_validator(mode="after")
    def _rules_name_evidence(self) -> Self:
        for name in self.judged:
            if name not in self.evidence:
                raise ValueError(f"the rule of {self.id!r} names {name!r}, which its evidence lacks")
        for name, label in self.evidence.items() if self.statistic.kind == "figures" else ():
            if bool(label.metric) == bool(label.times):
                raise ValueError(f"the evidence {name!r} of {self.id!r} must have either a metric or two times")
        return self

    @model_validator(mode="after")
    def _history_is_in_order(self) -> Self:
        dates = [change.date for change in self.history]
        if dates != sorted(dates) or (dates and dates[-1] != self.date):
            raise ValueError(f"the history of {self.id!r} must be in order of dates, and end at that of the rule")
        return self


class PosterRow(Section):
    """A row of the poster's table, with the names of our figures for it."""

    quantity: Name
    label: str
    unit: str
    lunet: Number
    realnvp: Number
    ours: str
    stopwatch: str | None
    figure: str | None
    factors: dict[Name, Number] | None
    note: str


class Reference(Section):
    """A published figure in bits per pixel of the 8-bit image."""

    dataset: Name
    label: str
    value: Number
    checked: bool
    source: str


class Paper(Section):
    """The paper that is replicated."""

    title: str
    authors: str
    year: int
    arxiv: str


class ClaimsFile(Section):
    """All of `claims.yaml`."""

    principle: list[str]
    claims: list[Claim]


class PosterFile(Section):
    """All of `poster.yaml`."""

    paper: Paper
    poster: list[PosterRow]
    references: list[Reference]


def load_claims(path: Path = CLAIMS) -> ClaimsFile:
    """Read and check the claims.

    Raises:
        UserError: If the file is missing or invalid; the message names each invalid key.
    """
    return _load(ClaimsFile, path)


def load_poster(path: Path = POSTER) -> PosterFile:
    """Read and check the poster's table and the published figures.

    Raises:
        UserError: If the file is missing or invalid; the message names each invalid key.
    """
    return _load(PosterFile, path)


def _load(kind: type[S], path: Path) -> S:
    restore = f"Mend it, or take it as it was with: git checkout pipeline/results/{path.name}"
    try:
        values = read_yaml(path)
        # A file that is cut off within a text may still be valid YAML, with fewer claims.
        if values is not None and not path.read_bytes().endswith(b"\n"):
            raise UserError(f"{path} is cut off: it ends within a line")
        return kind.model_validate(values)
    except UserError as error:
        raise UserError(f"{error}\n{restore}") from None
    except ValidationError as error:
        raise UserError(f"{refusal(path.name, mistakes(error, ()))}\n{restore}") from None
