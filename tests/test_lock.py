"""requirements.lock is of requirements.txt, with hashes; an audit's exceptions have reasons."""

import re
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
HASH = re.compile(r"--hash=sha256:[0-9a-f]{64}")


def required():
    """The requirements of requirements.txt, but for the project itself."""
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    stripped = [line.partition(" #")[0].strip() for line in lines]
    return [Requirement(line) for line in stripped if line and line[0] not in "#-"]


def locked():
    """Each package of requirements.lock: its requirement, and its hashes."""
    text = (ROOT / "requirements.lock").read_text().replace("\\\n", "")
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return [(Requirement(line.partition("--hash")[0]), HASH.findall(line)) for line in lines]


def test_every_locked_package_has_one_version_and_hashes():
    assert len(locked()) > len(required())
    for package, hashes in locked():
        assert re.fullmatch(r"==[\w.+!]+", str(package.specifier)), package
        assert hashes, package


@pytest.mark.parametrize("wanted", required(), ids=lambda wanted: wanted.name)
def test_every_requirement_is_locked(wanted):
    name = canonicalize_name(wanted.name)
    found = [package for package, _ in locked() if canonicalize_name(package.name) == name]
    assert found, f"{name} is not in requirements.lock; make lock writes it anew"
    for package in found:
        (version,) = (each.version for each in package.specifier)
        assert wanted.specifier.contains(version), f"{package}; make lock writes it anew"


def test_every_exception_of_the_audit_has_a_reason():
    lines = (ROOT / ".ci/audit-exceptions.txt").read_text().splitlines()
    for line in lines:
        assert line.startswith("#") or len(line.split()) > 3, line
