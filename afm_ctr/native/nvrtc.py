"""Compiles CUDA programs at run time with NVIDIA's NVRTC, also located at run time; results are cached on disk."""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import os
import sys
from functools import lru_cache
from pathlib import Path

from afm_ctr.io.files import write_bytes

_NAMES = ("libnvrtc.so.13", "libnvrtc.so.12", "libnvrtc.so")
# Its folders in NVIDIA's wheels: nvidia-cuda-nvrtc (13), nvidia-cuda-nvrtc-cu12.
_FOLDERS = ("cu13/lib", "cuda_nvrtc/lib")
_OPTIONS = ("--std=c++17",)
ROUNDED = ("--fmad=false",)  # rounds each operation, like TensorFlow's separate ops
INSTALL = "pip install nvidia-cuda-nvrtc-cu12"  # of the major version of TensorFlow's CUDA
MISSING = "NVRTC, which compiles the GPU's kernels, is not installed"


class CompileError(RuntimeError):
    """NVRTC is not installed, does not support the GPU, or refuses the program."""


def cache() -> Path:
    """``gpu`` in ``$AFM_CTR_CACHE``, else in ``$XDG_CACHE_HOME/afm-ctr``, else in ``~/.cache/afm-ctr``."""
    named = os.environ.get("AFM_CTR_CACHE")
    base = Path(named) if named else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "afm-ctr"
    return base / "gpu"


@lru_cache(maxsize=1)
def library() -> ctypes.CDLL | None:
    """Load NVRTC from a wheel next to this package, or by the dynamic linker; None if there is none."""
    wheels = [Path(entry) / "nvidia" / folder for entry in sys.path for folder in _FOLDERS]
    files = [str(file) for folder in wheels for file in sorted(folder.glob("libnvrtc.so.*"))]
    for name in (*files, *_NAMES):
        with contextlib.suppress(OSError, AttributeError):
            found = ctypes.CDLL(name)
            found.nvrtcGetCUBIN.restype = ctypes.c_int  # missing before CUDA 11.2
            return found
    return None


def version() -> tuple[int, int] | None:
    """NVRTC's version, such as (13, 0); None if there is none."""
    if (nvrtc := library()) is None:
        return None
    major, minor = ctypes.c_int(), ctypes.c_int()
    nvrtc.nvrtcVersion(ctypes.byref(major), ctypes.byref(minor))
    return major.value, minor.value


def target(capability: int) -> int:
    """The compute capability to compile for: the GPU's, or the nearest below it in the same generation.

    Raises:
        CompileError: there is no NVRTC, or it does not support the GPU's generation.
    """
    if (nvrtc := library()) is None:
        raise CompileError(MISSING)
    count = ctypes.c_int()
    nvrtc.nvrtcGetNumSupportedArchs(ctypes.byref(count))
    known = (ctypes.c_int * count.value)()
    nvrtc.nvrtcGetSupportedArchs(known)
    fitting = [arch for arch in known if arch <= capability and arch // 10 == capability // 10]
    if not fitting:
        raise CompileError(f"NVRTC {'.'.join(map(str, version() or ()))} knows no GPU like sm_{capability}")
    return max(fitting)


def cubin(source: str, capability: int, options: tuple[str, ...] = ()) -> bytes:
    """The compiled program, from the cache if it was compiled before.

    The cache is keyed by the source, the options, the compute capability and NVRTC's version. A cache that cannot be
    written is ignored.

    Raises:
        CompileError: NVRTC is not installed, does not support the GPU, or refuses the program.
    """
    arch = target(capability)
    what = f"{version()}\0{arch}\0{_OPTIONS + options}\0{source}"
    file = cache() / f"{hashlib.sha256(what.encode()).hexdigest()[:32]}-sm_{arch}.cubin"
    with contextlib.suppress(OSError):
        kept = file.read_bytes()
        if hashlib.sha256(kept[32:]).digest() == kept[:32]:
            return kept[32:]
    made = compile_program(source, arch, options)
    with contextlib.suppress(OSError):
        write_bytes(file, hashlib.sha256(made).digest() + made)
    return made


def compile_program(source: str, arch: int, options: tuple[str, ...] = ()) -> bytes:
    """Compile a CUDA C++ program to a cubin for compute capability ``arch``, with additional options of NVRTC.

    Raises:
        CompileError: NVRTC is not installed, or refuses the program.
    """
    if (nvrtc := library()) is None:
        raise CompileError(MISSING)
    program = ctypes.c_void_p()

    def check(code: int, what: str) -> None:
        if code:
            raise CompileError(f"NVRTC: {what} failed with code {code}")

    check(nvrtc.nvrtcCreateProgram(ctypes.byref(program), source.encode(), b"pooling.cu", 0, None, None), "creation")
    try:
        words = [option.encode() for option in (f"--gpu-architecture=sm_{arch}", *_OPTIONS, *options)]
        if nvrtc.nvrtcCompileProgram(program, len(words), (ctypes.c_char_p * len(words))(*words)):
            size = ctypes.c_size_t()
            check(nvrtc.nvrtcGetProgramLogSize(program, ctypes.byref(size)), "log")
            log = ctypes.create_string_buffer(size.value)
            check(nvrtc.nvrtcGetProgramLog(program, log), "log")
            errors = [line for line in log.value.decode(errors="replace").splitlines() if "error" in line]
            raise CompileError(f"NVRTC refuses the program: {errors[0] if errors else 'no reason given'}")
        size = ctypes.c_size_t()
        check(nvrtc.nvrtcGetCUBINSize(program, ctypes.byref(size)), "cubin")
        code = ctypes.create_string_buffer(size.value)
        check(nvrtc.nvrtcGetCUBIN(program, code), "cubin")
        return code.raw
    finally:
        nvrtc.nvrtcDestroyProgram(ctypes.byref(program))
