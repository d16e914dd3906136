"""Real text from installed packages, split so that nothing seen in training is probed.

Passages of one length come from four sources; blocks of a document go to training,
validation or probe by their hash. A training or validation passage that shares any
64-byte window with the probe is left out, and so is a training passage that shares one
with validation. docs/reference/data.md records sources and licences.
"""

from __future__ import annotations

import ast
import functools
import gettext
import hashlib
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

PASSAGE_BYTES = 264
BLOCK_PASSAGES = 12
WINDOW = 64
PROBE_PASSAGES_PER_DOMAIN = 64
VALIDATION_PASSAGES_PER_DOMAIN = 64
DOMAIN_BYTES = 1_500_000  # at most so much of each domain is read
LANGUAGES = ("cs", "de", "es", "fr", "hu", "it", "nl", "pl", "pt", "sv", "tr", "uk")


@dataclass(frozen=True, slots=True)
class Document:
    """A passage of real text, where it comes from, and what kind it is."""

    text: str
    domain: str
    source: str

    @property
    def data(self) -> bytes:
        """Its bytes, which are its tokens."""
        return self.text.encode()


@dataclass(frozen=True, slots=True)
class Splits:
    """The three disjoint parts, and how many passages were left out for an overlap."""

    training: tuple[Document, ...]
    validation: tuple[Document, ...]
    probe: tuple[Document, ...]
    left_out: int


def training_documents() -> tuple[Document, ...]:
    """Passages to train on."""
    return split_text().training


def validation_documents() -> tuple[Document, ...]:
    """Passages for the validation loss."""
    return split_text().validation


def probe_documents() -> tuple[Document, ...]:
    """Passages of the bundled probe, domains in turn."""
    return split_text().probe


@functools.cache
def split_text() -> Splits:
    """Read all sources and split them."""
    pools: dict[str, dict[str, list[Document]]] = {}
    for domain, texts in (
        ("code", code()), ("languages", languages()), ("mathematics", mathematics()),
        ("prose", prose()),
    ):  # fmt: skip
        pools[domain] = _assign(domain, texts)
    probe = _take_turns([p["probe"] for p in pools.values()], PROBE_PASSAGES_PER_DOMAIN)
    probed = _windows(probe)
    left_out = 0
    clean: list[list[Document]] = []
    for pool in pools.values():
        kept = [d for d in pool["validation"] if probed.isdisjoint(windows_of(d.data))]
        left_out += len(pool["validation"]) - len(kept)
        clean.append(kept)
    validation = _take_turns(clean, VALIDATION_PASSAGES_PER_DOMAIN)
    held = probed | _windows(validation)
    everything = [d for pool in pools.values() for d in pool["training"]]
    training = [d for d in everything if held.isdisjoint(windows_of(d.data))]
    left_out += len(everything) - len(training)
    return Splits(tuple(training), tuple(validation), tuple(probe), left_out)


def windows_of(data: bytes) -> set[int]:
    """Hashes of every 64-byte window."""
    return {hash(data[i : i + WINDOW]) for i in range(max(len(data) - WINDOW + 1, 1))}


def _windows(documents: list[Document]) -> set[int]:
    return {window for d in documents for window in windows_of(d.data)}


def _take_turns(columns: list[list[Document]], share: int) -> list[Document]:
    """So many of each domain, one after another."""
    short = min(map(len, columns))
    if short < share:
        raise RuntimeError(f"a domain has only {short} passages, {share} are needed")
    return [column[place] for place in range(share) for column in columns]


def _assign(domain: str, texts: Iterator[tuple[str, str]]) -> dict[str, list[Document]]:
    """Cut texts into passages; blocks of them go to a split by the hash of their place."""
    pools: dict[str, list[Document]] = {"training": [], "validation": [], "probe": []}
    seen: set[bytes] = set()
    read = 0
    for source, text in texts:
        if read > DOMAIN_BYTES:
            break
        for number, passage in enumerate(_passages(text)):
            data = passage.encode()
            digest = hashlib.sha256(data).digest()
            if digest in seen:
                continue
            seen.add(digest)
            read += len(data)
            place = f"{source}:{number // BLOCK_PASSAGES}".encode()
            draw = hashlib.sha256(place).digest()[0]
            split = "probe" if draw < 24 else "validation" if draw < 48 else "training"
            pools[split].append(Document(passage, domain, source))
    # by content, so that the first ones taken are not all of one source
    for documents in pools.values():
        documents.sort(key=lambda d: hashlib.sha256(d.data).digest())
    return pools


def _passages(text: str) -> Iterator[str]:
    """Pieces of nearly PASSAGE_BYTES, cut between characters."""
    data = text.encode("utf-8", "ignore")
    start = 0
    while start + PASSAGE_BYTES <= len(data):
        end = start + PASSAGE_BYTES
        while end < len(data) and (data[end] & 0xC0) == 0x80:
            end -= 1
        yield data[start:end].decode()
        start = end


def prose() -> Iterator[tuple[str, str]]:
    """CPython's language reference, as pydoc ships it (PSF licence)."""
    from pydoc_data.topics import topics

    for name in sorted(topics):
        yield f"pydoc_data.topics/{name}", topics[name]


def code() -> Iterator[tuple[str, str]]:
    """Modules of CPython's standard library (PSF licence)."""
    folder = Path(sysconfig.get_paths()["stdlib"])
    names = sorted(folder.glob("*.py")) + sorted(folder.glob("asyncio/*.py"))
    for path in sorted(names, key=lambda p: hashlib.sha256(p.name.encode()).digest()):
        yield f"lib/{path.relative_to(folder)}", path.read_text(encoding="utf-8", errors="ignore")


def mathematics() -> Iterator[tuple[str, str]]:
    """Docstrings of sympy, scipy and numpy (BSD licences)."""
    import numpy
    import scipy
    import sympy

    files = []
    for package in (sympy, scipy, numpy):
        root = Path(package.__file__).parent
        for path in root.rglob("*.py"):
            relative = f"{root.name}/{path.relative_to(root)}"
            if "/tests/" not in relative:
                files.append((relative, path))
    for relative, path in sorted(files, key=lambda f: hashlib.sha256(f[0].encode()).digest()):
        yield relative, "\n\n".join(_docstrings(path))


def _docstrings(path: Path) -> Iterator[str]:
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
    except (SyntaxError, UnicodeDecodeError):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
            text = ast.get_docstring(node)
            if text and len(text) > PASSAGE_BYTES:
                yield text


def languages(names: tuple[str, ...] = LANGUAGES) -> Iterator[tuple[str, str]]:
    """Django's translations, into twelve languages unless others are named (BSD licence)."""
    import django

    root = Path(django.__file__).parent
    found = []
    for language in names:
        for path in sorted(root.rglob(f"{language}/LC_MESSAGES/*.mo")):
            with path.open("rb") as file:
                catalogue = gettext.GNUTranslations(file)._catalog  # type: ignore[attr-defined]
            words = [v for k, v in sorted(catalogue.items(), key=str) if k and isinstance(v, str)]
            found.append((f"django/{path.relative_to(root)}", "\n".join(words)))
    yield from sorted(found, key=lambda f: hashlib.sha256(f[0].encode()).digest())
