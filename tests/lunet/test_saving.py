from __future__ import annotations

import copy
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from random_flows import CPU_DTYPES, DEVICES, every_flow, random_lu_net, random_realnvp, scale_, seeded
from torch import Tensor, nn
from torch.nn.utils.parametrize import register_parametrization

from lunet import Activation, ClassFlows, Flow, ImageFlow, LUNet, SavedFlowError, load_flow, save_flow
from lunet.saving import checksum

FLOWS = every_flow()


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
def test_round_trip_is_exact(name: str, dtype: torch.dtype, device: str, tmp_path: Path) -> None:
    flow = copy.deepcopy(FLOWS[name]).to(dtype)
    scale_(flow, 1 + 1e-10)  # digits beyond float32
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


def test_folder_contains_config_and_weights(tmp_path: Path) -> None:
    folder = saved(tmp_path / "flow")
    assert sorted(file.name for file in folder.iterdir()) == ["config.json", "weights.safetensors"]
    config = json.loads((folder / "config.json").read_text())
    assert config["kind"] == "lunet"
    assert config["dtype"] == "float32"
    assert config["flow"] == {
        "features": 4,
        "layers": 4,
        "slope": None,
        "activation": {"kind": "LeakySoftplus", "slope": 0.1},
        "leading": None,
    }


def test_save_replaces_a_saved_flow(tmp_path: Path) -> None:
    folder = saved(tmp_path)
    other = ImageFlow(random_lu_net(6, layers=2, seed=5), (1, 2, 3))
    save_flow(other, folder)
    assert torch.equal(load_flow(folder).flow.log_prob(data(other.flow)), other.flow.log_prob(data(other.flow)))


def test_loaded_flow_can_be_trained(tmp_path: Path) -> None:
    flow = load_flow(saved(tmp_path)).flow.train()
    flow.log_prob(data(flow)).sum().backward()
    assert all(parameter.grad is not None for parameter in flow.parameters())


# Every kind of model


class Shift(Flow, kind="shift-of-this-test"):
    """The map x - b."""

    def __init__(self, features: int) -> None:
        super().__init__(features)
        self.shift = nn.Parameter(torch.arange(float(features)))

    def _forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x - self.shift, x.new_zeros(len(x))

    def _inverse(self, z: Tensor) -> Tensor:
        return z + self.shift

    def config(self) -> dict[str, Any]:
        return {"features": self.features}


class Stretch(Activation):
    """The map 2 x."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return 2 * x, torch.full_like(x, math.log(2))

    def inverse(self, y: Tensor) -> Tensor:
        return y / 2

    def config(self) -> dict[str, Any]:
        return {}


@pytest.mark.parametrize("flow", [Shift(4), LUNet(4, activation=Stretch(), leading=Stretch())], ids=lambda f: f.kind)
def test_a_flow_of_ones_own_is_saved(flow: Flow, tmp_path: Path) -> None:
    save_flow(flow, tmp_path)
    loaded = load_flow(tmp_path)
    assert type(loaded) is type(flow)
    assert torch.equal(loaded.log_prob(data(flow)), flow.eval().log_prob(data(flow)))
    save_flow(ImageFlow(flow, (1, 2, 2)), tmp_path)
    assert torch.equal(load_flow(tmp_path).sample(3, seeded()), ImageFlow(flow, (1, 2, 2)).sample(3, seeded()))


class Forgetful(Shift, kind="forgetful-of-this-test"):
    """A flow whose configuration would make another."""

    def __init__(self, features: int, bound: float = 1.0) -> None:
        super().__init__(features)
        self.bound = bound


class ForgetfulStretch(Stretch):
    """An activation whose configuration would make another."""

    def __init__(self, factor: float = 2.0) -> None:
        super().__init__()


def test_a_configuration_that_lacks_an_argument_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"Forgetful\.config\(\) lacks 'bound', an argument of the constructor"):
        save_flow(ImageFlow(Forgetful(4), (1, 2, 2)), tmp_path / "flow")
    assert not (tmp_path / "flow").exists()
    with pytest.raises(ValueError, match=r"ForgetfulStretch\.config\(\) lacks 'factor'"):
        LUNet(4, activation=ForgetfulStretch())


class Unresolved(Shift, kind="unresolved-of-this-test"):
    """A flow with an annotation that only type checkers can resolve."""

    def __init__(self, features: int, names: Unknown = ()) -> None:  # type: ignore[name-defined]  # noqa: F821
        super().__init__(features)
        self.names = names

    def config(self) -> dict[str, Any]:
        return {"features": self.features, "names": list(self.names)}


def test_annotations_need_not_be_resolved(tmp_path: Path) -> None:
    save_flow(Unresolved(4, ("a",)), tmp_path)
    assert load_flow(tmp_path).names == ("a",)


def test_a_flow_whose_class_is_not_imported_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_flow(Shift(4), tmp_path)
    monkeypatch.delitem(Flow.kinds, "shift-of-this-test")
    assert_load_raises(tmp_path, reason="no class called 'shift-of-this-test' is imported; import its module first")


def test_flows_of_classes_are_saved_together(tmp_path: Path) -> None:
    flows = {"a/b": ImageFlow(random_lu_net(4), (1, 2, 2)), "1": ImageFlow(Shift(4).double(), (1, 2, 2), 0.01)}
    save_flow(ClassFlows(flows), tmp_path)
    loaded = load_flow(tmp_path)
    assert isinstance(loaded, ClassFlows)
    assert loaded.names == ("a/b", "1")
    assert not loaded.training
    for name, flow in flows.items():
        assert (loaded[name].margin, type(loaded[name].flow)) == (flow.margin, type(flow.flow))
        assert torch.equal(loaded[name].eval().sample(5, seeded()), flow.eval().sample(5, seeded()))


def test_values_keep_their_dtypes_and_a_configuration_its_keys(tmp_path: Path) -> None:
    class Mixed(Shift, kind="mixed-of-this-test"):
        def __init__(self, features: int, sizes: dict[Any, int]) -> None:
            super().__init__(features)
            self.sizes = sizes
            self.tied = self.shift
            self.fine: Tensor
            self.register_buffer("fine", torch.full((2,), 1 + 1e-10, dtype=torch.float64))

        def config(self) -> dict[str, Any]:
            return {"features": self.features, "sizes": {10: 1, 2: 3}}

    save_flow(Mixed(4, {}), tmp_path)
    loaded = load_flow(tmp_path)
    assert loaded.sizes == {"10": 1, "2": 3}
    assert (loaded.shift.dtype, loaded.fine.dtype, float(loaded.fine[0])) == (torch.float32, torch.float64, 1 + 1e-10)


def test_a_parametrized_flow_is_refused(tmp_path: Path) -> None:
    flow = Shift(4)
    register_parametrization(flow, "shift", nn.Tanh())
    register_parametrization(Shift(4), "shift", nn.Tanh())  # torch makes another class of the same name
    with pytest.raises(TypeError, match="a parametrized flow cannot be saved; remove its parametrizations first"):
        save_flow(flow, tmp_path / "flow")
    assert not (tmp_path / "flow").exists()


def test_a_module_that_is_no_flow_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="a Linear cannot be saved; give a Flow, an ImageFlow or a ClassFlows"):
        save_flow(nn.Linear(2, 2), tmp_path / "linear")  # type: ignore[arg-type]
    assert not (tmp_path / "linear").exists()


def test_a_realnvp_of_version_0_1_is_read(tmp_path: Path) -> None:
    flow = random_realnvp(shared=True)
    save_flow(flow, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["flow"]["shared"] = config["flow"].pop("networks") == "shared"
    del config["sha256"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert load_flow(tmp_path).config() == flow.config()


# Folders that are not saved flows


def assert_load_raises(folder: Path, *, reason: str = "") -> None:
    with pytest.raises(SavedFlowError) as caught:
        load_flow(folder)
    assert str(folder) in str(caught.value)
    assert reason in str(caught.value)


def test_missing_folder(tmp_path: Path) -> None:
    assert_load_raises(tmp_path / "nowhere", reason="config.json and weights.safetensors missing")


@pytest.mark.parametrize("file", ["config.json", "weights.safetensors"])
def test_missing_file_is_named(file: str, tmp_path: Path) -> None:
    (saved(tmp_path) / file).unlink()
    assert_load_raises(tmp_path, reason=f"{file} missing")


def test_file_in_place_of_the_folder(tmp_path: Path) -> None:
    (tmp_path / "flow").write_text("not a folder")
    assert_load_raises(tmp_path / "flow")


@pytest.mark.parametrize("file", ["config.json", "weights.safetensors"])
@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"\xff\xfe\x00", b"\x00" * 200])
def test_damaged_file(file: str, content: bytes, tmp_path: Path) -> None:
    (saved(tmp_path) / file).write_bytes(content)
    assert_load_raises(tmp_path)


def test_truncated_weights(tmp_path: Path) -> None:
    weights = saved(tmp_path) / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-40])
    assert_load_raises(tmp_path)


@pytest.mark.parametrize("version", [2, 99, "1"])
def test_other_format(version: object, tmp_path: Path) -> None:
    change(saved(tmp_path), "format", version)
    assert_load_raises(tmp_path, reason=f"has format {version!r}; this version of lunet reads 1")


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
def test_invalid_config(key: str, value: object, tmp_path: Path) -> None:
    change(saved(tmp_path), key, value)
    assert_load_raises(tmp_path)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_weights_that_are_not_finite(value: float, tmp_path: Path) -> None:
    for name in ("lunet", "realnvp", "gaussian", "histogram"):
        flow = every_flow()[name]
        with torch.no_grad():
            next(iter(flow.state_dict().values())).flatten()[0] = value
        shape = (1, 4, 4) if name == "realnvp" else (1, 1, flow.features)
        save_flow(ImageFlow(flow, shape), tmp_path / name)
        assert_load_raises(tmp_path / name, reason="not finite")


def test_singular_weights(tmp_path: Path) -> None:
    flow = random_lu_net(4)
    with torch.no_grad():
        flow.layers[1].lu[2, 2] = 0
    save_flow(ImageFlow(flow, (1, 2, 2)), tmp_path)
    assert_load_raises(tmp_path, reason="layers.1 is singular")


@pytest.mark.parametrize("file", ["config.json", "weights.safetensors"])
def test_files_of_two_flows_are_not_combined(file: str, tmp_path: Path) -> None:
    folder, other = saved(tmp_path / "flow"), tmp_path / "other"
    save_flow(ImageFlow(LUNet(4, slope=0.2), (1, 2, 2)), other)
    (folder / file).write_bytes((other / file).read_bytes())
    assert_load_raises(folder, reason="was changed after it was written")


def test_changed_weight_is_detected(tmp_path: Path) -> None:
    weights = saved(tmp_path) / "weights.safetensors"
    content = bytearray(weights.read_bytes())
    content[-3] ^= 1
    weights.write_bytes(content)
    assert_load_raises(tmp_path, reason="was changed after it was written")


def test_flow_without_a_checksum_can_be_loaded(tmp_path: Path) -> None:
    config = json.loads((saved(tmp_path) / "config.json").read_text())
    del config["sha256"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert load_flow(tmp_path).flow.features == 4


def change(folder: Path, key: str, value: object) -> None:
    """Change a value in config.json, and the checksum accordingly."""
    config: dict[str, Any] = json.loads((folder / "config.json").read_text())
    *parents, last = key.split(".")
    section = config
    for parent in parents:
        section = section[parent]
    section[last] = value
    config["sha256"] = checksum(config, (folder / "weights.safetensors").read_bytes())
    (folder / "config.json").write_text(json.dumps(config))
