"""The loader of trained runs: what it checks, and which model scores which images."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from small_flows import flow
from small_trainings import CPU
from trained_runs import run_record, write_run

from lunet import Flow
from pipeline.core.cell import Key
from pipeline.core.console import UserError
from pipeline.core.files import write_json
from pipeline.core.params import Params
from pipeline.evaluation.trained_run import by_model, load_run, model_for


def test_a_run_is_its_record_and_its_models(tmp_path: Path) -> None:
    run = load_run(write_run(tmp_path / "one", {"all": 128}), CPU)
    assert (run.name, run.record.key, [*run.models]) == ("one", Key("mnist", "gaussian", 0), ["all"])
    assert (run.per_class, run.models["all"].shape, run.models["all"].training) == (False, (1, 6, 6), False)
    assert load_run(write_run(tmp_path / "two", {"0": 40, "1": 128}), CPU).per_class


def test_a_failed_run_has_no_models(tmp_path: Path) -> None:
    run = load_run(write_run(tmp_path / "lost", {}, status="diverged", message="the loss is nan"), CPU)
    assert (run.record.status, run.record.message, run.models) == ("diverged", "the loss is nan", {})


def test_a_run_of_another_cell_or_of_other_parameters_is_refused(tmp_path: Path, params: Params) -> None:
    key, recipe = Key("mnist", "gaussian", 0), params.recipe("gaussian")
    folder = write_run(tmp_path / "one", {"all": 128}, recipe_params=recipe.model_dump(mode="json"))
    assert load_run(folder, CPU, key, recipe).models
    with pytest.raises(UserError, match=r"run\.json is not the run that was asked for: seed differ; train it again"):
        load_run(folder, CPU, key._replace(seed=1), recipe)
    with pytest.raises(UserError, match="for: dataset, recipe, recipe_params differ; train it again with: dvc repro"):
        load_run(folder, CPU, Key("fashion_mnist", "lunet", 0), params.recipe("lunet"))


def test_missing_and_damaged_runs_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"one is not a trained run, it has no run\.json; train one with: dvc repro"):
        load_run(tmp_path / "one", CPU)
    folder = write_run(tmp_path / "one", {"all": 128})
    with pytest.raises(UserError, match=r"it has no run\.json; .* has: one"):
        load_run(tmp_path / "two", CPU)
    (folder / "flows/all/weights.safetensors").write_bytes(b"")
    with pytest.raises(UserError, match=r"flows/all .*; train it again with: dvc repro -f -s train"):
        load_run(folder, CPU)
    record = run_record({"all": 128})
    del record["message"]
    write_json(folder / "run.json", record)
    with pytest.raises(UserError, match=r"run\.json: message: is missing; write it again with: dvc repro -f -s train"):
        load_run(folder, CPU)
    write_json(folder / "run.json", run_record({"all": 128}, seed="zero"))
    with pytest.raises(UserError, match=r"run\.json: seed: is 'zero'; .* valid integer"):
        load_run(folder, CPU)


def test_a_model_of_a_class_that_is_not_imported_need_not_be_trained_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_run(tmp_path / "one", {"all": 128})
    monkeypatch.delitem(Flow.kinds, "gaussian")
    with pytest.raises(UserError, match=r"no class called 'gaussian' is imported; import its module") as caught:
        load_run(folder, CPU)
    assert "train it again" not in str(caught.value)


def test_each_image_has_the_model_of_its_class_or_the_only_one() -> None:
    labels, others = torch.tensor([1, 0, 1]), torch.tensor([2, 1])
    dark, bright, grey = flow(0), flow(1), flow(2)
    each = {"0": dark, "1": bright, "2": grey}
    assert model_for(each, 1) is bright
    assert model_for({"all": grey}, 1) is grey
    assert [(model, rows.tolist()) for model, (rows,) in by_model({"all": grey}, labels)] == [(grey, [0, 1, 2])]
    # A class of none of the first images is left out.
    found = [(model, [rows.tolist() for rows in both]) for model, both in by_model(each, labels, others)]
    assert found == [(dark, [[1], []]), (bright, [[0, 2], [1]])]
