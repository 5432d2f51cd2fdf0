"""Folders that were written: a saved model, checkpoints, exports."""

import json
import shutil
import warnings

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from coalora_lib.adapter import CoaLora, saving
from coalora_lib.adapter.export import MARKER
from coalora_lib.files import SEAL, seal, sha256_of, unseal
from coalora_lib.training import TrainingPlan, train
from coalora_lib.training.checkpoint import TENSORS, VALUES, list_checkpoints
from tests.conftest import tiny_bert
from tests.fuzz.documents import (
    JUNK,
    TEXTS,
    broken_json,
    broken_safetensors,
    resealed,
)
from tests.fuzz.judge import inputs, judge


def trust(folder):
    """Let a folder's checksums be those of its files: who alters one may alter the others."""
    about = unseal((folder / saving.DESCRIPTION).read_text())
    about["weights_sha256"] = sha256_of(folder / saving.WEIGHTS)
    about["config_sha256"] = sha256_of(folder / saving.CONFIG)
    about["fitted_sha256"] = sha256_of(folder / saving.FITTED)
    (folder / saving.DESCRIPTION).write_text(seal(about))


BROKEN = {
    saving.DESCRIPTION: lambda content: resealed(json.loads(content)),
    saving.CONFIG: lambda content: broken_json(json.loads(content)),
    saving.WEIGHTS: broken_safetensors,
    saving.FITTED: broken_safetensors,
}


@inputs(60)
@given(data=st.data())
def test_saved_models(data, fresh, saved):
    folder = fresh() / "model"
    shutil.copytree(saved, folder)
    name = data.draw(st.sampled_from([saving.DESCRIPTION, *BROKEN]))
    (folder / name).write_bytes(data.draw(BROKEN[name]((folder / name).read_bytes())))
    if name != saving.DESCRIPTION and data.draw(st.integers(0, 4)):
        trust(folder)
    given_base = data.draw(st.booleans())
    base = tiny_bert() if given_base else None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        judge("saved models", lambda: CoaLora.from_pretrained(folder, base), [folder], folder)


@inputs(10)
@given(st.sampled_from(list(BROKEN)), st.booleans())
def test_saved_models_with_a_part_missing(fresh, saved, name, as_folder):
    folder = fresh() / "model"
    shutil.copytree(saved, folder)
    (folder / name).unlink()
    if as_folder:
        (folder / name).mkdir()
    judge("saved models", lambda: CoaLora.from_pretrained(folder, tiny_bert()), [folder], folder)


PLAN = TrainingPlan(steps=1, batch_size=8, configurations_per_step=1)


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """A model, its examples, and a folder with a checkpoint of their finished training."""
    torch.manual_seed(0)
    model = CoaLora.attach(tiny_bert(), rank=2, alpha=4, width=2, hidden=8)
    tokens = torch.randint(6, 64, (8, 5))
    examples = [
        {"input_ids": row, "attention_mask": torch.ones_like(row), "labels": torch.tensor(0)}
        for row in tokens
    ]
    folder = tmp_path_factory.mktemp("trained") / "checkpoints"
    configuration = model.resolve(3.0)
    train(model, examples, [configuration], PLAN, checkpoints=folder)
    return model, examples, configuration, folder


@inputs(50)
@given(data=st.data())
def test_checkpoints(data, fresh, checkpoints):
    model, examples, configuration, stored = checkpoints
    folder = fresh() / "checkpoints"
    shutil.copytree(stored, folder)
    (newest,) = list_checkpoints(folder)
    content = json.loads((newest / VALUES).read_text())
    if data.draw(st.booleans()):
        (newest / VALUES).write_bytes(data.draw(resealed(content)))
    else:
        file = newest / TENSORS
        file.write_bytes(data.draw(broken_safetensors(file.read_bytes())))
        del content[SEAL]
        if data.draw(st.integers(0, 4)):
            content["tensors_sha256"] = sha256_of(file)
        (newest / VALUES).write_text(seal(content))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = judge(
            "checkpoints",
            lambda: train(model, examples, [configuration], PLAN, checkpoints=folder),
            [folder],
        )
    if found is None:
        for name, tensor in model.state_dict().items():
            assert torch.equal(tensor, before[name]), f"{name} is another after a refusal"


@inputs(20)
@given(
    st.sampled_from(["marker", "foreign", "file", "name"]),
    st.sampled_from(TEXTS),
    resealed({"base_model": "b", "space": "nf", "configuration": {"a": 1}}),
    st.sampled_from([None, "packed", "base_model"]) | JUNK,
)
def test_exports(fresh, adapted, there, name, content, weights):
    root = fresh()
    folder = root / "export"
    if there == "file":
        folder.write_bytes(content)
    elif there == "name":
        folder = root / "export" / name
    else:
        folder.mkdir()
        (folder / (MARKER if there == "marker" else "notes.txt")).write_bytes(content)
    judge("exports", lambda: adapted.export_peft_adapter(folder, 3.0, weights), (), root)
