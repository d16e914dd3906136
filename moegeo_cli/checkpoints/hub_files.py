"""Download files and safetensors headers of one revision of the Hugging Face Hub, for `hub`.

Every error of the Hub's client becomes a PathError with a hint.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from moegeo_cli.checkpoints.adapters.files import ADAPTER_FILES
from moegeo_cli.checkpoints.headers import MAX_HEADER_BYTES
from moegeo_cli.checkpoints.hub_notes import HubNote, read_note
from moegeo_cli.checkpoints.safe_files import is_there
from moegeo_cli.environment import hub_endpoint
from moegeo_cli.errors import MoegeoError, PathError, UnsupportedLayoutError

_SMALL = (".json", ".jinja", ".txt", ".model")
MOST_SMALL_BYTES = 64 * 2**20
WEIGHTS = ".safetensors"
FIRST_BYTES = 100_000  # first range request; most headers are shorter (as in the Hub's client)
TIMEOUT = 30  # seconds


def download_headers(repository: str, revision: str, folder: Path) -> None:
    """Download a revision's small files and headers, unless the folder has them."""
    with hub_errors(repository, revision):
        info = hub_client().model_info(repository, revision=revision, files_metadata=True)
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
            download_file(repository, info.sha, name, folder)
    data = {}
    for name in weights:
        with hub_errors(repository, revision):
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


def is_complete(path: Path, note: HubNote) -> bool:
    """Whether a weights file is there with all its data, not with its header alone."""
    return is_there(path) and path.stat().st_size == _header_end(path) + note.data[path.name]


def cut_to_headers(folder: Path) -> None:
    """Delete a revision's weights; keep its small files and headers."""
    note = read_note(folder)
    for name in note.data if note else ():
        path = folder / name
        if is_there(path) and path.stat().st_size > (end := _header_end(path)):
            os.truncate(path, end)


def download_file(repository: str, commit: str, name: str, folder: Path) -> None:
    """Download one file of a commit into a folder.

    Raises:
        PathError: the Hub cannot be reached.
    """
    from huggingface_hub import hf_hub_download

    with hub_errors(repository, commit):
        hf_hub_download(
            repository, name, revision=commit, local_dir=folder, force_download=True,
            endpoint=hub_endpoint(),
        )  # fmt: skip


def hub_client() -> Any:
    """The client of huggingface_hub for the configured endpoint."""
    from huggingface_hub import HfApi

    return HfApi(endpoint=hub_endpoint(), library_name="moegeo")


@contextmanager
def hub_errors(repository: str, revision: str | None = None) -> Iterator[None]:
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
