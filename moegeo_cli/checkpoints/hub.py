"""Open checkpoints on the Hugging Face Hub, `hf://ORG/NAME@REVISION`, through huggingface_hub.

Only a path that begins with `hf://` uses the network. `open_hub` downloads a revision's small
files, and the headers of its safetensors files by HTTP range requests. `fetch` downloads the
weights before they are read, and deletes those of other revisions to save disk space.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from moegeo_cli.checkpoints.checkpoint import Checkpoint
from moegeo_cli.checkpoints.discover import RunFolder, Skipped, open_run
from moegeo_cli.checkpoints.folders import find_given_config
from moegeo_cli.checkpoints.hub_files import (
    cut_to_headers,
    download_file,
    download_headers,
    hub_client,
    hub_errors,
    is_complete,
)
from moegeo_cli.checkpoints.hub_notes import read_note
from moegeo_cli.checkpoints.ordering import sort_by_step
from moegeo_cli.checkpoints.step_names import read_name
from moegeo_cli.environment import hub_home
from moegeo_cli.errors import MoegeoError, NoCheckpointError, PathError

# A shell or pathlib may have removed one of the two slashes.
_URL = re.compile(r"hf:/{1,2}([A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?:@(.+))?")


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
            download_headers(name.repository, revision, folder)
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
            cut_to_headers(place)
    for folder in sorted(wanted):
        note = read_note(folder)
        assert note is not None
        for file in note.data:
            if not is_complete(folder / file, note):
                download_file(note.repository, note.commit, file, folder)


def _revisions(name: HubName) -> list[str]:
    """Branches and tags that match the pattern, sorted."""
    with hub_errors(name.repository):
        refs = hub_client().list_repo_refs(name.repository)
    known = sorted({ref.name for ref in [*refs.branches, *refs.tags]})
    found = [ref for ref in known if fnmatch.fnmatchcase(ref, name.revision)]
    if not found:
        raise NoCheckpointError(
            f"no revision of {name.repository} fits {name.revision}",
            found=", ".join(known[:8]) or "no branch and no tag",
            hint="quote the pattern, so that the shell leaves it alone",
        )
    return found
