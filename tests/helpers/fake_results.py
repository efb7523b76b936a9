"""Made-up data, runs and parameters in the files that the stages write, for the tests of collect and report."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ruamel.yaml import YAML

from pipeline.collect import collect
from pipeline.core.cell import cells_of
from pipeline.core.files import sha256, write_json
from pipeline.core.params import load_params, validate
from pipeline.core.record import Environment, Parameters, Record
from pipeline.evaluation.record import (
    BaseScores,
    ClassSamples,
    Evaluation,
    FittedLatents,
    Latents,
    Likelihood,
    OutsideCube,
    RoundTrip,
    Spread,
)
from pipeline.measuring.record import Determinant, Measurement, Memory, Timing
from pipeline.presets.merged import preset_values
from pipeline.results.mixture_record import Interval, Mixture, MixtureModel
from pipeline.results.reading import Results, read_results
from pipeline.training.record import HISTORY, Fit, Run

SMALL = {"grid__datasets": ["mnist"], "grid__recipes": ["lunet", "realnvp"], "grid__seeds": [0]}

ENVIRONMENT = Environment(
    time="2026-01-02T03:04:05+00:00",
    host="0123abcd",
    system="Linux-6.1-x86_64",
    processor="A processor",
    cores=2,
    memory_gib=8.0,
    device="cpu",
    gpu=None,
    gpu_driver=None,
    cuda=None,
    threads=2,
    python="3.11.2",
    torch="2.15.0",
    numpy="2.3.0",
    commit="c0ffee" + 34 * "0",
    dirty=False,
).model_dump(mode="json")
COMPLETE: dict[str, Any] = {"status": "complete", "message": None, "environment": ENVIRONMENT}
PARAMETERS = Parameters(stored=2_461_760, free=2_461_760)
FITTED = FittedLatents(projection_distance=0.04, projection_distance_max=0.09, radius_distance=0.61)
EVIDENCE = ("bases", "class_samples", "outside_cube", "closed_form_bits_per_dim", "identity_bits_per_dim")
BITS = {"lunet": 1.85, "realnvp": 1.45, "gaussian": 2.0, "histogram": 1.7}
CENTRES = {
    "step": {"lunet": 40.0, "realnvp": 300.0},
    "optimizer_step": {"lunet": 4.0, "realnvp": 1.0},
    "density_small": {"lunet": 2.0, "realnvp": 9.0, "gaussian": 0.6, "histogram": 0.1},
    "density_large": {"lunet": 0.05, "realnvp": 0.9, "gaussian": 0.02, "histogram": 0.004},
    "sampling_small": {"lunet": 6.0, "realnvp": 9.5, "gaussian": 0.5, "histogram": 0.2},
    "sampling_large": {"lunet": 0.2, "realnvp": 0.95, "gaussian": 0.03, "histogram": 0.01},
    "released_optimizer_step": {"lunet": 5.0, "realnvp": 2.0},
    "released_density": {"lunet": 11.0, "realnvp": 420.0},
    "released_sampling": {"lunet": 30.0, "realnvp": 12.0},
}


def parameters(**changes: Any) -> dict[str, Any]:
    """The laptop preset as plain values; ``changes`` are named by their keys, with two underscores for each dot."""
    values = preset_values("laptop")
    values["evaluate"] |= {"sample_rows": 3, "sample_columns": 4}
    for dotted, value in changes.items():
        *above, last = dotted.split("__")
        section = values
        for name in above:
            section = section[name]
        section[last] = value
    return dict(values)


class Project:
    """A folder with `params.yaml`, `data/` and `runs/`, whose values tests can change."""

    def __init__(self, root: Path, values: Mapping[str, Any] | None = None) -> None:
        self.root = root
        self.values = dict(values or parameters())
        self.params, self.data, self.runs, self.reports = (
            root / name for name in ("params.yaml", "data", "runs", "reports")
        )
        validated = validate(self.values, "the test")
        self.recipes = validated.model_dump(mode="json")["recipes"]
        with self.params.open("w", encoding="utf-8") as file:
            YAML(typ="safe", pure=True).dump(self.values, file)
        grid = self.values["grid"]
        for dataset in grid["datasets"]:
            write_dataset(self.data / dataset, dataset)
            for recipe in grid["recipes"]:
                for seed in grid["seeds"]:
                    self.write_cell(dataset, recipe, seed)
        for key in cells_of(validated)["measure"]:
            self.write_measurement(key.dataset, key.recipe)
        self.write_mixture()

    def write_cell(self, dataset: str, recipe: str, seed: int) -> None:
        """Write one training with its evaluation and samples."""
        cell = {"dataset": dataset, "recipe": recipe, "seed": seed, **COMPLETE}
        key = f"{dataset}-{recipe}-{seed}"
        bits = BITS.get(recipe, 1.6) + 0.01 * seed + (2.1 if dataset == "fashion_mnist" else 0)
        trained = self.recipes[recipe]["training"] is not None
        classes = self.recipes[recipe]["classes"]
        models = ["all"] if classes == "all" else [str(label) for label in range(3)]
        folder = self.runs / "train" / key
        folder.mkdir(parents=True)
        lines = [",".join(HISTORY)]
        for model in models if trained else []:
            lines.append(f"{model},0,0.0,0.0,0.0,,{bits + 1.0},,,1e-05,1.0")
            lines += [
                f"{model},{10 * n},{n},{2.5 * n},0.002,{bits + 0.5 / n},{bits + 0.6 / n},0.5,{10 + n},1e-05,0.9999"
                for n in (1, 2, 3)
            ]
        (folder / "history.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
        fitted: dict[str, Any] = {
            "status": "complete",
            "message": None,
            "train_images": 96,
            "steps": 30,
            "seconds": 7.5,
        }
        model_run = Fit(
            **fitted | {"best_step": 30 if trained else None},
            holdout_images=4 if trained else 0,
            epochs=3.0,
            best_epoch=3.0 if trained else None,
            best_holdout_bits_per_dim=bits + 0.2 if trained else None,
        )
        run = Run(
            **cell,
            seconds=7.5,
            other_cores=0.05,
            parameters=PARAMETERS,
            recipe_params=self.recipes[recipe],
            models=dict.fromkeys(models, model_run),
        )
        write_record(folder / "run.json", run)
        poster = None if recipe == "histogram" else bits + (6.0 if recipe == "realnvp" else -0.01)
        inverted: dict[str, Any] = {"images": 12, "latent_max_error": 1e-4}
        evaluation = Evaluation(
            **cell,
            classes=classes,
            draws=1,
            separate_noise=True,
            test=Likelihood(
                images=12, bits_per_dim=spread(bits), bits_per_dim_by_draw=[bits], poster_bits_per_pixel=poster
            ),
            per_class={str(c): Likelihood(images=4, bits_per_dim=spread(bits + 0.1 * (c - 1))) for c in range(3)},
            round_trip=RoundTrip(**inverted, pixels_exact=0.99999, pixels_within_one=1.0),
            latents=latents(0.1),
            **evidence(recipe, seed, bits, classes),
            fitted_latents=FITTED if recipe == "lunet" else None,
            interpolations=2,
            sample_class_accuracy=0.93 if classes == "each" else None,
            classification_accuracy=0.95 if classes == "each" else None,
            seconds=1.0,
        )
        write_record(self.runs / "evaluate" / f"{key}.json", evaluation)
        samples = self.runs / "samples" / key
        samples.mkdir(parents=True)
        settings = self.values["evaluate"]
        shape = (settings["sample_rows"], settings["sample_columns"], 28, 28)
        grids = {"samples": shape, "nearest": shape, "interpolations": (2, *shape[1:])}
        if recipe != "histogram":
            grids["by_class"] = (3, *shape[1:])
        for name, grid_shape in grids.items():
            np.save(samples / f"{name}.npy", np.random.default_rng(seed).integers(0, 256, grid_shape, dtype=np.uint8))

    def write_mixture(self) -> None:
        """Write the experiment in two dimensions, on a coarse grid."""
        x, y = np.meshgrid(np.linspace(-13, 1, 29), np.linspace(-11, 7, 37))
        squared = (x + 6) ** 2 + (y + 2) ** 2
        densities = np.stack([-squared / 2 / scale - np.log(2 * np.pi * scale) for scale in (1.0, 2.0, 9.0)])
        np.save(self.runs / "mixture.npy", densities.astype(np.float32))
        nats = {"truth": 1.0, "lunet": 1.3, "gaussian": 5.0}

        def interval(mean: float) -> Interval:
            return Interval(mean=mean, ci_low=1.0, ci_high=1.2, n=1000)

        mixture = Mixture(
            **COMPLETE,
            settings=self.values["mixture"],
            seconds=9.0,
            centres=[(-6.0, -2.0)],
            std=1.0,
            entropy=1.0052,
            printed=0.9,
            printed_honest=1.5931,
            models={
                name: MixtureModel(nats=interval(mean), above_truth=interval(mean - 1)) for name, mean in nats.items()
            },
            box=[-13.0, 1.0, -11.0, 7.0],
            points=[(-6.0, -2.0), (-5.5, -2.5)],
            densities=list(nats),
            densities_sha256=sha256(self.runs / "mixture.npy"),
        )
        write_record(self.runs / "mixture.json", mixture)

    def write_measurement(self, dataset: str, recipe: str) -> None:
        """Write made-up times around the recipe's centre, the same on every call."""
        random = np.random.default_rng(len(recipe))
        times: dict[str, Timing | None] = {}
        for quantity, centres in CENTRES.items():
            centre = centres.get(recipe)
            times[quantity] = None
            if centre is None:
                continue
            released = quantity.startswith("released")
            samples = [float(centre * factor) for factor in random.lognormal(0, 0.1, 8)]
            times[quantity] = Timing(
                unit="ms",
                per="step" if "step" in quantity else "image",
                batch=1 if "small" in quantity else 1000 if "large" in quantity else 256,
                samples=[centre] if released else samples,
                process=None if released else [1, 1, 1, 2, 2, 2, 3, 3],
                images=1024 if quantity == "released_density" else None,
                of=60_000 if quantity == "released_density" else None,
            )
        peak = Memory(
            process_start_mib=300.0,
            process_peak_mib={"lunet": 420.0, "realnvp": 900.0}.get(recipe, 350.0),
            allocated_peak_mib=None,
            reserved_peak_mib=None,
            gpu_process_mib=None,
        )
        widths = [64, 128, 256, 512, 1024, 2048]
        determinant = Determinant(
            widths=widths,
            diagonal_ms=[[0.01 * (1 + width / 5000)] * 3 for width in widths],
            slogdet_ms=[[1e-7 * width**2.5] * 3 for width in widths],
            call_ms=[0.004] * 3,
        )
        measurement = Measurement(
            **COMPLETE,
            dataset=dataset,
            recipe=recipe,
            device="cpu",
            image_shape=(28, 28),
            parameters=PARAMETERS,
            floors_mib={"sampling": 9.4} | ({"training": 37.6} if times["step"] else {}),
            times=times,
            memory={"training": peak if times["step"] else None, "sampling": peak},
            determinant=determinant if recipe == "lunet" else None,
        )
        write_record(self.runs / "measure" / f"{dataset}-{recipe}.json", measurement)

    def change(self, path: str, **changes: Any) -> None:
        """Replace values of a JSON file under ``runs/``; keys as in `parameters`. NaN stays NaN."""
        file = self.runs / path
        content = json.loads(file.read_text(encoding="utf-8"))
        for dotted, value in changes.items():
            *above, last = dotted.split("__")
            section = content
            for name in above:
                section = section[name]
            section[last] = value
        file.write_text(json.dumps(content), encoding="utf-8")

    def read(self) -> Results:
        """The results, read from the files."""
        return read_results(load_params(self.params), self.data, self.runs)

    def collect(self) -> None:
        """Write ``reports/``."""
        collect(self.params, self.data, self.runs, self.reports, paper="laptop")

    def fail(self, key: str, status: str = "diverged", message: str = "the loss is not finite at step 7") -> None:
        """Turn a training into a failed one, in the files of train and evaluate."""
        self.change(f"train/{key}/run.json", status=status, message=message)
        nothing = dict.fromkeys(
            (
                "test",
                "per_class",
                "round_trip",
                "latents",
                "sample_class_accuracy",
                "classification_accuracy",
                *EVIDENCE,
            )
        )
        self.change(f"evaluate/{key}.json", status=status, message=message, **nothing)
        np.save(self.runs / "samples" / key / "samples.npy", np.zeros((0, 4, 28, 28), dtype=np.uint8))


def with_failures(root: Path) -> Project:
    """Two data sets, four recipes, three seeds; one training diverged and three ran out of memory."""
    project = Project(root, parameters(grid__seeds=[0, 1, 2]))
    project.fail("mnist-realnvp-1")
    for seed in range(3):
        project.fail(f"fashion_mnist-realnvp-{seed}", "out_of_memory", "needed 9 GiB, see /home/someone/runs/log.txt")
    return project


def evidence(recipe: str, seed: int, bits: float, classes: str) -> dict[str, Any]:
    """The fields `EVIDENCE` of an evaluation; none for histograms."""
    if recipe == "histogram":
        return {}
    bases = {"gaussian": BaseScores(bits_per_dim=bits - 0.05, fitted_images=96)}
    samples = {"fitted": ClassSamples(of_each=400, right=3 * [360 + seed])}
    if classes == "each":
        samples["standard_normal"] = ClassSamples(of_each=400, right=[160, 120, 200])
    else:
        bases["class_gaussians"] = BaseScores(bits_per_dim=bits - 0.08, fitted_images=96, shrinkage=0.25)
    return {
        "bases": bases,
        "class_samples": samples,
        "outside_cube": OutsideCube(samples=12, pixels=0.02, images_inside=1, bits_least=0.01, bits_most=0.03),
        "closed_form_bits_per_dim": bits + 0.4,
        "identity_bits_per_dim": bits + 3.0 + 0.01 * seed,
    }


def latents(distance: float) -> Latents:
    """Diagnostics of latents whose projections have a distance from the standard normal."""
    levels = [0.1, 0.5, 0.9]
    return Latents(
        images=12,
        mean=0.01,
        variance=1.02,
        variance_min=0.8,
        variance_max=1.4,
        projection_distance=distance,
        projection_distance_max=2 * distance,
        radius=1.02,
        radius_distance=3 * distance,
        critical_distance=0.375,
        critical_distance_max=0.6,
        levels=levels,
        projection_quantiles=[distance + level for level in levels],
    )


def spread(mean: float) -> Spread:
    """Statistics of bits per dimension with a given mean."""
    return Spread(mean=mean, median=mean - 0.05, std=0.3, min=mean - 0.9, max=mean + 4.0, worst_percent_share=0.02)


def write_record(path: Path, record: Record) -> None:
    """Write a record as the stages do, but without a checksum, so that tests can change it."""
    write_json(path, record.model_dump(mode="json"))


def write_dataset(folder: Path, name: str, class_names: Sequence[str] = ("0", "1", "2")) -> None:
    """Write 12 + 12 images with labels, and the description that the data stage writes."""
    folder.mkdir(parents=True)
    random = np.random.default_rng(0)
    labels = np.arange(12, dtype=np.uint8) % len(class_names)
    arrays = {
        "train_images": random.integers(0, 256, (12, 28, 28), dtype=np.uint8),
        "train_labels": labels,
        "test_images": random.integers(0, 256, (12, 28, 28), dtype=np.uint8),
        "test_labels": labels,
    }
    for array, values in arrays.items():
        np.save(folder / f"{array}.npy", values)
    description = {
        "name": name,
        "title": {"mnist": "MNIST", "fashion_mnist": "Fashion-MNIST"}.get(name, name),
        "licence": "CC BY-SA 3.0",
        "shape": [28, 28],
        "class_names": list(class_names),
        "train": 12,
        "test": 12,
        "subset": False,
        "sha256": {f"{array}.npy": sha256(folder / f"{array}.npy") for array in arrays},
        "idx_sha256": {"train-images-idx3-ubyte": 64 * "a"},
        "train_per_class": dict.fromkeys(class_names, 4),
        "test_per_class": dict.fromkeys(class_names, 4),
    }
    if name not in ("mnist", "fashion_mnist"):
        description["custom"] = True
    write_json(folder / "dataset.json", description)
