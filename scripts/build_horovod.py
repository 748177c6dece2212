"""Build Horovod for the TensorFlow of this interpreter, cache the wheel and install it.

Horovod 0.28.1, its last release, does not build unchanged against TensorFlow 2.19 and newer. A few small source edits
(listed in ``EDITS``) fix that and other problems; each must match exactly once or the build stops.

    .venv/bin/python scripts/build_horovod.py           # CPU: Gloo, no MPI
    .venv/bin/python scripts/build_horovod.py --gpu     # NCCL; needs nvcc and NCCL's header and library

The wheel is for one TensorFlow and one Python, so both are part of its path in the cache
(``$AFM_CTR_CACHE``, else ``$XDG_CACHE_HOME/afm-ctr``, else ``~/.cache/afm-ctr``).
Exit code: 0 built or found and installed, 1 the build failed, 2 a required tool is missing.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.metadata
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path

from building import Missing, cache, locked, python_tag, run, tool, trusted

from afm_ctr.io.ownership import record_digest

VERSION = "0.28.1"
SHA256 = "92a43f5a94c43907a56805bad15f19700c62ffc83b7ca483f9e104e229f67ef0"

# (file, text that must occur exactly once, replacement, why)
EDITS = [
    (
        "horovod/tensorflow/CMakeLists.txt",
        'list(APPEND TF_SOURCES "${PROJECT_SOURCE_DIR}/horovod/tensorflow/xla_mpi_ops.cc")\n',
        "",
        "optional XLA ops, off by default; the headers they include moved in TensorFlow 2.19",
    ),
    (
        "horovod/common/gloo/gloo_controller.cc",
        "global_ranks_.reserve(size_)",
        "global_ranks_.resize(size_)",
        "a reserved but empty list: the stall inspector never fired under Gloo",
    ),
    (
        "horovod/common/gloo/gloo_context.cc",
        "  auto dev = CreateDevice(device_attr);\n\n  global_ctx = global_context.ctx;",
        "  gloo_iface_ = device_attr.iface = global_context.gloo_iface_;\n"
        "  auto dev = CreateDevice(device_attr);\n\n  global_ctx = global_context.ctx;",
        "the ranks' second connections ignored --network-interfaces and took what the host's name resolves to, which "
        "is loopback on many machines",
    ),
    (
        "horovod/common/util.py",
        "            sys.stdout = open(os.devnull, 'w')\n            sys.stderr = open(os.devnull, 'w')\n",
        "            sys.stdout = sys.stderr = open(os.devnull, 'w')\n"
        "            os.dup2(sys.stderr.fileno(), 1)\n            os.dup2(sys.stderr.fileno(), 2)\n",
        "horovodrun looks at its extension in silence, but what TensorFlow logs in C++ came through: a dozen lines "
        "before the job's own",
    ),
    (
        "horovod/tensorflow/mpi_ops.cc",
        "#endif // TENSORFLOW_VERSION >= 2011000000\n#endif // HAVE_GPU",
        "#endif // TENSORFLOW_VERSION >= 2011000000\n"
        "namespace stream_executor {\nnamespace gpu {\n"
        "inline GpuStreamHandle AsGpuStreamValue(Stream* stream) {\n"
        "  return static_cast<GpuStreamHandle>(stream->platform_specific_handle().stream);\n"
        "}\n} // namespace gpu\n} // namespace stream_executor\n"
        "#endif // HAVE_GPU",
        "GPU only: TensorFlow no longer exports this function, which the file merely declares",
    ),
]


def cache_folder(tensorflow: str, flavour: str) -> Path:
    """The cache folder of the wheel for one TensorFlow, one Python, one flavour and these edits."""
    edits = hashlib.sha256(repr(EDITS).encode()).hexdigest()[:8]
    return cache() / "wheels" / f"horovod-{VERSION}-tf{tensorflow}-{python_tag()}-{flavour}-{edits}"


def gpu_environment() -> dict[str, str]:
    """The variables of an NCCL build: the CUDA toolkit, and NCCL from $HOROVOD_NCCL_HOME or its PyPI wheel."""
    cuda = os.environ.get("HOROVOD_CUDA_HOME") or os.environ.get("CUDA_HOME") or "/usr/local/cuda"
    if not os.path.exists(os.path.join(cuda, "bin", "nvcc")):
        raise Missing(f"no nvcc below {cuda}: install the CUDA toolkit or set HOROVOD_CUDA_HOME")
    nccl = os.environ.get("HOROVOD_NCCL_HOME") or _nccl_from_wheel()
    if not os.path.exists(os.path.join(nccl, "include", "nccl.h")):
        raise Missing(
            f"no include/nccl.h below {nccl}: pip install nvidia-nccl-cu12 (or -cu13), or set HOROVOD_NCCL_HOME"
        )
    library = Path(nccl) / "lib" / "libnccl.so"
    if not library.exists():  # the wheel has only the versioned name, and the linker needs the plain one
        library.symlink_to("libnccl.so.2")
    return {
        "HOROVOD_GPU_OPERATIONS": "NCCL",
        "HOROVOD_CUDA_HOME": cuda,
        "HOROVOD_NCCL_HOME": nccl,
        "HOROVOD_BUILD_CUDA_CC_LIST": os.environ.get("HOROVOD_BUILD_CUDA_CC_LIST", "80,90"),
    }


def _nccl_from_wheel() -> str:
    try:
        import nvidia.nccl
    except ImportError:
        return "/usr"
    return str(next(iter(nvidia.nccl.__path__)))


def build(wheels: Path, gpu: bool) -> None:
    """Download the sources, edit them, build the wheel in a temporary folder and move it into ``wheels``."""
    tool("g++", "install a C++ compiler")
    tool("make", "install make")
    tool("cmake", "install cmake 3.13 or newer")
    environment = dict(os.environ)
    if gpu:
        environment |= gpu_environment()
    environment |= {
        "HOROVOD_WITH_TENSORFLOW": "1",
        "HOROVOD_WITHOUT_PYTORCH": "1",
        "HOROVOD_WITHOUT_MXNET": "1",
        "HOROVOD_WITH_GLOO": "1",
        "HOROVOD_WITHOUT_MPI": "1",
        "MAKEFLAGS": f"-j{os.cpu_count() or 1}",
        "CMAKE_POLICY_VERSION_MINIMUM": "3.5",  # cmake 4 refuses the old policies of the bundled libraries
        "PATH": os.path.dirname(sys.executable) + os.pathsep + os.environ.get("PATH", ""),
    }
    with tempfile.TemporaryDirectory(prefix="horovod-") as scratch:
        folder = Path(scratch)
        log = folder / "build.log"
        wanted = folder / "requirement.txt"
        wanted.write_text(f"horovod=={VERSION} --hash=sha256:{SHA256}\n")
        pip = [sys.executable, "-m", "pip"]
        run(
            [*pip, "download", "--no-deps", "--no-binary", "horovod", "--no-build-isolation", "--require-hashes",
             "-r", str(wanted), "-d", str(folder)],
            log,
        )  # fmt: skip
        with tarfile.open(folder / f"horovod-{VERSION}.tar.gz") as archive:
            archive.extractall(folder, filter="data")
        source = folder / f"horovod-{VERSION}"
        for name, text, replacement, why in EDITS:
            file = source / name
            before = file.read_text()
            if before.count(text) != 1:
                raise RuntimeError(
                    f"{name}: the text to edit stands there {before.count(text)} times, not once ({why})"
                )
            file.write_text(before.replace(text, replacement))
        built = folder / "wheel"
        run(
            [*pip, "wheel", "--no-build-isolation", "--no-deps", "-w", str(built), "."],
            log,
            cwd=source,
            env=environment,
        )
        wheels.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=".new-", dir=wheels.parent))
        for wheel in built.glob("*.whl"):
            shutil.copy2(wheel, temporary)
            record_digest(temporary / wheel.name)
        if wheels.exists():
            shutil.rmtree(wheels)
        temporary.chmod(0o755)
        temporary.rename(wheels)


def install(wheels: Path) -> None:
    wheel = next(wheels.glob("*.whl"))
    # The version is the same for any TensorFlow, so an installed wheel must be replaced.
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--force-reinstall", str(wheel)], check=True
    )


CHECK = """
import horovod.tensorflow as hvd, tensorflow as tf
hvd.init()
assert float(hvd.allreduce(tf.constant(2.0), op=hvd.Sum)) == 2.0 * hvd.size()
print(f"gloo {bool(hvd.gloo_built())}, nccl {hvd.nccl_built() or False}, ranks {hvd.size()}")
"""


def check() -> str:
    """Load the library in a new process and reduce a number with it."""
    result = subprocess.run([sys.executable, "-c", CHECK], capture_output=True, text=True)
    if result.returncode:
        raise RuntimeError("Horovod was installed but does not load:\n" + result.stderr[-2000:])
    return result.stdout.strip().splitlines()[-1]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gpu", action="store_true", help="build the GPU form: NCCL for the reductions")
    parser.add_argument("--rebuild", action="store_true", help="build even when the cache has the wheel")
    parser.add_argument("--no-install", action="store_true", help="only fill the cache")
    arguments = parser.parse_args()
    try:
        tensorflow = importlib.metadata.version("tensorflow")
    except importlib.metadata.PackageNotFoundError:
        print("build_horovod: TensorFlow is not installed here: pip install -e '.[train]' first", file=sys.stderr)
        return 2
    absent = [name for name in ("cloudpickle", "packaging", "psutil", "yaml") if find_spec(name) is None]
    if absent:
        print(f"build_horovod: {', '.join(absent)} not installed: pip install -e '.[horovod]' first", file=sys.stderr)
        return 2
    wheels = cache_folder(tensorflow, "nccl" if arguments.gpu else "cpu")
    start = time.monotonic()
    try:
        with locked(wheels):
            if arguments.rebuild or not any(map(trusted, wheels.glob("*.whl"))):
                print(
                    f"building Horovod {VERSION} for TensorFlow {tensorflow}: takes a few minutes, once ",
                    end="",
                    flush=True,
                )
                build(wheels, arguments.gpu)
                print(f" {time.monotonic() - start:.0f} s")
            else:
                print(f"Horovod {VERSION} for TensorFlow {tensorflow}: wheel found in the cache")
        if not arguments.no_install:
            install(wheels)
            print("Horovod works:", check())
    except Missing as error:
        print(f"\nbuild_horovod: {error}", file=sys.stderr)
        return 2
    except (RuntimeError, OSError, subprocess.CalledProcessError) as error:
        print(f"\nbuild_horovod: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
