"""Files: paths and URLs, atomic writes, locks, arrays as bytes.

Nothing here treats a path as a pattern except :func:`afm_ctr.io.paths.expand`.
"""
