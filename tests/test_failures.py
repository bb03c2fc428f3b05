"""A batch goes on after its worst member, and stops where the disk is full."""

import errno

import pytest

from upernet_zoo import files
from upernet_zoo.errors import ImageError, WriteError
from upernet_zoo.failures import Failures


def write(path, error):
    def fail(temporary):
        raise error

    files.write_atomically(path, fail)


def test_what_fails_is_told_by_name_and_the_rest_goes_on(tmp_path):
    failures, done = Failures(), []
    for name, error in (("a", None), ("b", ImageError("b: broken")), ("c", MemoryError()), ("d", ImageError("too large")), ("e", None)):
        with failures.survived(name):
            if error is not None:
                raise error
            done.append(name)
    with failures.survived("f"):
        write(tmp_path / "f.png", OSError(errno.ENAMETOOLONG, "File name too long"))
    assert done == ["a", "e"]
    heading, *lines = failures.report(6).splitlines()
    assert heading == "4 of 6 pictures failed:" and len(failures) == 4
    assert lines[0] == "  b: broken" and lines[1].startswith("  c: the memory of this process ran out") and lines[2] == "  d: too large"
    assert "f.png" in lines[3] or str(tmp_path) in lines[3]
    assert not Failures()


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_full_disk_stops_the_batch(tmp_path, number):
    with pytest.raises(WriteError, match="full"), Failures().survived("a"):
        write(tmp_path / "a.png", OSError(number, "no space"))


def test_a_mistake_in_the_program_is_no_picture_that_failed():
    with pytest.raises(ZeroDivisionError), Failures().survived("a"):
        1 / 0  # noqa: B018
