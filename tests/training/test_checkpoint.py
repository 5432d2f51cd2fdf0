"""A run that is killed goes on as if it had not been."""

import json
import multiprocessing
import os
import random
import tempfile
import time
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from coalora_lib.adapter import CoaLora
from coalora_lib.adapter.saving import trained_parameters
from coalora_lib.files import seal, sha256_of, unseal
from coalora_lib.quantization import BlockwiseChoice
from coalora_lib.search import SearchPlan
from coalora_lib.training import TrainingPlan, train
from coalora_lib.training.checkpoint import CheckpointFolder, State, list_checkpoints
from coalora_lib.training.loop import Trainer
from tests.conftest import tiny

SET = [[BlockwiseChoice(bits, 8, "fp32", 16, 16)] * 12 for bits in (3, 4, 8)]
PLAN = TrainingPlan(steps=24, batch_size=8, learning_rate=1e-2)
SEARCH = SearchPlan(rounds=3, restarts=2, max_steps=2)


def with_dropout():
    """The tiny classifier, with the randomness of training in it."""
    model = CoaLora.attach(tiny("bert"), rank=4, output_bias=True)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.1
    return model


def run(examples, folder=None, steps_before_stop=None, plan=PLAN, **more):
    """Train with the search between; stop with an exception at some step if told to."""
    model = with_dropout()
    if steps_before_stop is not None:
        left = [steps_before_stop]

        def stop(*_):
            left[0] -= 1
            if left[0] < 0:
                raise KeyboardInterrupt

        model.register_forward_pre_hook(stop)
    arguments = {"search": SEARCH, "scoring": examples[:8], "checkpoint_every": 3} | more
    try:
        history = train(model, examples, SET, plan, checkpoints=folder, **arguments)
    except KeyboardInterrupt:
        return None
    return {n: p.detach().cpu() for n, p in trained_parameters(model).items()}, history


@pytest.fixture
def whole(examples):
    return run(examples)


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[n], second[n]) for n in first)


def test_a_run_with_checkpoints_is_the_run_without(examples, whole, tmp_path):
    weights, history = run(examples, tmp_path)
    assert same(weights, whole[0])
    assert history.losses == whole[1].losses


@pytest.mark.parametrize("passes", [2, 9, 20, 30, 47, 54])
def test_a_stopped_run_ends_with_the_same_weights_and_history(examples, whole, tmp_path, passes):
    assert run(examples, tmp_path, steps_before_stop=passes) is None
    weights, history = run(examples, tmp_path)
    assert same(weights, whole[0])
    assert history.losses == whole[1].losses
    assert history.configurations == whole[1].configurations
    for ours, theirs in zip(history.rounds, whole[1].rounds, strict=True):
        assert torch.equal(ours.configurations, theirs.configurations)
        assert torch.equal(ours.losses, theirs.losses)
        assert torch.equal(ours.kept, theirs.kept)
        assert ours.proposed == theirs.proposed


def test_a_finished_run_is_not_run_again(examples, whole, tmp_path):
    run(examples, tmp_path)
    weights, history = run(examples, tmp_path, steps_before_stop=0)
    assert same(weights, whole[0])
    assert history.losses == whole[1].losses


def test_two_checkpoints_are_kept(examples, tmp_path):
    run(examples, tmp_path)
    assert [path.name for path in list_checkpoints(tmp_path)] == [
        "step-00000021-2",
        "step-00000024-2",
    ]


def truncated(path):
    path.write_bytes(path.read_bytes()[:-100])


def altered(path):
    content = bytearray(path.read_bytes())
    content[-20] ^= 1
    path.write_bytes(bytes(content))


def removed(path):
    path.unlink()


@pytest.mark.parametrize("damage", [truncated, altered, removed])
@pytest.mark.parametrize("name", ["state.json", "state.safetensors"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_used(
    examples, whole, tmp_path, name, damage
):
    run(examples, tmp_path, steps_before_stop=50)
    newest = list_checkpoints(tmp_path)[-1]
    damage(newest / name)
    with pytest.warns(UserWarning, match=f"checkpoint {newest} is not used"):
        weights, history = run(examples, tmp_path)
    assert same(weights, whole[0])
    assert history.losses == whole[1].losses
    assert (tmp_path / f"damaged-{newest.name}").is_dir()


def reseal(path, **changed):
    """Change a checkpoint's values, and let its seal be right."""
    content = unseal(path.read_text()) | changed
    path.write_text(seal({name: each for name, each in content.items() if each is not None}))


@pytest.mark.parametrize("changed", [{"run": None}, {"run": 7}, {"tensors_sha256": None}], ids=str)
def test_a_checkpoint_that_says_not_what_it_is_of_is_put_aside(examples, tmp_path, changed):
    train(with_dropout(), examples, SET, replace(PLAN, steps=2), checkpoints=tmp_path)
    (newest,) = list_checkpoints(tmp_path)
    reseal(newest / "state.json", **changed)
    with pytest.warns(UserWarning, match=f"checkpoint {newest} is not used"):
        train(with_dropout(), examples, SET, replace(PLAN, steps=2), checkpoints=tmp_path)


def test_tensors_of_a_long_wrong_header_are_named_in_few_words(examples, tmp_path):
    plan = replace(PLAN, steps=1)
    train(with_dropout(), examples, SET, plan, checkpoints=tmp_path)
    (newest,) = list_checkpoints(tmp_path)
    header = json.dumps({"a": {"dtype": "x" * 9000, "shape": [], "data_offsets": [0, 0]}}).encode()
    tensors = newest / "state.safetensors"
    tensors.write_bytes(len(header).to_bytes(8, "little") + header)
    reseal(newest / "state.json", tensors_sha256=sha256_of(tensors))
    with pytest.raises(ValueError, match=r"is not a safetensors file") as caught:
        train(with_dropout(), examples, SET, plan, checkpoints=tmp_path)
    assert len(str(caught.value)) < 800


@pytest.mark.parametrize(("key", "value"), [("two\nlines", 0), ("nothing", None)])
def test_a_foreign_entry_of_another_run_is_named_on_one_line(examples, tmp_path, key, value):
    plan = replace(PLAN, steps=1)
    train(with_dropout(), examples, SET, plan, checkpoints=tmp_path)
    (newest,) = list_checkpoints(tmp_path)
    run = unseal((newest / "state.json").read_text())["run"]
    reseal(newest / "state.json", run=run | {"settings": run["settings"] | {key: value}})
    name = " ".join(key.split())
    with pytest.raises(ValueError, match=rf"another run \(settings, {name}: {value} there, None\)"):
        train(with_dropout(), examples, SET, plan, checkpoints=tmp_path)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"step": None}, "step: Field required"),
        ({"step": 1.5}, "step: Input should be a valid integer"),
        ({"step": 9}, "step=9 with 2 losses and 0 searches, of a plan of 2 steps"),
        ({"position": 10**6}, "batch 1000000 of an epoch of 5"),
        ({"parameter": {}}, "the state: .* is None there"),
        ({"draws": {"tensor": "nothing"}}, "there is no tensor 'nothing'"),
        ({"draws": {"tensor": "set"}}, r"draws must be torch\.uint8 of shape"),
        ({"random": {"0.cpu": {"tensor": "zeros"}}}, "a state of random numbers is damaged"),
        ({"schedule": {"step": 1}}, "schedule must have the entries"),
        ({"optimizer": {"state": {}, "param_groups": []}}, r"optimizer\.param_groups must have 1"),
        ({"set": {"tensor": "draws"}}, r"set must be torch\.int64 of 60 columns"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_a_state_that_does_not_fit_is_named_and_the_model_left(
    examples, tmp_path, changed, message
):
    plan = replace(PLAN, steps=2)
    train(with_dropout(), examples, SET, plan, checkpoints=tmp_path)
    (newest,) = list_checkpoints(tmp_path)
    tensors = load_file(newest / "state.safetensors")
    tensors["zeros"] = torch.zeros_like(tensors["random.0.cpu"])
    save_file(tensors, newest / "state.safetensors")
    changed = changed | {"tensors_sha256": sha256_of(newest / "state.safetensors")}
    reseal(newest / "state.json", **changed)
    model = with_dropout()
    before = {name: each.clone() for name, each in model.state_dict().items()}
    with pytest.raises(ValueError, match=f"checkpoint {newest} cannot be continued: {message}"):
        train(model, examples, SET, plan, checkpoints=tmp_path)
    assert same(model.state_dict(), before)


def test_checkpoints_of_another_run_are_refused_and_kept(examples, tmp_path):
    run(examples, tmp_path)
    kept = list_checkpoints(tmp_path)
    for plan, data, message in (
        (replace(PLAN, seed=1), examples, r"plan, seed: 0 there, 1"),
        (PLAN, examples[1:], "data"),
    ):
        with pytest.raises(ValueError, match=f"is of another run \\({message}"):
            run(data, tmp_path, plan=plan)
    with pytest.raises(ValueError, match="is of another run"):
        run(examples, tmp_path, search=None)
    assert list_checkpoints(tmp_path) == kept


def test_a_checkpoint_is_safetensors_and_json(examples, tmp_path):
    run(examples, tmp_path)
    newest = list_checkpoints(tmp_path)[-1]
    assert sorted(path.name for path in newest.iterdir()) == ["state.json", "state.safetensors"]
    state = unseal((newest / "state.json").read_text())
    assert state["step"] == 24
    assert seal(state) == (newest / "state.json").read_text()
    tensors = load_file(newest / "state.safetensors")
    assert {"draws", "set", "random.0.cpu"} <= tensors.keys()


def test_an_interval_of_no_steps_is_refused(examples, tmp_path):
    with pytest.raises(ValueError, match="checkpoint_every=0 must be at least 1"):
        run(examples, tmp_path, steps_before_stop=0, checkpoint_every=0)


def test_a_folder_that_cannot_be_written_into_is_found_before_the_first_step(examples, tmp_path):
    (tmp_path / "file").write_text("mine")
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(OSError, match=f"no checkpoints can be written into {folder}: "):
            run(examples, folder, steps_before_stop=0)
    assert (tmp_path / "file").read_text() == "mine"


@contextmanager
def as_an_ordinary_user():
    """The superuser may write everywhere."""
    user = os.geteuid()
    os.seteuid(user or 65534)
    try:
        yield
    finally:
        os.seteuid(user)


def test_a_read_only_folder_is_found_before_the_first_step(examples):
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o555)
        model = with_dropout()
        trainer = Trainer(model, examples, SET, PLAN)
        with as_an_ordinary_user(), pytest.raises(PermissionError, match="no checkpoints can be"):
            trainer.run(folder)
        assert trainer.step == 0
        assert not os.listdir(folder)


def test_a_second_training_into_the_same_folder_is_refused(examples, whole, tmp_path):
    first = CheckpointFolder(tmp_path, {"name": "first"})
    first.open()
    with pytest.raises(RuntimeError, match=f"in use by another training .process {os.getpid()}"):
        run(examples, tmp_path)
    assert list_checkpoints(tmp_path) == []
    first.close()
    assert same(run(examples, tmp_path)[0], whole[0])


def hold(path, held):
    folder = CheckpointFolder(path, {})
    folder.open()
    held.set()
    time.sleep(60)


def test_a_killed_training_holds_its_folder_no_longer(tmp_path):
    context = multiprocessing.get_context("fork")
    held = context.Event()
    holder = context.Process(target=hold, args=(tmp_path, held))
    holder.start()
    assert held.wait(60)
    second = CheckpointFolder(tmp_path, {})
    with pytest.raises(RuntimeError, match=f"in use by another training .process {holder.pid}"):
        second.open()
    holder.kill()
    holder.join()
    second.open()
    second.close()


def test_what_a_killed_run_left_unfinished_is_removed(examples, whole, tmp_path):
    run(examples, tmp_path, steps_before_stop=20)
    # Of the same process number too: after a restart in a container it is often the same.
    for number in (os.getpid(), 1):
        leftover = tmp_path / f".step-00000015-1.{number}.tmp"
        leftover.mkdir()
        (leftover / "state.safetensors").write_bytes(b"half")
    weights, _ = run(examples, tmp_path)
    assert same(weights, whole[0])
    assert not list(tmp_path.glob(".step-*"))


def test_a_trainers_state_goes_on_in_another_trainer(examples, whole):
    first = Trainer(with_dropout(), examples, SET, PLAN)
    for _ in range(5):
        first.losses.append(first.train_step())
        first.step += 1
    state = first.state_dict()
    state = State(json.loads(json.dumps(state.values)), {n: t.clone() for n, t in state[1].items()})
    wanted = first.run()
    second = Trainer(with_dropout(), examples, SET, PLAN)
    second.load_state_dict(state)
    assert second.step == 5
    assert second.run().losses == wanted.losses
    assert same(dict(second.parameters), dict(first.parameters))


def test_a_parameter_without_gradients_is_no_obstacle(examples, tmp_path):
    model = with_dropout()
    model.unused = torch.nn.Parameter(torch.ones(3))
    train(model, examples, SET, replace(PLAN, steps=4), checkpoints=tmp_path)
    again = with_dropout()
    again.unused = torch.nn.Parameter(torch.ones(3))
    history = train(again, examples, SET, replace(PLAN, steps=4), checkpoints=tmp_path)
    assert len(history.losses) == 4
    assert same(trained_parameters(model), trained_parameters(again))


def run_and_write(examples, folder, result):
    """The whole run in a process of its own, with a checkpoint after every step."""
    weights, _ = run(examples, folder, checkpoint_every=1)
    save_file(weights, result)


def started(*arguments):
    # A fork has everything imported; torch computes in one thread here, so it may be forked.
    process = multiprocessing.get_context("fork").Process(target=run_and_write, args=arguments)
    process.start()
    return process


def test_kill_9_at_ten_random_moments(examples, whole, tmp_path):
    moments = random.Random(0)
    folder, result = tmp_path / "killed", tmp_path / "killed.safetensors"
    kills, interrupted = 0, 0
    while kills < 10 or not result.exists():
        before, began = list_checkpoints(folder), time.perf_counter()
        process = started(examples, folder, result)
        if kills < 10:
            while (
                process.is_alive() and list_checkpoints(folder) == before
            ):  # until it has made a step
                time.sleep(1e-3)
            step = (time.perf_counter() - began) / 2
            time.sleep(moments.uniform(0, min(step, 0.1)))  # somewhere in the next ones
            interrupted += process.is_alive()
            process.kill()  # SIGKILL
            kills += 1
        process.join()
    assert interrupted >= 5  # most of the kills fell into training
    assert same(load_file(result), whole[0])
