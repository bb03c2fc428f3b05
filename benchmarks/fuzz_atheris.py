"""Coverage-guided fuzzing of the checkpoint reader, with Google's atheris (`pip install atheris`; it has wheels for some Pythons only).

    python benchmarks/fuzz_atheris.py -runs=100000 -timeout=20 -rss_limit_mb=1024 CORPUS_FOLDER

The arguments are libFuzzer's. The corpus folder is filled with real and malicious pickles if it is empty. The first byte of an input
says what becomes of the rest: a whole file, or the object's pickle in a file of either format of torch.save. A run ends with an
exception at the first input that raises anything but the library's errors, takes too long, or takes too much memory.
"""

import struct
import sys
import tempfile
import warnings
from pathlib import Path

import atheris

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import torch
from support import malicious

with atheris.instrument_imports(include=["upernet_zoo"]):
    from upernet_zoo.checkpoints import safe_load
import contextlib

from upernet_zoo.errors import UPerNetZooError


def write_corpus(folder: Path, canary: Path) -> None:
    """Inputs to begin with."""
    inputs = [b"\0" + path.read_bytes() for path in sorted((ROOT / "tests" / "fixtures" / "training").glob("*.pth"))]
    for kind in (b"\1", b"\2"):
        good = malicious.tensor(malicious.storage(4, legacy=kind == b"\2"), (2, 2), (2, 1))
        inputs.append(kind + malicious.whole(good))
        inputs += [kind + one.make(f"touch {canary}", f"open({str(canary)!r}, 'w')") for one in malicious.PICKLES.values()]
        inputs += [kind + make(kind == b"\2") for make, _ in malicious.BOMBS.values()]
    for number, content in enumerate(inputs):
        if len(content) < 6000:
            (folder / f"{number:03}").write_bytes(content)


def main() -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    corpus = Path(sys.argv[-1])
    corpus.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        path, canary = Path(folder) / "input.pth", Path(folder) / "canary"
        if not any(corpus.iterdir()):
            write_corpus(corpus, canary)

        def one_input(data: bytes) -> None:
            kind, data = (data[0] % 3, data[1:]) if data else (0, b"")
            if kind == 1:
                data = malicious.zip_file(data, [("data/0", bytes(16))])
            elif kind == 2:
                data = malicious.legacy_file(data, ["0"], struct.pack("<Q", 4) + bytes(16))
            path.write_bytes(data)
            with contextlib.suppress(UPerNetZooError):
                assert isinstance(safe_load.read(path), dict)
            assert not canary.exists()

        atheris.Setup(sys.argv, one_input)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
