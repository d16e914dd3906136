"""Writes tests/probes/files anew: the same sequences in a form, by the form's own writer.

    pip install datasets==5.2.0; pip install --no-deps megatron-core==0.16.1
    python -m tests.probes.write

The files are kept in the repository, so that tests need neither package. Forms whose writer is
one that the tests need anyway (pyarrow, numpy, safetensors) are written by the tests: `writers`.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import numpy as np

from tests.probes.writers import Sequences, plain, sequences

FILES = Path(__file__).parent / "files"


def by_datasets(ids: Sequences) -> None:
    from datasets import Dataset, DatasetDict, load_dataset

    rows = Dataset.from_dict({"input_ids": ids, "note": [str(n) for n in range(len(ids))]})
    rows.save_to_disk(FILES / "saved")
    rows.save_to_disk(FILES / "saved-in-shards", num_shards=3)
    backwards = Dataset.from_dict({"input_ids": ids[::-1]})
    backwards.select(range(len(ids))[::-1]).save_to_disk(FILES / "saved-selection")
    rows.to_parquet(FILES / "rows.parquet")
    DatasetDict({"train": rows, "test": rows.select([0])}).save_to_disk(FILES / "splits")
    with tempfile.TemporaryDirectory() as made:
        lines = plain(ids, Path(made) / "lines.jsonl")
        load_dataset("json", data_files=str(lines), cache_dir=made)
        [folder] = {path.parent for path in Path(made).glob("json/*/*/*/*.arrow")}
        shutil.copytree(folder, FILES / "cache")


def by_megatron(ids: Sequences) -> None:
    from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder
    from torch import tensor

    for name, kind, cut in (
        ("megatron-uint16", np.uint16, 1), ("megatron-int32", np.int32, 1),
        ("megatron-sentences", np.uint16, 3),
    ):  # fmt: skip
        builder = IndexedDatasetBuilder(str(FILES / f"{name}.bin"), dtype=kind)
        for own in ids:
            for part in np.array_split(own, cut):
                builder.add_item(tensor(part))
            builder.end_document()
        builder.finalize(str(FILES / f"{name}.idx"))


if __name__ == "__main__":
    shutil.rmtree(FILES, ignore_errors=True)
    FILES.mkdir()
    by_datasets(sequences())
    by_megatron(sequences())
    print(f"wrote {FILES}")
