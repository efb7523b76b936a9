"""Flows on disk: a folder with `config.json` and `weights.safetensors`, loaded without pickle."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from lunet.base import Flow
from lunet.controls import Gaussian, Histogram
from lunet.image_flow import ImageFlow
from lunet.lu_net import LUNet
from lunet.realnvp import RealNVP
from lunet.released import ReleasedRealNVP

FORMAT = 1
KINDS: dict[str, type[Flow]] = {
    "lunet": LUNet,
    "realnvp": RealNVP,
    "realnvp_released": ReleasedRealNVP,
    "gaussian": Gaussian,
    "histogram": Histogram,
}


class SavedFlowError(ValueError):
    """Raised for a folder that does not contain a flow that this version can read."""


def save_flow(image_flow: ImageFlow, path: str | Path) -> None:
    """Save a flow as `config.json` and `weights.safetensors`.

    The configuration contains a checksum of both files, so that files of different flows are not combined.

    Args:
        image_flow: The flow; its weights are saved in their dtype.
        path: The folder, which is created if it does not exist.

    Raises:
        TypeError: If the class of the flow is not in `KINDS`.
    """
    kinds = {flow_class: kind for kind, flow_class in KINDS.items()}
    flow = image_flow.flow
    if type(flow) not in kinds:
        raise TypeError(f"a {type(flow).__name__} cannot be saved; add it to lunet.saving.KINDS")
    dtype = str(flow._like().dtype).removeprefix("torch.")
    config = {
        "format": FORMAT, "dtype": dtype, "image": image_flow.config(), "kind": kinds[type(flow)], "flow": flow.config()
    }  # fmt: skip
    folder = Path(path)
    folder.mkdir(parents=True, exist_ok=True)
    weights = save({name: tensor.contiguous() for name, tensor in flow.state_dict().items()})
    config["sha256"] = checksum(config, weights)
    text = json.dumps(config, indent=2) + "\n"
    for name, content in (("weights.safetensors", weights), ("config.json", text.encode())):
        part = folder / f".{name}.part"
        part.write_bytes(content)
        part.replace(folder / name)


def load_flow(path: str | Path, device: str | torch.device = "cpu") -> ImageFlow:
    """Load a flow, in eval mode.

    Args:
        path: The folder that `save_flow` wrote.
        device: The device of the flow.

    Raises:
        SavedFlowError: If the folder is not a saved flow, is damaged, or was written by a newer version.
    """
    folder = Path(path)
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        if config["format"] != FORMAT:
            raise SavedFlowError(f"{folder} has format {config['format']!r}; this version of lunet reads {FORMAT}")
        image, options = config["image"], config["flow"]
        options = {key: tuple(value) if isinstance(value, list) else value for key, value in options.items()}
        flow = KINDS[config["kind"]](**options)
        margin = None if image["margin"] is None else tuple(image["margin"])
        image_flow = ImageFlow(flow, tuple(image["shape"]), margin).to(getattr(torch, config["dtype"]))
        weights = (folder / "weights.safetensors").read_bytes()
        flow.load_state_dict(load(weights))
        flow.eval().check_invertible()
        # Earlier versions saved no checksum.
        if config.get("sha256", expected := checksum(config, weights)) != expected:
            raise SavedFlowError(
                f"{folder} was changed after it was written: its SHA-256 is not the one in config.json"
            )
    except SavedFlowError:
        raise
    except FileNotFoundError:
        missing = [name for name in ("config.json", "weights.safetensors") if not (folder / name).exists()]
        raise SavedFlowError(f"{folder} is not a saved flow: {' and '.join(missing)} missing") from None
    except (LookupError, TypeError, AttributeError, ValueError, RuntimeError, OSError, SafetensorError) as error:
        raise SavedFlowError(f"{folder} is not a flow that can be read: {type(error).__name__}: {error}") from error
    return image_flow.eval().to(device)


def checksum(config: Mapping[str, Any], weights: bytes) -> str:
    """The SHA-256 of a configuration, without its entry ``sha256``, and of the weights file's content."""
    text = json.dumps({key: value for key, value in config.items() if key != "sha256"}, sort_keys=True)
    return hashlib.sha256(text.encode() + weights).hexdigest()
