"""The data stage: fetches one data set, verifies it, and writes it as arrays with their checksums."""

from __future__ import annotations

import argparse
import hashlib
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.console import UserError, exit_with, say
from pipeline.datasets import ARRAYS, DESCRIPTION, Bytes, load_dataset
from pipeline.files import refuse_foreign, replacing, write_json
from pipeline.params import load_params
from pipeline.sources import FILES, ORIGINS, fetch, idx_bytes


def main() -> None:
    """Write the data set that the command line names."""
    parser = argparse.ArgumentParser(
        prog="python -m pipeline.data",
        description="Fetch a data set, verify every file against its known SHA-256, and write it as .npy files with a "
        "dataset.json. The bytes are the same whatever the source; data.<dataset> in the parameter file chooses it. "
        "A folder that already holds the data is left as it is.",
        epilog="example: python -m pipeline.data --dataset fashion_mnist --out data/fashion_mnist",
    )
    parser.add_argument("--dataset", required=True, choices=ORIGINS, help="which data set")
    parser.add_argument(
        "--out", required=True, type=Path, help="the folder to write; an older data set there is replaced"
    )
    parser.add_argument(
        "--params", type=Path, default=Path("params.yaml"), help="the parameter file (default: %(default)s)"
    )
    arguments = parser.parse_args()
    params = load_params(arguments.params)
    if params.preset == "paper":
        from pipeline.environment import choose_device  # it needs torch, which takes seconds to import

        choose_device(params)
    settings = getattr(params.data, arguments.dataset)
    subset = settings.source == "bundled"
    try:
        out = arguments.out.resolve()
        if is_current(out, arguments.dataset, subset=subset):
            say(f"{arguments.dataset}: {arguments.out} already holds the verified data; nothing fetched")
            return
        refuse_foreign(out, DESCRIPTION)
        files, source = fetch(arguments.dataset, settings)
        arrays = {array: files[file] for array, file in zip(ARRAYS, FILES, strict=True)}
        write_dataset(out, arguments.dataset, arrays, subset=subset)
    except OSError as error:
        raise UserError(f"cannot write {arguments.out}: {error}") from None
    say(f"{arguments.dataset}: from {source}, every checksum verified, written to {arguments.out}")


def is_current(out: Path, name: str, *, subset: bool) -> bool:
    """Whether a folder holds exactly what this stage would write there."""
    try:
        dataset = load_dataset(out)
    except UserError:
        return False
    expected = describe(name, {array: getattr(dataset, array) for array in ARRAYS}, subset=subset)
    return dataset.info == expected and expected["idx_sha256"] == ORIGINS[name].known(subset=subset)


def write_dataset(out: Path, name: str, arrays: Mapping[str, Bytes], *, subset: bool) -> None:
    """Write the arrays and their description, whole or not at all."""
    with replacing(out) as fresh:
        fresh.mkdir()
        for array, values in arrays.items():
            (fresh / f"{array}.npy").write_bytes(npy_bytes(values))
        write_json(fresh / DESCRIPTION, describe(name, arrays, subset=subset), sealed=True)


def describe(name: str, arrays: Mapping[str, Bytes], *, subset: bool) -> dict[str, Any]:
    """The content of `dataset.json`: names, licence, sizes, classes, and checksums of the .npy and the IDX files."""
    origin = ORIGINS[name]

    def per_class(labels: Bytes) -> dict[str, int]:
        return {str(label): int((labels == label).sum()) for label in range(len(origin.class_names))}

    return {
        "name": name,
        "title": origin.title,
        "licence": origin.licence,
        "shape": list(arrays["train_images"].shape[1:]),
        "class_names": list(origin.class_names),
        "train": len(arrays["train_images"]),
        "test": len(arrays["test_images"]),
        "subset": subset,
        "sha256": {f"{array}.npy": digest(npy_bytes(arrays[array])) for array in ARRAYS},
        "idx_sha256": {file: digest(idx_bytes(arrays[array])) for file, array in zip(FILES, ARRAYS, strict=True)},
        "train_per_class": per_class(arrays["train_labels"]),
        "test_per_class": per_class(arrays["test_labels"]),
    }


def npy_bytes(array: Bytes) -> bytes:
    """The .npy file of an array."""
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()


def digest(content: bytes) -> str:
    """The SHA-256 of some bytes, in hexadecimal."""
    return hashlib.sha256(content).hexdigest()


if __name__ == "__main__":
    exit_with(main)
