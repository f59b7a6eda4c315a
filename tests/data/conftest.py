"""Folders of images."""

import shutil

import pytest
from helpers.imagenet import write_tree


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    return write_tree(tmp_path_factory.mktemp("imagenet"))


@pytest.fixture
def own_tree(tree, tmp_path):
    """A copy that a test may spoil."""
    return shutil.copytree(tree, tmp_path / "tree")


@pytest.fixture(autouse=True)
def rendered_once():
    """Not here, where the pictures themselves are tested."""
