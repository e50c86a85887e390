"""From the walk to machine code: compiled by Numba, optimised as a whole, loaded by LLVM's linker.

Loading an object needs no Numba, and a tenth of the time.
"""

from __future__ import annotations

import ctypes
from typing import Any

from llvmlite import binding as llvm

#: The names of a walk's entries: for the native pool; for a Python thread (see `_walk.py`).
KERNEL, RUN = "softxent_kernel", "softxent_run"
#: The walks, functions of `_walk.py`.
WALKS = ("walk_plain_f32", "walk_plain_f64", "walk_f32", "walk_f64", "walk_scaled_f32",
         "walk_scaled_f64", "walk_teacher_f32", "walk_teacher_f64")

# What setup.py's levels are to gcc.
_V3 = "+sse3,+ssse3,+sse4.1,+sse4.2,+popcnt,+avx,+avx2,+fma,+f16c,+bmi,+bmi2,+lzcnt,+movbe"
_V4 = _V3 + ",+avx512f,+avx512cd,+avx512vl,+avx512bw,+avx512dq"
_FEATURES = {"v3": ("x86-64", _V3), "v4": ("x86-64", _V4), "generic": ("", "")}


def _target_machine(level: str) -> Any:
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    cpu, features = _FEATURES[level]
    if level == "generic":
        cpu = llvm.get_host_cpu_name()
        features = llvm.get_host_cpu_features().flatten()
    target = llvm.Target.from_default_triple()
    machine = target.create_target_machine(
        cpu=cpu, features=features, opt=3, reloc="pic", codemodel="small")
    machine.set_asm_verbosity(False)
    return machine


def build(walk: str, level: str) -> bytes:
    """Compile one of `WALKS` for an instruction set level; return the object file."""
    # Numba itself is imported by whoever builds.
    from llvmlite import ir

    from softxent.backends.numba import _jit, _walk

    nothing = ir.Constant(ir.IntType(64), 0)
    text = _jit.compile_to_ir(getattr(_walk, walk), {
        KERNEL: lambda call, lo, hi, control: (call, lo, hi, control, nothing),
        RUN: lambda call, lo, hi, stopped: (call, lo, hi, nothing, stopped),
    })
    machine = _target_machine(level)
    module = llvm.parse_assembly(text)
    module.triple = machine.triple
    for function in module.functions:
        if not function.is_declaration and function.name not in (KERNEL, RUN):
            function.linkage = "internal"
    for variable in module.global_variables:
        variable.linkage = "internal"
    options = llvm.create_pipeline_tuning_options(speed_level=3)
    options.loop_vectorization = True
    options.slp_vectorization = False
    passes = llvm.create_pass_builder(machine, options)
    passes.getModulePassManager().run(module, passes)
    code: bytes = machine.emit_object(module)
    return code


class Loaded:
    """The machine code of one walk, in memory for as long as the process lives."""

    def __init__(self, code: bytes, level: str) -> None:
        # JITLink takes one block for all sections; LLVM's older linker takes what the system gives,
        # and ends the process where two lie more than 2 GiB apart.
        self._jit = llvm.create_lljit_compiler(_target_machine(level), use_jit_link=True)
        self._code = (
            llvm.JITLibraryBuilder()
            .add_object_img(code)
            .add_current_process()
            .export_symbol(KERNEL)
            .export_symbol(RUN)
            .link(self._jit, "softxent")
        )
        #: Addresses.
        self.kernel = int(self._code[KERNEL])
        # Called with the interpreter's lock, which it lets go; raises what `stopped` raised.
        self.run = ctypes.PYFUNCTYPE(
            ctypes.c_int64, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64, ctypes.py_object
        )(self._code[RUN])
