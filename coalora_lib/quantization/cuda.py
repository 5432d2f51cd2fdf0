"""Kernels in CUDA C++, compiled when they are first needed, for the GPU that is there.

NVIDIA's own bindings do it, which come with torch's CUDA builds. Sources include no headers, so
that no toolkit is needed.
"""

import ctypes
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


@cache
def is_available(device: torch.device) -> bool:
    """Whether kernels can be compiled for a device: it must be of NVIDIA's Ampere or newer."""
    return (
        device.type == "cuda"
        and torch.version.hip is None
        and find_spec("cuda") is not None
        and find_spec("cuda.bindings") is not None
        and torch.cuda.get_device_capability(device) >= (8, 0)
    )


@dataclass(frozen=True)
class Kernel:
    """A compiled kernel.

    Attributes:
        shared: bytes of shared memory that a program takes beside what its source declares.
        threads: of a program.
    """

    function: Any
    device: torch.device
    threads: int
    shared: int

    def __call__(self, programs: Sequence[int], *arguments: Tensor | int | None) -> None:
        """Run it on the current stream; None is a null pointer.

        It may begin before the kernel ahead of it has ended, so it has to wait for that one before
        it reads what others write.
        """
        from cuda.bindings import driver

        config = driver.CUlaunchConfig()
        config.gridDimX, config.gridDimY, config.gridDimZ = (*programs, 1, 1)[:3]
        config.blockDimX, config.blockDimY, config.blockDimZ = self.threads, 1, 1
        config.sharedMemBytes = self.shared
        config.hStream = torch.cuda.current_stream(self.device).cuda_stream
        early = driver.CUlaunchAttribute()
        early.id = driver.CUlaunchAttributeID.CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION
        early.value.programmaticStreamSerializationAllowed = 1
        if torch.cuda.get_device_capability(self.device) >= (9, 0):
            config.attrs, config.numAttrs = [early], 1
        values = [a.data_ptr() if isinstance(a, Tensor) else a or 0 for a in arguments]
        types = [ctypes.c_int if isinstance(a, int) else ctypes.c_void_p for a in arguments]
        with torch.cuda.device(self.device):
            _done(driver.cuLaunchKernelEx(config, self.function, (tuple(values), tuple(types)), 0))


def compiled(
    source: Path,
    names: Mapping[str, tuple[int, int]],
    defined: Mapping[str, int],
    device: torch.device,
) -> dict[str, Kernel]:
    """The kernels of a source file by name.

    Args:
        names: of the kernels, each with the threads of a program and its shared memory in bytes.
        defined: macros.

    Raises:
        RuntimeError: the source does not compile, or the device does not take a kernel.
    """
    from cuda.bindings import driver, nvrtc

    major, minor = torch.cuda.get_device_capability(device)
    options = [f"--gpu-architecture=sm_{major}{minor}", "--std=c++17"]
    options += [f"-D{name}={value}" for name, value in defined.items()]
    program = _done(nvrtc.nvrtcCreateProgram(source.read_bytes(), source.name.encode(), 0, [], []))
    result = nvrtc.nvrtcCompileProgram(program, len(options), [each.encode() for each in options])
    if result[0] != nvrtc.nvrtcResult.NVRTC_SUCCESS:
        log = b" " * _done(nvrtc.nvrtcGetProgramLogSize(program))
        nvrtc.nvrtcGetProgramLog(program, log)
        raise RuntimeError(f"{source.name} does not compile: {log.decode(errors='replace'):.2000}")
    binary = b" " * _done(nvrtc.nvrtcGetCUBINSize(program))
    _done(nvrtc.nvrtcGetCUBIN(program, binary))
    _done(nvrtc.nvrtcDestroyProgram(program))
    most = driver.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
    kernels = {}
    with torch.cuda.device(device):
        module = _done(driver.cuModuleLoadData(binary))
        for name, (threads, shared) in names.items():
            function = _done(driver.cuModuleGetFunction(module, name.encode()))
            _done(driver.cuFuncSetAttribute(function, most, shared))
            kernels[name] = Kernel(function, device, threads, shared)
    return kernels


def _done(result: tuple) -> Any:
    """What a call gives beside its error; RuntimeError if it has one."""
    error, *found = result
    if int(error) != 0:
        raise RuntimeError(f"CUDA: {error!r}")
    return found[0] if found else None
