import os

import pytest
import torch
from safetensors.torch import save_file

from coalora_lib.files import atomic_file, atomic_folder, seal, sha256_of, unseal


def test_a_file_appears_whole_or_not_at_all(tmp_path):
    path = tmp_path / "file"
    path.write_text("before")
    with pytest.raises(FileNotFoundError), atomic_file(path):
        pass  # nothing was written to put in its place
    assert path.read_text() == "before"
    with atomic_file(path) as partial:
        partial.write_text("after")
    assert path.read_text() == "after"
    assert [each.name for each in tmp_path.iterdir()] == ["file"]


def test_a_folder_is_replaced_as_a_whole(tmp_path):
    path = tmp_path / "deep" / "folder"
    for content in ("one", "two"):
        with atomic_folder(path, "mark", ("one", "two")) as partial:
            (partial / "mark").write_text(content)
            (partial / content).touch()
    assert sorted(each.name for each in path.iterdir()) == ["mark", "two"]
    with pytest.raises(RuntimeError, match="stop"), atomic_folder(path, "mark", None) as partial:
        raise RuntimeError("stop")
    assert (path / "mark").read_text() == "two"
    assert [each.name for each in path.parent.iterdir()] == ["folder"]


def test_a_folder_that_cannot_be_made_leaves_no_parents(tmp_path):
    name = "a" * 250  # the name of what is written first is longer than a name may be
    with pytest.raises(OSError, match="name too long"), atomic_folder(tmp_path / "b" / name, "m"):
        pass
    with pytest.raises(RuntimeError), atomic_folder(tmp_path / "b" / "c" / "d", "m"):
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["a\0b", "\ud800"], ids=["nul", "surrogate"])
@pytest.mark.parametrize(
    "write", [atomic_file, lambda path: atomic_folder(path, "m")], ids=["file", "folder"]
)
def test_what_no_file_can_be_called_is_named(tmp_path, name, write):
    with pytest.raises(ValueError, match=r"cannot be the name of a file"), write(tmp_path / name):
        pass
    assert list(tmp_path.iterdir()) == []


def test_nothing_foreign_in_a_folder_is_deleted(tmp_path):
    path = tmp_path / "folder"
    with atomic_folder(path, "mark") as partial:
        (partial / "mark").touch()
    (path / "thesis").write_text("mine")
    with pytest.raises(FileExistsError, match="also holds thesis"), atomic_folder(path, "mark"):
        pass
    assert (path / "thesis").read_text() == "mine"


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_files_have_the_mode_that_the_umask_asks_for(tmp_path, umask):
    before = os.umask(umask)
    try:
        with atomic_folder(tmp_path / "folder", "mark") as partial:
            save_file({"a": torch.zeros(1)}, partial / "mark")
        with atomic_file(tmp_path / "file") as partial:
            save_file({"a": torch.zeros(1)}, partial)
    finally:
        os.umask(before)
    for path in (tmp_path / "folder" / "mark", tmp_path / "file"):
        assert path.stat().st_mode & 0o777 == 0o666 & ~umask


def test_a_folder_of_another_kind_is_left_alone(tmp_path):
    (tmp_path / "thesis").write_text("mine")
    for path in (tmp_path, tmp_path / "thesis"):
        with pytest.raises(FileExistsError, match="has no mark"), atomic_folder(path, "mark"):
            pass
    assert [each.name for each in tmp_path.iterdir()] == ["thesis"]


def test_a_sealed_text_shows_changes(tmp_path):
    text = seal({"a": 1, "b": [0.1, None]})
    assert unseal(text) == {"a": 1, "b": [0.1, None]}
    for changed in (text.replace("0.1", "0.2"), "[]", "{}", text[:-5]):
        with pytest.raises(ValueError, match=r"changed|Unterminated"):
            unseal(changed)
    with pytest.raises(ValueError, match="nested too deep"):
        unseal("[" * 100_000)


def test_checksum_is_sha256(tmp_path):
    (tmp_path / "empty").touch()
    assert sha256_of(tmp_path / "empty").startswith("e3b0c44298fc1c14")
