"""Runs of `train` for tests/test_training.py, in processes of their own with one thread each.

python training_runs.py kill ROOT FOLDER     # an uninterrupted run in FOLDER/whole, and one killed again and again in FOLDER/killed
python training_runs.py died ROOT FOLDER WHERE   # one whose loader process dies, in FOLDER/died, and one where none does, in FOLDER/whole
torchrun ... training_runs.py step ROOT OUT  # one step, on as many processes as torchrun starts
"""

import multiprocessing
import os
import signal
import sys
import time
from multiprocessing.queues import Queue
from pathlib import Path

import torch

import upernet_zoo as uz
from support.models import small_config
from upernet_zoo.errors import WorkerError
from upernet_zoo.models import UPerNet
from upernet_zoo.training import TrainingSettings, loop, open_splits, state, train
from upernet_zoo.training.data import Crops


def small_model(label_set, seed=0):
    torch.manual_seed(seed)
    model = UPerNet(small_config(num_classes=len(label_set)), uz.Recipe(scale=(96, 64)), label_set).eval()
    for module in model.modules():  # as of a trained model: at first the last batch norm of each block lets nothing through
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_var.uniform_(0.5, 1.5)
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
    return model


def run(root, out, settings, seed=0, save_every=0.0):
    training, validation = open_splits("folder", root)
    return train(small_model(training.label_set, seed), training, validation, out, settings, save_every=save_every, progress=False)


def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)


def killed_after_step(step):
    keep = loop._Run._keep
    loop._Run._keep = lambda self: (keep(self), self.progress.step == step and die())


def within_step(step, death):
    """When the first group of weights has been updated, and the others have not."""
    module = sys.modules["torch.optim.sgd"]
    update = module.sgd
    calls = []

    def half(*args, **kwargs):
        update(*args, **kwargs)
        calls.append(args)
        if len(calls) == 4 * step - 3:  # a call for each of four groups
            death()

    module.sgd = half


def killed_within_step(step):
    within_step(step, die)


def killed_while_writing(step):
    """With the new state half written under its temporary name."""
    save = state._save

    def half(content, path):
        save(content, path)
        if content["progress"]["step"] == step:
            with Path(path).open("r+b") as file:
                file.truncate(path.stat().st_size // 2)
            die()

    state._save = half


def killed_between_files(step):
    """When the best and the last model are new, and the state is old."""
    write = state.write
    state.write = lambda folder, run, progress, parts: die() if progress.step == step else write(folder, run, progress, parts)


def kill(root, folder):
    settings = TrainingSettings(steps=8, batch_size=2, crop=(48, 48), lr=0.02, evaluate_every=3, seed=3)
    deaths = [(killed_while_writing, 0), (killed_after_step, 1), (killed_within_step, 2), (killed_between_files, 3), (killed_after_step, 6)]
    deaths += [(killed_while_writing, 7)]
    for number, (death, step) in enumerate([*deaths, (None, None)]):
        child = os.fork()  # before anything is computed here, so that no thread is lost
        if child == 0:
            if death is not None:
                death(step)
            run(root, folder / "killed", settings, seed=number if number > 1 else 0)  # what is resumed does not hang on the model given
            os._exit(0)
        status = os.waitpid(child, 0)[1]
        assert (os.WTERMSIG(status) == signal.SIGKILL) if death else (status == 0), (death, step, status)
    child = os.fork()
    if child == 0:
        run(root, folder / "whole", settings)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0


def one_step(root, out):
    """Without dropout, whose masks each process draws for itself."""
    training, validation = open_splits("folder", root)
    model = small_model(training.label_set)
    model.decode_head.dropout.p = model.auxiliary_head.dropout.p = 0.0
    settings = TrainingSettings(steps=1, batch_size=4, crop=(64, 64), weight_decay=0, freeze_batch_norm=True, warmup=0)
    train(model, training, validation, out, settings, progress=False)


def fatal_sample(*_):
    """At the fifth sample."""
    whole = Crops.__getitem__

    def fatal(self, position):
        if position >= 4:
            die()
        return whole(self, position)

    Crops.__getitem__ = fatal


def kill_worker():
    """And wait until it has ended, without reaping it, as torch does that."""
    (child,) = multiprocessing.active_children()
    os.kill(child.pid, signal.SIGKILL)
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)


def dead_while_starting(*_):
    """When it is given its first sample."""
    put, parent = Queue.put, os.getpid()
    calls = []

    def fatal(self, *args, **kwargs):
        calls.append(args)
        put(self, *args, **kwargs)
        if os.getpid() == parent and len(calls) == 1:
            kill_worker()

    Queue.put = fatal


def dead_within_step(step):
    within_step(step, kill_worker)


def dead_while_writing(step):
    save = state._save

    def slow(content, path):
        if content["progress"]["step"] == step and multiprocessing.active_children():
            kill_worker()
        save(content, path)

    state._save = slow


def dead_while_sending(step):
    """What it sends breaks off, and that it has ended is known while the state is written."""
    get, parent = Queue.get, os.getpid()
    calls = []

    def broken(self, *args, **kwargs):
        calls.append(args)
        if os.getpid() != parent or len(calls) != step:
            return get(self, *args, **kwargs)
        os.kill(multiprocessing.active_children()[0].pid, signal.SIGKILL)
        raise ConnectionResetError("[Errno 104] Connection reset by peer")

    Queue.get = broken
    save = state._save

    def slow(content, path):
        time.sleep(0.3)
        save(content, path)

    state._save = slow


def dead_worker(root, folder, where):
    """Prints what the library says of it; then the same call goes on without processes."""
    multiprocessing.set_start_method("fork")  # what is changed below is changed in the process too
    training, validation = open_splits("folder", root)
    settings = TrainingSettings(steps=6, batch_size=2, crop=(48, 48), lr=0.02, evaluate_every=6)
    options = {"save_every": 0.0, "progress": False}
    train(small_model(training.label_set), training, validation, folder / "whole", settings, workers=0, **options)
    whole = Crops.__getitem__
    deaths = {"starting": dead_while_starting, "reading": fatal_sample, "updating": dead_within_step, "writing": dead_while_writing}
    (deaths | {"sending": dead_while_sending})[where](3)
    try:
        train(small_model(training.label_set), training, validation, folder / "died", settings, workers=1, **options)
    except WorkerError as error:
        print(error)
        assert not multiprocessing.active_children()
    time.sleep(0.3)  # nothing is said of it later
    Crops.__getitem__ = whole
    train(small_model(training.label_set), training, validation, folder / "died", settings, workers=0, **options)


if __name__ == "__main__":
    torch.set_num_threads(1)
    what, root, folder, *where = sys.argv[1:]
    {"kill": kill, "step": one_step, "died": dead_worker}[what](Path(root), Path(folder), *where)
