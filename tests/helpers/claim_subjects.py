"""Made-up evidence of recipes, for the tests of the claims."""

from __future__ import annotations

from pipeline.results.claims import load_claims
from pipeline.results.verdicts import Scale, Subject, Times, judge

CLAIMS = {claim.id: claim for claim in load_claims().claims}
LAPTOP = Scale("laptop", "MNIST", subset=False, as_in_paper=frozenset())
PAPER = Scale("paper", "MNIST", subset=False, as_in_paper=frozenset({"lunet", "realnvp"}))


def subject(device: str = "cpu", /, **metrics: float | list[float]) -> Subject:
    """A recipe with these metrics, one value for each seed; all recipes have the same times."""
    by_seed = {name: dict(enumerate(v if isinstance(v, list) else [v])) for name, v in metrics.items()}
    times = {
        "density_large_ms": Times([1.0, 1.1, 1.2], "image", "ms", 1000),
        "sampling_large_ms": Times([2.0, 2.1, 2.2], "image", "ms", 1000),
    }
    return Subject(by_seed, times, None, "all", frozenset({device}), frozenset({"aa"}))


def verdict(claim: str, scale: Scale, **subjects: Subject) -> tuple[str, str]:
    """The overall verdict on a claim from one data set, and its sentence."""
    judgement = judge(CLAIMS[claim], {"mnist": scale}, {"mnist": subjects})
    return judgement["verdict"], judgement["datasets"][0]["sentence"]


def timed(device: str, milliseconds: float, batch: int = 256, machine: str = "aa") -> Subject:
    """A recipe whose training step takes ``milliseconds``."""
    times = {"step_ms": Times([milliseconds] * 5, "step", "ms", batch)}
    return Subject({}, times, None, "all", frozenset({device}), frozenset({machine}))
