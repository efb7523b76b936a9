"""What is refused before anything runs."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from pipeline import check
from pipeline.console import UserError

PARAMS = Path(__file__).parents[2] / "params.yaml"


def test_a_mistake_anywhere_in_params_yaml_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copy(PARAMS, tmp_path)
    check.main()
    text = PARAMS.read_text(encoding="utf-8")
    (tmp_path / "params.yaml").write_text(text.replace("    - realnvp\n", "    - realnpv\n", 1), encoding="utf-8")
    with pytest.raises(UserError, match=re.escape("grid.recipes names 'realnpv', which recipes lacks")):
        check.main()
