import pytest

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
        with atomic_folder(path, "mark") as partial:
            (partial / "mark").write_text(content)
            (partial / content).touch()
    assert sorted(each.name for each in path.iterdir()) == ["mark", "two"]
    with pytest.raises(RuntimeError, match="stop"), atomic_folder(path, "mark") as partial:
        raise RuntimeError("stop")
    assert (path / "mark").read_text() == "two"
    assert [each.name for each in path.parent.iterdir()] == ["folder"]


def test_a_folder_of_another_kind_is_left_alone(tmp_path):
    (tmp_path / "thesis").write_text("mine")
    for path in (tmp_path, tmp_path / "thesis"):
        with pytest.raises(FileExistsError, match="holds no mark"), atomic_folder(path, "mark"):
            pass
    assert [each.name for each in tmp_path.iterdir()] == ["thesis"]


def test_a_sealed_text_shows_changes(tmp_path):
    text = seal({"a": 1, "b": [0.1, None]})
    assert unseal(text) == {"a": 1, "b": [0.1, None]}
    for changed in (text.replace("0.1", "0.2"), "[]", "{}", text[:-5]):
        with pytest.raises(ValueError, match=r"altered|Unterminated"):
            unseal(changed)


def test_checksum_is_sha256(tmp_path):
    (tmp_path / "empty").touch()
    assert sha256_of(tmp_path / "empty").startswith("e3b0c44298fc1c14")
