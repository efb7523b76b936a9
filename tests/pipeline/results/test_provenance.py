"""Tests that the provenance contains the origin of the results and the differences in parameters."""

import json
from pathlib import Path

from fake_results import with_failures

from pipeline.presets.merged import load_preset
from pipeline.results.provenance import differences, provenance_of


def test_provenance_contains_the_origin_of_the_results(tmp_path: Path) -> None:
    project = with_failures(tmp_path)
    project.change("train/mnist-lunet-0/run.json", environment__time="2026-01-01T00:00:00+00:00")
    provenance = provenance_of(project.read(), load_preset("laptop"))
    pairs = 2 * len(project.values["grid"]["recipes"])
    # Each recipe is measured once, for both data sets.
    assert len(provenance["cells"]) == 3 * pairs + pairs // 2
    assert len(provenance["environments"]) == 1
    environment = provenance["environments"][0]
    assert len(environment["cells"]["train"]) == 3 * pairs
    assert (environment["first"], environment["last"]) == ("2026-01-01T00:00:00+00:00", "2026-01-02T03:04:05+00:00")
    checksums = json.loads((project.data / "mnist" / "dataset.json").read_text(encoding="utf-8"))["sha256"]
    assert provenance["datasets"]["mnist"]["sha256"] == checksums
    assert not {"report", "checkpoint_seconds"} & set(provenance["params"])
    differing = {row["key"]: (row["ours"], row["paper"]) for row in provenance["differences"]}
    assert differing["grid.seeds"] == ([0, 1, 2], [0])
    assert differing["evaluate.sample_rows"] == (3, 10)
    assert (
        "python -m pipeline.train --dataset mnist --recipe lunet --seed 2 --out runs/train/mnist-lunet-2"
        in provenance["commands"]["train"]
    )


def test_a_stage_s_other_cores_are_the_most_that_any_of_its_cells_had(tmp_path: Path) -> None:
    project = with_failures(tmp_path)
    for recipe, cores in (("lunet", 0.2), ("realnvp", 0.7), ("gaussian", 0.0)):
        project.change(f"measure/mnist-{recipe}.json", other_cores=cores)
    provenance = provenance_of(project.read(), load_preset("laptop"))
    most = {"train": 0.05, "measure": 0.7}
    assert provenance["other_cores"] == most
    assert {row["stage"]: row["other_cores"] for row in provenance["stages"] if row["other_cores"] is not None} == most


def test_differences_contain_keys_both_values_and_missing_keys() -> None:
    ours = {"a": 1, "b": {"c": [1, 2], "d": None}, "e": {"f": 1}}
    paper = {"a": 1, "b": {"c": [1, 3], "d": None}, "g": 0}
    assert differences(ours, paper) == [
        {"key": "b.c", "ours": [1, 2], "paper": [1, 3]},
        {"key": "e", "ours": "(a section)", "paper": None},
        {"key": "g", "ours": None, "paper": 0},
    ]
