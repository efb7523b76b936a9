"""LU-Net and RealNVP: normalizing flows for images, with exact inverses and likelihoods in bits per pixel."""

import importlib
import pkgutil

from lunet.activation import Activation, LeakySoftplus, activation_from
from lunet.base import (
    Diagnostics,
    Flow,
    FlowDistribution,
    LayerDiagnostics,
    NonFiniteError,
    Transformed,
    standard_normal_log_prob,
    unchecked,
)
from lunet.bases import Base, ClassGaussians
from lunet.checking import BrokenFlowError, check_flow
from lunet.class_flows import ClassFlows
from lunet.controls import Gaussian, Histogram
from lunet.image_flow import ImageDiagnostics, ImageFlow, ImageScores
from lunet.learned_monotone import LearnedMonotone
from lunet.lu_layer import LULayer
from lunet.lu_net import LearnedLUNet, LUNet
from lunet.pixels import pixel_bits
from lunet.realnvp import RealNVP
from lunet.registry import UnknownKindError
from lunet.released import ReleasedRealNVP, poster_bits_per_pixel, poster_nll
from lunet.saving import SavedFlowError, load_flow, save_flow

__all__ = [
    "Activation",
    "Base",
    "BrokenFlowError",
    "ClassFlows",
    "ClassGaussians",
    "Diagnostics",
    "Flow",
    "FlowDistribution",
    "Gaussian",
    "Histogram",
    "ImageDiagnostics",
    "ImageFlow",
    "ImageScores",
    "LULayer",
    "LUNet",
    "LayerDiagnostics",
    "LeakySoftplus",
    "LearnedLUNet",
    "LearnedMonotone",
    "NonFiniteError",
    "RealNVP",
    "ReleasedRealNVP",
    "SavedFlowError",
    "Transformed",
    "UnknownKindError",
    "activation_from",
    "check_flow",
    "load_flow",
    "pixel_bits",
    "poster_bits_per_pixel",
    "poster_nll",
    "save_flow",
    "standard_normal_log_prob",
    "unchecked",
]

# All modules, so that a flow or an activation in a new one is known by its name.
for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")
