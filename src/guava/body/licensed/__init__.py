"""SMPL-X and FLAME, for people who hold their licences (paper Sec. 3.1).

Neither model nor anything made from them comes with Guava. The user adds their own files (``guava assets
add``); they are read without running what is in them, checked, and become the template "smplx-flame".
"""

from guava.body.licensed.convert import NATURAL_TEETH, ConvertOptions, convert
from guava.body.licensed.correspondences import TABLES, read_tables
from guava.body.licensed.flame import read_flame
from guava.body.licensed.smplx import read_smplx

__all__ = ["NATURAL_TEETH", "TABLES", "ConvertOptions", "convert", "read_flame", "read_smplx", "read_tables"]
