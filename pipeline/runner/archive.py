"""The archive of a run: contains all results without weights, and is checked in full before it is unpacked."""

from __future__ import annotations

import gzip
import io
import json
import re
import tarfile
import zlib
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from itertools import product
from pathlib import Path

from pydantic import ValidationError

from pipeline.core.cell import Key, cells_of
from pipeline.core.console import UserError
from pipeline.core.files import replacing, sha256, without_paths
from pipeline.core.params import Params, load_params, mistakes
from pipeline.core.record import StageRecord
from pipeline.page.published_runs import MANIFEST, Manifest
from pipeline.page.view import DAMAGES, as_yaml, render
from pipeline.results import reading
from pipeline.results.provenance import plain_values
from pipeline.results.reading import RECORDS, CellStatus, read_record, record_path
from pipeline.results.tables import TABLES, read_table
from pipeline.runner.steps import digest_of, files_under
from pipeline.training.record import Run

# What was run: its SHA-256 is in the manifest.
CODE = ("lunet", "pipeline", "dvc.yaml")
PARAMS = "params.yaml"
COLLECTED = ("metrics.json", "timings.json", "claims.json", "mixture.json", "provenance.json", *TABLES)
LARGEST_FILE, LARGEST_ARCHIVE = 2_000_000, 15 * 2**20
MEMBER = re.compile(r"(?:[\w-][\w.-]*/)*[\w-][\w.-]*", re.ASCII)
TEXTS = {".json", ".csv", ".yaml", ".svg"}
SUFFIXES = TEXTS | {".png", ".npy"}


def code_digests() -> dict[str, str]:
    """The SHA-256 of each file of the code, in the present folder."""
    return {file.as_posix(): digest_of(file) for name in CODE for file in files_under(Path(name))}


def pack(archive: Path, params: Params, results: Iterable[Path], cells: Sequence[CellStatus], reports: Path) -> None:
    """Write the archive of a run; equal results give equal bytes, except for the time.

    Args:
        archive: The file to write, a gzipped tar.
        params: The parameters.
        results: The files of the finished steps, without weights.
        cells: The status of each cell.
        reports: The folder that collect wrote.
    """
    files = {name: reports / name for name in COLLECTED}
    files |= {f"figures/{file.name}": file for file in files_under(reports / "figures")}
    files |= {file.as_posix(): file for file in results}
    contents = {name: file.read_bytes() for name, file in files.items()}
    contents[PARAMS] = as_yaml(plain_values(params), sort=True).encode()
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
        files={name: sha256(content) for name, content in sorted(contents.items())},
    )
    contents[MANIFEST] = json.dumps(manifest.model_dump(mode="json"), indent=2, ensure_ascii=False).encode() + b"\n"
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
                if member.size > LARGEST_FILE:
                    raise UserError(
                        f"{archive}: {name} has {member.size:,} bytes; at most {LARGEST_FILE:,} are allowed"
                    )
                total += member.size
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
        raise UserError(f"{archive}: {MANIFEST}: {mistakes(error, Manifest.model_fields)[0]}") from None
    packed, listed = set(contents) - {MANIFEST}, set(manifest.files)
    if packed != listed:
        differing = ", ".join(sorted(packed ^ listed)[:5])
        raise UserError(f"{archive} and its {MANIFEST} do not name the same files: {differing}")
    for name in [*sorted(packed), MANIFEST]:
        if name != MANIFEST and sha256(contents[name]) != manifest.files[name]:
            raise UserError(f"{archive}: {name} is not what was packed: its SHA-256 is another")
        try:
            path = path_in(contents[name].decode()) if Path(name).suffix in TEXTS else None
        except UnicodeDecodeError:
            raise UserError(f"{archive}: {name} is no text in UTF-8") from None
        if path:
            raise UserError(f"{archive}: {name} tells a path of a machine: {path}")
    return manifest


def path_in(text: str) -> str | None:
    """The first absolute path in a text, or None; web addresses are not paths."""
    text = re.sub(r"\bhttps?://[\w./#-]+", "", text)
    pairs = zip(text, without_paths(text), strict=False)
    start = next((i for i, (old, new) in enumerate(pairs) if old != new), None)
    return None if start is None else text[start : start + 60].split()[0].rstrip("\"',;")


def _check_results(folder: Path, manifest: Manifest) -> None:
    """Read all files as the pipeline does, with every cell that the manifest calls finished, and render the report."""
    missing = [name for name in (*COLLECTED, PARAMS) if not (folder / name).is_file()]
    if missing:
        raise UserError(f"it lacks {', '.join(missing)}")
    params = load_params(folder / PARAMS)
    if params.preset != manifest.preset:
        raise UserError(f"{MANIFEST} is of the preset {manifest.preset}, but {PARAMS} of {params.preset}")
    cells = {(cell.stage, cell.key) for cell in manifest.cells}
    if cells != {(stage, key) for stage, keys in cells_of(params).items() for key in keys}:
        raise UserError(f"{MANIFEST} does not tell of exactly the cells that {PARAMS} has")
    reading.read_densities(folder / "runs", reading.read_mixture(folder / "runs", params))
    for cell in manifest.cells:
        _check_cell(folder / "runs", params, cell)
    finished = {(cell.stage, cell.key) for cell in manifest.cells if cell.finished}
    tables = {name: read_table(folder / name) for name in TABLES}
    for name, stages in {"results.csv": ("train", "evaluate"), "timings.csv": ("measure",)}.items():
        columns = [tables[name][field] for field in Key._fields if field in tables[name]]
        if unexpected := {key for key in map(Key, *columns) if not finished.issuperset(product(stages, [key]))}:
            raise UserError(f"{name} has figures of {unexpected.pop()}, which {MANIFEST} does not call finished")
    try:
        render(folder, params.report.title)
    except DAMAGES as error:
        raise UserError(f"no report can be made of it: {type(error).__name__}: {error}") from None


def _check_cell(runs: Path, params: Params, cell: CellStatus) -> None:
    """Check that a cell's files exist and agree with the manifest if it is finished, and do not exist otherwise."""
    file = record_path(runs, cell.stage, cell.key)
    if not cell.finished:
        if file.exists():
            raise UserError(f"{file} is there, though {MANIFEST} calls that cell {cell.status}")
        return
    record = read_record(RECORDS[cell.stage], runs, params, cell.key)
    if epochs_of(record) != cell.epochs:
        raise UserError(f"{file} has other epochs than {MANIFEST}")
    if cell.stage == "evaluate":
        results = reading.read_cell(runs, params, cell.key)
        if record.status == "complete":
            reading.read_samples(results)
    if record.status != cell.status:
        raise UserError(f"{file} is {record.status}, but {MANIFEST} calls it {cell.status}")


def epochs_of(record: StageRecord) -> dict[str, float | None] | None:
    """The epochs of each model of a training; None for another stage."""
    return {name: model.epochs for name, model in record.models.items()} if isinstance(record, Run) else None
