"""Splatting for a long time, from several threads, in forked and spawned workers, and with Ctrl-C."""

from __future__ import annotations

import copy
import gc
import multiprocessing
import os
import pickle
import signal
import sys
import threading
import traceback
from dataclasses import replace

import pytest
import torch
from splat_scenes import Scene, gradients, random_scene
from torch.utils.data import DataLoader, Dataset

from guava import native
from guava.camera import Camera
from guava.rendering import CONVENTIONS, SplatOutput, splat, splat_native


@pytest.fixture(autouse=True, scope="module")
def _two_threads():
    """Whatever the machine has: what is tested here is what threads can break."""
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(threads)


FORKS = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")


def picture(scene: Scene) -> torch.Tensor:
    scene = scene.to(torch.float32)
    with torch.no_grad():
        return splat(*scene.gaussians, scene.camera, background=scene.background, backend="native").features


def small_scene(seed: int = 50) -> Scene:
    return random_scene(150, 4, 48, 40, seed, clear=False).to(torch.float32)


# --- memory -------------------------------------------------------------------------------------------------


def resident_bytes() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="needs /proc")
@pytest.mark.parametrize("how", ["forward", "into given memory", "backward", "backward not called"])
def test_a_thousand_frames_keep_no_memory(how):
    scene = small_scene()
    out = SplatOutput.empty(48, 40, 4)
    leaves = scene.leaves()
    asking = scene.with_leaves(leaves)

    def frame():
        if how == "forward":
            picture(scene)
        elif how == "into given memory":
            with torch.no_grad():
                splat(*scene.gaussians, scene.camera, backend="native", out=out)
        else:
            drawn = splat(*asking.gaussians, asking.camera, background=asking.background, backend="native")
            if how == "backward":
                torch.autograd.grad(drawn.features.sum() + drawn.depth.sum(), leaves)

    def held() -> int:
        with native.context() as context:
            return context.bytes

    for _ in range(100):
        frame()
    gc.collect()
    gc.disable()  # nothing may need the collector
    try:
        before, native_before, states = resident_bytes(), held(), len(splat_native._free_states)
        for _ in range(1000):
            frame()
        grown = resident_bytes() - before
    finally:
        gc.enable()
    # A leaked picture a frame would be 46 MB, a leaked state or set of gradients more than 10 MB.
    assert grown < 4 << 20
    assert held() == native_before
    assert len(splat_native._free_states) == states


def test_states_are_reused_and_not_hoarded():
    """Whether or not there was a backward pass, and whatever went wrong."""
    scene = small_scene()

    def draws(count):
        leaf = scene.means.clone().requires_grad_()
        return [splat(leaf, *scene.gaussians[1:], scene.camera, backend="native") for _ in range(count)]

    del draws(1)[:]
    known = {pointer for _, pointer in splat_native._free_states}
    assert known
    drawn = draws(1)
    drawn[0].features.sum().backward()
    assert len(splat_native._free_states) == len(known) - 1  # the graph could be asked again
    del drawn
    assert {pointer for _, pointer in splat_native._free_states} == known
    many = draws(20)
    assert not splat_native._free_states
    del many
    assert 1 <= len(splat_native._free_states) <= 4
    before = len(splat_native._free_states)
    broken = replace(scene, means=scene.means / 0.0)
    for _ in range(3):
        with pytest.raises(ValueError):
            gradients(broken, backend="native")
    assert len(splat_native._free_states) == before


def test_states_of_large_scenes_are_given_back(monkeypatch):
    monkeypatch.setattr(splat_native, "_KEPT_STATE_BYTES", 1)
    splat_native._free_states.clear()
    gradients(small_scene(), backend="native")
    assert not splat_native._free_states


# --- threads ------------------------------------------------------------------------------------------------


def test_two_threads_at_once():
    """Each with its own scenes, forward and backward, over and over; nobody sees anybody else's."""
    scenes = [small_scene(60 + k) for k in range(4)]
    wanted = [gradients(s, backend="native") for s in scenes]
    failures = []
    start = threading.Barrier(4)

    def work(k):
        try:
            start.wait()
            for _ in range(40):
                out, grads = gradients(scenes[k], backend="native")
                assert torch.equal(out.features, wanted[k][0].features)
                assert all(torch.equal(grads[n], wanted[k][1][n]) for n in grads)
        except BaseException:
            failures.append(traceback.format_exc())

    threads = [threading.Thread(target=work, args=(k,)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures, failures[0]


def test_a_graph_that_dies_on_another_thread():
    scene = small_scene()
    leaf = scene.means.clone().requires_grad_()
    drawn = [splat(leaf, *scene.gaussians[1:], scene.camera, backend="native")]

    def finish():
        drawn.pop().features.sum().backward()

    thread = threading.Thread(target=finish)
    thread.start()
    thread.join()
    alone = torch.autograd.grad(
        splat(leaf, *scene.gaussians[1:], scene.camera, backend="native").features.sum(), leaf
    )[0]
    assert torch.equal(leaf.grad, alone)


@pytest.fixture
def ctrl_c():
    """Ctrl-C as in a terminal: background jobs of a shell inherit that it is ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.skipif(sys.platform == "win32", reason="sends itself SIGINT")
def test_control_c_stops_a_picture_in_the_middle(ctrl_c):
    """Four thousand transparent Gaussians over 16 million pixels would take many seconds."""
    count = 4000
    args = (
        torch.tensor([[0.0, 0.0, -12.0]]).repeat(count, 1), torch.tensor([[1.0, 0, 0, 0]]).repeat(count, 1),
        torch.full((count, 3), 100.0), torch.full((count,), 0.005), torch.ones(count, 1),
    )
    camera = Camera.frontal(4096)
    timer = threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT))
    with splat_native.recorded_stats() as finished:
        timer.start()
        with pytest.raises(KeyboardInterrupt):
            splat(*args, camera, backend="native")
    assert not finished
    scene = small_scene()
    assert_same_as_reference(scene)


def assert_same_as_reference(scene):
    wanted = splat(*scene.gaussians, scene.camera, background=scene.background, backend="torch").features
    torch.testing.assert_close(picture(scene), wanted, atol=2e-5, rtol=0)


# --- processes ----------------------------------------------------------------------------------------------


def _draw_in_child(connection, scene: Scene) -> None:
    """Two threads here too, and little else: torch's own threads do not survive the fork."""
    try:
        out, grads = gradients(scene, backend="native")
        connection.send((out.features.numpy(), grads["means"].numpy()))
    except BaseException:
        connection.send(traceback.format_exc())


@FORKS
@pytest.mark.parametrize("inside", [False, True])
def test_after_a_fork(inside):
    """Parent and child go on, also when the parent forks while it holds contexts and states."""
    context = multiprocessing.get_context("fork")
    scene = small_scene()
    wanted, wanted_grads = gradients(scene, backend="native")
    graph = splat(scene.means.clone().requires_grad_(), *scene.gaussians[1:], scene.camera, backend="native")
    for _ in range(2):
        receiver, sender = context.Pipe(duplex=False)
        child = context.Process(target=_draw_in_child, args=(sender, scene))
        if inside:
            with native.context():
                child.start()
        else:
            child.start()
        answered = receiver.poll(60)
        if not answered:
            child.kill()
        assert answered, "the child hangs"
        answer = receiver.recv()
        child.join(60)
        assert not isinstance(answer, str), answer
        assert (answer[0] == wanted.features.numpy()).all()
        assert (answer[1] == wanted_grads["means"].numpy()).all()
        assert torch.equal(gradients(scene, backend="native")[0].features, wanted.features)
    graph.features.sum().backward()


class Pictures(Dataset):
    """A splatted picture per index, as a training set of renders would have."""

    def __len__(self):
        return 4

    def __getitem__(self, index):
        return picture(small_scene(70 + index))


@pytest.mark.parametrize("method", [pytest.param("fork", marks=FORKS), "spawn"])
def test_in_worker_processes(method):
    wanted = [picture(small_scene(70 + k)) for k in range(4)]
    loader = DataLoader(
        Pictures(), batch_size=None, num_workers=1 if method == "spawn" else 2,
        multiprocessing_context=method, timeout=120,
    )
    for got, reference in zip(loader, wanted, strict=True):
        assert torch.equal(got, reference)


def test_conventions_travel():
    for conventions in CONVENTIONS.values():
        assert pickle.loads(pickle.dumps(conventions)) == conventions == copy.deepcopy(conventions)
        assert hash(copy.copy(conventions)) == hash(conventions)
