"""Searches whose configurations are scored on workers: the same losses, the same run."""

import copy
from concurrent.futures import CancelledError
from dataclasses import replace

import pytest
import torch
from typer.testing import CliRunner

from coalora_lib.adapter import CoaLora
from coalora_lib.batch.scoring import WorkerScorer
from coalora_lib.cli import app
from coalora_lib.search import SearchPlan
from coalora_lib.spaces import random_configuration
from coalora_lib.tasks.embedded import review_phrases
from coalora_lib.training import TrainingPlan, train
from coalora_lib.training.alternation import losses
from tests.conftest import tiny_bert

SEARCH = SearchPlan(rounds=2, restarts=2, max_steps=2, proposals=3)
PLAN = TrainingPlan(steps=4, batch_size=8, seed=0)


def some_configurations(model, count):
    generator = torch.Generator().manual_seed(0)
    return [random_configuration(model.shapes, generator, model.space) for _ in range(count)]


@pytest.mark.parametrize("count", [1, 5])
def test_losses_are_those_of_one_process(count, client, model, examples):
    scorer, asked = WorkerScorer(client), some_configurations(model, count)
    for _ in range(2):  # the second time other parameters, of a model that is there
        found = scorer(model, asked, examples)
        assert list(found) == pytest.approx(list(losses(model, asked, examples)), rel=1e-9)
        for factors in model.layers.factors():
            torch.nn.init.normal_(factors.l1.data, std=0.3)


def test_choices_of_a_space_of_named_tuples_are_sent(client, examples):
    model = CoaLora.attach(tiny_bert(), rank=4, alpha=8, space="gguf")
    asked = some_configurations(model, 2)
    found = WorkerScorer(client)(model, asked, examples)
    assert list(found) == pytest.approx(list(losses(model, asked, examples)), rel=1e-9)


def test_a_run_is_the_same(client, examples):
    runs = []
    for scorer in (None, WorkerScorer(client)):
        model = CoaLora.attach(tiny_bert(), rank=4, alpha=8)
        first = some_configurations(model, 4)
        given = {"search": SEARCH, "scoring": examples[:16], "scorer": scorer}
        history = train(model, examples, first, replace(PLAN), **given)
        runs.append((model, history))
    (plain, one), (other, two) = runs
    assert one.losses == pytest.approx(two.losses, rel=1e-9)
    for mine, theirs in zip(one.rounds, two.rounds, strict=True):
        assert torch.equal(mine.configurations, theirs.configurations)
        torch.testing.assert_close(mine.losses, theirs.losses)
        assert mine.proposed == 3
    for (name, a), (_, b) in zip(plain.named_parameters(), other.named_parameters(), strict=True):
        torch.testing.assert_close(a, b, msg=name)


@pytest.mark.parametrize("error", [OSError, CancelledError], ids=["scheduler gone", "cancelled"])
def test_without_workers_it_is_done_here(error, client, model, examples, monkeypatch):
    scorer, asked = WorkerScorer(client), some_configurations(model, 3)
    expected = list(losses(copy.deepcopy(model), asked, examples))
    monkeypatch.setattr(client, "nthreads", dict)
    assert list(scorer(model, asked, examples)) == pytest.approx(expected)
    monkeypatch.undo()

    def lost(*_, **__):
        raise error("the scheduler is gone")

    monkeypatch.setattr(client, "submit", lost)
    with pytest.warns(UserWarning, match="workers were lost, so this process scores"):
        found = list(scorer(model, asked, examples))
    assert found == pytest.approx(expected)


def test_train_takes_the_address_of_a_scheduler(client, small_run, tmp_path, monkeypatch):
    rows = [f"{text}\t{label}" for text, label in review_phrases(60, 0)]
    (tmp_path / "data.tsv").write_text("\n".join(["text\tlabel", *rows]))
    asked = []
    score = WorkerScorer.__call__

    def noted(self, model, configurations, *given):
        asked.append(len(configurations))
        return score(self, model, configurations, *given)

    monkeypatch.setattr(WorkerScorer, "__call__", noted)
    small = {"restarts": 1, "max_steps": 2, "proposals": 2}
    monkeypatch.setattr("coalora_lib.recipes.training.SEARCH", small)
    command = [
        "train", "--data", str(tmp_path / "data.tsv"), "--label", "label", "--rank", "2",
        "--model", small_run.profile.model, "--out", str(tmp_path / "run"), "--epochs", "1",
        "--configurations", "4", "--searches", "1", "--scheduler", client.scheduler.address,
    ]  # fmt: skip
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    assert asked[0] == 4  # the set, and then what was proposed
    assert len(asked) > 1


def test_a_worker_of_other_packages_is_refused(client, monkeypatch):
    other = {"code": "another"}
    monkeypatch.setattr("coalora_lib.batch.scoring.facts", lambda _: other)
    with pytest.raises(ValueError, match="differs from this process: code is"):
        WorkerScorer(client)
