"""The measured quantities: their names, the numbers of parameters, and lack of memory."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from pipeline.core.params import Params
from pipeline.measure import MEMORY, TIMES
from pipeline.measuring.quantities import QUANTITIES, take

IMAGES = np.arange(4 * 64, dtype=np.uint8).reshape(4, 8, 8)


def test_the_stage_measures_every_quantity() -> None:
    asked = {f"time_{name}" for name in TIMES} | {f"weigh_{name}" for name in MEMORY}
    assert asked | {"about", "time_determinants"} == set(QUANTITIES)


def test_the_parameters_are_counted(params: Params) -> None:
    counts = take("about", params, "lunet", IMAGES)["parameters"]
    # Four layers of both triangles and a bias.
    assert counts == {"stored": 4 * (64 * 64 + 64), "free": 4 * (64 * 64 + 64)}


@pytest.mark.parametrize("error", [MemoryError("full"), RuntimeError("can't allocate memory\nmore")])
def test_a_lack_of_memory_is_one_error(params: Params, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def fail(_: Any) -> None:
        raise error

    monkeypatch.setitem(QUANTITIES, "about", fail)
    with pytest.raises(MemoryError, match=f"^{str(error).splitlines()[0]}$"):
        take("about", params, "lunet", IMAGES)
