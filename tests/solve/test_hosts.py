"""The laws of ``two_processes.py``, and what one process makes of the checkpoints that two have left."""

import signal

import pytest

from tests.processes import ends, free_port, said, started
from tests.solve.two_processes import Interrupted, equal, halfway, swept

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def left(tmp_path_factory):
    """The folder that the laws were tried in, the last of them by a kill."""
    folder = tmp_path_factory.mktemp("hosts")
    with pytest.raises(Interrupted):
        swept(checkpoint=folder / "begun in one.npz", progress=halfway, batching="map")
    port = free_port()
    commands = [["-m", "tests.solve.two_processes", i, port, folder] for i in range(2)]
    with started(commands, folder, devices=2) as processes:
        ended = ends(processes, 400)
    for text in said(folder):
        assert "all laws hold" in text, text
    return folder, ended


def test_a_kill_of_one_ends_the_other(left):
    assert left[1] in ([3, -signal.SIGKILL], [-signal.SIGABRT, -signal.SIGKILL]), said(left[0])


@pytest.mark.parametrize("name", ["begun in two", "killed"])
def test_one_process_goes_on_from_what_two_have_left(left, name):
    path, seen = left[0] / f"{name}.npz", []
    equal(swept(checkpoint=path, progress=seen.append, batching="map"), swept(batching="map"))
    assert seen[0].step > 4 - 2 * (name == "killed")
    assert sorted(each.name for each in path.parent.glob(f"{name}.npz*")) == [f"{name}.npz", f"{name}.npz.records"]
