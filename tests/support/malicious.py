"""Makers of malicious checkpoint files. Nothing here is run but by the tests that show that a plain unpickler would be caught.

Every pickle in `PICKLES` creates a file (the canary) when Python's own `pickle.loads` reads it, unless it says that it does not.
"""

import collections
import io
import os
import pickle
import struct
import zipfile
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

MAGIC = pickle.dumps(torch.serialization.MAGIC_NUMBER, 2)
VERSION = pickle.dumps(torch.serialization.PROTOCOL_VERSION, 2)
SYSTEM = pickle.dumps({"protocol_version": 1001, "little_endian": True, "type_sizes": {"short": 2, "int": 4, "long": 4}}, 2)


# ---- containers


def legacy_file(data, keys=(), storages=b"", magic=MAGIC, version=VERSION, system=SYSTEM, key_list=None):
    """A file as torch.save wrote it before 1.6, with the pickle `data` as its object."""
    return magic + version + system + data + (key_list or pickle.dumps(list(keys), 2)) + storages


def zip_file(data, members=(), compression=zipfile.ZIP_STORED, folder="archive"):
    """A file as torch.save writes it since 1.6, with the pickle `data` as its object and (name, bytes) as further members."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, content in (("data.pkl", data), ("version", b"3\n"), ("byteorder", b"little"), *members):
            archive.writestr(f"{folder}/{name}", content)
    return buffer.getvalue()


FORMATS = {"zip": zip_file, "legacy": legacy_file}


# ---- an assembler for pickles


def name(module, attribute):
    return f"c{module}\n{attribute}\n".encode()


def text(value):
    raw = value.encode()
    return b"X" + struct.pack("<I", len(raw)) + raw


def number(value):
    return b"\x8a\x09" + value.to_bytes(9, "little", signed=True)


def many(*values):
    return b"(" + b"".join(values) + b"t"


def call(function, *arguments):
    return function + many(*arguments) + b"R"


def mapping(**items):
    return b"}(" + b"".join(text(key) + value for key, value in items.items()) + b"u"


def whole(value, protocol=2):
    """A pickle whose value is {"state_dict": value}."""
    return b"\x80" + bytes([protocol]) + mapping(state_dict=value) + b"."


ORDERED = call(name("collections", "OrderedDict"))


def storage(count, kind="FloatStorage", key="0", legacy=False):
    values = [text("storage"), name("torch", kind), text(key), text("cpu"), number(count)] + [b"N"] * legacy
    return many(*values) + b"Q"


def tensor(body, size=(1,), stride=(1,), offset=0, hooks=ORDERED, grad=b"\x89"):
    shapes = (many(*map(number, size)), many(*map(number, stride)))
    return call(name("torch._utils", "_rebuild_tensor_v2"), body, number(offset), *shapes, grad, hooks)


# ---- pickles that run something


class Reduced:
    """Pickles as a call of `function`."""

    def __init__(self, function, *arguments, state=None):
        self.function, self.arguments, self.state = function, arguments, state

    def __reduce__(self):
        return (self.function, self.arguments) if self.state is None else (self.function, self.arguments, self.state)


@dataclass
class Malicious:
    """`make(command, python)` gives the pickle; `names` must all be in the message; `runs`: plain pickle runs it here."""

    make: Any
    names: tuple = field(default=())
    runs: bool = True


def _dumped(function, *arguments, protocol=2):
    return pickle.dumps({"state_dict": Reduced(function, *arguments)}, protocol)


def _globals_chain(command):
    """From an allowed function to os.system with getattr alone."""
    get = name("__builtin__", "getattr")
    table = call(get, name("torch._utils", "_rebuild_tensor_v2"), text("__globals__"))
    system_module = call(call(get, table, text("get")), text("sys"))
    modules = call(get, system_module, text("modules"))
    shell = call(get, call(call(get, modules, text("get")), text("os")), text("system"))
    return whole(call(shell, text(command)))


def _inner_torch_file(command):
    return legacy_file(_dumped(os.system, command))


def _names():
    import code
    import cProfile
    import functools
    import importlib
    import pydoc
    import runpy
    import subprocess
    import timeit

    from numpy.testing._private.utils import runstring
    from torch.fx.graph_module import _exec_with_source
    from torch.storage import _load_from_bytes
    from torch.utils import collect_env

    system = f"{os.system.__module__}.system"
    build = b"b"
    py2 = name("__builtin__", "eval")

    def shell(command):
        return name("os", "system") + many(text(command)) + b"R"

    return {
        # what a search for "pickle exploit" gives
        "os_system": Malicious(lambda c, p: _dumped(os.system, c), (system,)),
        "os_system_protocol_0": Malicious(lambda c, p: pickle.dumps(Reduced(os.system, c), 0), (system,)),
        "os_system_protocol_4": Malicious(lambda c, p: _dumped(os.system, c, protocol=4), (system,)),
        "os_system_protocol_5": Malicious(lambda c, p: _dumped(os.system, c, protocol=5), (system,)),
        "os_popen": Malicious(lambda c, p: _dumped(os.popen, c), ("os.popen",)),
        "subprocess_popen": Malicious(lambda c, p: _dumped(subprocess.check_call, c.split()), ("subprocess.check_call",)),
        "builtins_eval": Malicious(lambda c, p: _dumped(eval, p), ("builtins.eval",)),
        "builtins_exec": Malicious(lambda c, p: _dumped(exec, p), ("builtins.exec",)),
        "python_2_eval": Malicious(lambda c, p: whole(call(py2, text(p))), ("builtins.eval",)),
        "python_2_commands": Malicious(lambda c, p: whole(call(name("commands", "getoutput"), text(c))), ("subprocess.getoutput",)),
        "compile_then_exec": Malicious(
            lambda c, p: whole(call(name("builtins", "exec"), call(name("builtins", "compile"), text(p), text("x"), text("exec")))),
            ("builtins.compile", "builtins.exec"),
        ),
        "run_path": Malicious(lambda c, p: _dumped(runpy.run_path, "other.py"), ("runpy.run_path",), runs=False),
        # chains
        "import_getattr": Malicious(
            lambda c, p: whole(
                call(call(name("builtins", "getattr"), call(name("builtins", "__import__"), text("os")), text("system")), text(c))
            ),
            ("builtins.__import__",),
        ),
        "getattr_from_allowed_names": Malicious(lambda c, p: _globals_chain(c), ("builtins.getattr",)),
        "getattr_of_history_buffer": Malicious(
            lambda c, p: whole(
                call(name("builtins", "getattr"), name("mmengine.logging.history_buffer", "HistoryBuffer"), text("__init__"))
            ),
            ("builtins.getattr",),
            runs=False,
        ),
        "attrgetter": Malicious(
            lambda c, p: whole(
                call(call(name("operator", "attrgetter"), text("system")), call(name("importlib", "import_module"), text("os")))
            ),
            ("importlib.import_module", "operator.attrgetter"),
            runs=False,
        ),
        "methodcaller": Malicious(
            lambda c, p: whole(call(call(name("operator", "methodcaller"), text("system"), text(c)), name("sys", "modules"))),
            ("operator.methodcaller", "sys.modules"),
            runs=False,
        ),
        "partial": Malicious(
            lambda c, p: whole(call(call(name("functools", "partial"), name("os", "system"), text(c)))),
            ("functools.partial", "os.system"),
        ),
        "reduce_of_functools": Malicious(lambda c, p: _dumped(functools.reduce, exec, [p, {}]), ("functools.reduce", "builtins.exec")),
        "timeit": Malicious(lambda c, p: _dumped(timeit.timeit, p, "pass", timeit.default_timer, 1), ("timeit.timeit",)),
        "profiler": Malicious(lambda c, p: _dumped(cProfile.run, p), ("cProfile.run",)),
        "interpreter": Malicious(
            lambda c, p: whole(call(name("code", "interact"), text(""), name("builtins", "input"))), ("code.interact",), runs=False
        ),
        "pydoc_locate": Malicious(lambda c, p: _dumped(pydoc.locate, "os.system"), ("pydoc.locate",), runs=False),
        "import_module": Malicious(lambda c, p: _dumped(importlib.import_module, "antigravity"), ("importlib.import_module",), runs=False),
        # torch's and NumPy's own
        "torch_load_from_bytes": Malicious(
            lambda c, p: _dumped(_load_from_bytes, _inner_torch_file(c)), ("torch.storage._load_from_bytes",)
        ),
        "torch_load": Malicious(
            lambda c, p: whole(call(name("torch.serialization", "load"), text("other.pth"))), ("torch.serialization.load",), runs=False
        ),
        "torch_jit_load": Malicious(lambda c, p: _dumped(torch.jit.load, "other.pt"), ("torch.jit._serialization.load",), runs=False),
        "torch_hub_load": Malicious(lambda c, p: _dumped(torch.hub.load, "a/b", "c"), ("torch.hub.load",), runs=False),
        "torch_collect_env": Malicious(lambda c, p: _dumped(collect_env.run, c), ("torch.utils.collect_env.run",)),
        "torch_fx": Malicious(lambda c, p: _dumped(_exec_with_source, p, {}), ("torch.fx.graph_module._exec_with_source",)),
        "torch_rebuild_from_type": Malicious(
            lambda c, p: whole(
                call(name("torch._tensor", "_rebuild_from_type_v2"), name("os", "system"), name("torch", "Tensor"), many(text(c)), b"N")
            ),
            ("os.system", "torch._tensor._rebuild_from_type_v2"),
        ),
        "whole_module": Malicious(lambda c, p: pickle.dumps(torch.nn.Linear(1, 1), 2), ("torch.nn.modules.linear.Linear",), runs=False),
        "quantized": Malicious(
            lambda c, p: whole(call(name("torch._utils", "_rebuild_qtensor"))), ("torch._utils._rebuild_qtensor",), runs=False
        ),
        "sparse": Malicious(
            lambda c, p: whole(call(name("torch._utils", "_rebuild_sparse_tensor"))),
            ("torch._utils._rebuild_sparse_tensor",),
            runs=False,
        ),
        "numpy_runstring": Malicious(lambda c, p: _dumped(runstring, p, {}), ("numpy.testing._private.utils.runstring",)),
        "numpy_load": Malicious(lambda c, p: _dumped(np.load, "x.npy", None, True), (f"{np.load.__module__}.load",), runs=False),
        "numpy_object_array": Malicious(lambda c, p: pickle.dumps({"state_dict": np.array([Reduced(os.system, c)], object)}, 2), (system,)),
        # pickles in pickles
        "nested_pickle": Malicious(lambda c, p: _dumped(pickle.loads, _dumped(os.system, c)), ("pickle.loads",)),
        "nested_deep": Malicious(
            lambda c, p: pickle.dumps({"state_dict": {"w": 1}, "optimizer": {"state": [{"x": (1, [2, {"y": Reduced(os.system, c)}])}]}}, 2),
            (system,),
        ),
        "in_ordered_dict_state": Malicious(lambda c, p: whole(ORDERED + mapping(_metadata=shell(c)) + build), ("os.system",)),
        "in_a_key": Malicious(lambda c, p: b"\x80\x02}" + shell(c) + b"K\x01s.", ("os.system",)),
        "in_a_persistent_id": Malicious(
            lambda c, p: whole(many(text("storage"), shell(c), text("0"), text("cpu"), number(1)) + b"Q"), ("os.system",), runs=False
        ),
        "module_persistent_id": Malicious(
            lambda c, p: whole(many(text("module"), name("subprocess", "Popen"), text("x.py"), text("")) + b"Q"),
            ("subprocess.Popen",),
            runs=False,
        ),
        "several_names": Malicious(
            lambda c, p: whole(many(name("os", "system"), name("builtins", "eval"), shell(c))), ("builtins.eval, os.system",)
        ),
        # opcodes and memo
        "memo_far": Malicious(
            lambda c, p: b"\x80\x02" + name("os", "system") + b"r\xff\xff\x0f\x00" + text(c) + b"\x85Rq\x00.", ("os.system",)
        ),
        "memo_name": Malicious(
            lambda c, p: b"\x80\x04\x8c\x06system\x94\x8c\x02os\x94h\x01h\x00\x93" + text(c) + b"\x85R.", ("os.system",)
        ),
        "memo_name_overwritten": Malicious(
            lambda c, p: b"\x80\x04\x8c\x0bcollectionsq\x00\x8c\x02osq\x00\x8c\x06systemq\x01h\x00h\x01\x93" + text(c) + b"\x85R.",
            ("os.system",),
        ),
        "name_put_together": Malicious(
            lambda c, p: b"\x80\x04" + name("collections", "OrderedDict") + b")R" + text("system") + b"\x93.",
            ("a name that is put together while loading",),
            runs=False,
        ),
        "inst": Malicious(lambda c, p: b"(S'" + c.encode() + b"'\nios\nsystem\n.", ("os.system",)),
        "obj": Malicious(lambda c, p: b"\x80\x02(" + name("os", "system") + text(c) + b"o.", ("os.system",)),
        "newobj": Malicious(lambda c, p: whole(name("subprocess", "Popen") + many(text(c)) + b"\x81"), ("subprocess.Popen",), runs=False),
        "newobj_of_allowed": Malicious(
            lambda c, p: whole(name("torch._utils", "_rebuild_tensor_v2") + b")\x81"), ("torch._utils._rebuild_tensor_v2",), runs=False
        ),
        "extension": Malicious(lambda c, p: b"\x80\x02\x82\x01.", ("copyreg extension 1",), runs=False),
        "build_of_function": Malicious(
            lambda c, p: whole(name("torch._utils", "_rebuild_tensor_v2") + mapping(__code__=shell(c)) + build), ("os.system",)
        ),
        "dotted_name": Malicious(
            lambda c, p: b"\x80\x04\x8c\x0ctorch._utils\x8c\x10sys.modules.keys\x93)R.", ("torch._utils.sys.modules.keys",), runs=False
        ),
        "call_of_result": Malicious(
            lambda c, p: whole(call(call(name("operator", "itemgetter"), text("system")), name("os", "__dict__"))),
            ("operator.itemgetter", "os.__dict__"),
            runs=False,
        ),
        "counter": Malicious(lambda c, p: pickle.dumps(collections.Counter(a=1), 2), ("collections.Counter",), runs=False),
        "interpreter_class": Malicious(lambda c, p: _dumped(code.InteractiveInterpreter), ("code.InteractiveInterpreter",), runs=False),
    }


PICKLES = _names()


# ---- files that name nothing bad, and ask for what their size does not allow, or lie about themselves


def _nested(depth):
    """A tuple in a tuple in a tuple ..., small in the file."""
    return b")" + b"\x85" * depth


def _laughs(levels):
    """A list of ten times the same list of ten times the same list ..."""
    body = b"]q\x00"
    for level in range(levels):
        body += b"](" + b"h" + bytes([level]) + (b"h" + bytes([level])) * 9 + b"eq" + bytes([level + 1])
    return b"(" + body + b"t"


def _hash_bomb(levels):
    """A key of tuples that takes 2**levels steps to hash."""
    return b"}" + b")" + b"\x85q\x00h\x00\x86" * levels + b"Ns"


def _codec_bomb(levels):
    """Text that doubles with each call."""
    value = text("ab" * 500)
    for _ in range(levels):
        value = call(name("_codecs", "encode"), value, text("hex"))
    return value


def _repeated_bytes(times):
    """The same text made to bytes again and again."""
    call_again = name("_codecs", "encode") + b"q\x02h\x01R" + b"h\x02h\x01R" * times
    return b"(" + text("a" * 10_000) + b"q\x00" + text("latin1") + b"q\x03h\x00h\x03\x86q\x01" + call_again + b"t"


def _many_keys(count):
    return b"}(" + b"".join(text(str(i)) + b"K\x01" for i in range(count)) + b"u"


def _copies(module, function, value):
    """The same value given to a function that copies it, many times."""
    return b"(" + value + b"q\x01" + name(module, function) + b"q\x02" + b"h\x02h\x01\x85R" * 1000 + b"t"


def _numpy_array(code, shape, data):
    encode = name("_codecs", "encode")
    made = call(
        name("numpy.core.multiarray", "_reconstruct"), name("numpy", "ndarray"), many(number(0)), call(encode, text("b"), text("latin1"))
    )
    dtype = call(name("numpy", "dtype"), text(code), b"\x89", b"\x88")
    return made + many(number(1), many(*map(number, shape)), dtype, b"\x89", call(encode, text(data), text("latin1"))) + b"b"


# name -> (the pickle, given whether it is for the old format; the size in bytes of storage "0", if it has one)
BOMBS = {
    "storage_of_100_gb": (lambda old: whole(tensor(storage(25 * 10**9, legacy=old), (25 * 10**9,))), 4),
    "storage_of_2_to_62": (lambda old: whole(tensor(storage(1 << 62, legacy=old), (1,))), 4),
    "storage_of_negative_length": (lambda old: whole(tensor(storage(-1, legacy=old), (1,))), 4),
    "storage_declared_twice": (
        lambda old: whole(many(tensor(storage(1, legacy=old)), tensor(storage(1, "DoubleStorage", legacy=old)))),
        4,
    ),
    "tensor_of_100_gb_in_4_bytes": (lambda old: whole(tensor(storage(1, legacy=old), (25 * 10**9,), (0,))), 4),
    "tensor_beyond_its_storage": (lambda old: whole(tensor(storage(4, legacy=old), (2, 2), (3, 1))), 16),
    "offset_beyond_its_storage": (lambda old: whole(tensor(storage(4, legacy=old), (1,), (1,), offset=4)), 16),
    "negative_stride": (lambda old: whole(tensor(storage(4, legacy=old), (2,), (-1,), offset=1)), 16),
    "negative_size": (lambda old: whole(tensor(storage(4, legacy=old), (-2, -2), (1, 1))), 16),
    "many_tensors_in_one_storage": (
        lambda old: whole(
            b"(" + tensor(storage(10_000, legacy=old), (10_000,)) + tensor(storage(10_000, legacy=old), (10_000,)) * 50 + b"t"
        ),
        40_000,
    ),
    "size_that_is_no_tuple": (
        lambda old: whole(
            call(name("torch._utils", "_rebuild_tensor_v2"), storage(1, legacy=old), number(0), b"]", b"]", b"\x89", ORDERED)
        ),
        4,
    ),
    "hooks": (lambda old: whole(tensor(storage(1, legacy=old), hooks=ORDERED + text("a") + b"K\x01s")), 4),
    "hooks_filled_later": (
        lambda old: whole(many(tensor(storage(1, legacy=old), hooks=ORDERED + b"q\x05"), b"h\x05" + text("a") + b"K\x01s")),
        4,
    ),
    "nested_deep": (lambda old: whole(_nested(200_000)), None),
    "nested_in_itself": (lambda old: whole(b"]q\x00h\x00a"), None),
    "billion_laughs": (lambda old: whole(_laughs(12)), None),
    "key_that_takes_forever_to_hash": (lambda old: whole(_hash_bomb(64)), None),
    "numbers_made_to_collide": (
        lambda old: whole(mapping() + b"(" + b"".join(number_of(i * ((1 << 61) - 1)) + b"N" for i in range(1000)) + b"u"),
        None,
    ),
    "codec_bomb": (lambda old: whole(_codec_bomb(40)), None),
    "bytes_made_again_and_again": (lambda old: whole(_repeated_bytes(10_000)), None),
    "too_many_opcodes": (lambda old: whole(b"(" + b")" * 500_001 + b"t"), None),
    "too_many_calls": (
        lambda old: whole(b"(" + name("collections", "OrderedDict") + b"q\x00" + b"h\x00)R" * 50_001 + b"t"),
        None,
    ),
    "counters_copied_again_and_again": (lambda old: whole(_copies("collections", "Counter", _many_keys(1000))), None),
    "sets_copied_again_and_again": (lambda old: whole(_copies("__builtin__", "set", b"](" + b"K\x01" * 1000 + b"e")), None),
    "set_of_what_takes_forever_to_hash": (
        lambda old: whole(call(name("__builtin__", "set"), b"](" + _hash_bomb(64)[1:-2] + b"e")),
        None,
    ),
    "frame": (lambda old: b"\x80\x04\x95" + b"\xff" * 8 + b"}.", None),
    "long4": (lambda old: whole(b"\x8b\xff\xff\xff\x7f"), None),
    "bytes8": (lambda old: whole(b"\x8e" + b"\xff" * 7 + b"\x7f"), None),
    "text8": (lambda old: whole(b"\x8d" + b"\xff" * 7 + b"\x7f"), None),
    "attributes_of_a_dict": (lambda old: whole(ORDERED + mapping(items=b"N") + b"b"), None),
    "state_of_a_list": (lambda old: whole(b"]}b"), None),
    "append_to_a_dict": (lambda old: whole(b"}K\x01a"), None),
    "items_of_a_tensor": (lambda old: whole(tensor(storage(1, legacy=old)) + b"K\x00K\x01s"), 4),
    "call_of_a_number": (lambda old: whole(b"K\x01)R"), None),
    "persistent_number": (lambda old: whole(b"K\x01Q"), None),
    "persistent_list": (lambda old: whole(b"]Q"), None),
    "persistent_of_another_length": (lambda old: whole(many(text("storage"), b"N") + b"Q"), None),
    "storage_of_objects": (
        lambda old: whole(tensor(many(text("storage"), text("x"), text("0"), text("cpu"), number(1), *[b"N"] * old) + b"Q")),
        4,
    ),
    "numpy_objects": (lambda old: whole(_numpy_array("O8", (1,), "a" * 8)), None),
    "numpy_text": (lambda old: whole(_numpy_array("U1000000000", (1,), "a")), None),
    "numpy_shape_of_8_gb": (lambda old: whole(_numpy_array("f8", (1 << 30,), "a" * 8)), None),
}


def number_of(value):
    """An integer of up to 255 bytes."""
    raw = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(raw)]) + raw


def bomb_file(kind, bomb):
    """One of `BOMBS` as a file of that format."""
    make, size = BOMBS[bomb]
    data = make(kind == "legacy")
    if size is None:
        return FORMATS[kind](data)
    if kind == "zip":
        return zip_file(data, [("data/0", bytes(size))])
    return legacy_file(data, ["0"], struct.pack("<Q", size // 4) + bytes(size))
