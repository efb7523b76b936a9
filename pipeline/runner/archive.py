"""The archive of a run: contains all results without weights, and is checked in full before it is unpacked."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import re
import tarfile
import zlib
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from itertools import product
from pathlib import Path
from typing import Any, Literal

from jinja2 import TemplateError
from pydantic import ValidationError
from ruamel.yaml import YAML

from pipeline.core.cell import Key
from pipeline.core.console import UserError
from pipeline.core.files import replacing, without_paths
from pipeline.core.params import Params, Section, load_params
from pipeline.page.view import render
from pipeline.results.reading import read_cell, read_densities, read_measurement, read_mixture, read_run, read_samples
from pipeline.results.tables import CURVES, LATENTS, RESULTS, TIMINGS, read_table
from pipeline.runner.dvc_file import Step
from pipeline.runner.ledger import Ledger, digest_of, files_under

MANIFEST = "manifest.json"
PARAMS = "params.yaml"
TABLES = {"results.csv": RESULTS, "latents.csv": LATENTS, "timings.csv": TIMINGS, "curves.csv": CURVES}
COLLECTED = ("metrics.json", "timings.json", "claims.json", "mixture.json", "provenance.json", *TABLES)
LARGEST_FILE, LARGEST_ARCHIVE = 2_000_000, 15 * 2**20
MEMBER = re.compile(r"(?:[\w-][\w.-]*/)*[\w-][\w.-]*", re.ASCII)
SUFFIXES = {".json", ".csv", ".yaml", ".svg", ".png", ".npy"}
TEXTS = {".json", ".csv", ".yaml", ".svg"}


class CellStatus(Section):
    """The status of a cell; for a training, the ``epochs`` that each model has completed of ``planned_epochs``.

    Both are null for cells without training steps. Epochs of an incomplete training have no results.
    """

    stage: Literal["train", "evaluate", "measure"]
    dataset: str
    recipe: str
    seed: int | None
    status: Literal["complete", "diverged", "out_of_memory", "partial", "missing", "failed"]
    message: str | None
    epochs: dict[str, float | None] | None = None
    planned_epochs: float | None = None

    @property
    def key(self) -> Key:
        """The cell of the grid."""
        return Key(self.dataset, self.recipe, self.seed)

    @property
    def finished(self) -> bool:
        """Whether the cell has ended, successfully or not."""
        return self.status in ("complete", "diverged", "out_of_memory")


class Manifest(Section):
    """`manifest.json`: a description of the run, and the SHA-256 of every other file in the archive.

    ``code`` contains the SHA-256 of every file of the code that was run; ``commit`` is null without git.
    """

    format: Literal[1]
    created: str
    preset: str
    commit: str | None
    dirty: bool | None
    environments: list[dict[str, Any]]
    cells: list[CellStatus]
    code: dict[str, str]
    files: dict[str, str]


def code_digests() -> dict[str, str]:
    """The SHA-256 of each file of the code, in the present folder."""
    files = [file for folder in ("lunet", "pipeline") for file in files_under(Path(folder))]
    return {file.as_posix(): digest_of(file) for file in [*files, Path("dvc.yaml")]}


def pack(
    archive: Path, params: Params, done: Sequence[Step], ledger: Ledger, cells: Sequence[CellStatus], reports: Path
) -> None:
    """Write the archive of the finished steps, without weights; equal results give equal bytes, except for the time.

    Args:
        archive: The file to write, a gzipped tar.
        params: The parameters.
        done: The finished steps.
        ledger: The record of each step's files.
        cells: The status of each cell.
        reports: The folder that collect wrote.
    """
    contents = {name: (reports / name).read_bytes() for name in COLLECTED}
    for file in files_under(reports / "figures"):
        contents[f"figures/{file.name}"] = file.read_bytes()
    for step in done:
        for file in [ledger.path(step), *ledger.results(step)]:
            contents[file.as_posix()] = file.read_bytes()
    contents[PARAMS] = _params_text(params)
    environments = json.loads(contents["provenance.json"])["environments"]
    states = {(group["environment"]["commit"], group["environment"]["dirty"]) for group in environments}
    commit, dirty = states.pop() if len(states) == 1 else (None, None)
    manifest = Manifest(
        format=1,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        preset=params.preset,
        commit=commit,
        dirty=dirty,
        environments=environments,
        cells=list(cells),
        code=code_digests(),
        files={name: hashlib.sha256(content).hexdigest() for name, content in sorted(contents.items())},
    )
    contents[MANIFEST] = json_bytes(manifest.model_dump(mode="json"))
    plain = io.BytesIO()
    with tarfile.open(fileobj=plain, mode="w") as tar:
        for name, content in sorted(contents.items()):
            member = tarfile.TarInfo(name)
            member.size, member.mode = len(content), 0o644
            tar.addfile(member, io.BytesIO(content))
    with replacing(archive) as temporary:
        temporary.write_bytes(gzip.compress(plain.getvalue(), mtime=0))


def unpack(archive: Path, folder: Path) -> Manifest:
    """Check an archive and write its files into a new folder.

    Before anything is written, every member is checked: it must be a plain file with a safe relative path, an allowed
    size, the right checksum, and no path of a machine in its text. Then the written files must be results that this
    code can read.

    Raises:
        UserError: If a check fails; the caller should then discard the folder.
    """
    contents = _read(archive)
    manifest = _check(archive, contents)
    for name, content in contents.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    try:
        _check_results(folder, manifest)
    except UserError as error:
        # The folder is temporary, so the message names only the archive.
        raise UserError(f"{archive} cannot be published: {str(error).replace(f'{folder}/', '')}") from None
    return manifest


def json_bytes(value: Any) -> bytes:
    """A value in the format of the pipeline's JSON files."""
    return (json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()


def _params_text(params: Params) -> bytes:
    """All parameters as YAML, with paths of the machine replaced."""
    values = params.model_dump(mode="json")
    for source in values["data"].values():
        source |= {key: "<path>" for key in ("folder", "path") if source.get(key)}
    text, writer = io.BytesIO(), YAML(typ="safe", pure=True)
    writer.default_flow_style = False
    writer.dump(values, text)
    return text.getvalue()


def _read(archive: Path) -> dict[str, bytes]:
    """The members of an archive; raises a `UserError` if the name, the kind or the size of one is not safe."""
    contents: dict[str, bytes] = {}
    total = 0
    try:
        with tarfile.open(archive, "r:gz") as tar:
            for member in tar:
                name = member.name
                if not member.isfile() or member.issparse():
                    raise UserError(f"{archive} holds {name!r}, which is no plain file; only those are allowed")
                if not MEMBER.fullmatch(name) or Path(name).suffix not in SUFFIXES:
                    allowed = ", ".join(sorted(SUFFIXES))
                    raise UserError(
                        f"{archive} holds {name!r}; allowed are relative paths of letters, digits and . _ - / "
                        f"to files that end in {allowed}"
                    )
                if name in contents:
                    raise UserError(f"{archive} holds {name!r} twice")
                total += member.size
                if member.size > LARGEST_FILE:
                    raise UserError(
                        f"{archive}: {name} has {member.size:,} bytes; at most {LARGEST_FILE:,} are allowed"
                    )
                if total > LARGEST_ARCHIVE:
                    raise UserError(f"{archive} holds more than the {LARGEST_ARCHIVE:,} bytes that are allowed in all")
                file = tar.extractfile(member)
                contents[name] = file.read() if file else b""
    except (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UserError(f"{archive} is no whole gzipped tar archive ({error}); copy it again") from None
    return contents


def _check(archive: Path, contents: Mapping[str, bytes]) -> Manifest:
    """The manifest; raises a `UserError` if it does not describe exactly these contents."""
    if MANIFEST not in contents:
        raise UserError(f"{archive} has no {MANIFEST}; write it with: python -m pipeline.run --pack {archive.name}")
    try:
        manifest = Manifest.model_validate_json(contents[MANIFEST])
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise UserError(
            f"{archive}: {MANIFEST}: {'.'.join(map(str, first['loc'])) or 'all of it'}: {first['msg'].lower()}"
        ) from None
    packed, listed = set(contents) - {MANIFEST}, set(manifest.files)
    if packed != listed:
        differing = ", ".join(sorted(packed ^ listed)[:5])
        raise UserError(f"{archive} and its {MANIFEST} do not name the same files: {differing}")
    for name in [*sorted(packed), MANIFEST]:
        content = contents[name]
        if name != MANIFEST and hashlib.sha256(content).hexdigest() != manifest.files[name]:
            raise UserError(f"{archive}: {name} is not what was packed: its SHA-256 is another")
        if Path(name).suffix in TEXTS and (path := path_in(_text(archive, name, content))):
            raise UserError(f"{archive}: {name} tells a path of a machine: {path}")
    return manifest


def path_in(text: str) -> str | None:
    """The first absolute path in a text, or None; web addresses are not paths."""
    text = re.sub(r"\bhttps?://[\w./#-]+", "", text)
    for line in text.splitlines():
        cleaned = without_paths(line)
        if cleaned != line:
            start = next(i for i, (old, new) in enumerate(zip(line, f"{cleaned} ", strict=False)) if old != new)
            return line[start : start + 60].split()[0].rstrip("\"',;")
    return None


def _text(archive: Path, name: str, content: bytes) -> str:
    try:
        return content.decode()
    except UnicodeDecodeError:
        raise UserError(f"{archive}: {name} is no text in UTF-8") from None


def _check_results(folder: Path, manifest: Manifest) -> None:
    """Read all files as the pipeline does, with every cell that the manifest calls finished, and render the report."""
    missing = [name for name in (*COLLECTED, PARAMS) if not (folder / name).is_file()]
    if missing:
        raise UserError(f"it lacks {', '.join(missing)}")
    params = load_params(folder / PARAMS)
    if params.preset != manifest.preset:
        raise UserError(f"{MANIFEST} is of the preset {manifest.preset}, but {PARAMS} of {params.preset}")
    states = {(cell.stage, cell.key): cell for cell in manifest.cells}
    grid = params.grid
    pairs = [Key(dataset, recipe) for dataset in grid.datasets for recipe in grid.recipes]
    keys = [pair._replace(seed=seed) for pair in pairs for seed in grid.seeds]
    if set(states) != {("measure", pair) for pair in pairs} | set(product(("train", "evaluate"), keys)):
        raise UserError(f"{MANIFEST} does not tell of exactly the cells that the grid of {PARAMS} has")
    read_densities(folder / "runs", read_mixture(folder / "runs", params))
    for (stage, key), state in states.items():
        _check_cell(folder / "runs", params, stage, key, state)
    tables = {name: read_table(folder / name, columns) for name, columns in TABLES.items()}
    finished = {cell for cell, state in states.items() if state.finished}
    for name, stages in (("results.csv", {"train", "evaluate"}), ("timings.csv", {"measure"})):
        table = tables[name]
        expected = {key for _, key in finished if all((stage, key) in finished for stage in stages)}
        seeds = table["seed"] if name == "results.csv" else [None] * len(table)
        unexpected = set(map(Key, table["dataset"], table["recipe"], seeds)) - expected
        if unexpected:
            raise UserError(f"{name} has figures of {unexpected.pop()}, which {MANIFEST} does not call finished")
    try:
        render(folder, params.report.title)
    except (KeyError, TypeError, ValueError, AttributeError, TemplateError) as error:
        raise UserError(f"no report can be made of it: {type(error).__name__}: {error}") from None


def _check_cell(runs: Path, params: Params, stage: str, key: Key, state: CellStatus) -> None:
    """Check that a cell's files exist and agree with the manifest if it is finished, and do not exist otherwise."""
    files = {
        "train": runs / "train" / str(key) / "run.json",
        "evaluate": runs / "evaluate" / f"{key}.json",
        "measure": runs / "measure" / f"{key}.json",
    }
    if not state.finished:
        if files[stage].exists():
            raise UserError(f"{files[stage]} is there, though {MANIFEST} calls that cell {state.status}")
        return
    if stage == "measure":
        status = read_measurement(runs, key).status
    elif stage == "train":
        run = read_run(runs, params, key)
        status = run.status
        if state.epochs != {name: model.epochs for name, model in run.models.items()}:
            raise UserError(f"{files[stage]} has other epochs than {MANIFEST}")
    else:
        cell = read_cell(runs, params, key)
        status = cell.evaluation.status
        if status == "complete":
            read_samples(cell)
    if status != state.status:
        raise UserError(f"{files[stage]} is {status}, but {MANIFEST} calls it {state.status}")
