"""The collect stage: writes the tables, verdicts and figures of `reports/` from exactly the grid's cells."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pipeline.core.console import command_parser, exit_with, say
from pipeline.core.files import replacing, write_json
from pipeline.core.params import load_params
from pipeline.presets.merged import load_preset
from pipeline.results import figures
from pipeline.results.comparison import comparison
from pipeline.results.image_grid import write_images
from pipeline.results.kept import Kept, read_kept
from pipeline.results.metrics import by_recipe, metrics_of, subjects_of, timings_of
from pipeline.results.provenance import provenance_of
from pipeline.results.reading import SHOWN, CellStatus, read_densities, read_results, read_unfinished
from pipeline.results.tables import curves_table, latents_table, results_table, timings_table, write_table
from pipeline.results.verdicts import claims_of


def main() -> None:
    """Collect what the command line names."""
    parser = command_parser(
        "collect",
        "Read the cells of the grid and write their tables, metrics, verdicts and figures: metrics.json, "
        "timings.json, results.csv, latents.csv, timings.csv, curves.csv, claims.json, mixture.json, provenance.json "
        "and figures/. The runs in published/ are judged by the same rules: comparison.json.",
        example="",
    )
    parser.add_argument("--data", type=Path, default=Path("data"), help="the data sets' folder (%(default)s)")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="the stages' folder (%(default)s)")
    parser.add_argument("--out", type=Path, default=Path("reports"), help="the folder to write (%(default)s)")
    parser.add_argument("--unfinished", type=Path, help="a list of cells to leave out and to call unfinished, in JSON")
    arguments = parser.parse_args()
    unfinished = read_unfinished(arguments.unfinished) if arguments.unfinished else []
    collect(arguments.params, arguments.data, arguments.runs, arguments.out, unfinished=unfinished)
    left_out = f", without {len(unfinished)} that are unfinished" if unfinished else ""
    say(f"collected the grid's cells into {arguments.out}{left_out}")


def collect(
    params: Path, data: Path, runs: Path, out: Path, *, paper: str = "paper", unfinished: Sequence[CellStatus] = ()
) -> None:
    """Read the grid's cells and write the files of the report.

    Args:
        params: The parameter file, whose grid says which cells are read.
        data: The folder of the data sets.
        runs: The folder of the train, evaluate and measure stages.
        out: The folder to write; its other files stay, and published runs are read from `published/` in it.
        paper: The preset that the parameters are compared with.
        unfinished: Cells of the grid that have no figures yet; the provenance lists them.

    Raises:
        UserError: If a cell is missing or damaged, or was made with other parameters.
    """
    results = read_results(load_params(params), data, runs, unfinished)
    paper_params, mixture = load_preset(paper), results.mixture
    tables = {
        "results.csv": results_table(results),
        "latents.csv": latents_table(results),
        "timings.csv": timings_table(results),
        "curves.csv": curves_table(results.cells),
    }
    subjects = subjects_of(results, tables["curves.csv"])
    kept, warnings = read_kept(out / "published")
    claims = claims_of(results, paper_params, subjects, kept)
    contents = {
        "metrics.json": by_recipe(subjects, metrics_of),
        "timings.json": by_recipe(subjects, timings_of),
        "claims.json": claims,
        "comparison.json": comparison(Kept("This run", results, subjects), kept, warnings, claims),
        "provenance.json": provenance_of(results, paper_params),
        "mixture.json": mixture.model_dump(include=set(SHOWN)),
    }
    for name, table in tables.items():
        write_table(out / name, table)
    for name, content in contents.items():
        write_json(out / name, content)
    with replacing(out / "figures") as folder:
        folder.mkdir()
        figures.mixture(folder / "mixture.svg", read_densities(runs, mixture), mixture.box, mixture.points)
        figures.draw(folder, results, tables, contents)
        write_images(folder, results)


if __name__ == "__main__":
    exit_with(main)
