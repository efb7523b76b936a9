"""The train stage: fits one recipe to one data set and saves the weights that are best on held-out images."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path

import torch

from lunet import save_flow
from pipeline.core.cell import cell_parser
from pipeline.core.console import StopRequest, UserError, exit_with, say
from pipeline.core.dataset import Dataset, load_dataset
from pipeline.core.environment import choose_device, describe_environment, determinism, keep_freed_memory
from pipeline.core.files import refuse_foreign, replacing, write_json
from pipeline.core.load import OtherCores
from pipeline.core.params import Recipe, load_params
from pipeline.core.precision import arithmetic
from pipeline.core.record import CellOutcome, Parameters
from pipeline.core.streams import stream_seed
from pipeline.training.checkpoints import Checkpoint, checkpoint_folder, checkpoints
from pipeline.training.fit import fit, write_history
from pipeline.training.models import build, checked_recipe, groups
from pipeline.training.record import Fit, Run


def main() -> None:
    """Train the cell that the command line names."""
    parser = cell_parser(
        "train",
        "Fit one recipe to one data set. Writes a folder with flows/<model>/, history.csv and run.json. A training "
        "that was stopped or killed goes on from its last checkpoint when the same command is given again.",
        out="runs/train/mnist-lunet-0",
        out_help="the folder to write; an older one is replaced",
        seed=True,
    )
    parser.add_argument(
        "--finished",
        action="store_true",
        help="train nothing; write the run with the classes that a stopped training has finished, with the status "
        "partial; the same command without this option goes on with the other classes",
    )
    arguments = parser.parse_args()
    params, other_cores = load_params(arguments.params), OtherCores()
    recipe = checked_recipe(params, arguments.recipe, str(arguments.params))
    device = choose_device(params.device, params.preset)
    keep_freed_memory()
    refuse_foreign(arguments.out, "run.json")
    dataset = load_dataset(arguments.data or Path("data") / arguments.dataset, arguments.dataset)
    title = f"{arguments.dataset} {arguments.recipe} {arguments.seed}"
    identity = {
        "recipe": recipe.model_dump(mode="json"),
        "seed": arguments.seed,
        "data": dataset.info["sha256"],
        "device": device.type,
        "deterministic": params.deterministic,
    }
    models = [*groups(dataset, recipe)]
    saved = checkpoint_folder(arguments.out, identity)
    chosen = finished_models(saved, models) if arguments.finished else models
    if not chosen:
        raise UserError(f"{title}: no model is finished, so there is nothing to write; train it first")
    keeps_checkpoints = len(chosen) < len(models)
    with (
        StopRequest() as request,
        determinism(params),
        arithmetic(),
        nullcontext(saved) if keeps_checkpoints else checkpoints(arguments.out, identity) as checkpoint_path,
        replacing(arguments.out) as folder,
    ):
        folder.mkdir()

        def checkpoint(model: str) -> Checkpoint:
            return Checkpoint(checkpoint_path / f"{model}.pt", params.checkpoint_seconds, request)

        fits, parameters = train(dataset, recipe, arguments.seed, device, folder / "flows", title, checkpoint, chosen)
        write_history(folder / "history.csv", fits)
        status, message = outcome(fits, models)
        run = Run(
            dataset=arguments.dataset,
            recipe=arguments.recipe,
            seed=arguments.seed,
            status=status,
            message=message,
            seconds=sum(fit.seconds for fit in fits.values()),
            parameters=parameters,
            recipe_params=recipe.model_dump(mode="json"),
            models=fits,
            environment=describe_environment(device),
            other_cores=other_cores.mean(),
        )
        write_json(folder / "run.json", run.model_dump(mode="json"), sealed=True)
    say(f"{title}: {run.status} in {run.seconds:.0f} s, written to {arguments.out}")


def train(
    dataset: Dataset,
    recipe: Recipe,
    seed: int,
    device: torch.device,
    flows: Path,
    title: str,
    checkpoint: Callable[[str], Checkpoint] = lambda _: Checkpoint(),
    chosen: Collection[str] | None = None,
) -> tuple[dict[str, Fit], Parameters]:
    """Fit every model of a recipe, or those ``chosen``, and write those that are complete to ``flows/<model>``.

    A model that diverges or runs out of memory is recorded as such, and the remaining models are still trained. Each
    model resumes from its ``checkpoint``; a completed model is not trained again.

    Returns:
        The fit of each model, by name, and the numbers of stored and of free parameters of one model.
    """
    parts = [(dataset.train_images, dataset.train_labels), (dataset.test_images, dataset.test_labels)]
    fits = {}
    for name, label in groups(dataset, recipe).items():
        if chosen is not None and name not in chosen:
            continue
        torch.manual_seed(stream_seed("weights", seed, name))
        model = build(recipe, (1, *dataset.train_images.shape[1:]))
        arrays = [images if label is None else images[labels == label] for images, labels in parts]
        images, test = map(torch.from_numpy, arrays)
        model_title = title if label is None else f"{title} class {name}"
        fits[name] = fit(model, recipe, images, test, device, seed, model_title, checkpoint(name), name)
        if label is not None and fits[name].message:
            fits[name] = fits[name].model_copy(update={"message": f"class {name}: {fits[name].message}"})
        if fits[name].status == "complete":
            save_flow(model, flows / name)
    stored = sum(tensor.numel() for tensor in model.state_dict().values())
    return fits, Parameters(stored=stored, free=model.flow.free_parameters())


def outcome(fits: Mapping[str, Fit], models: Sequence[str]) -> tuple[CellOutcome, str | None]:
    """The status and the message of a run with the fits of all models, or of some, which make it partial."""
    failed = next((fit for fit in fits.values() if fit.status != "complete"), None)
    if len(fits) < len(models):
        trained = sum(fit.status == "complete" for fit in fits.values())
        message = f"{trained} of {len(models)} classes trained"
        return "partial", f"{message}; {failed.message}" if failed else message
    return (failed.status, failed.message) if failed else ("complete", None)


def finished_models(folder: Path, models: Iterable[str]) -> list[str]:
    """The models whose training has ended, from a folder of checkpoints."""
    saved = {model: Checkpoint(folder / f"{model}.pt").read() for model in models}
    return [model for model, state in saved.items() if state and "fit" in state]


if __name__ == "__main__":
    exit_with(main)
