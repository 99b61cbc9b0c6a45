import os
import signal
import subprocess
import sys
import textwrap
import time

import pytest

from nmt.errors import LostError
from nmt.runs.launcher import launch

PROGRAM = textwrap.dedent(
    """
    import os, signal, sys, time
    folder, *tasks = sys.argv[1:]
    rank = int(os.environ["RANK"])
    open(f"{folder}/{rank}", "w").write(f"{os.getpid()} {os.environ['LOCAL_RANK']} {os.environ['WORLD_SIZE']}")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
    signal.signal(signal.SIGINT, lambda *_: sys.exit(130))
    for task in tasks[rank].split(","):
        if task == "wait":
            time.sleep(60)
        elif task == "deaf":
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        elif task == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        else:
            sys.exit(int(task))
    """
)


def run(folder, *tasks):
    return launch([str(folder), *tasks], len(tasks), program=("-c", PROGRAM))


@pytest.mark.parametrize(("tasks", "code"), [(("0", "0"), 0), (("0", "2"), 2), (("2", "2", "2"), 2), (("1", "75"), 75)])
def test_the_code_is_that_of_the_processes(tmp_path, tasks, code):
    assert run(tmp_path, *tasks) == code
    places = [(tmp_path / str(rank)).read_text().split()[1:] for rank in range(len(tasks))]
    assert places == [[str(rank), str(len(tasks))] for rank in range(len(tasks))]


def there(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_when_one_is_killed_all_end_and_the_reason_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr("nmt.runs.launcher.GRACE", 0.5)
    began = time.monotonic()
    with pytest.raises(LostError, match=r"process 1 of 3 was killed \(SIGKILL; .*--resume"):
        run(tmp_path, "deaf,wait", "die", "wait")
    assert time.monotonic() - began < 20
    assert not any(there(int((tmp_path / str(rank)).read_text().split()[0])) for rank in (0, 1, 2))


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
def test_signals_are_passed_on(tmp_path, number, code):
    script = "import sys; from nmt.runs.launcher import launch; sys.exit(launch(sys.argv[2:], 2, ('-c', sys.argv[1])))"
    process = subprocess.Popen([sys.executable, "-c", script, PROGRAM, str(tmp_path), "wait", "wait"])
    for _ in range(3000):
        if all((tmp_path / str(rank)).exists() for rank in (0, 1)):
            break
        time.sleep(0.02)
    time.sleep(0.5)
    process.send_signal(number)
    assert process.wait(30) == code
