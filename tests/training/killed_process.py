"""Trains the tiny ranker and stores weights and curves; SIGKILLs itself at one point where it is told to."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))


def main(folder: Path, where: str, count: int) -> None:
    from compressor.training import checkpoint
    from compressor.training.loop import train
    from tests.tiny import build_ranker
    from tests.training.test_loop import SETTINGS, source_of, squared

    torch.set_num_threads(1)
    calls = 0

    def passes(point: str) -> None:
        nonlocal calls
        calls += point == where
        if point == where and calls == count:
            os.kill(os.getpid(), signal.SIGKILL)

    def loss(module, batch):
        passes("step")
        return squared(module, batch)

    write_json = checkpoint.write_json

    def write(*arguments):
        passes("checkpoint")  # its tensors are written, what says whose they are is not
        write_json(*arguments)

    checkpoint.write_json = write
    settings = SETTINGS.changed(dropout=True, ema=0.9)
    ranker = build_ranker(seed=0)
    source = source_of(build_ranker(seed=5), settings, ranker)
    result = train(ranker.trainable(), source, loss, settings, scratch=folder / "scratch", seed=7)
    save_file(result.weights, folder / "weights.safetensors")
    (folder / "curves.json").write_text(json.dumps(result.curves))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
