"""The data stage: fetches one data set, verifies it, and writes it as arrays with their checksums."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.core.console import UserError, command_parser, exit_with, say
from pipeline.core.dataset import ARRAYS, DESCRIPTION, Bytes, load_dataset
from pipeline.core.files import refuse_foreign, replacing, sha256, write_json
from pipeline.core.params import CustomData, DataSource, load_params
from pipeline.sources.custom import read_custom
from pipeline.sources.published import FILES, ORIGINS, fetch, idx_bytes


def main() -> None:
    """Write the data set that the command line names."""
    parser = command_parser(
        "data",
        "Fetch a data set, verify every file against its known SHA-256, and write it as .npy files with a "
        "dataset.json. The bytes are the same whatever the source; data.<dataset> in the parameter file chooses it, or "
        "names the path of a data set of your own. A folder that already holds the data is left as it is.",
        example="--dataset fashion_mnist --out data/fashion_mnist",
    )
    parser.add_argument("--dataset", required=True, help="which data set of the parameter file")
    parser.add_argument(
        "--out", required=True, type=Path, help="the folder to write; an older data set there is replaced"
    )
    arguments = parser.parse_args()
    params = load_params(arguments.params)
    settings = params.dataset(arguments.dataset)
    if params.preset == "paper":
        from pipeline.core.environment import choose_device  # it imports torch, which takes seconds

        choose_device(params.device, params.preset)
    try:
        if isinstance(settings, CustomData):
            outcome = write_custom(arguments.dataset, settings, arguments.out)
        else:
            outcome = write_published(arguments.dataset, settings, arguments.out)
    except OSError as error:
        raise UserError(f"cannot write {arguments.out}: {error}") from None
    say(f"{arguments.dataset}: {outcome}")


def write_published(name: str, settings: DataSource, out: Path) -> str:
    """Write one of the paper's data sets, verified, unless the folder contains it already; returns a message."""
    origin, subset = ORIGINS[name], settings.source == "bundled"
    description = partial(describe, name, origin.title, origin.licence, origin.class_names, subset=subset)
    with contextlib.suppress(UserError):
        dataset = load_dataset(out.resolve())
        expected = description({array: getattr(dataset, array) for array in ARRAYS})
        if dataset.info == expected and expected["idx_sha256"] == origin.known(subset=subset):
            return f"{out} already holds the verified data; nothing fetched"
    refuse_foreign(out.resolve(), DESCRIPTION)
    files, source = fetch(name, settings)
    arrays = {array: files[file] for array, file in zip(ARRAYS, FILES, strict=True)}
    write_dataset(out.resolve(), arrays, description(arrays))
    return f"from {source}, every checksum verified, written to {out}"


def write_custom(name: str, settings: CustomData, out: Path) -> str:
    """Write a custom data set; returns a message. Its checksums are recorded, not compared."""
    path = Path(settings.path)
    if path.resolve().is_relative_to(out.resolve()):
        raise UserError(f"data.{name}.path is {path}, within {out}, which this stage writes; keep it elsewhere")
    refuse_foreign(out.resolve(), DESCRIPTION)
    arrays, class_names = read_custom(path)
    licence = "not known: a data set of your own"
    description = describe(name, settings.title or name, licence, class_names, arrays, subset=False)
    write_dataset(out.resolve(), arrays, description | {"custom": True})
    counts = ", ".join(f"{len(arrays[array]):,} {array.replace('_', ' ')}" for array in ("train_images", "test_images"))
    return f"{counts} of {len(class_names)} classes from {path}, checksums recorded, written to {out}"


def describe(
    name: str, title: str, licence: str, class_names: Sequence[str], arrays: Mapping[str, Bytes], *, subset: bool
) -> dict[str, Any]:
    """The content of `dataset.json`: names, licence, sizes, classes, and checksums of the .npy and the IDX files."""

    def per_class(labels: Bytes) -> dict[str, int]:
        return {str(label): int((labels == label).sum()) for label in range(len(class_names))}

    return {
        "name": name,
        "title": title,
        "licence": licence,
        "shape": list(arrays["train_images"].shape[1:]),
        "class_names": list(class_names),
        "train": len(arrays["train_images"]),
        "test": len(arrays["test_images"]),
        "subset": subset,
        "sha256": {f"{array}.npy": sha256(npy_bytes(arrays[array])) for array in ARRAYS},
        "idx_sha256": {file: sha256(idx_bytes(arrays[array])) for file, array in zip(FILES, ARRAYS, strict=True)},
        "train_per_class": per_class(arrays["train_labels"]),
        "test_per_class": per_class(arrays["test_labels"]),
    }


def write_dataset(out: Path, arrays: Mapping[str, Bytes], description: Mapping[str, Any]) -> None:
    """Write the arrays and their description atomically."""
    with replacing(out) as folder:
        folder.mkdir()
        for array, values in arrays.items():
            (folder / f"{array}.npy").write_bytes(npy_bytes(values))
        write_json(folder / DESCRIPTION, dict(description), sealed=True)


def npy_bytes(array: Bytes) -> bytes:
    """The .npy file of an array."""
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()


if __name__ == "__main__":
    exit_with(main)
