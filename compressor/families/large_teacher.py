"""Both doors to a large ranker: what is known of it before anything is loaded, and what scores with it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compressor.errors import Fault, InputError
from compressor.families.large_files import LargeFiles, large_files, large_fingerprint
from compressor.families.large_precision import check_precision, stored_precision
from compressor.families.large_prompts import pair_prompt
from compressor.large_settings import LargeRanker
from compressor.storage import sha256_json

if TYPE_CHECKING:
    from compressor.families.first_token import FirstTokenScorer
    from compressor.families.large_ranker import PairScorer

_RULES = 1  # part of every fingerprint: raise it when the same files and settings come to give other scores
_NO_SCORES = {"large", "weight", "batch_tokens", "calibration"}  # settings that change no score, or are hashed apart


@dataclass(frozen=True, kw_only=True)
class LargeTeacher:
    """A large ranker that was looked at and found to fit its settings; nothing is loaded yet.

    Attributes:
        files: its checkpoint.
        settings: how it is asked.
        fingerprint: equal ones score equally.
    """

    files: LargeFiles
    settings: LargeRanker
    fingerprint: str

    @property
    def needs_quantizing(self) -> bool:
        """Whether GPTQ has to round it before it can score."""
        return self.settings.precision == "gptq" and not self.files.quantized_by

    def open(self) -> PairScorer | FirstTokenScorer:
        """Load it, onto the GPU where there is one.

        Raises:
            InputError: it cannot be loaded so.
        """
        from compressor.families.first_token import FirstTokenScorer
        from compressor.families.large_ranker import LargeModel, PairScorer

        model = LargeModel(self.files, self.settings)
        return (FirstTokenScorer if self.settings.is_listwise else PairScorer)(model, self.settings)

    def quantized(self, pairs: Sequence[tuple[str, str]], place: Callable[[str], Path]) -> LargeTeacher:
        """Return it as GPTQ rounds it on the prompts of pairs, which happens once.

        Args:
            pairs: (query, document) texts.
            place: returns the folder of a name where what is made once is kept.

        Raises:
            InputError: there are no pairs, or packages or the device do not do it.
        """
        from compressor.families.large_ranker import calibration_prompts, quantize_once

        if not pairs:
            raise InputError(Fault(source=str(self.settings.calibration), found="no pairs to calibrate GPTQ on"))
        prompts = calibration_prompts(self.files, self.settings, pairs)
        folder = place(sha256_json([self.fingerprint, prompts])) / "model"
        if not folder.is_dir():
            quantize_once(self.files, self.settings, prompts, folder)
        return open_large(self.settings.model_copy(update={"large": str(folder), "calibration": None}))


def open_large(settings: LargeRanker) -> LargeTeacher:
    """Look at a large ranker: that it is there and whole, that settings and packages fit it, and its hash.

    What shows from the config is said before a hub's weights are downloaded.

    Raises:
        InputError: see `large_files`, `check_precision` and `pair_prompt`.
    """
    files = large_files(settings.large, with_weights=False)
    stored_precision(files)
    check_precision(settings, files)
    scoring = files.scoring(settings)
    prompt: Any = None
    if scoring != "first_token":
        prompt = pair_prompt(settings, files, scoring)
    files = large_files(settings.large)
    how = settings.model_dump(mode="json", exclude=_NO_SCORES) | {"scoring": scoring, "prompt": prompt}
    return LargeTeacher(
        files=files, settings=settings, fingerprint=sha256_json([_RULES, large_fingerprint(files.folder), how])
    )
