from __future__ import annotations

import pytest
from torch import nn

from lunet import Activation, Flow, LUNet
from lunet.registry import register


def test_a_class_is_known_by_its_name_or_by_the_name_that_it_is_given() -> None:
    assert Flow.kinds["lunet"] is LUNet
    assert (LUNet.kind, Activation.kinds["LeakySoftplus"].kind) == ("lunet", "LeakySoftplus")


@pytest.mark.parametrize("base", [Flow, Activation])
def test_a_second_class_of_a_name_is_refused(base: type[Flow] | type[Activation]) -> None:
    first = type("Twice", (base,), {"__qualname__": "first.<locals>.Twice"})
    with pytest.raises(TypeError, match=r"Twice.* has the name 'Twice' of .*first\.<locals>\.Twice; give it another: "):
        type("Twice", (base,), {"__qualname__": "second.<locals>.Twice"})
    with pytest.raises(TypeError, match="has the name 'Twice'"):
        type("Other", (base,), {}, kind="Twice")
    assert base.kinds.pop("Twice") is first


def test_a_definition_that_is_run_again_replaces_the_first() -> None:
    kinds: dict[str, type[nn.Module]] = {}
    for _ in range(2):
        again = type("Again", (nn.Module,), {"__qualname__": "Again"})
        register(kinds, "Again", again)
    assert kinds == {"Again": again}


def test_a_definition_in_a_function_may_be_run_again() -> None:
    def define() -> type[Flow]:
        class Local(LUNet):
            def config(self) -> dict[str, int]:
                return {"features": self.features}

        return Local

    first, second = define(), define()
    assert first is not second
    assert Flow.kinds.pop("Local") is second


def test_two_definitions_in_a_function_are_two() -> None:
    class Local(LUNet):
        def config(self) -> dict[str, int]:
            return {"features": self.features}

    with pytest.raises(TypeError, match="has the name 'Local' of"):

        class Local(LUNet):  # type: ignore[no-redef]
            def config(self) -> dict[str, int]:
                return {"features": self.features}

    del Flow.kinds["Local"]
