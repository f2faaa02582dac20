import os
import sys
from multiprocessing import forkserver

os.environ.setdefault('OMP_NUM_THREADS', '1')    # parallel workers on few cores: more threads only slow them down
os.environ.setdefault('HF_HUB_OFFLINE', '1')
if sys.platform == 'linux':     # else gloo looks the machine's name up for its address, which not every container knows
    os.environ.setdefault('GLOO_SOCKET_IFNAME', 'lo')

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def seeded():
    """Every test starts from the same random numbers, and leaves the process in the folder where it was."""
    torch.manual_seed(0)
    before = os.getcwd()
    yield
    assert os.getcwd() == before


@pytest.fixture(autouse=True, scope='session')
def stand_ins():
    """Runs draw no curves and exports are checked in this process; what they replace, by the marks that bring it back.

    The one costs more than the training of most tests, the other a process that imports torch.
    """
    from .helpers import STAND_INS, stand_in
    real = {mark: [(module, name, getattr(module, name)) for module, name, _ in places]
            for mark, places in STAND_INS.items()}
    stand_in()
    return real


@pytest.fixture(autouse=True)
def real_where_marked(request, seeded, stand_ins, monkeypatch):
    for mark, places in stand_ins.items():
        for place in places if request.node.get_closest_marker(mark) else ():
            monkeypatch.setattr(*place)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """What a file's tests share is made in one worker (`--dist loadgroup`), not in each."""
    for item in items:
        shared = (definitions[-1].scope for definitions in item._fixtureinfo.name2fixturedefs.values())
        if {'module', 'class'} & set(shared):
            item.add_marker(pytest.mark.xdist_group(str(item.path)))


CPU_LIMIT = 60      # seconds of CPU time of a test, its processes included; the wall clock depends on who else is there


def cpu_seconds():
    """Of this process, of those it has waited for, and of the server that forks tests' processes, with all of its."""
    own, server = sum(os.times()[:4]), getattr(forkserver._forkserver, '_forkserver_pid', None)
    if server is None or not os.path.exists(f'/proc/{server}/stat'):
        return own
    with open(f'/proc/{server}/stat') as file:
        ticks = file.read().rpartition(')')[2].split()[11:15]
    return own + sum(map(int, ticks)) / os.sysconf('SC_CLK_TCK')


def pytest_runtest_logstart():
    pytest_runtest_makereport.start = cpu_seconds()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_makereport(item, call):
    if call.when == 'teardown':
        item.user_properties.append(('cpu', cpu_seconds() - pytest_runtest_makereport.start))


def pytest_terminal_summary(terminalreporter):
    """CPU time of the run, and the tests that take too much of it."""
    used = {report.nodeid: dict(report.user_properties).get('cpu', 0.) for reports in terminalreporter.stats.values()
            for report in reports if getattr(report, 'when', '') == 'teardown'}
    terminalreporter.write_line(f'{sum(used.values()):.0f} s of CPU time')
    for name, seconds in sorted(used.items(), key=lambda pair: -pair[1]):
        if seconds > CPU_LIMIT:
            terminalreporter.write_line(f'{seconds:.0f} s, more than {CPU_LIMIT}: {name}')
