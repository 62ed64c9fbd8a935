"""Who can load a folder: the rules of every consumer as small functions, and the one check that runs something."""

from compressor.doctor.examine import Diagnosis, examine

__all__ = ["Diagnosis", "examine"]
