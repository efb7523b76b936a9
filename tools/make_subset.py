"""Makes the bundled subset again from the full data sets."""

from __future__ import annotations

import argparse
import gzip

import numpy as np

from pipeline.core.console import exit_with, say
from pipeline.core.dataset import Bytes
from pipeline.core.files import replacing, sha256
from pipeline.core.params import DataSource
from pipeline.sources.published import FILES, ORIGINS, SUBSET, fetch, idx_bytes

TRAIN_PER_CLASS = 100
TEST_PER_CLASS = 20


def first_of_each_class(labels: Bytes, count: int) -> np.ndarray[tuple[int], np.dtype[np.intp]]:
    """The sorted indices of the first ``count`` images of each class."""
    return np.sort(np.concatenate([np.flatnonzero(labels == label)[:count] for label in np.unique(labels)]))


def main() -> None:
    """Write the compressed IDX files of both subsets and print the SHA-256 of their uncompressed bytes."""
    argparse.ArgumentParser(
        prog="python -m tools.make_subset",
        description=f"Write the bundled subset again from the full data sets, which it fetches: the first "
        f"{TRAIN_PER_CLASS} training and the first {TEST_PER_CLASS} test images of each class, in their original "
        "order. It prints the SHA-256 of each uncompressed file, for pipeline/sources/published.yaml.",
    ).parse_args()
    for name in ORIGINS:
        files, _ = fetch(name, DataSource(source="auto", folder=None))
        train_images, train_labels, test_images, test_labels = (files[file] for file in FILES)
        train = first_of_each_class(train_labels, TRAIN_PER_CLASS)
        test = first_of_each_class(test_labels, TEST_PER_CLASS)
        arrays = (train_images[train], train_labels[train], test_images[test], test_labels[test])
        for file, array in zip(FILES, arrays, strict=True):
            content = idx_bytes(array)
            with (
                replacing(SUBSET / name / f"{file}.gz") as partial_file,
                partial_file.open("wb") as target,
                gzip.GzipFile("", "wb", fileobj=target, mtime=0) as packed,
            ):
                packed.write(content)
            say(f"{name}/{file}: {sha256(content)}")


if __name__ == "__main__":
    exit_with(main)
