"""A setting of the GPU benchmark that is small enough for a CPU."""

from __future__ import annotations

from benchmarks.gpu_works import QUICK, Setting

SETTING = Setting("cpu", **QUICK)
