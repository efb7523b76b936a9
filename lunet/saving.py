"""Flows on disk: a folder with `config.json` and `weights.safetensors`, read without pickle."""

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
from lunet.realnvp import RealNVP, ReleasedRealNVP

FORMAT = 1
KINDS: dict[str, type[Flow]] = {
    "lunet": LUNet,
    "realnvp": RealNVP,
    "realnvp_released": ReleasedRealNVP,
    "gaussian": Gaussian,
    "histogram": Histogram,
}


class SavedFlowError(ValueError):
    """A folder that does not hold a flow this version can read."""


def save_flow(image_flow: ImageFlow, path: str | Path) -> None:
    """Write a flow to a folder, made if it is missing: `config.json` and `weights.safetensors`.

    The configuration holds a checksum of both, so that files of different flows are never taken together.

    Args:
        image_flow: The flow; its weights are stored in their own dtype.
        path: The folder.
    """
    kinds = {kind: name for name, kind in KINDS.items()}
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
        fresh = folder / f".{name}.part"
        fresh.write_bytes(content)
        fresh.replace(folder / name)


def load_flow(path: str | Path, device: str | torch.device = "cpu") -> ImageFlow:
    """Read a flow from its folder, in eval mode.

    Args:
        path: The folder that `save_flow` wrote.
        device: Where the flow goes.

    Raises:
        SavedFlowError: If the folder is not a flow, is damaged, or was written by a newer version.
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
        # Folders of earlier versions have none.
        if config.get("sha256", found := checksum(config, weights)) != found:
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
    """The SHA-256 of a configuration, without its own entry ``sha256``, and of the file of weights."""
    own = json.dumps({key: value for key, value in config.items() if key != "sha256"}, sort_keys=True)
    return hashlib.sha256(own.encode() + weights).hexdigest()
