"""A setting that a CPU can rehearse."""

from __future__ import annotations

from benchmarks.gpu_works import QUICK, Setting

SETTING = Setting("cpu", **QUICK)
