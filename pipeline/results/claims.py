"""The schema and the loader of `claims.yaml`: the paper's claims, each with the rule that decides it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self, get_args

from pydantic import Field, ValidationError, model_validator

from pipeline.core.console import UserError
from pipeline.core.params import Name, Section, mistakes, read_yaml, refusal
from pipeline.results.statistics import Estimate

CLAIMS = Path(__file__).with_name("claims.yaml")
RESTORE = "Mend it, or take it as it was with: git checkout pipeline/results/claims.yaml"

Verdict = Literal["replicated", "partly", "not_replicated", "not_tested_at_this_scale", "not_tested", "not_comparable"]
LABELS: dict[Verdict, str] = {name: name.replace("_", " ").capitalize() for name in get_args(Verdict)}
LABELS["partly"] = "Partly replicated"

Kind = Literal["difference", "ratio", "determinant", "figures"]
Level = Literal["smoke", "laptop", "paper"]
Number = Annotated[float, Field(strict=False, allow_inf_nan=False)]


class Bounds(Section):
    """The range that a number must lie in, ends included."""

    at_least: Number | None = None
    at_most: Number | None = None

    def hold(self, estimate: Estimate) -> bool:
        """Whether the whole interval of the estimate lies within the bounds."""
        above = self.at_least is None or estimate.least >= self.at_least
        return above and (self.at_most is None or estimate.most <= self.at_most)


class Statistic(Section):
    """What is computed: a key of `pipeline.results.verdicts.STATISTICS`, with the quantity and recipes to compare."""

    kind: Kind
    quantity: str = ""
    beside: str = ""
    above: Name = "lunet"
    below: Name = "realnvp"
    per_image: bool = False
    of_a_class: bool = False


class Label(Section):
    """The label and the unit of a number of the evidence.

    For the statistic that shows one recipe's figures, also its source: a metric of
    `pipeline.results.metrics`, whose mean is shown, or two times, the first divided by the second.
    """

    label: str
    unit: str
    metric: str = ""
    times: Annotated[list[str], Field(min_length=2, max_length=2)] | None = None


class Claim(Section):
    """A claim of the paper with the rule that decides it."""

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
    sentence: str
    why: str

    @model_validator(mode="after")
    def _rules_name_evidence(self) -> Self:
        for name in [*self.replicated, *self.not_replicated]:
            if name not in self.evidence:
                raise ValueError(f"the rule of {self.id!r} names {name!r}, which its evidence lacks")
        for name, label in self.evidence.items() if self.statistic.kind == "figures" else ():
            if bool(label.metric) == bool(label.times):
                raise ValueError(f"the evidence {name!r} of {self.id!r} must have either a metric or two times")
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

    paper: Paper
    principle: list[str]
    poster: list[PosterRow]
    references: list[Reference]
    claims: list[Claim]


def load_claims(path: Path = CLAIMS) -> ClaimsFile:
    """Read and check the claims.

    Raises:
        UserError: If the file is missing or invalid; the message names each invalid key.
    """
    try:
        values = read_yaml(path)
        # A file that is cut off within a text may still be valid YAML, with fewer claims.
        if values is not None and not path.read_bytes().endswith(b"\n"):
            raise UserError(f"{path} is cut off: it ends within a line")
        return ClaimsFile.model_validate(values)
    except UserError as error:
        raise UserError(f"{error}\n{RESTORE}") from None
    except ValidationError as error:
        raise UserError(f"{refusal(path.name, mistakes(error, ()))}\n{RESTORE}") from None
