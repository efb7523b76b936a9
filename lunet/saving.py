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
from torch import Tensor
from torch.nn.utils.parametrize import is_parametrized

from lunet.activation import activation_arguments, activation_from
from lunet.base import Flow
from lunet.class_flows import ClassFlows
from lunet.image_flow import ImageFlow
from lunet.registry import find, whole_config

FORMAT = 1
FILES = ("config.json", "weights.safetensors")


class SavedFlowError(ValueError):
    """Raised for a folder that does not contain a flow that this version can read."""


def save_flow(model: Flow | ImageFlow | ClassFlows, path: str | Path) -> None:
    """Save a flow as `config.json` and `weights.safetensors`.

    The configuration contains a checksum of both files, so that files of different flows are not combined.

    Args:
        model: The flow, image flow or class flows; weights are saved in their dtype.
        path: The folder, which is created if it does not exist.

    Raises:
        TypeError: If ``model`` is something else, is parametrized, or has a configuration with values that JSON lacks.
        ValueError: If the configuration lacks an argument of the constructor.
    """
    config, tensors = describe(model)
    config = {"format": FORMAT, **json.loads(json.dumps(config))}
    weights = save(tensors)
    config["sha256"] = checksum(config, weights)
    text = json.dumps(config, indent=2) + "\n"
    folder = Path(path)
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in zip(reversed(FILES), (weights, text.encode()), strict=True):
        part = folder / f".{name}.part"
        part.write_bytes(content)
        part.replace(folder / name)


def load_flow(path: str | Path, device: str | torch.device = "cpu") -> Any:
    """Load a flow, in eval mode.

    A flow or an activation that is not part of this library is found by its name: import the module with its class
    first.

    Args:
        path: The folder that `save_flow` wrote.
        device: The device of the flow.

    Returns:
        A `Flow`, `ImageFlow` or `ClassFlows`, as it was saved.

    Raises:
        SavedFlowError: If the folder is not a saved flow, is damaged, was written by a newer version, or contains a
            flow whose class is not imported.
    """
    folder = Path(path)
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        if config["format"] != FORMAT:
            raise SavedFlowError(f"{folder} has format {config['format']!r}; this version of lunet reads {FORMAT}")
        weights = (folder / "weights.safetensors").read_bytes()
        model = restore(config, load(weights))
        # Earlier versions saved no checksum.
        if config.get("sha256", expected := checksum(config, weights)) != expected:
            raise SavedFlowError(
                f"{folder} was changed after it was written: its SHA-256 is not the one in config.json"
            )
    except SavedFlowError:
        raise
    except FileNotFoundError:
        missing = [name for name in FILES if not (folder / name).exists()]
        raise SavedFlowError(f"{folder} is not a saved flow: {' and '.join(missing)} missing") from None
    except (LookupError, TypeError, AttributeError, ValueError, RuntimeError, OSError, SafetensorError) as error:
        raise SavedFlowError(f"{folder} is not a flow that can be read: {type(error).__name__}: {error}") from error
    return model.eval().to(device)


def checksum(config: Mapping[str, Any], weights: bytes) -> str:
    """The SHA-256 of a configuration, without its entry ``sha256``, and of the weights file's content."""
    text = json.dumps({key: value for key, value in config.items() if key != "sha256"}, sort_keys=True)
    return hashlib.sha256(text.encode() + weights).hexdigest()


def describe(model: Flow | ImageFlow | ClassFlows) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """A model's configuration and its tensors by name; the names of class flows begin with the class and a slash."""
    if isinstance(model, ClassFlows):
        parts = {name: describe(model[name]) for name in model.names}
        tensors = {f"{name}/{key}": value for name, part in parts.items() for key, value in part[1].items()}
        return {"classes": {name: config for name, (config, _) in parts.items()}}, tensors
    flow = model.flow if isinstance(model, ImageFlow) else model
    if not isinstance(flow, Flow):
        raise TypeError(f"a {type(flow).__name__} cannot be saved; give a Flow, an ImageFlow or a ClassFlows")
    if any(map(is_parametrized, flow.modules())):
        raise TypeError("a parametrized flow cannot be saved; remove its parametrizations first")
    config: dict[str, Any] = {"dtype": str(flow.dtype).removeprefix("torch.")}
    if isinstance(model, ImageFlow):
        config["image"] = model.config()
    config |= {"kind": flow.kind, "flow": whole_config(flow)}
    return config, {name: tensor.clone().contiguous() for name, tensor in flow.state_dict().items()}


def restore(config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Flow | ImageFlow | ClassFlows:
    """The model that `describe` described."""
    if "classes" in config:
        tensors_of: dict[str, dict[str, Tensor]] = {name: {} for name in config["classes"]}
        for key, tensor in tensors.items():
            name, _, rest = key.rpartition("/")
            tensors_of[name][rest] = tensor
        flows = {name: restore(part, tensors_of[name]) for name, part in config["classes"].items()}
        return ClassFlows({name: flow for name, flow in flows.items() if isinstance(flow, ImageFlow)})
    kind, options = config["kind"], dict(config["flow"])
    flow_class = find(Flow.kinds, kind)
    if kind == "realnvp" and "shared" in options:  # as saved by version 0.1
        options["networks"] = "shared" if options.pop("shared") else "separate"
    options = {key: tuple(value) if isinstance(value, list) else value for key, value in options.items()}
    for name in activation_arguments(flow_class):
        if isinstance(options.get(name), dict):
            options[name] = activation_from(options[name])
    flow = flow_class(**options).to(getattr(torch, config["dtype"]))
    for name, buffer in flow.named_buffers():
        if name in tensors:
            buffer.data = buffer.data.to(tensors[name].dtype)
    flow.load_state_dict(dict(tensors))
    flow.eval().check_invertible()
    if "image" not in config:
        return flow
    image = config["image"]
    margin = None if image["margin"] is None else tuple(image["margin"])
    return ImageFlow(flow, tuple(image["shape"]), margin)
