"""Throws malformed and malicious inputs at everything that reads a file that a stranger may have made.

    python benchmarks/fuzz_loader.py --count 1000000 --seed 0 --output results/fuzz.json

Four targets take turns: the checkpoint reader (`safe_load.read` of `.pth` files in both formats of torch.save), safetensors files,
the model index (`index.load`), and the parsers of configs (`UPerNetConfig`, `Recipe`, `LabelSet` and the text of a training config).
Inputs are real small checkpoints and malicious ones (tests/malicious.py) with bytes or opcodes changed, and made-up programs of
pickle opcodes; indexes and configs with values and characters changed.

An input is a finding if anything but the library's own errors comes out, if it takes more than `HANG` CPU seconds, if an audit event says
that it started a process, opened a socket, or looked a name up in Python's own unpickler, or if memory passes 1 GB. Input number i
depends on the seed and i alone: `--only i` runs it again, with a traceback. The exit status is 1 if there was a finding.
"""

import argparse
import collections
import io
import json
import pickletools
import random
import resource
import signal
import struct
import sys
import tempfile
import time
import traceback
import warnings
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import machine
import torch
import yaml
from support import malicious

from upernet_zoo import index, labels
from upernet_zoo.checkpoints import mmseg_config, safe_load
from upernet_zoo.config import Recipe, UPerNetConfig
from upernet_zoo.errors import UPerNetZooError
from upernet_zoo.models.backbones.resnet import ResNetConfig

HANG = 20.0  # CPU seconds: a busy or paused machine makes no finding, and nothing can wait for long where sockets are forbidden
MEMORY = 1 << 30
FORBIDDEN = [
    "os.system",
    "os.exec",
    "os.fork",
    "os.forkpty",
    "os.posix_spawn",
    "os.spawn",
    "os.remove",
    "os.rename",
    "os.startfile",
    "subprocess.Popen",
    "socket.connect",
    "socket.getaddrinfo",
    "pickle.find_class",
    "ctypes.dlopen",
    "code.__new__",
]


class Hang(BaseException):
    """Not an Exception, so that nothing swallows it."""


class Forbidden(BaseException):
    """An audit event of something that no parser does."""


def _audit(event, arguments):
    if event in FORBIDDEN and _armed:
        raise Forbidden(f"{event} {arguments!r:.200}")


_armed = False


def _alarm(*_):
    raise Hang


# ---- checkpoints


def _fragments():
    """Opcodes with arguments, of which programs are made: mostly good ones, so that they get far."""
    m = malicious
    names = [m.name(*n.rsplit(".", 1)) for n in sorted(safe_load.Machine.NAMES)]
    names += [m.name(*n) for n in (("os", "system"), ("builtins", "eval"), ("builtins", "getattr"), ("torch", "load"), ("", ""))]
    numbers = [m.number(n) for n in (0, 1, 2, 3, 4, 1000, (1 << 31) - 1, 1 << 31, 1 << 40, (1 << 63) - 1, -1, -(1 << 63))]
    texts = [m.text(t) for t in ("", "0", "1", "storage", "cpu", "latin1", "state_dict", "_metadata", "f8", "i4", "<", "a" * 8, "é")]
    plain = [bytes([code]) for code in b"\x88\x89N()]}t\x85\x86\x87Rbasueq\x81Q.0"]
    memo = [b"q" + bytes([i]) for i in range(4)] + [b"h" + bytes([i]) for i in range(4)] + [b"r\xff\xff\xff\x7f", b"j\0\0\0\0"]
    odd = [bytes([code]) for code in range(256)] + [b"G" + bytes(8), b"K\x01", b"M\x01\x02", b"J\xff\xff\xff\xff", b"U\x03abc", b"\x8a\x00"]
    parts = [
        m.ORDERED,
        m.storage(4),
        m.storage(4, legacy=True),
        m.tensor(m.storage(4), (2, 2), (2, 1)),
        m.tensor(m.storage(4, legacy=True), (4,)),
        m.mapping(a=b"N"),
        m.many(m.number(1), m.number(2)),
        m.call(m.name("numpy", "dtype"), m.text("f8"), b"\x89", b"\x88"),
        m.call(m.name("_codecs", "encode"), m.text("a" * 8), m.text("latin1")),
        m._numpy_array("f8", (1,), "a" * 8),
    ]
    return [names, numbers, texts, plain, plain, memo, odd, parts, parts]


class Checkpoints:
    """Makes `.pth` files."""

    def __init__(self, canary):
        self.fragments = _fragments()
        seeds = []
        for new in (True, False):
            for value in (
                {"meta": {"CLASSES": ("a", "b"), "epoch": 3}, "state_dict": torch.nn.BatchNorm2d(2).state_dict()},
                {"a": torch.ones(2, 2), "b": torch.arange(6).view(2, 3).t(), "c": torch.nn.Parameter(torch.ones(1))},
            ):
                buffer = io.BytesIO()
                torch.save(value, buffer, _use_new_zipfile_serialization=new)
                seeds.append(buffer.getvalue())
        seeds += [path.read_bytes() for path in sorted((ROOT / "tests" / "fixtures" / "training").glob("*.pth"))]
        self.honest = list(seeds)
        commands = f"touch {canary}", f"open({str(canary)!r}, 'w').close()"
        bad = [one.make(*commands) for one in malicious.PICKLES.values()]
        seeds += [make(data) for data in bad for make in malicious.FORMATS.values()]
        small = [name for name in malicious.BOMBS if not name.startswith(("too_many", "nested_deep", "bytes_made", "many_tensors"))]
        seeds += [malicious.bomb_file(kind, name) for name in small for kind in malicious.FORMATS]
        self.seeds = seeds
        self.programs = [(self._opcodes(data), wrap) for data, wrap in map(self._taken_apart, self.honest)] * 8
        self.programs += [(self._opcodes(data), None) for data in bad]

    @staticmethod
    def _taken_apart(raw):
        """The pickle of a file's object, and a function that puts another one in its place."""
        if raw[:2] == b"PK":
            with zipfile.ZipFile(io.BytesIO(raw)) as archive:
                members = {name.split("/", 1)[1]: archive.read(name) for name in archive.namelist()}
            data = members.pop("data.pkl")
            further = [(name, content) for name, content in members.items() if name.startswith("data/")]
            return data, lambda other: malicious.zip_file(other, further)
        stream = io.BytesIO(raw)
        for _ in range(3):
            collections.deque(pickletools.genops(stream), maxlen=0)
        start = stream.tell()
        collections.deque(pickletools.genops(stream), maxlen=0)
        end = stream.tell()
        return raw[start:end], lambda other: raw[:start] + other + raw[end:]

    @staticmethod
    def _opcodes(data):
        try:
            starts = [position for _, _, position in pickletools.genops(data)]
        except ValueError:
            starts = list(range(len(data)))
        return [data[a:b] for a, b in zip(starts, [*starts[1:], len(data)])]

    def __call__(self, rng):
        how = rng.random()
        if how < 0.3:
            return _mutated_bytes(rng, rng.choice(self.seeds if rng.random() < 0.5 else self.honest), self.seeds)
        if how < 0.65:
            program, wrap = rng.choice(self.programs)
            program = list(program)
            for _ in range(rng.choice((1, 1, 1, 2, 3, 8))):
                self._mutate(rng, program)
            data = b"".join(program)
            if wrap and rng.random() < 0.9:
                return wrap(data)
        else:
            data = b"\x80\x02" + b"".join(rng.choice(rng.choice(self.fragments)) for _ in range(rng.randrange(1, 30)))
            if rng.random() < 0.7:
                data = b"\x80\x02}" + malicious.text("state_dict") + data[2:] + b"s."
        return self._file(rng, data)

    def _mutate(self, rng, program):
        at, how = rng.randrange(len(program)), rng.randrange(6)
        other = rng.randrange(len(program))
        if how == 0:
            del program[at]
            program.append(b".")
        elif how == 1:
            program.insert(at, rng.choice(rng.choice(self.fragments)))
        elif how == 2:
            program[at] = rng.choice(rng.choice(self.fragments))
        elif how == 3:
            program[at], program[other] = program[other], program[at]
        elif how == 4:
            program[at:at] = program[other : other + rng.randrange(1, 12)] * rng.choice((1, 1, 2, 20))
        else:
            program[at] = _mutated_bytes(rng, program[at], [b"\xff"])

    @staticmethod
    def _file(rng, data):
        if rng.random() < 0.5:
            keys = [str(i) for i in range(rng.randrange(3))]
            body = b"".join(struct.pack("<Q", 4) + bytes(16) for _ in keys)
            return malicious.legacy_file(data, keys, body)
        members = [(f"data/{i}", bytes(rng.choice((4, 8, 16, 16)))) for i in range(rng.randrange(3))]
        return malicious.zip_file(data, members)


def _mutated_bytes(rng, raw, others):
    raw = bytearray(raw)
    for _ in range(rng.choice((1, 1, 2, 4, 16))):
        if not raw:
            break
        at, how = rng.randrange(len(raw)), rng.randrange(7)
        if how == 0:
            raw[at] ^= 1 << rng.randrange(8)
        elif how == 1:
            raw[at] = rng.randrange(256)
        elif how == 2:
            del raw[at:]
        elif how == 3:
            del raw[at : at + rng.randrange(1, 40)]
        elif how == 4:
            raw[at:at] = raw[at : at + rng.randrange(1, 40)]
        elif how == 5:
            size = rng.choice((1, 2, 4, 8))
            number = rng.choice((0, 1, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, (1 << 63) - 1, (1 << 64) - 1))
            raw[at : at + size] = (number & ((1 << 8 * size) - 1)).to_bytes(size, "little")
        else:
            other = rng.choice(others)
            start = rng.randrange(len(other))
            raw[at:at] = other[start : start + rng.randrange(1, 200)]
    return bytes(raw)


class Safetensors:
    """Makes `.safetensors` files."""

    def __init__(self):
        from safetensors.torch import save

        self.seeds = [
            save({"a": torch.ones(2), "b": torch.arange(3)}, {"config": "{}"}),
            save({"a": torch.ones(2, 2, dtype=torch.float16), "empty": torch.empty(0, 3)}),
        ]

    def __call__(self, rng):
        raw = rng.choice(self.seeds)
        if rng.random() < 0.5:
            return _mutated_bytes(rng, raw, self.seeds)
        length = struct.unpack_from("<Q", raw)[0]
        header = json.loads(raw[8 : 8 + length])
        for _ in range(rng.choice((1, 1, 2, 5))):
            _mutated_tree(rng, header)
        text = _json(header).encode()
        return struct.pack("<Q", len(text)) + text + raw[8 + length :]


# ---- trees of values: indexes and configs

_VALUES = [
    *(
        None,
        True,
        False,
        0,
        1,
        -1,
        2,
        3,
        19,
        50,
        255,
        256,
        1 << 16,
        1 << 31,
        1 << 64,
        10**400,
        1 << 20_000,
        0.5,
        -0.0,
        1e308,
        float("inf"),
        float("nan"),
    ),
    *(
        "",
        "a",
        "upernet",
        "512x1024",
        "99999x1",
        "\u0000",
        "\ud800",
        "é" * 300,
        "http://",
        "http://[",
        "https://a/b-00000000.pth",
        "file:///x",
    ),
    *("../../etc/passwd", "R-50", "cityscapes", "whole", "slide", "0123456789abcdef", "<<", "=", "2020-01-01", "x" * 5000),
    *([], {}, [1, 2], [[1, 2, 3]], [None], {"a": 1}, {"Name": []}, [[]], (1, 2), {1: 2}),
]


def _mutated_tree(rng, tree):
    """Changes one place of a tree of dicts and lists."""
    places = []
    stack = [tree]
    while stack:
        node = stack.pop()
        for key in list(node) if isinstance(node, dict) else range(len(node)):
            places.append((node, key))
            if isinstance(node[key], (dict, list)):
                stack.append(node[key])
    if not places:
        return
    node, key = rng.choice(places)
    how = rng.randrange(6)
    if how == 0:
        del node[key]
    elif how == 1 and isinstance(node, dict):
        node[rng.choice(_KEYS)] = _copied(rng.choice(_VALUES))
    elif how == 2:
        node[key] = [node[key]] * rng.randrange(4)
    elif how == 3:
        other, there = rng.choice(places)
        if there in other if isinstance(other, dict) else there < len(other):
            node[key] = _copied(other[there])
    elif how == 4 and isinstance(node[key], str):
        node[key] = _mutated_text(rng, node[key])
    else:
        node[key] = _copied(rng.choice(_VALUES))


_KEYS = [
    "Name",
    "Models",
    "labels",
    "depth",
    "scale",
    "mode",
    "crop",
    "stride",
    "classes",
    "palette",
    "Mirrors",
    "num_classes",
    "ignore_index",
]
_KEYS += [value for value in _VALUES if isinstance(value, (str, int, float, type(None)))]


def _json(tree, **options):
    """JSON text, of numbers of any length too."""
    sys.set_int_max_str_digits(0)
    text = json.dumps(tree, **options)
    sys.set_int_max_str_digits(4300)  # Python's own default
    return text


def _copied(value):
    if isinstance(value, dict):
        return {key: _copied(item) for key, item in value.items()}
    return [_copied(item) for item in value] if isinstance(value, list) else value


_PIECES = [
    *(
        "&a ",
        "*a",
        "!!python/object/apply:os.system ['touch x']",
        "!!binary ",
        "!!set {a, b}",
        "!!timestamp ",
        "2020-01-01",
        "<<: *a",
        "? ",
        "- ",
    ),
    *(
        "[",
        "]",
        "{",
        "}",
        "(",
        ")",
        ":",
        "\n",
        "\t",
        "'",
        '"',
        "\\",
        "#",
        "%",
        "|",
        ">",
        ",",
        "0x10",
        "1e999",
        ".inf",
        ".nan",
        "~",
        "\x00",
        "\ufeff",
    ),
    *(
        "dict(",
        "a=",
        "=",
        "lambda: 0",
        "-",
        "1_000",
        "0b1",
        "f'{a}'",
        "*",
        "**a",
        "\u2028",
        "é",
        "[" * 300,
        "(" * 1000,
        "-" * 1000,
        "9" * 5000,
    ),
    *(
        "a = [a, a]\n",
        "test_cfg = dict(mode='slide', crop_size=(769, 769))\n",
        "model = dict(type='EncoderDecoder')\n",
        "é = 1\n",
        "a: b = 1\n",
    ),
    *("0x" + "f" * 5000, "? [a]\n: b\n", "&b [*b]", "Models: &a [[*b, *b], *b]\n", "Name: &n {a: *n}\n"),
    *("!!timestamp x", "!!bool x", "!!int ''", "!!float ''", "!!omap [1]", "!!pairs [1]", "!!null x", "!!str [1]", "!!map 1", "!!seq 1"),
    "x0: &x0 [a,a,a,a,a,a,a,a,a,a]\n" + "".join(f"x{i}: &x{i} [{','.join([f'*x{i - 1}'] * 10)}]\n" for i in range(1, 9)),
]


def _mutated_text(rng, text):
    for _ in range(rng.choice((1, 1, 2, 4, 10))):
        at = rng.randrange(len(text) + 1)
        how = rng.randrange(5)
        if how == 0:
            text = text[:at] + rng.choice(_PIECES) + text[at:]
        elif how == 1:
            text = text[:at] + text[at + rng.randrange(1, 30) :]
        elif how == 2:
            text = text[:at] + chr(rng.choice((rng.randrange(128), rng.randrange(0x11000)))) + text[at + 1 :]
        elif how == 3:
            there = rng.randrange(len(text) + 1)
            text = text[:at] + text[there : there + rng.randrange(1, 60)] + text[at:]
        else:
            text = text[:at]
    return text


class Indexes:
    """Makes model indexes."""

    def __init__(self):
        whole = yaml.safe_load((ROOT / "model_index.yml").read_text(encoding="utf-8"))
        self.seeds = [json.dumps({**whole, "Models": [model]}) for model in whole["Models"][::5]]
        own = json.loads(self.seeds[0])
        own["Models"][0]["Config"] |= {"labels": {"name": "own", "classes": ["a", "b"]}, "num_classes": 2}
        self.seeds.append(json.dumps(own))
        self.texts = [yaml.safe_dump(json.loads(seed), sort_keys=False) for seed in self.seeds]

    def __call__(self, rng):
        if rng.random() < 0.4:
            return _mutated_text(rng, rng.choice(self.texts)).encode("utf-8", "surrogatepass")
        tree = json.loads(rng.choice(self.seeds))
        for _ in range(rng.choice((1, 1, 1, 2, 5))):
            _mutated_tree(rng, tree)
        return _json(tree, ensure_ascii=rng.random() < 0.5).encode("utf-8", "surrogatepass")


class Configs:
    """Makes (parser, input) pairs: dicts of the three frozen types, and the text of training configs."""

    def __init__(self):
        self.parsers = [
            (UPerNetConfig.from_dict, UPerNetConfig(backbone=ResNetConfig(depth=50), num_classes=19).to_dict()),
            (Recipe.from_dict, Recipe((2049, 1025), "slide", (769, 769), (513, 513)).to_dict()),
            (Recipe.from_dict, Recipe((2048, 512)).to_dict()),
            (labels.LabelSet.from_dict, labels.get("cityscapes").to_dict()),
            (labels.LabelSet.from_dict, labels.LabelSet("own", ("a", "b")).to_dict()),
        ]
        self.texts = [
            "norm_cfg = dict(type='SyncBN', requires_grad=True)\nmodel = dict(\n    type='EncoderDecoder',\n    decode_head=dict(\n"
            "        type='UPerHead', in_channels=[256, 512, 1024, 2048], pool_scales=(1, 2, 3, 6), norm_cfg=norm_cfg,\n"
            "        align_corners=True))\ntest_cfg = dict(mode='slide', crop_size=(769, 769), stride=(513, 513))\n",
            "a = -1\nb = [a, {'x': (a, 1.5, None, True, 'text', b'bytes', ...)}]\nimport os\nos.system('true')\nc = os\n",
        ]

    def __call__(self, rng):
        if rng.random() < 0.3:
            return mmseg_config.parse, rng.choice(_VALUES) if rng.random() < 0.02 else _mutated_text(rng, rng.choice(self.texts))
        parse, tree = rng.choice(self.parsers)
        if rng.random() < 0.02:
            return parse, rng.choice(_VALUES)
        tree = _copied(tree)
        for _ in range(rng.choice((1, 1, 2, 5))):
            _mutated_tree(rng, tree)
        return parse, tree


# ---- the loop


def _walk(value):
    """Bytes of all tensors of what was read. Each is copied, so that one that reaches beyond its storage would show."""
    if isinstance(value, torch.Tensor):
        value.clone()
        return value.numel() * value.element_size()
    if isinstance(value, dict):
        value = list(value.values())
    return sum(map(_walk, value)) if isinstance(value, (list, tuple)) else 0


class Fuzzer:
    """Makes an input of a target, and gives it to the library."""

    def __init__(self, folder):
        self.file = folder / "input"
        self.canary = folder / "canary"
        self.makers = {"checkpoint": Checkpoints(self.canary), "safetensors": Safetensors(), "index": Indexes(), "config": Configs()}

    def make(self, target, rng):
        made = self.makers[target](rng)
        if target == "config":
            return made
        self.file.write_bytes(made)
        return (index.load if target == "index" else safe_load.read), self.file

    @staticmethod
    def check(target, found, size):
        if target in ("checkpoint", "safetensors"):
            assert isinstance(found, dict) and _walk(found) <= 8 * size
        elif target == "config" and hasattr(found, "to_dict"):
            assert type(found).from_dict(json.loads(json.dumps(found.to_dict()))) == found

    def run(self, target, rng):
        """(outcome, seconds); anything but the library's errors is raised."""
        global _armed
        parse, argument = self.make(target, rng)
        signal.setitimer(signal.ITIMER_PROF, HANG)
        start = time.process_time()
        _armed = True
        try:
            found = parse(argument)
            outcome = "accepted"
        except UPerNetZooError as error:
            outcome = type(error).__name__
            assert len(str(error)) < 1 << 20, "a message of more than a million characters"
        finally:
            _armed = False
            seconds = time.process_time() - start
            signal.setitimer(signal.ITIMER_PROF, 0)
        if outcome == "accepted":
            self.check(target, found, self.file.stat().st_size if target != "config" else 0)
        if self.canary.exists():
            raise Forbidden("the canary was made")
        return outcome, seconds


# twelve of twenty inputs are checkpoints
TURNS = ["checkpoint"] * 12 + ["safetensors"] * 2 + ["index"] * 3 + ["config"] * 3


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--count", type=int, default=10_000, help="inputs")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--start", type=int, default=0, help="number of the first input")
    parser.add_argument("--only", type=int, help="run this one input, and show what happens")
    parser.add_argument("--output", type=Path, help="where the numbers go, as JSON")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    signal.signal(signal.SIGPROF, _alarm)
    sys.addaudithook(_audit)
    counts = {target: collections.Counter() for target in dict.fromkeys(TURNS)}
    findings, slowest = [], (0.0, None)
    numbers = range(arguments.start, arguments.start + arguments.count) if arguments.only is None else [arguments.only]
    begun = time.process_time()

    def report():
        """The numbers so far; also written, so that a run that is stopped leaves what it did."""
        seconds = time.process_time() - begun
        done = sum(sum(c.values()) for c in counts.values())
        found = {
            **machine.conditions(("torch", "numpy", "safetensors", "PyYAML")),
            "inputs": done,
            "outcomes": {target: dict(sorted(c.items())) for target, c in counts.items()},
            "findings": len(findings),
            "kinds_of_findings": list({f["what"]: f for f in reversed(findings)}.values())[:20],
            "cpu_seconds": round(seconds, 1),
            "inputs_per_cpu_second": round(done / seconds),
            "slowest_input": {"number": slowest[1], "seconds": round(slowest[0], 3)},
            "peak_memory_mb": round(_peak_memory() / 2**20),
            "memory_before_first_input_mb": round(before / 2**20),
        }
        if arguments.output:
            arguments.output.write_text(json.dumps(found, indent=2) + "\n")
        return found

    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as folder:
        fuzzer = Fuzzer(Path(folder))
        before = _peak_memory()
        for number in numbers:
            rng = random.Random((arguments.seed << 40) + number)
            target = TURNS[number % len(TURNS)]
            try:
                outcome, seconds = fuzzer.run(target, rng)
                slowest = max(slowest, (seconds, number), key=lambda pair: pair[0])
            except (Exception, Hang, Forbidden) as error:
                outcome = "FINDING"
                findings.append({"input": number, "target": target, "what": f"{type(error).__name__}: {error}"[:300]})
                fuzzer.canary.unlink(missing_ok=True)
                if arguments.only is not None:
                    traceback.print_exc()
            counts[target][outcome] += 1
            if (number + 1) % 20_000 == 0:
                report()
    if _peak_memory() > MEMORY:
        findings.append({"what": f"memory: {_peak_memory()} bytes"})
    print(json.dumps(report(), indent=2))
    return 1 if findings else 0


def _peak_memory():
    """The most bytes that this process had in memory at once."""
    try:  # Linux: unlike ru_maxrss this does not begin with the peak of the process that started this one
        return next(int(line.split()[1]) * 1024 for line in Path("/proc/self/status").open() if line.startswith("VmHWM:"))
    except (OSError, StopIteration):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


if __name__ == "__main__":
    sys.exit(main())
