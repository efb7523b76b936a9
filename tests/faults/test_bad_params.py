"""Parameter files with a mistake, two hundred of them made up: each is refused with one message that names the key."""

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

pytestmark = pytest.mark.faults

LAPTOP = preset_values("laptop")
TEXT = preset_text("laptop")
Place = tuple[str, ...]


def places(values: Any, above: Place = ()) -> Iterator[tuple[Place, Any]]:
    """Every key of a set of parameters with its value, sections included."""
    for key, value in values.items():
        yield (*above, key), value
        if isinstance(value, dict):
            yield from places(value, (*above, key))


def settings(params: Params) -> list[tuple[str, Any]]:
    """Every key of a set of parameters with what it is taken for, but without the names of the sections above it."""
    values = params.model_dump(mode="json")
    return [(place[-1], value) for place, value in places(values) if not isinstance(value, dict)]


def misspell(random: Random, section: dict[str, Any], key: str) -> str:
    """A letter is left out, doubled, or exchanged with the next one."""
    where = random.randrange(len(key) - 1)
    wrong = random.choice([
        key[:where] + key[where + 1 :],
        key[:where] + key[where] + key[where:],
        key[:where] + key[where + 1] + key[where] + key[where + 2 :],
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
    """The message with which a stage would end."""

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
    # A title may be any words, and what a recipe is called is the reader's own matter.
    chosen = [place for place, value in places(values) if value is not None and place[-1] != "title"]
    *above, key = random.choice([place for place in chosen if mistake is not misspell or place[:-1] != ("recipes",)])
    section = values
    for name in above:
        section = section[name]
    named = mistake(random, section, key)
    message = refused(lambda: validate(values, "params.yaml"), capsys)
    assert message.startswith("error: params.yaml has ")
    assert re.search(rf"\b{named}\b", message) or f"{key}: is missing" in message


@pytest.mark.parametrize("seed", range(100 if LONG else 25))
def test_a_damaged_file_is_refused_or_still_says_all(
    tmp_path: Path, seed: int, capsys: pytest.CaptureFixture[str]
) -> None:
    random, content = Random(seed), bytearray(TEXT.encode())
    where = random.randrange(len(content))
    kind = seed % 5
    if kind == 0:
        del content[where:]
    elif kind == 1:
        content[where : where + 1] = bytes(random.randrange(256) for _ in range(random.randint(1, 8)))
    elif kind == 2:
        content[where:where] = random.choice(
            [b"\t", b"\0", b"{", b"[", b": ", b"&a ", b"*a ", b"!!", b'"', b"\xff", b"%"]
        )
    elif kind == 3:
        content[where] ^= 1 << random.randrange(7)
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
        # One place was damaged: nothing else may be lost or read as something else.
        found, expected = settings(load_params(path)), settings(load_preset("laptop"))
        assert len(found) == len(expected)
        assert sum(one != other for one, other in zip(found, expected, strict=True)) <= 1
