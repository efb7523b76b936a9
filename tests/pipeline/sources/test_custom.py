"""Custom data sets and images: every kind of file, the refused ones, and the report of a custom data set."""

from __future__ import annotations

import gzip
import json
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from custom_data import Arrays, put_idx, put_npz, put_pngs, small
from fake_results import Project, parameters
from matplotlib.image import imsave
from numpy.typing import NDArray
from parsed_page import Page
from PIL import Image
from png_files import gradients, write_png

from pipeline.core.console import UserError
from pipeline.page.view import render
from pipeline.presets.merged import load_preset
from pipeline.results.image_grid import write_grid
from pipeline.sources.custom import as_bytes, read_custom, read_pictures
from pipeline.sources.published import idx_bytes
from pipeline.training.models import build


@pytest.fixture
def images() -> NDArray[np.uint8]:
    """Images that contain every 8-bit value."""
    return gradients(6, 9)


# Data sets


@pytest.mark.parametrize(
    "put", [put_npz, put_idx, lambda path, arrays: put_idx(path, arrays, packed=True), put_pngs],
    ids=["npz", "idx", "gz", "png"],
)  # fmt: skip
def test_every_kind_of_source_gives_the_same_arrays(tmp_path: Path, put: Callable[[Path, Arrays], Path]) -> None:
    arrays, class_names = read_custom(put(tmp_path / "own", small()))
    assert class_names == ("0", "1", "2")
    for array, values in small().items():
        np.testing.assert_array_equal(arrays[array], values)
        assert arrays[array].dtype == np.uint8


def test_folders_name_the_classes_numbers_in_their_order(tmp_path: Path) -> None:
    _, class_names = read_custom(put_pngs(tmp_path / "a", small(), ("shoe", "10", "9")))
    assert class_names == ("9", "10", "shoe")


def test_labels_are_renumbered_from_zero(tmp_path: Path) -> None:
    arrays = small()
    for part in ("train", "test"):
        arrays[f"{part}_labels"] = (10 + 5 * arrays[f"{part}_labels"].astype(np.int64))[:, None]
    loaded, class_names = read_custom(put_npz(tmp_path / "own", arrays))
    assert class_names == ("10", "15", "20")
    np.testing.assert_array_equal(loaded["train_labels"], small()["train_labels"])


# Data sets that are refused


def without(array: str) -> Arrays:
    return {name: values for name, values in small().items() if name != array}


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        (without("test_labels"), "lacks test_labels; a data set of your own is a .npz file"),
        ({**small(), "test_labels": np.zeros(6, np.uint8)}, "no test images of the class 1, 2"),
        ({**small(), "train_labels": np.repeat([0, 1], 6)}, "no train images of the class 2"),
        ({**small(), "train_labels": np.zeros(11, np.uint8)}, "12 train images, but 11 labels"),
        ({**small(), "test_images": small(14)["test_images"]}, "test images are 14x14 pixels, the others 16x16"),
        ({**small(), "train_images": np.zeros((12, 16, 16))}, "train_images is float64, not 8-bit"),
        ({**small(), "train_labels": np.zeros((12, 3), np.uint8)}, r"labels has the shape \(12, 3\)"),
        (small(classes=1), "1 classes; from 2 to 256"),
        (small(66), "66x66 pixels; square ones from 2 to 64"),
        ({name: v[..., :9] if v.ndim == 3 else v for name, v in small().items()}, "9x16 pixels; square"),
    ],
)
def test_arrays_that_no_model_accepts_are_refused(tmp_path: Path, arrays: Arrays, words: str) -> None:
    with pytest.raises(UserError, match=words):
        read_custom(put_npz(tmp_path / "own", arrays))


def test_other_paths_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere is not there; a data set of your own is"):
        read_custom(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"lacks train-images-idx3-ubyte, train-labels"):
        read_custom(tmp_path)
    (tmp_path / "a.tar").touch()
    with pytest.raises(UserError, match=r"a\.tar is no \.npz file"):
        read_custom(tmp_path / "a.tar")
    folder = put_pngs(tmp_path / "pngs", small())
    (folder / "test").rename(folder / "tests")
    with pytest.raises(UserError, match=r"test holds no folders of classes"):
        read_custom(folder)


def test_odd_sides_are_refused_when_a_realnvp_is_built() -> None:
    params = load_preset("smoke")
    with pytest.raises(UserError, match=r"a realnvp cannot take images of 9x9 pixels: .*even height and width"):
        build(params.recipe("realnvp"), (1, 9, 9))
    assert build(params.recipe("lunet"), (1, 9, 9)).shape == (1, 9, 9)


# Images


@pytest.mark.parametrize("name", ["a.npy", "a.npz", "a-idx3-ubyte", "a-idx3-ubyte.gz", "folder"])
def test_every_kind_of_file_gives_the_same_images(tmp_path: Path, images: NDArray[np.uint8], name: str) -> None:
    path = tmp_path / name
    if name == "a.npy":
        np.save(path, images)
    elif name == "a.npz":
        np.savez(path, images=images, labels=np.arange(6))
    elif name == "folder":
        for number, image in enumerate(images):
            write_png(path / f"deep/{number}.png", image)
    else:
        path.write_bytes(gzip.compress(idx_bytes(images)) if name.endswith(".gz") else idx_bytes(images))
    pictures, names = read_pictures(path)
    np.testing.assert_array_equal(pictures, images)
    assert pictures.dtype == np.uint8
    assert names == [f"deep/{n}.png" if name == "folder" else str(n) for n in range(6)]


def test_a_png_with_equal_colour_channels_is_grey(tmp_path: Path, images: NDArray[np.uint8]) -> None:
    write_grid(tmp_path / "a.png", images[None, :1])
    pictures, names = read_pictures(tmp_path / "a.png")
    np.testing.assert_array_equal(pictures, images[:1])
    assert names == ["a.png"]


@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA", "P"])
def test_grey_is_read_from_every_kind_of_8_bit_png(tmp_path: Path, images: NDArray[np.uint8], mode: str) -> None:
    Image.fromarray(images[0]).convert(mode).save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_pictures(tmp_path / "a.png")[0], images[:1])


@pytest.mark.parametrize("shape", [(6, 1, 4, 5), (6, 4, 5, 1), (6, 4, 5)])
def test_the_channel_axis_may_be_first_or_last(shape: tuple[int, ...]) -> None:
    values = np.arange(120, dtype=np.int64).reshape(shape)
    np.testing.assert_array_equal(as_bytes(values, "x", images=True), np.arange(120, dtype=np.uint8).reshape(6, 4, 5))


def test_the_array_of_a_npz_file_is_guessed_or_named(tmp_path: Path, images: NDArray[np.uint8]) -> None:
    path = tmp_path / "a.npz"
    np.savez(path, train_images=images[:2], test_images=images)
    assert len(read_pictures(path)[0]) == 6
    assert len(read_pictures(path, "train_images")[0]) == 2
    np.savez(path, one=images)
    assert len(read_pictures(path)[0]) == 6
    np.savez(path, one=images, other=images)
    for wanted in (None, "third"):
        with pytest.raises(UserError, match=r"one, other; name the one with the images by --array"):
            read_pictures(path, wanted)


# Images that are refused


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (np.zeros((2, 4, 4)), "float64, not 8-bit"),
        (np.full((2, 4, 4), 256), "from 256 to 256, not 0 to 255"),
        (np.full((2, 4, 4), -1), "from -1 to -1"),
        (np.zeros((0, 4, 4), np.uint8), r"shape \(0, 4, 4\)"),
        (np.zeros((2, 3, 4, 4), np.uint8), r"shape \(2, 3, 4, 4\)"),
        (np.zeros(4, np.uint8), r"shape \(4,\)"),
        (np.array([["a"]]), "not 8-bit"),
    ],
)
def test_other_values_are_refused(tmp_path: Path, values: NDArray[Any], words: str) -> None:
    np.save(tmp_path / "a.npy", values)
    with pytest.raises(UserError, match=rf"a\.npy.*{words}"):
        read_pictures(tmp_path / "a.npy")


def test_objects_are_never_unpickled(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.array([{}]), allow_pickle=True)
    with pytest.raises(UserError, match="not a whole"):
        read_pictures(tmp_path / "a.npy")
    np.savez(tmp_path / "a.npz", images=np.array([{}], dtype=object))
    with pytest.raises(UserError, match="damaged"):
        read_pictures(tmp_path / "a.npz")


@pytest.mark.parametrize("name", ["a.npy", "a.npz", "a.png", "a-idx3-ubyte", "a.jpg"])
def test_missing_and_damaged_files_are_named(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    with pytest.raises(UserError, match=rf"{name} cannot be read: No such file"):
        read_pictures(path)
    path.write_bytes(b"\x1f\x8b no such thing")
    with pytest.raises(UserError, match=name):
        read_pictures(path)


@pytest.mark.parametrize(
    ("name", "before", "after"), [("a.npy", b"}", b"{"), ("a.npz", b"PK\1\2", b"PK\1\2\0\0\x99\0")]
)
def test_whatever_error_a_damaged_array_raises_it_is_named(
    tmp_path: Path, images: NDArray[np.uint8], name: str, before: bytes, after: bytes
) -> None:
    """The first is a TokenError of Python's parser, the second, of a future version of zip, a NotImplementedError."""
    path = tmp_path / name
    (np.save if name == "a.npy" else np.savez)(path, images)
    content = path.read_bytes()
    start = content.index(before)
    path.write_bytes(content[:start] + after + content[start + len(after) :])
    with pytest.raises(UserError, match=rf"{name} is damaged or not a whole \.np[yz] file"):
        read_pictures(path)


def test_a_png_that_was_cut_off_is_damaged(tmp_path: Path, images: NDArray[np.uint8]) -> None:
    write_png(tmp_path / "a.png", images[0])
    content = (tmp_path / "a.png").read_bytes()
    for length in (len(content) - 20, 30):
        (tmp_path / "a.png").write_bytes(content[:length])
        with pytest.raises(UserError, match=r"a\.png is a damaged PNG file"):
            read_pictures(tmp_path / "a.png")


def test_a_png_with_a_changed_byte_is_damaged(tmp_path: Path, images: NDArray[np.uint8]) -> None:
    write_png(tmp_path / "a.png", images[0])
    content = bytearray((tmp_path / "a.png").read_bytes())
    content[60] ^= 1
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(UserError, match=r"a\.png is a damaged PNG file"):
        read_pictures(tmp_path / "a.png")


def test_a_png_that_lacks_its_last_chunk_was_cut_off(tmp_path: Path, images: NDArray[np.uint8]) -> None:
    write_png(tmp_path / "a.png", images[0])
    (tmp_path / "a.png").write_bytes((tmp_path / "a.png").read_bytes()[:-12])
    with pytest.raises(UserError, match=r"a\.png is a damaged PNG file or was cut off: truncated PNG file"):
        read_pictures(tmp_path / "a.png")


def test_a_png_of_enormous_size_is_not_decoded(tmp_path: Path, images: NDArray[np.uint8]) -> None:
    write_png(tmp_path / "a.png", images[0])
    content = (tmp_path / "a.png").read_bytes()
    header = b"IHDR" + struct.pack(">2I", 1 << 20, 1 << 20) + content[24:29]
    (tmp_path / "a.png").write_bytes(content[:12] + header + struct.pack(">I", zlib.crc32(header)) + content[33:])
    with pytest.raises(UserError, match=r"a\.png is a damaged PNG file.* exceeds limit"):
        read_pictures(tmp_path / "a.png")


@pytest.mark.parametrize(("mode", "bits"), [("1", 1), ("P", 2), ("P", 4)])
def test_fewer_bits_than_8_are_refused(tmp_path: Path, images: NDArray[np.uint8], mode: str, bits: int) -> None:
    Image.fromarray(images[0] % 2).convert(mode).save(tmp_path / "a.png", bits=bits)
    with pytest.raises(UserError, match=rf"a\.png has {bits} bits a value; 8-bit PNG files are wanted"):
        read_pictures(tmp_path / "a.png")


def test_transparency_is_refused(tmp_path: Path, images: NDArray[np.uint8]) -> None:
    grey = Image.fromarray(images[0])
    for number, (image, transparency) in enumerate(
        [(grey.convert("LA"), None), (grey, 5), (grey.convert("RGB"), (5, 5, 5))]
    ):
        if image.mode == "LA":
            image.putalpha(254)
        image.save(path := tmp_path / f"{number}.png", transparency=transparency)
        with pytest.raises(UserError, match=rf"{number}\.png has colours or is transparent"):
            read_pictures(path)


def test_an_archive_named_npy_gives_its_array(tmp_path: Path, images: NDArray[np.uint8]) -> None:
    np.savez(tmp_path / "a.npz", images=images)
    (tmp_path / "a.npz").rename(tmp_path / "a.npy")
    np.testing.assert_array_equal(read_pictures(tmp_path / "a.npy")[0], images)


def test_colours_depth_and_size_are_refused(tmp_path: Path, images: NDArray[np.uint8]) -> None:
    imsave(tmp_path / "a.png", images[0], cmap="viridis")
    with pytest.raises(UserError, match=r"a\.png has colours"):
        read_pictures(tmp_path / "a.png")
    write_png(tmp_path / "b.png", images[0].astype(np.uint16))
    with pytest.raises(UserError, match=r"b\.png has 16 bits a value"):
        read_pictures(tmp_path / "b.png")
    write_png(tmp_path / "c/1.png", images[0])
    write_png(tmp_path / "c/2.png", images[0, :8])
    with pytest.raises(UserError, match=r"2\.png is 9x8 pixels, 1\.png 9x9"):
        read_pictures(tmp_path / "c")
    (tmp_path / "d").mkdir()
    with pytest.raises(UserError, match=r"d holds no \.png file"):
        read_pictures(tmp_path / "d")


# Collect and the report


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    values = parameters(
        grid__datasets=["mnist", "mine"], grid__recipes=["lunet", "realnvp"], data__mine={"path": "/home/me/own.npz"}
    )
    project = Project(tmp_path_factory.mktemp("own"), values)
    project.collect()
    return project


def test_it_is_in_metrics_and_tables_but_in_no_claim(project: Project) -> None:
    def read(name: str) -> Any:
        return json.loads((project.reports / name).read_text(encoding="utf-8"))

    assert read("metrics.json")["mine"]["lunet"]["bits_per_dim"]["mean"] == 1.85
    assert read("timings.json")["mine"]["lunet"]
    claims = read("claims.json")
    assert {entry["dataset"] for claim in claims["claims"] for entry in claim["datasets"]} == {"mnist", "all"}
    assert {row["title"] for row in claims["conversion"]["poster"]} == {"MNIST"}
    assert read("provenance.json")["params"]["data"]["mine"] == {"path": "<path>", "title": None}
    assert (project.reports / "figures/likelihood-mine.svg").is_file()


def test_the_page_shows_it_beside_no_poster(project: Project) -> None:
    page = Page(render(project.reports, "t"))
    assert page.words.count("the poster’s table beside ours") == 1
    assert "mine: test bits/dim of each class" in page.words
    assert "12 test images of MNIST and 12 test images of mine" in page.words
    assert "python -m pipeline.data --dataset mine --out data/mine" in page.words


def test_a_grid_without_the_paper_s_data_decides_nothing(tmp_path: Path) -> None:
    project = Project(tmp_path, parameters(grid__datasets=["mine"], data__mine={"path": "own.npz"}))
    project.collect()
    claims = json.loads((project.reports / "claims.json").read_text(encoding="utf-8"))["claims"]
    assert {(claim["verdict"], len(claim["datasets"])) for claim in claims} == {("not_tested", 0)}
    assert "10 are not tested" in Page(render(project.reports, "t")).words
