"""LU-Net and RealNVP, normalizing flows for images, with exact inverses and likelihoods in bits per pixel."""

from lunet.activation import Activation, LeakySoftplus
from lunet.base import Flow, Transformed, standard_normal_log_prob
from lunet.controls import Gaussian, Histogram
from lunet.image_flow import ImageFlow
from lunet.likelihood import pixel_bits, poster_bits_per_pixel, poster_nll
from lunet.lu_net import LULayer, LUNet
from lunet.realnvp import RealNVP
from lunet.saving import SavedFlowError, load_flow, save_flow

__all__ = [
    "Activation",
    "Flow",
    "Gaussian",
    "Histogram",
    "ImageFlow",
    "LULayer",
    "LUNet",
    "LeakySoftplus",
    "RealNVP",
    "SavedFlowError",
    "Transformed",
    "load_flow",
    "pixel_bits",
    "poster_bits_per_pixel",
    "poster_nll",
    "save_flow",
    "standard_normal_log_prob",
]
