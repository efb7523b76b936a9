"""Random mistakes in parameter files: each file is refused with one message that names the key."""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

import pytest
from fault_suite import LONG

from pipeline.core.console import exit_with
from pipeline.core.params import Params, load_params, validate
from pipeline.presets.merged import load_preset, preset_text, preset_values
from pipeline.training.models import check

pytestmark = pytest.mark.faults

LAPTOP = preset_values("laptop")
TEXT = preset_text("laptop")
DEFAULTED = {"dtype", "precision", "capture", "compile", "processes", "class_samples", "base_images"}
KeyPath = tuple[str, ...]


def all_keys(values: Any, above: KeyPath = ()) -> Iterator[tuple[KeyPath, Any]]:
    """Yield every key of a set of parameters with its value, sections included."""
    for key, value in values.items():
        yield (*above, key), value
        if isinstance(value, dict):
            yield from all_keys(value, (*above, key))


def settings(params: Params) -> list[tuple[str, Any]]:
    """The last part of every key with the validated value, without sections."""
    values = params.model_dump(mode="json")
    return [(path[-1], value) for path, value in all_keys(values) if not isinstance(value, dict)]


def misspell(random: Random, section: dict[str, Any], key: str) -> str:
    """Omit or double a letter of the key, or swap it with the next one."""
    index = random.randrange(len(key) - 1)
    wrong = random.choice([
        key[:index] + key[index + 1 :],
        key[:index] + key[index] + key[index:],
        key[:index] + key[index + 1] + key[index] + key[index + 2 :],
    ])  # fmt: skip
    if wrong == key:
        wrong = f"{key}x"
    section[wrong] = section.pop(key)
    return wrong


def leave_out(_random: Random, section: dict[str, Any], key: str) -> str:
    del section[key]
    return key


def of_another_type(random: Random, section: dict[str, Any], key: str) -> str:
    value = section[key]
    wrong: list[Any] = ["some words", "", {"a": 1}, [{}], b"x", object()]
    if isinstance(value, str):
        wrong = [3, 0.5, [], {"a": 1}, True]
    section[key] = random.choice(wrong)
    return key


def out_of_range(random: Random, section: dict[str, Any], key: str) -> str:
    value = section[key]
    if isinstance(value, dict):
        section[key] = random.choice([[], 3, "words", {}, {"a": {"b": 1}}])
    elif isinstance(value, list):
        section[key] = random.choice([[], [None], value * 2, [value], [-1], {"a": 1}])
    elif isinstance(value, int | float) and not isinstance(value, bool):
        section[key] = random.choice([-1, -0.5, math.nan, math.inf, 1e308, 10**40, -(10**40)])
    else:
        section[key] = random.choice([[], -1, {"a": 1}, math.nan, "x" * 500])
    return key


MISTAKES: list[Callable[[Random, dict[str, Any], str], str]] = [misspell, leave_out, of_another_type, out_of_range]


def refused(load: Callable[[], object], capsys: pytest.CaptureFixture[str]) -> str:
    """The message with which a stage ends if ``load`` refuses its parameters."""

    def main() -> None:
        load()

    with pytest.raises(SystemExit) as caught:
        exit_with(main)
    message = capsys.readouterr().err
    assert caught.value.code == 1
    assert message.startswith("error: ")
    assert "Traceback" not in message
    assert message.count("\n") <= 25
    assert len(message) < 5000
    return message


@pytest.mark.parametrize("seed", range(50))
@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_refused_and_named(
    seed: int, mistake: Callable[[Random, dict[str, Any], str], str], capsys: pytest.CaptureFixture[str]
) -> None:
    random, values = Random(seed), copy.deepcopy(LAPTOP)
    # A title may be any text, and a recipe may have any name.
    paths = [path for path, value in all_keys(values) if value is not None and path[-1] != "title"]
    if mistake is leave_out:  # these have defaults, or are not in the grid
        paths = [path for path in paths if path[-2:-1] != ("model",) or path[-1] == "kind"]
        paths = [path for path in paths if path[-1] not in DEFAULTED and path[:-1] != ("recipes",)]
        paths = [path for path in paths if path != ("measure", "datasets")]
    *above, key = random.choice([path for path in paths if mistake is not misspell or path[:-1] != ("recipes",)])
    section = values
    for name in above:
        section = section[name]
    wrong_key = mistake(random, section, key)
    message = refused(lambda: check(validate(values, "params.yaml"), "params.yaml"), capsys)
    assert message.startswith("error: params.yaml has ")
    assert re.search(rf"\b{wrong_key}\b", message) or f"{key}: is missing" in message


@pytest.mark.parametrize("seed", range(100 if LONG else 25))
def test_a_damaged_file_is_refused_or_keeps_all_other_values(
    tmp_path: Path, seed: int, capsys: pytest.CaptureFixture[str]
) -> None:
    random, content = Random(seed), bytearray(TEXT.encode())
    index = random.randrange(len(content))
    kind = seed % 5
    if kind == 0:
        del content[index:]
    elif kind == 1:
        content[index : index + 1] = bytes(random.randrange(256) for _ in range(random.randint(1, 8)))
    elif kind == 2:
        content[index:index] = random.choice(
            [b"\t", b"\0", b"{", b"[", b": ", b"&a ", b"*a ", b"!!", b'"', b"\xff", b"%"]
        )
    elif kind == 3:
        content[index] ^= 1 << random.randrange(7)
    else:
        lines = TEXT.splitlines(keepends=True)
        random.shuffle(lines)
        content = bytearray("".join(lines).encode())
    path = tmp_path / "params.yaml"
    path.write_bytes(content)
    try:
        load_params(path)
    except Exception:
        assert str(path) in refused(lambda: load_params(path), capsys)
    else:
        # The damage affects one value: no other may be lost or changed.
        actual, expected = settings(load_params(path)), settings(load_preset("laptop"))
        assert len(actual) == len(expected)
        assert sum(one != other for one, other in zip(actual, expected, strict=True)) <= 1
