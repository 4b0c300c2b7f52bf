"""Measure memory and speed over an epoch of images in tar shards: python benchmarks/streaming.py [--images 1000000].

Writes shards of small random PNG images to a temporary folder, trains nothing, and prints a row for each tenth of the
epoch: images shown, seconds, and the memory of this process and its workers (Linux's proportional set size, which
counts shared memory once).
"""

from __future__ import annotations

import argparse
import io
import os
import shutil
import tarfile
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from mixmo.config.data_settings import DataSettings
from mixmo.data.datasets import NamedDataset
from mixmo.data.image_sets import StreamedImages, build_train_loader

SHARD = 10_000


def write_shards(folder: Path, images: int, classes: int = 1000) -> None:
    rng = np.random.default_rng(0)
    encoded = []
    for _ in range(100):
        content = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(content, "PNG")
        encoded.append(content.getvalue())
    for start in range(0, images, SHARD):
        with tarfile.open(folder / f"train-{start // SHARD:05}.tar", "w") as tar:
            for number in range(start, min(start + SHARD, images)):
                for ending, content in (("png", encoded[number % 100]), ("cls", str(number % classes).encode())):
                    member = tarfile.TarInfo(f"{number:08}.{ending}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
                    tar.members.clear()


def memory() -> float:
    """Return the MiB used by this process and its children together."""
    own, total = os.getpid(), 0
    children = Path(f"/proc/{own}/task/{own}/children").read_text().split()
    for process in [str(own), *children]:
        for line in Path(f"/proc/{process}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                total += int(line.split()[1])
    return total / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=1_000_000)
    parser.add_argument("--workers", type=int, default=2)
    given = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="mixmo-shards-"))
    os.environ["HF_DATASETS_CACHE"] = str(folder / "cache")
    try:
        write_shards(folder, given.images)
        size = sum(file.stat().st_size for file in folder.glob("*.tar"))
        print(f"{given.images} images in {len(list(folder.glob('*.tar')))} shards, {size / 2**30:.2f} GiB")
        for which in ("first", "second"):
            start = time.perf_counter()
            source = NamedDataset(f"webdataset:{folder}").open("train")
            print(f"opened the {which} time in {time.perf_counter() - start:.1f} s; {memory():.0f} MiB")
        settings = DataSettings(image_size=16, batch_size=256, workers=given.workers, in_memory=False)
        loader = build_train_loader(StreamedImages(source, (16, 16), settings), settings, 0, torch.device("cpu"))
        start, shown, seen = time.perf_counter(), 0, torch.zeros(1000, dtype=torch.int64)
        print("images,seconds,MiB")
        for number, batch in enumerate(loader, 1):
            shown += len(batch.labels)
            seen += torch.bincount(batch.labels, minlength=1000)
            if number % max(1, len(loader) // 10) == 0:
                print(f"{shown},{time.perf_counter() - start:.1f},{memory():.0f}", flush=True)
        print(f"{shown} images shown; of each class between {seen.min()} and {seen.max()}")
        del loader
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
