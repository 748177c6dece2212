"""Build the ops in C++ (``afm_ctr/native``) for the TensorFlow of this interpreter, cache and install the library.

    .venv/bin/python scripts/build_native.py              # a minute, once; then found in the cache
    .venv/bin/python scripts/build_native.py --rebuild

It needs only g++. The kernels are compiled for AVX-512, for AVX2 and for any machine, and the library chooses at run
time, so one build serves different hosts. Without it training gives the same results, only slower.
The cache is ``$AFM_CTR_CACHE``, else ``$XDG_CACHE_HOME/afm-ctr``, else ``~/.cache/afm-ctr``.
Exit code: 0 built or found and installed, 1 the build failed, 2 a required tool is missing.
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from building import Missing, cache, locked, run, tool, trusted

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from afm_ctr.io.ownership import DIGEST_SUFFIX, record_digest
from afm_ctr.native import library

INSTEAD = "training uses the TensorFlow form: the same results, slower"

# Comparisons do not trap and libm does not set errno, as no code here reads it. All else is IEEE arithmetic.
KERNEL = ["-O3", "-std=c++17", "-fPIC", "-fno-math-errno", "-fno-trapping-math", "-Wall", "-Wno-psabi"]
OPTIONS = {
    "kernel_avx512.cc": [
        *("-mavx512f", "-mavx512dq", "-mavx512bw", "-mavx512vl", "-mavx2", "-mfma"),
        "-mprefer-vector-width=512",
    ],
    "kernel_avx2.cc": ["-mavx2", "-mfma"],
    "kernel_baseline.cc": [],
    "example.cc": [],
    "order.cc": [],
    "crc32c.cc": [],
    "frames.cc": [],
    "json.cc": [],
    "rows.cc": [],
}
PLAIN = ("crc32c.cc", "frames.cc", "json.cc", "rows.cc")  # sources of the library without TensorFlow
# As TensorFlow computes op by op: each product is rounded before it is added to anything.
ROUNDED = ["-O3", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=off"]
INTEL = platform.machine() in ("x86_64", "AMD64")

FLAGS = "import tensorflow as tf; print(*tf.sysconfig.get_compile_flags(), *tf.sysconfig.get_link_flags(), sep='\\n')"

CHECK = """
import numpy as np, tensorflow as tf
from afm_ctr import native
none, contract = np.zeros([0, 2], np.uint64), {"labelled": True, "binary": True, "groups": True, "keys": True}
batch = native.read_records([], np.zeros([0, 6], np.int64), none, rows=1, slots=2, feature_size=1, **contract)
assert batch["feature_ids"].tolist() == [[0, 0]] and batch["key"].tolist() == [b""]
assert native.fingerprints([b""]).tolist() == [0x9AE16A3B2F90404F]
names = native.instruction_sets()
u = tf.constant([[[2.0], [3.0]]])
with tf.GradientTape() as tape:
    tape.watch(u)
    pooled = native.fused_pooling(u, tf.ones([1, 2], tf.bool), tf.ones([1, 1]), tf.zeros([1]), tf.ones([1]), [(0, 1)])
assert pooled.numpy().tolist() == [[6.0]] and tape.gradient(pooled, u).numpy().tolist() == [[[3.0], [2.0]]]
print(", ".join(names))
"""


def python(code: str) -> str:
    environment = os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3", "PYTHONPATH": str(library.FOLDER.parents[1])}
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False
    )
    if result.returncode:
        lines = result.stderr.strip().splitlines()
        raise RuntimeError(lines[-1] if lines else f"python ended with {result.returncode}")
    return result.stdout.strip()


def build(target: Path, log: Path, more: Sequence[str] = ()) -> None:
    """Compile all sources and move the libraries into the cache; ``more`` are options for g++."""
    tool("g++", "install a C++ compiler")
    flags = python(FLAGS).splitlines()
    compile_flags = ["-isystem" + flag[2:] if flag.startswith("-I") else flag for flag in flags if flag[:2] != "-L"]
    compile_flags = [flag for flag in compile_flags if not flag.startswith("-l")]
    link_flags = [flag for flag in flags if flag.startswith(("-L", "-l"))]
    with tempfile.TemporaryDirectory(prefix="afm-native-", dir=target.parent) as scratch:

        def compiled(source: Path) -> str:
            options = [*KERNEL, *OPTIONS[source.name]] if source.name in OPTIONS else ["-O2", "-fPIC", *compile_flags]
            options += [*(ROUNDED if source.name in ("table.cc", "fm.cc", "normalise.cc") else []), *more]
            made = f"{scratch}/{source.stem}.o"
            run(["g++", *options, "-c", str(source), "-o", made], log)
            return made

        sources = [source for source in library.sources() if source.suffix == ".cc"]
        if not INTEL:
            sources = [source for source in sources if not OPTIONS.get(source.name)]
        with ThreadPoolExecutor(os.cpu_count()) as compilers:
            objects = dict(zip((source.name for source in sources), compilers.map(compiled, sources), strict=True))
        made = f"{scratch}/library.so"
        plain = [objects[name] for name in PLAIN]
        ops = [object for name, object in objects.items() if name not in PLAIN or name == "crc32c.cc"]
        for place, parts in ((library.plain_library(target), plain), (target, [*ops, *link_flags])):
            run(["g++", "-shared", *parts, *more, "-o", made], log)
            os.replace(made, place)
            record_digest(place)


def install(built: Path) -> None:
    """Copy the libraries under temporary names and rename them into the package; remove those of other sources."""
    place = library.library_path()
    for one, to in ((library.plain_library(built), library.plain_library(place)), (built, place)):
        temporary = to.with_suffix(f".{os.getpid()}")
        shutil.copy2(one, temporary)
        os.replace(temporary, to)
        record_digest(to)
    for other in library.FOLDER.glob(f"{place.name.rsplit('-', 1)[0]}-*.so"):
        if other not in (place, library.plain_library(place)):
            other.unlink(missing_ok=True)
            other.with_name(other.name + DIGEST_SUFFIX).unlink(missing_ok=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rebuild", action="store_true", help="build even when the cache has the library")
    arguments = parser.parse_args()
    if library.tensorflow_version() is None:
        print("build_native: TensorFlow is not installed here: pip install -e '.[train]' first", file=sys.stderr)
        return 2
    built = cache() / "native" / f"{library.key()}-{platform.machine()}.so"
    log = built.with_suffix(".log")
    start = time.monotonic()
    try:
        with locked(built):
            if arguments.rebuild or not (trusted(built) and trusted(library.plain_library(built))):
                print("building the ops for TensorFlow", library.tensorflow_version(), end=" ", flush=True)
                log.unlink(missing_ok=True)
                build(built, log)
                print(f" {time.monotonic() - start:.0f} s")
            install(built)
        try:
            print("fused attentional pooling and reading work:", python(CHECK))
        except RuntimeError:
            library.library_path().unlink(missing_ok=True)  # training must not find a broken library
            raise
    except Missing as error:
        print(f"\nbuild_native: {error}; {INSTEAD}", file=sys.stderr)
        return 2
    except (RuntimeError, OSError) as error:
        place = f" ({log})" if log.exists() else ""
        print(f"\nbuild_native: {str(error).splitlines()[0]}{place}; {INSTEAD}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
