"""Files: paths and URLs, writing that leaves a whole file or none, locks, arrays as bytes.

Nothing here takes a path for a pattern but :func:`afm_ctr.io.paths.expand`.
"""
