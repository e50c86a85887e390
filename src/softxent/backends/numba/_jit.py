"""How the walk is compiled, and what its Python cannot say: pointers, fma, bits, the C interface.

All jit options are here. No fastmath: the bits of a row are part of the contract. Nothing in the
walk raises, allocates Python objects or divides integers by zero.
"""

from __future__ import annotations

import ctypes
import functools
import inspect
import platform
from collections.abc import Callable
from typing import Any, TypeVar

from llvmlite import ir
from numba.core import cgutils, types
from numba.core.codegen import JITCodeLibrary
from numba.core.compiler import CompilerBase, Flags, compile_extra
from numba.core.compiler_lock import global_compiler_lock
from numba.core.compiler_machinery import PassManager
from numba.core.datamodel import models, register_default
from numba.core.imputils import lower_getattr_generic, lower_setattr_generic
from numba.core.registry import cpu_target
from numba.core.typed_passes import (
    AnnotateTypes,
    NativeLowering,
    NoPythonBackend,
    NopythonTypeInference,
    PreLowerStripPhis,
)
from numba.core.typing.templates import AbstractTemplate, AttributeTemplate, infer_global
from numba.core.untyped_passes import (
    DeadBranchPrune,
    FixupArgs,
    IRProcessing,
    ReconstructSSA,
    RewriteSemanticConstants,
    TranslateByteCode,
)
from numba.extending import infer_getattr, intrinsic

from softxent.backends.numba._layout import PlainCall

F = TypeVar("F", bound=Callable[..., Any])

_I8P = ir.PointerType(ir.IntType(8))
_I32, _I64 = ir.IntType(32), ir.IntType(64)
_X86 = platform.machine().lower() in ("x86_64", "amd64")


# ---- structures ----------------------------------------------------------------------------------


class Struct(types.Type):
    """A pointer to a C structure, described by a `ctypes.Structure`.

    Numbers in it are read and assigned by name; the name of an array in it is a pointer to its
    first element, that of a structure in it a pointer to that.
    """

    def __init__(self, layout: type[ctypes.Structure]) -> None:
        self.layout = layout
        super().__init__(f"Struct({layout.__name__})")

    def field(self, name: str) -> tuple[int, types.Type, bool]:
        """Return a field's offset, its type, and whether it is a number."""
        kind = dict((f[0], f[1]) for f in self.layout._fields_)[name]
        offset = getattr(self.layout, name).offset
        if issubclass(kind, ctypes.Structure):
            return offset, Struct(kind), False
        if issubclass(kind, ctypes.Array):
            return offset, types.CPointer(_NUMBERS[kind._type_]), False
        return offset, _NUMBERS[kind], True


_NUMBERS: dict[Any, types.Type] = {
    ctypes.c_int64: types.int64, ctypes.c_double: types.float64, ctypes.c_float: types.float32,
}


@register_default(Struct)
class _StructModel(models.PrimitiveModel):
    def __init__(self, manager: Any, kind: Struct) -> None:
        super().__init__(manager, kind, _I8P)


@infer_getattr
class _StructAttribute(AttributeTemplate):
    key = Struct

    def generic_resolve(self, kind: Struct, name: str) -> types.Type | None:
        try:
            return kind.field(name)[1]
        except KeyError:
            return None


def _address(builder: Any, base: Any, offset: int, element: types.Type, context: Any) -> Any:
    moved = builder.gep(base, [ir.Constant(_I64, offset)], source_etype=ir.IntType(8))
    return builder.bitcast(moved, ir.PointerType(context.get_data_type(element)))


@lower_getattr_generic(Struct)
def _get(context: Any, builder: Any, kind: Struct, base: Any, name: str) -> Any:
    offset, of, is_number = kind.field(name)
    if is_number:
        return builder.load(_address(builder, base, offset, of, context))
    if isinstance(of, Struct):
        return builder.gep(base, [ir.Constant(_I64, offset)], source_etype=ir.IntType(8))
    return _address(builder, base, offset, of.dtype, context)


@lower_setattr_generic(Struct)
def _set(context: Any, builder: Any, signature: Any, args: Any, name: str) -> None:
    kind, given = signature.args
    base, value = args
    offset, of, is_number = kind.field(name)
    assert is_number, name
    builder.store(context.cast(builder, value, given, of),
                  _address(builder, base, offset, of, context))


# ---- pointers ------------------------------------------------------------------------------------


@intrinsic
def struct_at(typing: Any, address: Any, layout: Any) -> Any:
    """Return the structure (a `Struct` type, given as `struct_type(...)`) at an address."""
    kind = layout.instance_type

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return _to_pointer(builder, args[0], _I8P)

    return kind(address, layout), generate


@intrinsic
def pointer_at(typing: Any, address: Any, like: Any) -> Any:
    """Return the pointer to numbers of `like`'s type at an address (or of another pointer)."""
    kind = types.CPointer(like)

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return _to_pointer(builder, args[0], context.get_data_type(kind))

    return kind(address, like), generate


@intrinsic
def address_of(typing: Any, pointer: Any) -> Any:
    """Return a pointer's address."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.ptrtoint(args[0], _I64)

    return types.int64(pointer), generate


@intrinsic
def moved(typing: Any, pointer: Any, elements: Any) -> Any:
    """Return pointer + elements, as in C."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        kind = signature.args[0]
        element = ir.IntType(8) if isinstance(kind, Struct) else context.get_data_type(kind.dtype)
        return builder.gep(args[0], [args[1]], source_etype=element)

    return pointer(pointer, types.int64), generate


@intrinsic
def load(typing: Any, address: Any, like: Any) -> Any:
    """Return the number of `like`'s type at an address of any alignment."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        pointer = _to_pointer(builder, args[0], context.get_data_type(types.CPointer(like)))
        return builder.load(pointer, align=1)

    return like(types.int64, like), generate


@intrinsic
def store(typing: Any, address: Any, value: Any) -> Any:
    """Store a number at an address of any alignment."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        pointer = _to_pointer(builder, args[0],
                              context.get_data_type(types.CPointer(signature.args[1])))
        builder.store(args[1], pointer, align=1)
        return context.get_dummy_value()

    return types.void(types.int64, value), generate


def _to_pointer(builder: Any, value: Any, to: Any) -> Any:
    if isinstance(value.type, ir.IntType):
        return builder.inttoptr(value, to)
    return builder.bitcast(value, to)


@intrinsic(prefer_literal=True)
def stack(typing: Any, length: Any, like: Any) -> Any:
    """Return room on the stack for `length` (a constant) numbers of `like`'s type."""
    kind = types.CPointer(like)
    n = length.literal_value

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        array = ir.ArrayType(context.get_data_type(like), n)
        room = cgutils.alloca_once(builder, array)
        return builder.bitcast(room, context.get_data_type(kind))

    return kind(length, like), generate


# ---- numbers -------------------------------------------------------------------------------------


@intrinsic
def as_type(typing: Any, like: Any, value: Any) -> Any:
    """Return `value` as a number of `like`'s type."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return context.cast(builder, args[1], signature.args[1], signature.return_type)

    return like(like, types.unliteral(value)), generate


@intrinsic
def choose(typing: Any, condition: Any, a: Any, b: Any) -> Any:
    """Return `a if condition else b`, both evaluated."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.select(builder.trunc(args[0], ir.IntType(1))
                              if args[0].type.width > 1 else args[0], args[1], args[2])

    return a(types.boolean, a, a), generate


@intrinsic
def bits_of(typing: Any, x: Any) -> Any:
    """Return a float's bits as a signed integer of its width."""
    kind = types.int32 if x == types.float32 else types.int64

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.bitcast(args[0], context.get_value_type(kind))

    return kind(x), generate


@intrinsic
def float_of(typing: Any, bits: Any, like: Any) -> Any:
    """Return the float of `like`'s type that has these (lowest) bits."""
    width = _I32 if like == types.float32 else _I64

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        value = args[0]
        if value.type.width > width.width:
            value = builder.trunc(value, width)
        elif value.type.width < width.width:
            value = builder.zext(value, width)
        return builder.bitcast(value, context.get_value_type(like))

    return like(bits, like), generate


@intrinsic
def float_of_half(typing: Any, bits: Any) -> Any:
    """Return a float16, given as int16, as float32; subnormals whatever the MXCSR says."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.fpext(builder.bitcast(args[0], ir.HalfType()), ir.FloatType())

    return types.float32(types.int16), generate


@intrinsic
def half_of_float(typing: Any, x: Any) -> Any:
    """Return the float16 nearest to a float32, as int16."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.bitcast(builder.fptrunc(args[0], ir.HalfType()), ir.IntType(16))

    return types.int16(types.float32), generate


@intrinsic
def power_in(typing: Any, t: Any) -> Any:
    """Return the power of two whose biased exponent is in the low bits of `t`."""
    width, shift = (_I32, 23) if t == types.float32 else (_I64, 52)

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        bits = builder.bitcast(args[0], width)
        return builder.bitcast(builder.shl(bits, ir.Constant(width, shift)), args[0].type)

    return t(t), generate


def _of_llvm(name: str, n_arguments: int) -> Any:
    # An LLVM intrinsic whose arguments and result are of one floating-point type.
    def typed(typing: Any, *given: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            kind = args[0].type
            function = cgutils.get_or_insert_function(
                builder.module, ir.FunctionType(kind, [kind] * n_arguments),
                f"llvm.{name}.{'f32' if isinstance(kind, ir.FloatType) else 'f64'}")
            return builder.call(function, args)

        return given[0](*[given[0]] * n_arguments), generate

    if n_arguments == 1:
        return intrinsic(lambda typing, a: typed(typing, a))
    if n_arguments == 2:
        return intrinsic(lambda typing, a, b: typed(typing, a, b))
    return intrinsic(lambda typing, a, b, c: typed(typing, a, b, c))


fma = _of_llvm("fma", 3)
rint = _of_llvm("rint", 1)
fabs = _of_llvm("fabs", 1)
copysign = _of_llvm("copysign", 2)


@intrinsic
def stay_apart(typing: Any) -> Any:
    """Never inline the function that says so.

    What it computes cannot move over a change of the floating-point state then, and compiling takes
    a fraction of the time.
    """

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        builder.function.attributes.add("noinline")
        return context.get_dummy_value()

    return types.void(), generate


# ---- the floating-point state --------------------------------------------------------------------

# elementary.h, sx_float_enter and its like, says why. Elsewhere than on x86-64: as it is.


@intrinsic
def float_state(typing: Any) -> Any:
    """Return the MXCSR."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        if not _X86:
            return ir.Constant(_I32, 0)
        room = cgutils.alloca_once(builder, _I32)
        _call_void(builder, "llvm.x86.sse.stmxcsr", room)
        return builder.load(room)

    return types.int32(), generate


@intrinsic
def set_float_state(typing: Any, state: Any) -> Any:
    """Set the MXCSR."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        if _X86:
            room = cgutils.alloca_once(builder, _I32)
            builder.store(builder.trunc(args[0], _I32) if args[0].type.width > 32 else args[0],
                          room)
            _call_void(builder, "llvm.x86.sse.ldmxcsr", room)
        return context.get_dummy_value()

    return types.void(types.int64), generate


def _call_void(builder: Any, name: str, room: Any) -> None:
    function = cgutils.get_or_insert_function(
        builder.module, ir.FunctionType(ir.VoidType(), [_I8P]), name)
    builder.call(function, [builder.bitcast(room, _I8P)])


# ---- the C interface -----------------------------------------------------------------------------


def _of_c(name: str, result: Any, *parameters: Any) -> Any:
    # A function of the C library or the interpreter; pointers are integers.
    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        function = cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(result, parameters), name)
        value = builder.call(function, args)
        return context.get_dummy_value() if isinstance(result, ir.VoidType) else value

    returns = {_I64: types.int64, _I32: types.int32}.get(result, types.void)
    if parameters:
        return intrinsic(lambda typing, a: (returns(types.int64), generate))
    return intrinsic(lambda typing: (returns(), generate))


malloc = _of_c("malloc", _I64, _I64)
free = _of_c("free", ir.VoidType(), _I64)
save_thread = _of_c("PyEval_SaveThread", _I64)
restore_thread = _of_c("PyEval_RestoreThread", ir.VoidType(), _I64)
call_object = _of_c("PyObject_CallNoArgs", _I64, _I64)
is_true = _of_c("PyObject_IsTrue", _I32, _I64)
drop_reference = _of_c("Py_DecRef", ir.VoidType(), _I64)


@intrinsic
def call_address(typing: Any, function: Any, argument: Any) -> Any:
    """Call `int32_t function(void *)` at an address."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        kind = ir.PointerType(ir.FunctionType(_I32, [_I64]))
        return builder.call(builder.inttoptr(args[0], kind), [args[1]])

    return types.int32(types.int64, types.int64), generate


# ---- parts of the walk ---------------------------------------------------------------------------

# Numba compiles a function that another calls to a library of its own, machine code included, and
# links them all: a minute for the hundred parts of the walk. Parts are compiled into the library of
# the walk they are called from, which is optimised once, as a whole.


class _Pipeline(CompilerBase):
    """The passes that parts need: no closures, no array expressions, no lifted loops in them."""

    def define_pipelines(self) -> list[PassManager]:
        passes = PassManager("softxent")
        passes.add_pass(TranslateByteCode, "analyzing bytecode")
        passes.add_pass(FixupArgs, "fix up args")
        passes.add_pass(IRProcessing, "processing IR")
        passes.add_pass(RewriteSemanticConstants, "rewrite semantic constants")
        passes.add_pass(DeadBranchPrune, "dead branch pruning")
        passes.add_pass(ReconstructSSA, "ssa")
        passes.add_pass(NopythonTypeInference, "nopython frontend")
        passes.add_pass(PreLowerStripPhis, "remove phi nodes")
        passes.add_pass(AnnotateTypes, "annotate types")
        passes.add_pass(NativeLowering, "native lowering")
        passes.add_pass(NoPythonBackend, "nopython mode backend")
        passes.finalize()
        return [passes]


class _Library(JITCodeLibrary):
    def _optimize_functions(self, module: Any) -> None:
        pass  # the whole module is


class _Program:
    """One module in the making: its library, and the parts that are in it, by argument types."""

    def __init__(self, name: str) -> None:
        self.library = _Library(cpu_target.target_context.codegen(), name)
        self.parts: dict[Any, Any] = {}

    def add(
        self, function: Callable[..., Any], args: tuple[Any, ...], inline: bool
    ) -> tuple[object, Any]:
        """Compile a function for some argument types, if it is not yet.

        Return its key for calls, and what came out.
        """
        at = function, args
        if at not in self.parts:
            flags = Flags()
            flags.no_compile = flags.no_cpython_wrapper = flags.no_cfunc_wrapper = True
            flags.nrt = False
            flags.forceinline = inline
            flags.error_model = "numpy"  # division by zero gives inf or NaN, as in C
            result = compile_extra(
                cpu_target.typing_context, cpu_target.target_context, function, args, None, flags,
                {}, self.library, _Pipeline)
            key = object()  # nobody else's, nor that of another module
            cpu_target.target_context.insert_user_function(key, result.fndesc)
            self.parts[at] = key, result
        return self.parts[at]


_program: _Program | None = None  # guarded by Numba's compiler lock


def _declare(function: Callable[..., Any], choose: Callable[..., Any], inline: bool) -> None:
    class Template(AbstractTemplate):
        key = function

        def generic(self, args: tuple[Any, ...], kws: dict[str, Any]) -> Any:
            args = tuple(map(types.unliteral, args))
            return _program.add(choose(*args), args, inline)[1].signature

        def get_impl_key(self, signature: Any) -> Any:
            return _program.parts[choose(*signature.args), signature.args][0]

    infer_global(function, types.Function(Template))


def part(function: F) -> F:
    """Declare a part of the walk; small ones may be inlined."""
    _declare(function, lambda *args: function, inline=False)
    return function


def inlined(function: F) -> F:
    """Declare a part that is inlined wherever it is called."""
    _declare(function, lambda *args: function, inline=True)
    return function


def by_type(choose: Callable[..., Any]) -> Callable[[F], F]:
    """Declare an inlined part that is one of several functions, as its arguments' types say."""

    def declare(function: F) -> F:
        _declare(function, functools.cache(choose), inline=True)
        return function

    return declare


def beyond_plain(result: Any) -> Callable[[F], F]:
    """Declare a part of which plain walks have nothing: `result` takes its place, uncompiled.

    Its first argument is the call. Most of the time that a walk takes to compile is Numba's, and
    goes by the number of parts.
    """

    def declare(function: F) -> F:
        names = ", ".join(inspect.signature(function).parameters)
        nothing = eval(f"lambda {names}: {result!r}")
        _declare(function, lambda *args: nothing if is_plain_call(args[0]) else function,
                 inline=False)
        return function

    return declare


def is_plain_call(kind: types.Type) -> bool:
    """Return whether a call's type is that of plain walks."""
    return issubclass(kind.layout, PlainCall)


# ---- to machine code -----------------------------------------------------------------------------


def struct_type(layout: type[ctypes.Structure]) -> Any:
    """Return the type of pointers to `layout`, for `struct_at`."""
    return types.NumberClass(Struct(layout))


@global_compiler_lock
def compile_to_ir(function: Callable[..., Any], entries: dict[str, Callable[..., Any]]) -> str:
    """Compile `int64 function(int64, int64, int64, int64, int64)` to a module of LLVM IR.

    `entries`: for each function of C's interface that the module is to have (four int64, returning
    int64), its name, and from those four arguments the five of `function`, as LLVM values.
    """
    global _program
    _program = program = _Program(function.__name__)
    try:
        _, result = program.add(function, (types.int64,) * 5, inline=False)
    finally:
        _program = None
    context = cpu_target.target_context
    module = context.create_module("entries")
    signature = context.call_conv.get_function_type(types.int64, result.fndesc.argtypes)
    walk = ir.Function(module, signature, result.fndesc.llvm_func_name)
    for name, arguments in entries.items():
        entry = ir.Function(module, ir.FunctionType(_I64, [_I64] * 4), name)
        builder = ir.IRBuilder(entry.append_basic_block())
        _, value = context.call_conv.call_function(
            builder, walk, types.int64, result.fndesc.argtypes, arguments(*entry.args))
        builder.ret(value)
    program.library.add_ir_module(module)
    text: str = program.library.get_llvm_str()
    return text
