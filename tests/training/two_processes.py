"""Started by `torchrun`: trains the tiny ranker for one epoch and stores its weights."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from accelerate import PartialState
from safetensors.torch import save_file

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))


def main(folder: Path) -> None:
    from compressor.training.drawn_parts import DrawnParts
    from compressor.training.loop import train
    from tests.tiny import build_ranker
    from tests.training.test_loop import SETTINGS, source_of, squared

    torch.set_num_threads(1)
    ranker, teacher = build_ranker(seed=0), build_ranker(seed=5)
    settings = SETTINGS.changed(epochs=1)
    source = source_of(teacher, settings, ranker)
    parts = DrawnParts(n_layers=2, seed=7, layer_drop=0.5)  # layers that no process runs are to keep their moments
    result = train(ranker.trainable(), source, squared, settings, scratch=folder / "scratch", seed=7, parts=parts)
    state = PartialState(cpu=True)
    save_file(result.weights, folder / f"of_{state.num_processes}_{state.process_index}.safetensors")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
