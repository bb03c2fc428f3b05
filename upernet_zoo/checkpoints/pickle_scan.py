"""What a checkpoint's pickle would do, found without doing it.

A pickle is a program. Here an abstract machine walks it: it knows the opcodes of torch.save (pickle protocol 2, those of torch's own
weights_only unpickler), looks every global up by exact name in a table, checks the arguments of every call, and calls nothing. What
it learns of storages, tensors and arrays is held against the size of the file.
"""

from __future__ import annotations

import _compat_pickle
import math
import pickletools
import struct
from collections.abc import Callable, Mapping
from typing import Any, BinaryIO

__all__ = [
    "FACTORIES",
    "HISTORY_BUFFER",
    "MAX_CALLS",
    "MAX_DEPTH",
    "MAX_DIMENSIONS",
    "MAX_OPCODES",
    "MAX_PICKLE_BYTES",
    "BlockedError",
    "DamagedError",
    "Dict",
    "Machine",
    "UnsafeError",
    "globals_named",
]

# A ResNet-101 checkpoint has a pickle of 0.1 MB with 27 thousand opcodes and 1438 calls; one of a long training run has twice that,
# and 40 MB of histories. A malicious one can turn each opcode into some 200 bytes of memory, each call into 1000, and text into
# four times its size, so that these limits keep a process below 1 GB.
MAX_PICKLE_BYTES = 64 << 20
MAX_OPCODES = 500_000
MAX_CALLS = 50_000
MAX_DEPTH = 100
MAX_DIMENSIONS = 16

# bytes of an element
_DTYPES = {
    f"torch.{name}": size
    for size, names in {
        1: "uint8 int8 bool float8_e4m3fn float8_e5m2 float8_e4m3fnuz float8_e5m2fnuz float8_e8m0fnu",
        2: "int16 uint16 float16 bfloat16",
        4: "int32 uint32 float32",
        8: "int64 uint64 float64 complex64",
        16: "complex128",
    }.items()
    for name in names.split()
}
_STORAGES = {
    "torch.storage.UntypedStorage": 1,  # of tensors of newer dtypes, which have no storage class of their own
    "torch.ByteStorage": 1,
    "torch.CharStorage": 1,
    "torch.BoolStorage": 1,
    "torch.ShortStorage": 2,
    "torch.HalfStorage": 2,
    "torch.BFloat16Storage": 2,
    "torch.IntStorage": 4,
    "torch.FloatStorage": 4,
    "torch.LongStorage": 8,
    "torch.DoubleStorage": 8,
    "torch.ComplexFloatStorage": 8,
    "torch.ComplexDoubleStorage": 16,
}
_NUMPY_DTYPES = ["b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8", "c8", "c16"]
HISTORY_BUFFER = "mmengine.logging.history_buffer.HistoryBuffer"
# what a defaultdict makes its values with: named and never called, for a defaultdict comes back as a dict
FACTORIES = frozenset(f"builtins.{name}" for name in ["bool", "dict", "float", "int", "list", "str", "tuple"])


class DamagedError(Exception):
    """The file is cut short, or is not of its format."""


class UnsafeError(Exception):
    """The file asks for something that a checkpoint of weights never needs."""


class BlockedError(UnsafeError):
    """A global that is not in the table, or is used in another way than the table's. The argument is its name."""


# ---- values of the abstract machine; numbers, text, lists and tuples are their own values


class _Global(str):
    """The function or class of that name."""

    __slots__ = ()


class Dict(list):
    """The values of a dict, and beside them its keys."""

    __slots__ = ("keys",)

    def __init__(self) -> None:
        super().__init__()
        self.keys: list = []


class _OrderedDict(Dict):
    __slots__ = ()


class _Counts(Dict):
    __slots__ = ()


class _Leaf:
    """Something that nothing else can be put into. `size` is its bytes, or those of one element."""

    __slots__ = ("count", "kind", "size")

    def __init__(self, kind: str, size: int = 0, count: int = 0) -> None:
        self.kind, self.size, self.count = kind, size, count


_CONTAINERS = {list, tuple, Dict, _OrderedDict, _Counts}


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 1 << 63


def _are_counts(value: Any) -> bool:
    return type(value) is tuple and len(value) <= MAX_DIMENSIONS and all(map(_is_count, value))


def _is_key(value: Any) -> bool:
    """Hashing a tuple of tuples can take forever, and so can comparing long numbers that are made to collide."""
    return type(value) in (str, bool, float, type(None)) or (type(value) is int and -(1 << 63) <= value < 1 << 63)


def _is_leaf(value: Any, kind: str) -> bool:
    return type(value) is _Leaf and value.kind == kind


# ---- opcodes that put a value of their own on the stack: (data, where it begins, end of the pickle) -> value, where it ends


def _new(make: Callable[[], Any]) -> Callable[[Any, int, int], tuple[Any, int]]:
    return lambda data, i, end: (make(), i)


def _packed(form: str) -> Callable[[Any, int, int], tuple[Any, int]]:
    packed = struct.Struct(form)
    return lambda data, i, end: (packed.unpack_from(data, i)[0], i + packed.size)


def _sized(form: str, make: Callable[[bytes], Any]) -> Callable[[Any, int, int], tuple[Any, int]]:
    """Bytes behind their number."""
    packed = struct.Struct(form)

    def read(data: Any, i: int, end: int) -> tuple[Any, int]:
        start = i + packed.size
        stop = start + packed.unpack_from(data, i)[0]
        if stop > end:
            raise IndexError
        return make(data[start:stop]), stop

    return read


_LITERALS: Mapping[int, Callable[[Any, int, int], tuple[Any, int]]] = {
    0x4B: _packed("<B"),  # BININT1
    0x4D: _packed("<H"),  # BININT2
    0x4A: _packed("<i"),  # BININT
    0x8A: _sized("<B", lambda data: int.from_bytes(data, "little", signed=True)),  # LONG1
    0x47: _packed(">d"),  # BINFLOAT
    0x58: _sized("<I", lambda data: str(data, "utf-8", "surrogatepass")),  # BINUNICODE
    0x55: _sized("<B", lambda data: str(data, "utf-8")),  # SHORT_BINSTRING
    0x89: _new(lambda: False),  # NEWFALSE
    0x88: _new(lambda: True),  # NEWTRUE
    0x4E: _new(lambda: None),  # NONE
    0x29: _new(tuple),  # EMPTY_TUPLE
    0x5D: _new(list),  # EMPTY_LIST
    0x7D: _new(Dict),  # EMPTY_DICT
}


class Machine:
    """Walks the pickles of one file of `file_size` bytes.

    Attributes:
        storages: key -> (bytes of an element, elements), as declared; whoever knows the file's layout compares.
        globals: full names of those that were met.
    """

    def __init__(self, file_size: int) -> None:
        self.storages: dict[str, tuple[int, int]] = {}
        self.globals: set[str] = set()
        self._file_size = file_size
        self._hooks: list[_OrderedDict] = []
        self._calls = 0
        self._tensor_bytes = 0
        self._array_bytes = 0
        self._copied = 0  # values

    # ---- what may be called: each takes the checked arguments' values, and gives the value that represents the result

    def _tensor(self, args: tuple) -> Any:
        storage, offset, size, stride, requires_grad, hooks = args
        if not (_is_leaf(storage, "storage") and _is_count(offset) and _are_counts(size) and _are_counts(stride)):
            raise ValueError
        if len(size) != len(stride) or type(requires_grad) is not bool or type(hooks) is not _OrderedDict:
            raise ValueError
        self._hooks.append(hooks)
        elements = math.prod(size)
        if elements > storage.count or offset > storage.count:
            raise UnsafeError(f"a tensor of shape {size} has more elements than its storage, which has {storage.count}")
        if elements and offset + sum((n - 1) * step for n, step in zip(size, stride)) >= storage.count:
            raise UnsafeError(f"a tensor of shape {size} and stride {stride} at {offset} reaches beyond its storage of {storage.count}")
        self._tensor_bytes += elements * storage.size
        return _Leaf("tensor")

    def _tensor_v1(self, args: tuple) -> Any:
        storage, offset, size, stride = args  # of torch before 0.4
        return self._tensor((storage, offset, size, stride, False, _OrderedDict()))

    def _tensor_v3(self, args: tuple) -> Any:
        storage, *view, dtype = args
        if not _is_leaf(storage, "storage") or type(dtype) is not _Global or dtype not in _DTYPES:
            raise ValueError
        size = _DTYPES[dtype]
        return self._tensor((_Leaf("storage", size, storage.size * storage.count // size), *view))

    def _typed_tensor(self, args: tuple) -> Any:
        rebuild, kind, inner, state = args  # a tensor with attributes of its own, such as those of torch.nn.Buffer
        if type(rebuild) is not _Global or type(kind) is not _Global or kind != "torch.Tensor" or type(inner) is not tuple:
            raise ValueError
        if rebuild not in ("torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_tensor_v3"):
            raise ValueError
        self._require_attributes(state)
        return self._CALLS[rebuild](self, inner)

    def _parameter_with_state(self, args: tuple) -> Any:
        *parameter, state = args
        self._require_attributes(state)
        return self._parameter(tuple(parameter))

    @staticmethod
    def _require_attributes(state: Any) -> None:
        """Attributes that torch will set on a tensor: under names that none of torch's own attributes has."""
        if type(state) is not Dict:
            raise ValueError
        import torch

        for name in state.keys:
            if type(name) is not str or name.startswith("__") or hasattr(torch.Tensor, name):
                raise UnsafeError(f"it sets the attribute {str(name)[:40]!r} of a tensor")

    def _parameter(self, args: tuple) -> Any:
        tensor, requires_grad, hooks = args
        if not _is_leaf(tensor, "tensor") or type(requires_grad) is not bool or type(hooks) is not _OrderedDict:
            raise ValueError
        self._hooks.append(hooks)
        return tensor

    def _ordered_dict(self, args: tuple) -> Any:
        () = args
        return _OrderedDict()

    def _counter(self, args: tuple) -> Any:
        made = _Counts()
        if args:
            (counts,) = args
            if type(counts) is not Dict:
                raise ValueError
            self._allow_copy(len(counts))
            made.keys.extend(counts.keys)
            made.extend(counts)
        return made

    def _default_dict(self, args: tuple) -> Any:
        if len(args) > 1 or not all(type(factory) is _Global for factory in args):
            raise ValueError
        return Dict()

    def _set(self, args: tuple) -> Any:
        (values,) = args
        if type(values) is not list or not all(map(_is_key, values)):
            raise ValueError
        self._allow_copy(len(values))
        return _Leaf("set")

    def _complex(self, args: tuple) -> Any:
        real, imaginary = args
        if type(real) is not float or type(imaginary) is not float:
            raise ValueError
        return _Leaf("number")

    def _bytearray(self, args: tuple) -> Any:
        size = 0
        if args:
            (data,) = args
            if not _is_leaf(data, "bytes"):
                raise ValueError
            size = data.size
        self._allow_array(size)
        return _Leaf("bytearray", size)

    def _layout(self, args: tuple) -> Any:
        (name,) = args
        if type(name) is not str or name not in ("torch.strided", "torch.sparse_coo"):
            raise ValueError
        return _Leaf("layout")

    def _size(self, args: tuple) -> Any:
        (size,) = args
        if not _are_counts(size):
            raise ValueError
        return size

    def _device(self, args: tuple) -> Any:
        kind, *index = args
        if type(kind) is not str or len(kind) > 32 or len(index) > 1 or not all(_is_count(i) and i < 128 for i in index):
            raise ValueError
        return _Leaf("device")

    def _bytes(self, args: tuple) -> Any:
        text, encoding = args  # how pickle protocol 2 writes bytes
        if type(text) is not str or type(encoding) is not str or encoding != "latin1":
            raise ValueError
        self._allow_array(len(text))
        return _Leaf("bytes", len(text))

    def _no_bytes(self, args: tuple) -> Any:
        () = args  # and how it writes none of them
        return _Leaf("bytes", 0)

    def _numpy_dtype(self, args: tuple) -> Any:
        code, align, copy = args
        if type(code) is not str or type(align) not in (bool, int) or type(copy) not in (bool, int):
            raise ValueError
        if code not in _NUMPY_DTYPES:
            raise UnsafeError(f"a NumPy array of dtype {code[:20]!r}; only numbers are read")
        return _Leaf("dtype", int(code[1:]))

    def _numpy_scalar(self, args: tuple) -> Any:
        dtype, data = args
        if not _is_leaf(dtype, "dtype") or not _is_leaf(data, "bytes") or dtype.size != data.size:
            raise ValueError
        return _Leaf("number")

    def _numpy_array(self, args: tuple) -> Any:
        cls, shape, code = args
        if type(cls) is not _Global or cls != "numpy.ndarray" or not _are_counts(shape) or shape != (0,):
            raise ValueError
        if not _is_leaf(code, "bytes") or code.size != 1:
            raise ValueError
        return _Leaf("array")

    def _history_method(self, args: tuple) -> Any:
        cls, name = args  # mmengine pickles the table of a HistoryBuffer's methods
        if type(cls) is not _Global or cls != HISTORY_BUFFER or type(name) is not str or not name.isidentifier() or name[0] == "_":
            raise ValueError
        return None

    _CALLS: Mapping[str, Callable[[Machine, tuple], Any]] = {
        "torch._utils._rebuild_tensor": _tensor_v1,
        "torch._utils._rebuild_tensor_v2": _tensor,
        "torch._utils._rebuild_tensor_v3": _tensor_v3,
        "torch._utils._rebuild_parameter": _parameter,
        "torch._utils._rebuild_parameter_with_state": _parameter_with_state,
        "torch._tensor._rebuild_from_type_v2": _typed_tensor,
        "torch.serialization._get_layout": _layout,
        "collections.OrderedDict": _ordered_dict,
        "collections.Counter": _counter,
        "collections.defaultdict": _default_dict,
        "builtins.set": _set,
        "builtins.complex": _complex,
        "builtins.bytearray": _bytearray,
        "torch.Size": _size,
        "torch.device": _device,
        "_codecs.encode": _bytes,
        "builtins.bytes": _no_bytes,
        "numpy.dtype": _numpy_dtype,
        "numpy.core.multiarray.scalar": _numpy_scalar,  # before numpy 2
        "numpy._core.multiarray.scalar": _numpy_scalar,
        "numpy.core.multiarray._reconstruct": _numpy_array,
        "numpy._core.multiarray._reconstruct": _numpy_array,
        "builtins.getattr": _history_method,
    }
    NAMES = frozenset((*_CALLS, *_STORAGES, *_DTYPES, *FACTORIES, "torch.Tensor", "numpy.ndarray", HISTORY_BUFFER))

    def _allow_copy(self, values: int) -> None:
        self._copied += values
        if self._copied > MAX_OPCODES:
            raise UnsafeError(f"it copies more than {MAX_OPCODES} values")

    def _allow_array(self, size: int) -> None:
        self._array_bytes += size
        if self._array_bytes > 4 * self._file_size:
            raise UnsafeError(f"its arrays add up to more than four times the size of the file ({self._file_size} bytes)")

    def _call(self, function: Any, args: Any) -> Any:
        self._calls += 1
        if self._calls > MAX_CALLS:
            raise UnsafeError(f"it makes more than {MAX_CALLS} calls")
        known = self._CALLS.get(function) if type(function) is _Global else None
        if known is None:
            raise BlockedError(function) if type(function) is _Global else UnsafeError("it calls what is no function")
        try:
            if type(args) is not tuple:
                raise ValueError
            return known(self, args)
        except ValueError:
            raise BlockedError(f"{function} (called in another way than torch.save writes)") from None

    def _build(self, target: Any, state: Any) -> None:
        """Sets the state of an object, in the four ways that checkpoints use."""
        if type(target) is _OrderedDict and type(state) in (Dict, _OrderedDict):
            if any(key != "_metadata" for key in state.keys):  # what `Module.state_dict()` sets, and nothing else does
                raise UnsafeError("it sets attributes of a dict")
            target.append(state)
        elif _is_leaf(target, "history") and type(state) is Dict:
            pass
        elif _is_leaf(target, "dtype") and type(state) is tuple:
            # (version, byte order, None, None, None, -1, -1, 0) for every dtype of plain numbers
            if len(state) != 8 or type(state[1]) is not str or state[1] not in ("<", ">", "|", "="):
                raise BlockedError("numpy.dtype (in another way than numpy writes)")
            if state[2] is not None or state[3] is not None or state[4] is not None:
                raise UnsafeError("a NumPy array of structured dtype; only numbers are read")
        elif _is_leaf(target, "array") and type(state) is tuple and len(state) == 5:
            version, shape, dtype, fortran, data = state
            good = type(version) is int and _are_counts(shape) and _is_leaf(dtype, "dtype") and type(fortran) is bool
            if not good or not _is_leaf(data, "bytes"):
                raise UnsafeError("a NumPy array that is not made of plain numbers")
            if math.prod(shape) * dtype.size != data.size:
                raise UnsafeError(f"a NumPy array of shape {shape} whose data has {data.size} bytes")
            self._allow_array(data.size)
        else:
            raise UnsafeError("it sets the state of something that has none in a checkpoint")

    def _persistent(self, key: Any, legacy: bool) -> Any:
        """A storage: ("storage", type, key, location, elements), and a sixth that is always None in the old format."""
        if type(key) is not tuple or len(key) != (6 if legacy else 5):
            raise UnsafeError("it refers to something that is no storage")
        tag, cls, name, location, count = key[:5]
        if type(tag) is not str or tag != "storage" or type(cls) is not _Global or cls not in _STORAGES:
            raise UnsafeError("it refers to something that is no storage of plain numbers")
        if type(name) is not str or type(location) is not str or not _is_count(count) or (legacy and key[5] is not None):
            raise UnsafeError("it refers to a storage in another way than torch.save does")
        found = (_STORAGES[cls], count)
        if self.storages.setdefault(name, found) != found:
            raise UnsafeError(f"storage {name[:20]!r} is declared twice, with different sizes")
        return _Leaf("storage", *found)

    # ---- the walk

    def run(self, data: Any, start: int, end: int, legacy: bool = False) -> tuple[Any, int]:
        """The value of the pickle that begins at `start`, and where it ends. `data`: bytes or a mapped file."""
        limit = min(end, start + MAX_PICKLE_BYTES)
        try:
            return self._run(data, start, limit, legacy)
        except (IndexError, KeyError, struct.error):  # beyond the end, an empty stack, a memo that was never set
            raise DamagedError("its pickle ends in the middle, or is none, or none of a checkpoint's length") from None
        except UnicodeDecodeError:
            raise DamagedError("its pickle has text that is not UTF-8") from None

    def _run(self, data: Any, i: int, end: int, legacy: bool) -> tuple[Any, int]:
        u32 = struct.Struct("<I").unpack_from
        stack: list = []
        marks: list[list] = []
        memo: dict[int, Any] = {}
        if data[i : i + 1] != b"\x80" or i + 2 > end:
            raise DamagedError("it does not begin as a pickle does")
        if data[i + 1] != 2:
            raise UnsafeError(f"its pickle has protocol {data[i + 1]}, and torch.save writes protocol 2")
        i += 2
        for _ in range(MAX_OPCODES):
            if i >= end:
                raise IndexError
            op = data[i]
            i += 1
            if op == 0x72:  # LONG_BINPUT
                memo[u32(data, i)[0]] = stack[-1]
                i += 4
            elif op == 0x71:  # BINPUT
                memo[data[i]] = stack[-1]
                i += 1
            elif op == 0x68:  # BINGET
                stack.append(memo[data[i]])
                i += 1
            elif op == 0x6A:  # LONG_BINGET
                stack.append(memo[u32(data, i)[0]])
                i += 4
            elif op in _LITERALS:
                value, i = _LITERALS[op](data, i, end)
                stack.append(value)
            elif op == 0x28:  # MARK
                marks.append(stack)
                stack = []
            elif op == 0x74:  # TUPLE
                items, stack = stack, marks.pop()
                stack.append(tuple(items))
            elif op == 0x52:  # REDUCE
                args = stack.pop()
                stack[-1] = self._call(stack[-1], args)
            elif op == 0x85:  # TUPLE1
                stack[-1] = (stack[-1],)
            elif op == 0x86:  # TUPLE2
                stack[-2:] = [(stack[-2], stack[-1])]
            elif op == 0x87:  # TUPLE3
                stack[-3:] = [(stack[-3], stack[-2], stack[-1])]
            elif op == 0x51:  # BINPERSID
                stack[-1] = self._persistent(stack[-1], legacy)
            elif op == 0x73:  # SETITEM
                value, key = stack.pop(), stack.pop()
                self._set_items(stack[-1], [key, value])
            elif op == 0x75:  # SETITEMS
                items, stack = stack, marks.pop()
                self._set_items(stack[-1], items)
            elif op == 0x61 or op == 0x65:  # APPEND, APPENDS
                if op == 0x61:
                    items = [stack.pop()]
                else:
                    items, stack = stack, marks.pop()
                if type(stack[-1]) is not list:
                    raise UnsafeError("it appends to what is no list")
                stack[-1].extend(items)
            elif op == 0x63:  # GLOBAL
                name, i = self._global(data, i, end)
                stack.append(name)
            elif op == 0x81:  # NEWOBJ
                args = stack.pop()
                if type(stack[-1]) is not _Global or stack[-1] != HISTORY_BUFFER or type(args) is not tuple or args:
                    raise BlockedError(stack[-1]) if type(stack[-1]) is _Global else UnsafeError("it makes an object of what is no class")
                stack[-1] = _Leaf("history")
            elif op == 0x62:  # BUILD
                state = stack.pop()
                self._build(stack[-1], state)
            elif op == 0x2E:  # STOP
                if marks or len(stack) != 1 or i > end:
                    raise DamagedError("its pickle leaves values over")
                self._finish(stack[0])
                return stack[0], i
            else:
                raise UnsafeError(f"its pickle has opcode {op:#04x} ({_OPCODES.get(op, 'unknown')}), which torch.save never writes")
        raise UnsafeError(f"its pickle has more than {MAX_OPCODES} opcodes")

    @staticmethod
    def _set_items(target: Any, items: list) -> None:
        if not isinstance(target, Dict) or len(items) % 2:
            raise UnsafeError("it sets items of what is no dict")
        if not all(map(_is_key, items[::2])):
            raise UnsafeError("a dict has a key that is neither text nor a number")
        target.keys.extend(items[::2])
        target.extend(items[1::2])

    def _global(self, data: Any, i: int, end: int) -> tuple[_Global, int]:
        parts = []
        for _ in range(2):
            stop = data.find(b"\n", i, min(end, i + 1024))
            if stop < 0:
                raise DamagedError("its pickle ends in a name, or has one that is too long")
            parts.append(str(data[i:stop], "utf-8"))
            i = stop + 1
        name = _full_name(*parts)
        if name not in self.NAMES:
            raise BlockedError(name)
        self.globals.add(name)
        return _Global(name), i

    def _finish(self, root: Any) -> None:
        if type(root) is _Counts:
            raise BlockedError("collections.Counter (in place of a dict of tensors)")
        if any(self._hooks):
            raise UnsafeError("a tensor has hooks")
        declared = sum(size * count for size, count in self.storages.values())
        if self._tensor_bytes > 4 * declared:
            raise UnsafeError(f"its tensors have {self._tensor_bytes} bytes in all, and share {declared}")
        self._measure(root, {}, 0)

    def _measure(self, node: Any, known: dict[int, tuple[int, int]], depth: int) -> tuple[int, int]:
        """Nodes and height of the tree at `node`, where what is shared counts each time: bounded, so that it can be walked."""
        if type(node) not in _CONTAINERS:
            return 1, 0
        nodes, height = known.get(id(node), (1, 0))
        if id(node) not in known:
            if depth > MAX_DEPTH:
                raise UnsafeError(f"its values are nested more than {MAX_DEPTH} deep")
            for child in node:
                if type(child) in _CONTAINERS:
                    inner, below = self._measure(child, known, depth + 1)
                    nodes, height = nodes + inner, max(height, below + 1)
                else:
                    nodes += 1
            known[id(node)] = nodes, height
        if nodes > 2 * MAX_OPCODES or depth + height > MAX_DEPTH:
            raise UnsafeError(f"its values are nested more than {MAX_DEPTH} deep, or unfold to more than {2 * MAX_OPCODES}")
        return nodes, height


_OPCODES = {ord(op.code): op.name for op in pickletools.opcodes}


def _full_name(module: str, name: str) -> str:
    """Name of a global as Python 3 has it, as torch's unpickler maps it."""
    module, name = _compat_pickle.NAME_MAPPING.get((module, name), (_compat_pickle.IMPORT_MAPPING.get(module, module), name))
    return f"{module}.{name}"


def _effect(op: pickletools.OpcodeInfo) -> tuple[int, bool, int]:
    """What an opcode does to the stack: values taken, whether all above a mark go before them, values put."""
    takes = [kind.name for kind in op.stack_before]
    return takes.index("mark") if "mark" in takes else len(takes), "mark" in takes, len(op.stack_after)


_EFFECTS = {op.code: _effect(op) for op in pickletools.opcodes}


def globals_named(stream: BinaryIO, pickles: int) -> set[str]:
    """Every global that the pickles in a stream name, with any opcode of any protocol: to tell what a refused file wanted.

    Follows the stack only as far as it takes to know the two strings of a STACK_GLOBAL. Of data that does not begin as a pickle
    with a protocol does, and that is none to its end either, nothing is told.
    """
    found: set[str] = set()
    mark = object()
    left = MAX_OPCODES
    is_pickle = stream.read(1) == b"\x80"
    stream.seek(0)
    for _ in range(pickles):
        stack: list = []
        memo: dict[int, Any] = {}
        try:
            for op, arg, _ in pickletools.genops(stream):
                left -= 1
                if left < 0:
                    return found
                if op.name in ("GLOBAL", "INST") and isinstance(arg, str):
                    found.add(_full_name(*arg.split(" ", 1)))
                elif op.name == "STACK_GLOBAL":
                    texts = stack[-2:]
                    known = len(texts) == 2 and all(isinstance(t, str) for t in texts)
                    found.add(_full_name(*texts) if known else "a name that is put together while loading")
                elif op.name.startswith("EXT"):
                    found.add(f"copyreg extension {arg}")
                if op.name in ("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"):
                    memo[len(memo) if arg is None else arg] = stack[-1] if stack else None
                    continue
                takes, to_mark, puts = _EFFECTS[op.code]
                if to_mark:
                    while stack and stack.pop() is not mark:
                        pass
                del stack[max(0, len(stack) - takes) :]
                if op.name == "MARK":
                    stack.append(mark)
                elif op.name.endswith("GET"):
                    stack.append(memo.get(arg) if isinstance(arg, int) else None)
                elif "UNICODE" in op.name or "STRING" in op.name:
                    stack.append(arg)
                else:
                    stack.extend([None] * puts)
        except Exception:  # not a pickle from here on; pickletools raises whatever its parsers do
            break
        is_pickle = True
    return found if is_pickle else set()
