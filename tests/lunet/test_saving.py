from __future__ import annotations

import copy
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from random_flows import CPU_DTYPES, every_flow, random_lu_net, scale_, seeded
from torch import Tensor

from lunet import Flow, ImageFlow, LUNet, SavedFlowError, load_flow, save_flow
from lunet.saving import checksum

FLOWS = every_flow()
DEVICES = [
    "cpu",
    pytest.param(
        "cuda", marks=[pytest.mark.cuda, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")]
    ),
]


def saved(path: Path) -> Path:
    save_flow(ImageFlow(random_lu_net(4), (1, 2, 2)), path)
    return path


def data(flow: Flow) -> Tensor:
    return torch.rand(5, flow.features, generator=seeded()).to(flow._like().dtype)


# Round trip


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", CPU_DTYPES, ids=str)
@pytest.mark.parametrize("name", FLOWS)
@torch.no_grad()
def test_every_flow_comes_back_bit_for_bit(name: str, dtype: torch.dtype, device: str, tmp_path: Path) -> None:
    flow = copy.deepcopy(FLOWS[name]).to(dtype)
    scale_(flow, 1 + 1e-10)  # digits that float32 does not have
    shape = flow.config().get("shape", [1, 1, flow.features])
    image_flow = ImageFlow(flow, (shape[0], shape[1], shape[2]), None if "histogram" in name else (0.05, 1e-6))
    save_flow(image_flow, tmp_path / "models" / name)
    loaded = load_flow(str(tmp_path / "models" / name), device)
    assert type(loaded.flow) is type(flow)
    assert loaded.flow.config() == flow.config()
    assert loaded.config() == image_flow.config()
    assert not loaded.training
    assert loaded.flow._like().dtype == dtype
    assert flow.state_dict().keys() == loaded.flow.state_dict().keys()
    for before, after in zip(flow.state_dict().values(), loaded.flow.state_dict().values(), strict=True):
        assert after.device.type == device
        assert after.dtype == before.dtype
        assert torch.equal(before, after.cpu())
    if device == "cpu":
        assert torch.equal(loaded.flow.log_prob(data(flow)), flow.log_prob(data(flow)))
        assert torch.equal(loaded.sample(3, seeded()), image_flow.sample(3, seeded()))


def test_the_folder_holds_two_readable_files(tmp_path: Path) -> None:
    folder = saved(tmp_path / "flow")
    assert sorted(file.name for file in folder.iterdir()) == ["config.json", "weights.safetensors"]
    config = json.loads((folder / "config.json").read_text())
    assert config["kind"] == "lunet"
    assert config["dtype"] == "float32"
    assert config["flow"] == {
        "features": 4, "layers": 4, "activation": {"kind": "LeakySoftplus", "slope": 0.1}, "leading": None
    }  # fmt: skip


def test_saving_again_replaces_the_flow(tmp_path: Path) -> None:
    folder = saved(tmp_path)
    other = ImageFlow(random_lu_net(6, layers=2, seed=5), (1, 2, 3))
    save_flow(other, folder)
    assert torch.equal(load_flow(folder).flow.log_prob(data(other.flow)), other.flow.log_prob(data(other.flow)))


def test_a_loaded_flow_can_be_trained(tmp_path: Path) -> None:
    flow = load_flow(saved(tmp_path)).flow.train()
    flow.log_prob(data(flow)).sum().backward()
    assert all(parameter.grad is not None for parameter in flow.parameters())


def test_a_flow_of_an_unknown_kind_is_refused(tmp_path: Path) -> None:
    class Mine(LUNet):
        pass

    with pytest.raises(TypeError, match=r"a Mine cannot be saved"):
        save_flow(ImageFlow(Mine(4), (1, 2, 2)), tmp_path / "mine")
    assert not (tmp_path / "mine").exists()


# Folders that are not flows


def assert_refused(folder: Path, *, because: str = "") -> None:
    with pytest.raises(SavedFlowError) as caught:
        load_flow(folder)
    assert str(folder) in str(caught.value)
    assert because in str(caught.value)


def test_a_folder_that_does_not_exist(tmp_path: Path) -> None:
    assert_refused(tmp_path / "nowhere", because="config.json and weights.safetensors missing")


@pytest.mark.parametrize("file", ["config.json", "weights.safetensors"])
def test_a_missing_file_is_named(file: str, tmp_path: Path) -> None:
    (saved(tmp_path) / file).unlink()
    assert_refused(tmp_path, because=f"{file} missing")


def test_a_file_in_place_of_the_folder(tmp_path: Path) -> None:
    (tmp_path / "flow").write_text("not a folder")
    assert_refused(tmp_path / "flow")


@pytest.mark.parametrize("file", ["config.json", "weights.safetensors"])
@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"\xff\xfe\x00", b"\x00" * 200])
def test_a_damaged_file(file: str, content: bytes, tmp_path: Path) -> None:
    (saved(tmp_path) / file).write_bytes(content)
    assert_refused(tmp_path)


def test_weights_that_were_cut_short(tmp_path: Path) -> None:
    weights = saved(tmp_path) / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-40])
    assert_refused(tmp_path)


@pytest.mark.parametrize("version", [2, 99, "1"])
def test_another_format(version: object, tmp_path: Path) -> None:
    change(saved(tmp_path), "format", version)
    assert_refused(tmp_path, because=f"has format {version!r}; this version of lunet reads 1")


@pytest.mark.parametrize(
    ("key", "value"),
    [("kind", "glow"), ("kind", None), ("kind", []), ("dtype", "int32"), ("dtype", "float99"), ("dtype", None),
     ("flow", {}), ("flow", []), ("flow.features", 5), ("flow.features", -1), ("flow.features", "4"),
     ("flow.layers", 3), ("flow.activation", {"kind": "LeakySoftplus", "slope": 2.0}),
     ("flow.activation", {"kind": "Tanh"}), ("flow.activation", {"slope": 0.1}), ("flow.leading", 3),
     ("flow.leading", {"kind": "LearnedMonotone"}), ("flow.planes", 4), ("image", {}), ("image", None),
     ("image.shape", [2, 2]), ("image.shape", [1, 2, 3]), ("image.shape", None),
     ("image.margin", [0.1]), ("image.margin", "x"), ("image.margin", 3), ("image.margin", [0.6, 0.6])],
)  # fmt: skip
def test_a_config_that_makes_no_flow(key: str, value: object, tmp_path: Path) -> None:
    change(saved(tmp_path), key, value)
    assert_refused(tmp_path)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_weights_that_are_not_finite(value: float, tmp_path: Path) -> None:
    for name in ("lunet", "realnvp", "gaussian", "histogram"):
        flow = every_flow()[name]
        with torch.no_grad():
            next(iter(flow.state_dict().values())).flatten()[0] = value
        shape = (1, 4, 4) if name == "realnvp" else (1, 1, flow.features)
        save_flow(ImageFlow(flow, shape), tmp_path / name)
        assert_refused(tmp_path / name, because="not finite")


def test_weights_that_are_singular(tmp_path: Path) -> None:
    flow = random_lu_net(4)
    with torch.no_grad():
        flow.layers[1].lu[2, 2] = 0
    save_flow(ImageFlow(flow, (1, 2, 2)), tmp_path)
    assert_refused(tmp_path, because="layers.1 is singular")


@pytest.mark.parametrize("file", ["config.json", "weights.safetensors"])
def test_files_of_two_flows_are_not_taken_together(file: str, tmp_path: Path) -> None:
    folder, other = saved(tmp_path / "flow"), tmp_path / "other"
    save_flow(ImageFlow(LUNet(4, slope=0.2), (1, 2, 2)), other)
    (folder / file).write_bytes((other / file).read_bytes())
    assert_refused(folder, because="was changed after it was written")


def test_a_changed_weight_is_noticed(tmp_path: Path) -> None:
    weights = saved(tmp_path) / "weights.safetensors"
    content = bytearray(weights.read_bytes())
    content[-3] ^= 1
    weights.write_bytes(content)
    assert_refused(tmp_path, because="was changed after it was written")


def test_a_flow_without_a_checksum_is_read(tmp_path: Path) -> None:
    config = json.loads((saved(tmp_path) / "config.json").read_text())
    del config["sha256"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert load_flow(tmp_path).flow.features == 4


def change(folder: Path, key: str, value: object) -> None:
    """Write another value into config.json, with a checksum that fits."""
    config: dict[str, Any] = json.loads((folder / "config.json").read_text())
    *parents, last = key.split(".")
    place = config
    for parent in parents:
        place = place[parent]
    place[last] = value
    config["sha256"] = checksum(config, (folder / "weights.safetensors").read_bytes())
    (folder / "config.json").write_text(json.dumps(config))
