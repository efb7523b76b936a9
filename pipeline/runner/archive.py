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
from pathlib import Path

from pydantic import ValidationError

from pipeline.core.cell import cells_of
from pipeline.core.console import UserError
from pipeline.core.dataset import DESCRIPTION
from pipeline.core.files import read_json, replacing, sha256, without_paths
from pipeline.core.params import Params, load_params, mistakes
from pipeline.core.record import StageRecord
from pipeline.page.view import as_yaml
from pipeline.results import reading
from pipeline.results.kept import MANIFEST, PARAMS, Description, Manifest
from pipeline.results.provenance import plain_values
from pipeline.results.reading import RECORDS, CellStatus, read_record, record_path
from pipeline.runner.steps import digest_of, files_under
from pipeline.training.record import Run

# What was run: its SHA-256 is in the manifest.
CODE = ("lunet", "pipeline", "dvc.yaml")
# Bytes: what comes back from a lent machine, and what an archive may hold.
LARGEST_FILE, LARGEST_ARCHIVE, LARGEST_FOLDER, MOST_FILES = 2_000_000, 15 * 2**20, 60 * 2**20, 8
LARGEST_CONTENTS = 100 * 2**20
MEMBER = re.compile(r"(?:[\w-][\w.-]*/)*[\w-][\w.-]*", re.ASCII)
TEXTS = {".json", ".csv", ".yaml", ".svg"}
SUFFIXES = TEXTS | {".png", ".npy"}


def code_digests() -> dict[str, str]:
    """The SHA-256 of each file of the code, in the present folder."""
    return {file.as_posix(): digest_of(file) for name in CODE for file in files_under(Path(name))}


def descriptions(params: Params) -> dict[str, Description]:
    """What describes each data set of the grid that is there, in the present folder."""
    paths = {name: Path("data", name, DESCRIPTION) for name in params.grid.datasets}
    return {name: Description.model_validate(read_json(path)) for name, path in paths.items() if path.is_file()}


def pack(
    archive: Path,
    params: Params,
    results: Iterable[Path],
    cells: Sequence[CellStatus],
    data: Mapping[str, Description],
) -> int:
    """Write the archive of a run; equal results give equal bytes, except for the time.

    Args:
        archive: The file to write, a gzipped tar.
        params: The parameters.
        results: The files of the cells that have any, without weights.
        cells: The status of each cell.
        data: What describes each data set.

    Returns:
        The size in bytes.

    Raises:
        UserError: If the archive, a file in it or its folder would exceed a limit; an older archive is then unchanged.
    """
    contents = {file.as_posix(): file.read_bytes() for file in results}
    contents[PARAMS] = as_yaml(plain_values(params), sort=True).encode()
    commit, dirty = _commit(contents)
    manifest = Manifest(
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        preset=params.preset,
        commit=commit,
        dirty=dirty,
        cells=list(cells),
        code=code_digests(),
        data=dict(data),
        files={name: sha256(content) for name, content in sorted(contents.items())},
    )
    contents[MANIFEST] = json.dumps(manifest.model_dump(mode="json"), indent=2, ensure_ascii=False).encode() + b"\n"
    plain = io.BytesIO()
    with tarfile.open(fileobj=plain, mode="w") as tar:
        for name, content in sorted(contents.items()):
            member = tarfile.TarInfo(name)
            member.size, member.mode = len(content), 0o644
            tar.addfile(member, io.BytesIO(content))
    compressed = gzip.compress(plain.getvalue(), mtime=0)
    _check_limits(archive, contents, compressed)
    with replacing(archive) as temporary:
        temporary.write_bytes(compressed)
    return len(compressed)


def _commit(contents: Mapping[str, bytes]) -> tuple[str | None, bool | None]:
    """The commit of all records, and whether the code differed from it; None if they have none or several."""
    records = (json.loads(content) for name, content in contents.items() if Path(name).suffix == ".json")
    environments = [record["environment"] for record in records if "environment" in record]
    states = {(environment["commit"], environment["dirty"]) for environment in environments}
    return states.pop() if len(states) == 1 else (None, None)


def _check_limits(archive: Path, contents: Mapping[str, bytes], compressed: bytes) -> None:
    """Raise a `UserError` if the archive would not come home, or could not be unpacked there."""
    folder = archive.parent
    others = [file for file in folder.iterdir() if file != archive] if folder.is_dir() else []
    total = len(compressed) + sum(file.stat().st_size for file in others if file.is_file())
    plain = sum(map(len, contents.values()))
    largest = max(contents, key=lambda name: len(contents[name]))
    problems = {
        f"{largest} has {len(contents[largest]):,} bytes; at most {LARGEST_FILE:,} are allowed": (
            len(contents[largest]) > LARGEST_FILE
        ),
        f"its files would have {plain:,} bytes; at most {LARGEST_CONTENTS:,} are allowed": plain > LARGEST_CONTENTS,
        f"it would have {len(compressed):,} bytes; at most {LARGEST_ARCHIVE:,} are allowed": (
            len(compressed) > LARGEST_ARCHIVE
        ),
        f"{folder} would have {total:,} bytes; at most {LARGEST_FOLDER:,} are allowed": total > LARGEST_FOLDER,
        f"{folder} would have {len(others) + 1} files; at most {MOST_FILES} are allowed": len(others) >= MOST_FILES,
    }
    for problem, is_so in problems.items():
        if is_so:
            raise UserError(f"{archive} is not written: {problem}")


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
        check_results(folder, manifest)
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
                if total > LARGEST_CONTENTS:
                    raise UserError(f"{archive} holds more than the {LARGEST_CONTENTS:,} bytes that are allowed in all")
                file = tar.extractfile(member)
                contents[name] = file.read() if file else b""
    except (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UserError(f"{archive} is no whole gzipped tar archive ({error}); copy it again") from None
    return contents


def _check(archive: Path, contents: Mapping[str, bytes]) -> Manifest:
    """The manifest; raises a `UserError` if it does not describe exactly these contents."""
    if MANIFEST not in contents:
        raise UserError(f"{archive} has no {MANIFEST}; write it with: python -m pipeline.run --out FOLDER")
    try:
        manifest = Manifest.model_validate_json(contents[MANIFEST])
    except ValidationError as error:
        raise UserError(f"{archive}: {MANIFEST}: {mistakes(error, Manifest.model_fields)[0]}") from None
    packed, listed = set(contents) - {MANIFEST}, set(manifest.files)
    if packed != listed:
        differing = ", ".join(sorted(packed ^ listed)[:5])
        raise UserError(f"{archive} and its {MANIFEST} do not name the same files: {differing}")
    for name in sorted(packed):
        if sha256(contents[name]) != manifest.files[name]:
            raise UserError(f"{archive}: {name} is not what was packed: its SHA-256 is another")
    check_files(str(archive), contents)
    return manifest


def check_files(source: str, contents: Mapping[str, bytes]) -> None:
    """Raise a `UserError` if a file is too large, or its text is not UTF-8 or has a path of a machine."""
    for name, content in contents.items():
        if len(content) > LARGEST_FILE:
            raise UserError(f"{source}: {name} has {len(content):,} bytes; at most {LARGEST_FILE:,} are allowed")
        try:
            path = path_in(content.decode()) if Path(name).suffix in TEXTS else None
        except UnicodeDecodeError:
            raise UserError(f"{source}: {name} is no text in UTF-8") from None
        if path:
            raise UserError(f"{source}: {name} tells a path of a machine: {path}")


def path_in(text: str) -> str | None:
    """The first absolute path in a text, or None; web addresses are not paths."""
    text = re.sub(r"\bhttps?://[\w./#-]+", "", text)
    pairs = zip(text, without_paths(text), strict=False)
    start = next((i for i, (old, new) in enumerate(pairs) if old != new), None)
    return None if start is None else text[start : start + 60].split()[0].rstrip("\"',;")


def check_results(folder: Path, manifest: Manifest) -> None:
    """Read the record of every cell that the manifest says has one, as the pipeline does.

    Raises:
        UserError: If one is missing, damaged, of other parameters, or not what the manifest says.
    """
    if not (folder / PARAMS).is_file():
        raise UserError(f"it lacks {PARAMS}")
    params = load_params(folder / PARAMS)
    if params.preset != manifest.preset:
        raise UserError(f"{MANIFEST} is of the preset {manifest.preset}, but {PARAMS} of {params.preset}")
    cells = {(stage, key) for stage, keys in cells_of(params).items() for key in keys}
    if {(cell.stage, cell.key) for cell in manifest.cells} != cells:
        raise UserError(f"{MANIFEST} does not tell of exactly the cells that {PARAMS} has")
    if (folder / "runs/mixture.json").exists():
        reading.read_densities(folder / "runs", reading.read_mixture(folder / "runs", params))
    present = {(cell.stage, cell.key) for cell in manifest.cells if cell.has_record}
    for cell in manifest.cells:
        _check_cell(folder / "runs", params, cell)
        if cell.stage == "evaluate" and cell.has_record:
            if ("train", cell.key) not in present:
                raise UserError(f"{MANIFEST} has an evaluation of {cell.key}, but no training")
            results = reading.read_cell(folder / "runs", params, cell.key)
            if cell.status == "complete":
                reading.read_samples(results)


def _check_cell(runs: Path, params: Params, cell: CellStatus) -> None:
    """Check that a cell's record exists and agrees with the manifest, or does not exist if the manifest has none."""
    file = record_path(runs, cell.stage, cell.key)
    if not cell.has_record:
        if file.exists():
            raise UserError(f"{file} is there, though {MANIFEST} calls that cell {cell.status}")
        return
    record = read_record(RECORDS[cell.stage], runs, params, cell.key)
    if epochs_of(record) != cell.epochs:
        raise UserError(f"{file} has other epochs than {MANIFEST}")
    if record.status != cell.status:
        raise UserError(f"{file} is {record.status}, but {MANIFEST} calls it {cell.status}")


def epochs_of(record: StageRecord) -> dict[str, float | None] | None:
    """The epochs of each model of a training; None for another stage."""
    return {name: model.epochs for name, model in record.models.items()} if isinstance(record, Run) else None
