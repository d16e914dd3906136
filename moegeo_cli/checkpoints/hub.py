"""Open checkpoints on the Hugging Face Hub, `hf://ORG/NAME@REVISION`, through huggingface_hub.

Only a path that begins with `hf://` uses the network. `open_hub` downloads a revision's small
files, and the headers of its safetensors files by HTTP range requests. `fetch` downloads the
weights before they are read, and deletes those of other revisions to save disk space.
"""

from __future__ import annotations

import fnmatch
import json
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moegeo_cli.checkpoints.adapters.files import ADAPTER_FILES
from moegeo_cli.checkpoints.checkpoint import Checkpoint
from moegeo_cli.checkpoints.discover import RunFolder, Skipped, open_run
from moegeo_cli.checkpoints.folders import find_given_config
from moegeo_cli.checkpoints.headers import MAX_HEADER_BYTES, is_there
from moegeo_cli.checkpoints.hub_notes import HubNote, read_note
from moegeo_cli.checkpoints.ordering import sort_by_step
from moegeo_cli.checkpoints.step_names import read_name
from moegeo_cli.environment import hub_endpoint, hub_home
from moegeo_cli.errors import MoegeoError, NoCheckpointError, PathError, UnsupportedLayoutError

# A shell or pathlib may have removed one of the two slashes.
_URL = re.compile(r"hf:/{1,2}([A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?:@(.+))?")
_SMALL = (".json", ".jinja", ".txt", ".model")
MOST_SMALL_BYTES = 64 * 2**20
WEIGHTS = ".safetensors"
FIRST_BYTES = 100_000  # first range request; most headers are shorter (as in the Hub's client)
TIMEOUT = 30  # seconds


@dataclass(frozen=True, slots=True)
class HubName:
    """A repository, and one revision or a pattern of revisions."""

    repository: str
    revision: str = "main"

    @property
    def is_pattern(self) -> bool:
        """Whether the revision has wildcards."""
        return any(mark in self.revision for mark in "*?[")

    def __str__(self) -> str:
        return f"hf://{self.repository}@{self.revision}"


def parse_hub(path: Path | str) -> HubName | None:
    """Parse an `hf://` path; None for any other path.

    Raises:
        PathError: the path begins with hf:// and names no repository.
    """
    text = str(path)
    if not text.startswith("hf:/"):
        return None
    match = _URL.fullmatch(text)
    if match is None:
        raise PathError(
            f"{text} names no model of the Hub",
            hint="hf://ORG/NAME, hf://ORG/NAME@REVISION, or hf://ORG/NAME@'step*'",
        )
    return HubName(match[1], match[2] or "main")


def open_path(path: Path | str, config: Path | str | None = None) -> RunFolder:
    """Find the checkpoints of a local path or of an `hf://` name.

    Args:
        path: a path, or `hf://ORG/NAME@REVISION`.
        config: a config.json, or a folder with one, for checkpoints without one of their own.

    Raises: the same errors as `open_run` and `open_hub`.
    """
    name = parse_hub(path)
    if name is None:
        return open_run(path, config)
    return open_hub(name, None if config is None else find_given_config(config))


def open_hub(name: HubName, config: Path | None = None) -> RunFolder:
    """Open revisions by their small files and headers; weights are not downloaded.

    Args:
        name: one revision, or a pattern of revisions.
        config: the folder that `--config` names.

    Raises:
        PathError: no such repository or revision, or the Hub cannot be reached.
        NoCheckpointError: no revision matches the pattern, or several match without a step.
        UnsupportedLayoutError: the weights are not safetensors.
    """
    top = hub_home() / name.repository.replace("/", "--")
    revisions = _revisions(name) if name.is_pattern else [name.revision]
    found, skipped = [], []
    for revision in revisions:
        folder = top / re.sub(r"^\.+|[^\w.=-]", "--", revision)
        relative = folder.name if name.is_pattern else "."
        checkpoint = Checkpoint(
            folder, relative, step=read_name(revision).step, given_config=config
        )
        try:
            _download_headers(name.repository, revision, folder)
            checkpoint.require_whole()
        except MoegeoError as error:
            if not name.is_pattern:
                raise
            skipped.append(Skipped(revision, error.message))
            continue
        found.append(checkpoint)
    title = f"{name.repository}@{name.revision}"
    if not name.is_pattern:
        return RunFolder(title, found[0].path, True, tuple(found), (), config)
    if not found:
        raise NoCheckpointError(
            f"no revision of {name.repository} that fits {name.revision} can be measured",
            found="; ".join(f"{s.path}: {s.reason}" for s in skipped[:4]) or None,
            hint="name one revision: hf://ORG/NAME@REVISION",
        )
    try:
        ordered, left_out = sort_by_step(top, found)
    except NoCheckpointError as error:
        raise NoCheckpointError(
            error.message.replace(str(top), str(name)),
            found=error.found,
            hint=f"name one revision, or a pattern of one stage: hf://{name.repository}@'PATTERN'",
        ) from None
    return RunFolder(title, top, False, tuple(ordered), (*skipped, *left_out), config)


def fetch(folders: Sequence[Path]) -> None:
    """Download the weights of revisions, and delete those of all other revisions.

    Args:
        folders: folders that `open_hub` made. Other folders are ignored.

    Raises:
        PathError: the Hub cannot be reached.
    """
    wanted = {folder.resolve() for folder in folders if read_note(folder) is not None}
    if not wanted:
        return
    for place in hub_home().glob("*/*"):
        if place.resolve() not in wanted and read_note(place) is not None:
            _cut_to_headers(place)
    for folder in sorted(wanted):
        note = read_note(folder)
        assert note is not None
        for file in note.data:
            if not _is_whole(folder / file, note):
                _download(note.repository, note.commit, file, folder)


def _revisions(name: HubName) -> list[str]:
    """Branches and tags that match the pattern, sorted."""
    with _hub_errors(name.repository):
        refs = _api().list_repo_refs(name.repository)
    known = sorted({ref.name for ref in [*refs.branches, *refs.tags]})
    found = [ref for ref in known if fnmatch.fnmatchcase(ref, name.revision)]
    if not found:
        raise NoCheckpointError(
            f"no revision of {name.repository} fits {name.revision}",
            found=", ".join(known[:8]) or "no branch and no tag",
            hint="quote the pattern, so that the shell leaves it alone",
        )
    return found


def _download_headers(repository: str, revision: str, folder: Path) -> None:
    """Download a revision's small files and headers, unless the folder has them."""
    with _hub_errors(repository, revision):
        info = _api().model_info(repository, revision=revision, files_metadata=True)
    files = {
        s.rfilename: s
        for s in info.siblings or []
        if "/" not in s.rfilename and not s.rfilename.startswith(".")
    }
    note = read_note(folder)
    if note is not None and note.commit == info.sha:
        return
    weights = sorted(n for n in files if n.endswith(WEIGHTS) and n not in ADAPTER_FILES)
    whole = "model.safetensors" in weights
    weights = ["model.safetensors"] if whole else weights
    if not weights and not any(n in ADAPTER_FILES for n in files):
        raise UnsupportedLayoutError(
            f"{repository} at {revision} holds no safetensors in its top folder",
            found=", ".join(sorted(files))[:200] or "no file",
            hint=f"download it, and give its folder: hf download {repository} "
            f"--revision {revision} --local-dir FOLDER",
        )
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for name, file in files.items():
        small = name.endswith(_SMALL) and (file.size or 0) <= MOST_SMALL_BYTES
        if (small or name in ADAPTER_FILES) and not (whole and name.endswith(".index.json")):
            _download(repository, info.sha, name, folder)
    data = {}
    for name in weights:
        with _hub_errors(repository, revision):
            data[name] = _download_header(repository, str(info.sha), name, folder)
    contents = {n: str(f.lfs.sha256 if f.lfs else f.blob_id) for n, f in files.items()}
    HubNote(repository, revision, str(info.sha), data, contents).write(folder)


def _download_header(repository: str, commit: str, name: str, folder: Path) -> int:
    """Write a file that holds only the header of a safetensors file, at its usual offset.

    Returns:
        The number of bytes after the header in the complete file.
    """
    raw = _read_range(repository, commit, name, 0, FIRST_BYTES)
    length = 8 + int.from_bytes(raw[:8], "little")
    if not 8 < length <= MAX_HEADER_BYTES:
        raise UnsupportedLayoutError(f"{name} of {repository} is no safetensors file")
    if length > len(raw):
        raw += _read_range(repository, commit, name, len(raw), length)
    (folder / name).write_bytes(raw[:length])
    document = json.loads(raw[8:length])
    return max(
        (e["data_offsets"][1] for n, e in document.items() if n != "__metadata__"), default=0
    )


def _read_range(repository: str, commit: str, name: str, start: int, end: int) -> bytes:
    from huggingface_hub import hf_hub_url
    from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status

    url = hf_hub_url(repository, name, revision=commit, endpoint=hub_endpoint())
    headers = {**build_hf_headers(library_name="moegeo"), "range": f"bytes={start}-{end - 1}"}
    response = get_session().get(url, headers=headers, timeout=TIMEOUT)
    hf_raise_for_status(response)
    return bytes(response.content[: end - start])


def _header_end(path: Path) -> int:
    with path.open("rb") as file:
        return 8 + int.from_bytes(file.read(8), "little")


def _is_whole(path: Path, note: HubNote) -> bool:
    return is_there(path) and path.stat().st_size == _header_end(path) + note.data[path.name]


def _cut_to_headers(folder: Path) -> None:
    """Delete a revision's weights; keep its small files and headers."""
    note = read_note(folder)
    for name in note.data if note else ():
        path = folder / name
        if is_there(path) and path.stat().st_size > (end := _header_end(path)):
            os.truncate(path, end)


def _download(repository: str, commit: str, name: str, folder: Path) -> None:
    from huggingface_hub import hf_hub_download

    with _hub_errors(repository, commit):
        hf_hub_download(
            repository, name, revision=commit, local_dir=folder, force_download=True,
            endpoint=hub_endpoint(),
        )  # fmt: skip


def _api() -> Any:
    from huggingface_hub import HfApi

    return HfApi(endpoint=hub_endpoint(), library_name="moegeo")


@contextmanager
def _hub_errors(repository: str, revision: str | None = None) -> Iterator[None]:
    """Turn every error of the Hub's client into a PathError with a hint."""
    from huggingface_hub import errors

    try:
        yield
    except MoegeoError:
        raise
    except errors.GatedRepoError as error:
        raise _unreadable(
            repository,
            "its owner must grant you access",
            "ask for access on the model's page, then: hf auth login",
        ) from error
    except errors.RevisionNotFoundError as error:
        raise _unreadable(
            repository, f"it has no revision {revision}", f"hf://{repository}@'*' is all revisions"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise _unreadable(
            repository,
            "the Hub has no model of that name that you may see",
            "check the name; for a private one, hf auth login",
        ) from error
    except errors.OfflineModeIsEnabled as error:
        raise _unreadable(repository, "HF_HUB_OFFLINE is set", "unset HF_HUB_OFFLINE") from error
    except Exception as error:  # any error of the client and of its HTTP library
        raise _unreadable(
            repository,
            f"{type(error).__name__}: {error}".splitlines()[0][:200],
            "check the connection, and run the command again",
        ) from error


def _unreadable(repository: str, found: str, hint: str) -> PathError:
    return PathError(f"hf://{repository} cannot be read", found=found, hint=hint)
