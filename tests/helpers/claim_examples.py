"""For each claim, made-up evidence of each verdict."""

from __future__ import annotations

from dataclasses import replace

from claim_subjects import CLAIMS, JITTER, determined, drawn, subject, timed, times_of, trained, weighed

from pipeline.results.subjects import Subject


def seeds(value: float) -> list[float]:
    """A figure of three seeds, which differ by one part in a hundred."""
    return [value * factor for factor in JITTER]


def times(claim: str, ratio: float) -> dict[str, Subject]:
    """Two recipes whose times have this ratio, in the claim's direction."""
    statistic = CLAIMS[claim].statistic
    return {statistic.above: timed("cuda", ratio), statistic.below: timed("cuda", 1.0)}


def bits(*differences: float) -> dict[str, Subject]:
    """Two recipes whose bits/dim differ by this at each seed."""
    lunet = [2 + difference for difference in differences]
    return {"lunet": subject("cuda", bits_per_dim=lunet), "realnvp": subject("cuda", bits_per_dim=[2.0] * len(lunet))}


def inverted(lost: float, cost: float) -> dict[str, Subject]:
    model = subject("cuda", pixels_lost=seeds(lost))
    times = {"density_large_ms": times_of(1.0, 1000), "sampling_large_ms": times_of(cost, 1000)}
    return {"lunet": replace(model, times=times)}


def gained(over_gaussian: list[float], over_identity: list[float]) -> dict[str, Subject]:
    return {"lunet": subject("cuda", gain_over_gaussian=over_gaussian, gain_over_identity=over_identity)}


def epochs(*ratios: float) -> dict[str, Subject]:
    """Two recipes, of which RealNVP takes so many times as many epochs as LU-Net."""
    return {"lunet": trained(*[1.0] * len(ratios)), "realnvp": trained(*ratios)}


# For each claim, evidence of each verdict.
EXAMPLES: dict[str, dict[str, dict[str, Subject]]] = {
    "memory": {
        "replicated": {"lunet": weighed(1000), "realnvp": weighed(1650)},
        "partly": {"lunet": weighed(1000), "realnvp": weighed(1500)},
        "not_replicated": {"lunet": weighed(1000), "realnvp": weighed(1100)},
        "undecided": {"lunet": weighed(1000), "realnvp": weighed(1600, 1700)},
    },
    "epochs": {
        "replicated": epochs(*seeds(3.0)),
        "partly": epochs(*seeds(1.17)),
        "not_replicated": epochs(*seeds(0.2)),
        "undecided": epochs(1.0, 1.2, 1.6),
    },
    "nll": {
        "replicated": bits(-0.1, -0.11, -0.12),
        "partly": bits(-0.01, 0.0, 0.01),
        "not_replicated": bits(0.1, 0.11, 0.12),
        "undecided": bits(0.0, 0.05, 0.1),
    },
    "step": {
        "replicated": times("step", 30),
        "partly": times("step", 5),
        "not_replicated": times("step", 0.9),
        "undecided": times("step", 23.5),
    },
    "density": {
        "replicated": times("density", 2),
        "partly": times("density", 1.4),
        "not_replicated": times("density", 0.5),
        "undecided": times("density", 1.1),
    },
    "sampling": {
        "replicated": times("sampling", 30),
        "partly": times("sampling", 5),
        "not_replicated": times("sampling", 0.5),
        "undecided": times("sampling", 22),
    },
    "inverse": {
        "replicated": inverted(12, 2),
        "partly": inverted(5000, 2),
        "not_replicated": inverted(5000, 50),
        "undecided": inverted(12, 10),
    },
    "determinant": {
        "replicated": {"lunet": determined(0.9, 2.6)},
        "partly": {"lunet": determined(2.0, 2.6)},
        "not_replicated": {"lunet": determined(2.6, 2.4)},
        "undecided": {"lunet": determined(1.25, 2.6)},
    },
    "likelihood": {
        "replicated": gained(seeds(0.5), seeds(3.0)),
        "partly": gained(seeds(0.02), seeds(3.0)),
        "not_replicated": gained(seeds(-0.9), seeds(4.0)),
        "undecided": gained([0.02, 0.06, 0.1], seeds(3.0)),
    },
    "samples": {
        "replicated": {"lunet": drawn(0.93, 0.92, 0.94)},
        "partly": {"lunet": drawn(0.65, 0.66, 0.64)},
        "not_replicated": {"lunet": drawn(0.3, 0.31, 0.32)},
        "undecided": {"lunet": drawn(0.79, 0.8, 0.81)},
    },
}
