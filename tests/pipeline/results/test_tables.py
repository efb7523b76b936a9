"""Tests of the tables: their rows, the end of a failed history, and the round trip through CSV."""

from pathlib import Path

import pandas as pd
import pytest
from fake_results import EVIDENCE as LATER
from fake_results import SMALL, Project, parameters, with_failures

from pipeline.core.console import UserError
from pipeline.results.reading import Results
from pipeline.results.tables import (
    EVIDENCE,
    by_dataset,
    curves_table,
    latents_table,
    read_history,
    read_table,
    results_table,
    timings_table,
    with_none,
    write_table,
)
from pipeline.training.record import HISTORY

HEADER = ",".join(HISTORY) + "\n"
DIAGNOSIS = ",0.5,9,1e-5,1.0\n"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Results:
    return with_failures(tmp_path_factory.mktemp("whole")).read()


# Rows


def test_results_have_a_row_for_every_cell_and_class(whole: Results) -> None:
    table = results_table(whole)
    assert len(table[table["class"] == "all"]) == 2 * 5 * 3
    cell_rows = table[(table["dataset"] == "mnist") & (table["recipe"] == "lunet") & (table["seed"] == 2)]
    assert cell_rows["class"].tolist() == ["all", "0", "1", "2"]
    assert cell_rows["bits_per_dim_mean"].tolist() == pytest.approx([1.87, 1.77, 1.87, 1.97])
    assert cell_rows[["device", "host", "commit"]].iloc[0].tolist() == ["cpu", "0123abcd", "c0ffee000000"]


def test_failed_cells_have_one_row_without_figures(whole: Results) -> None:
    table = results_table(whole)
    failed = table[table["status"] != "complete"]
    assert failed["status"].tolist() == ["diverged", *3 * ["out_of_memory"]]
    assert failed["bits_per_dim_mean"].isna().all()
    assert failed["message"].iloc[0] == "the loss is not finite at step 7"


def test_whole_cells_have_their_evidence_and_classes_that_of_their_samples(tmp_path: Path) -> None:
    project = Project(tmp_path, parameters(**SMALL, recipes__realnvp__margin=[0.05, 0.0]))
    lunet, first, *_, realnvp = with_none(results_table(project.read())).head(5).to_dict("records")
    figures = {
        "margin_low": 0.001,
        "margin_high": 0.001,
        "closed_form_bits_per_dim": 2.25,
        "identity_bits_per_dim": 4.85,
        "gaussian_base_bits_per_dim": 1.8,
        "gaussian_base_fitted_images": 96,
        "class_gaussians_base_bits_per_dim": 1.77,
        "class_gaussians_base_fitted_images": 96,
        "class_gaussians_base_shrinkage": 0.25,
        "outside_cube_samples": 12,
        "outside_cube_pixels": 0.02,
        "outside_cube_images_inside": 1,
        "outside_cube_bits_least": 0.01,
        "outside_cube_bits_most": 0.03,
        "class_samples_fitted": 1200,
        "class_samples_fitted_right": 1080,
        "class_samples_fitted_share": 0.9,
        "other_cores": 0.05,
    }
    assert {name: value for name in EVIDENCE if (value := lunet[name]) is not None} == pytest.approx(figures)
    assert (realnvp["margin_low"], realnvp["margin_high"]) == (0.05, 0.0)
    samples = {"class_samples_fitted": 400, "class_samples_fitted_right": 360, "class_samples_fitted_share": 0.9}
    assert first["class"] == "0"
    assert {name: value for name in EVIDENCE if (value := first[name]) is not None} == samples


def test_one_model_a_class_has_samples_from_the_standard_normal_too(tmp_path: Path) -> None:
    project = Project(tmp_path, parameters(**SMALL, recipes__lunet__classes="each"))
    table = results_table(project.read())
    counts = table[["class_samples_standard_normal", "class_samples_standard_normal_right"]]
    assert counts.iloc[:4].to_numpy().tolist() == [[1200, 480], [400, 160], [400, 120], [400, 200]]
    assert table.loc[0, ["class_gaussians_base_bits_per_dim", "class_gaussians_base_shrinkage"]].isna().all()


def test_an_older_run_has_its_fitted_base_and_no_other_evidence(tmp_path: Path) -> None:
    project = Project(tmp_path, parameters(**SMALL))
    older = dict.fromkeys(LATER) | {"fitted_base_bits_per_dim": 1.75}
    project.change("evaluate/mnist-lunet-0.json", **older)
    project.change("train/mnist-lunet-0/run.json", other_cores=None)
    results = project.read()
    row = results_table(results).loc[0, list(EVIDENCE)].dropna()
    assert row.to_dict() == {"margin_low": 0.001, "margin_high": 0.001, "gaussian_base_bits_per_dim": 1.75}
    assert latents_table(results)["fitted_base_bits_per_dim"].tolist() == 3 * [1.75] + 3 * [pytest.approx(1.4)]


def test_timings_have_a_row_for_every_repetition_and_width(whole: Results) -> None:
    table = timings_table(whole)
    sizes = table[table["recipe"] == "lunet"].groupby(["dataset", "quantity"]).size()
    # Each recipe is measured once, for both data sets.
    assert set(table["dataset"]) == {"mnist"}
    assert set(table["stands_for"]) == {"mnist fashion_mnist"}
    assert sizes["mnist", "step"] == 8
    assert sizes["mnist", "determinant_slogdet"] == 6 * 3
    assert sizes["mnist", "memory_training_process_peak"] == 1
    steps = table[table["quantity"] == "step"]
    assert steps["repetition"].tolist() == 2 * list(range(8))
    assert steps["process"].tolist() == 2 * [1, 1, 1, 2, 2, 2, 3, 3]
    assert table[table["quantity"].str.startswith(("determinant", "memory", "released"))]["process"].isna().all()


def test_the_cost_of_a_call_is_that_of_a_matrix_with_one_entry(tmp_path: Path) -> None:
    project = Project(tmp_path, parameters(**SMALL))
    project.change("measure/mnist-lunet.json", determinant__call_ms=[0.006, 0.007])
    table = timings_table(project.read())
    calls = table[table["quantity"] == "determinant_call"]
    assert (calls["width"].tolist(), calls["value"].tolist()) == ([1, 1], [0.006, 0.007])


def test_a_measurement_has_its_rows_for_each_data_set_that_it_stands_for(whole: Results) -> None:
    table = timings_table(whole)
    rows = by_dataset(table)
    assert len(rows) == 2 * len(table)
    assert rows["measured"].unique().tolist() == ["mnist"]
    for name in ("mnist", "fashion_mnist"):
        assert rows[rows["dataset"] == name]["value"].tolist() == table["value"].tolist()


def test_curves_are_the_concatenated_histories(whole: Results) -> None:
    table = curves_table(whole.cells)
    cell_rows = table[(table["dataset"] == "mnist") & (table["recipe"] == "lunet") & (table["seed"] == 0)]
    assert cell_rows["step"].tolist() == [0, 10, 20, 30]
    assert cell_rows["train_bits_per_dim"].isna().tolist() == [True, False, False, False]
    assert set(table["recipe"]) == {"lunet", "lunet_learned", "realnvp"}


# Histories


@pytest.mark.parametrize("number", ["nan", "inf", "-inf"])
def test_nan_in_the_history_of_a_complete_run_is_refused(tmp_path: Path, number: str) -> None:
    path = tmp_path / "history.csv"
    path.write_text(
        f"{HEADER}all,0,0,0,0.002,,1.9{DIAGNOSIS}all,40,4,10.0,0.002,{number},1.9{DIAGNOSIS}", encoding="utf-8"
    )
    with pytest.raises(UserError, match=r"history\.csv holds a number that is not finite"):
        read_history(path, complete=True)


def test_the_history_of_a_diverged_model_ends_before_its_nan(tmp_path: Path) -> None:
    path = tmp_path / "history.csv"
    rows = (
        "0,0,0,0,0,,3\n1,0,0,0,0,,3\n1,40,4,10.0,0.002,nan,1.9\n1,50,5,11.0,0.002,1.0,1.0\n2,40,4,10.0,0.002,1.5,1.6\n"
    )
    path.write_text(HEADER + rows.replace("\n", DIAGNOSIS), encoding="utf-8")
    history = read_history(path, complete=False)
    assert list(zip(history["model"], history["step"], strict=True)) == [("0", 0), ("1", 0), ("2", 40)]


@pytest.mark.parametrize("text", ["", "model,step\nall,1\n", f"{HEADER}all,1,1,1,1,1,one{DIAGNOSIS}"])
def test_a_damaged_history_is_named(tmp_path: Path, text: str) -> None:
    path = tmp_path / "history.csv"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=r"history\.csv is damaged.*dvc repro"):
        read_history(path, complete=True)


# CSV


def test_tables_survive_a_round_trip_through_csv(whole: Results, tmp_path: Path) -> None:
    tables = {
        "results": results_table(whole),
        "timings": timings_table(whole),
        "curves": curves_table(whole.cells),
    }
    for name, table in tables.items():
        path = tmp_path / f"{name}.csv"
        write_table(path, table)
        pd.testing.assert_frame_equal(read_table(path), table, rtol=1e-15)


def test_whole_numbers_stay_whole_and_others_keep_every_digit(tmp_path: Path) -> None:
    project = Project(tmp_path, parameters(**SMALL))
    project.change("evaluate/mnist-lunet-0.json", test__bits_per_dim__mean=0.1 + 0.2)
    project.fail("mnist-realnvp-0")
    path = tmp_path / "results.csv"
    write_table(path, results_table(project.read()))
    text = path.read_bytes().decode()
    assert "\r" not in text
    assert text.splitlines()[1].startswith("mnist,lunet,0,all,,complete,,all,1,12,0.30000000000000004,")
    assert text.splitlines()[-1].startswith(
        "mnist,realnvp,0,all,,diverged,the loss is not finite at step 7,all,1"
        f"{11 * ','}7.5,1e-06,1e-06{22 * ','}0.05,cpu,"
    )


@pytest.mark.parametrize("message", ["NA", "nan", "1.50", 'a, "b"\nc', "a\rb", "<script>", "=1+1"])
def test_any_message_survives_a_round_trip(tmp_path: Path, message: str) -> None:
    project = Project(tmp_path, parameters(**SMALL))
    project.fail("mnist-lunet-0", message=message)
    path = tmp_path / "results.csv"
    write_table(path, results_table(project.read()))
    assert read_table(path)["message"].iloc[0] == message


@pytest.mark.parametrize("text", ["", "dataset,recipe\nmnist,lunet\n"])
def test_a_damaged_table_is_named(tmp_path: Path, text: str) -> None:
    path = tmp_path / "results.csv"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=r"results\.csv is damaged.*pipeline\.collect"):
        read_table(path)
