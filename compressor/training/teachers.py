"""Teachers as a recipe names them: rankers that score, large ones too, and files of scores. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Discriminator, Field, PositiveFloat, Tag, model_validator

from compressor.data.score_formats import ScoreFormat
from compressor.errors import Fault, InputError
from compressor.large_settings import LargeRanker
from compressor.records import Record
from compressor.storage import sha256_file

OWN = "self"


class RankerTeacher(Record):
    """A ranker that scores the pairs itself. A string is short for ``{ranker: ...}``.

    ``ranker``: ``self`` (the recipe's teacher), ``packaged``, a folder, an ONNX file, or a hub id.
    ``weight``: its share in a mean of several.
    """

    ranker: str = Field(default=OWN, min_length=1)
    weight: PositiveFloat = 1.0

    @model_validator(mode="before")
    @classmethod
    def _from_text(cls, value: Any) -> Any:
        return {"ranker": value} if isinstance(value, str) else value

    @property
    def name(self) -> str:
        return "the teacher" if self.ranker == OWN else Path(self.ranker).name

    @property
    def offsets_known(self) -> bool:
        """Whether its scores of different queries can be compared."""
        return True

    def placed(self, base: Path) -> Self:
        """Return the record with a path made absolute; hub ids and names stay."""
        path = (base / Path(self.ranker).expanduser()).resolve()
        is_path = self.ranker != OWN and path.exists()
        return self.changed(ranker=str(path)) if is_path else self

    def fingerprints(self) -> Mapping[str, str]:
        """Return a hash of the ranker's files by its name; the recipe's own teacher is hashed with the recipe.

        Raises:
            InputError: there is no such ranker.
        """
        from compressor.families import teacher_fingerprint

        return {} if self.ranker == OWN else {self.ranker: teacher_fingerprint(self.ranker, Path())}


class FileTeacher(Record):
    """A file of scores that something else has made.

    ``scores``: the file.
    ``format``: one of the names in `compressor.data.score_formats`; by default what the file looks like.
    ``weight``: its share in a mean of several.
    """

    scores: str = Field(min_length=1)
    format: ScoreFormat | Literal["auto"] = "auto"
    weight: PositiveFloat = 1.0

    @property
    def name(self) -> str:
        return Path(self.scores).name

    @property
    def offsets_known(self) -> bool | None:
        """Whether its scores of different queries can be compared; None where only the file's lines will show."""
        return None if self.format == "auto" else self.format != "margin_only"

    def placed(self, base: Path) -> Self:
        """Return the record with an absolute path."""
        return self.changed(scores=str((base / Path(self.scores).expanduser()).resolve()))

    def fingerprints(self) -> Mapping[str, str]:
        """Return the hash of the file by its path.

        Raises:
            InputError: there is no such file.
        """
        path = Path(self.scores)
        if not path.is_file():
            raise InputError(Fault(source=path, found="no such file", allowed="a file of teacher scores"))
        return {self.scores: sha256_file(path)}


class LargeTeacher(LargeRanker):
    """A decoder or T5 ranker that scores through transformers; see `LargeRanker` for its settings.

    ``weight``: its share in a mean of several.
    """

    weight: PositiveFloat = 1.0

    @property
    def name(self) -> str:
        return self.short_name

    @property
    def offsets_known(self) -> bool:
        """Whether its scores of different queries can be compared."""
        return not self.is_listwise

    def fingerprints(self) -> Mapping[str, str]:
        """Return a hash of the ranker's files and settings by its name.

        Raises:
            InputError: there is no such ranker, it does not fit its settings, or a package is missing.
        """
        from compressor.families.large_teacher import open_large

        return {self.large: open_large(self).fingerprint}


def _kind(value: Any) -> str:
    """Tell from its keys which kind of teacher a value is meant to be, so that only that kind's faults are said."""
    if isinstance(value, LargeTeacher) or (isinstance(value, Mapping) and "large" in value):
        return "large ranker"
    is_file = isinstance(value, FileTeacher) or (isinstance(value, Mapping) and {"scores", "format"} & value.keys())
    return "score file" if is_file else "ranking model"


Teacher = Annotated[
    Annotated[RankerTeacher, Tag("ranking model")]
    | Annotated[FileTeacher, Tag("score file")]
    | Annotated[LargeTeacher, Tag("large ranker")],
    Discriminator(_kind),
]
