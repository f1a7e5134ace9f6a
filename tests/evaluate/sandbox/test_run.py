"""Programs that attack what runs them: each way that this machine has is tried, and what it promises is asked of it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from lmforge.errors import LmforgeError
from lmforge.evaluate.sandbox import run as module
from lmforge.evaluate.sandbox import run_program
from lmforge.evaluate.sandbox.run import WAYS, Limits, Way, isolation

QUICK = Limits(seconds=4, cpu_seconds=3, memory_bytes=300 << 20)
ATTACKS = {
    "fork": "os.fork() or os._exit(0)",
    "daemon": "os.setsid()",
    "thread": "__import__('threading').Thread(target=print).start()",
    "program": "__import__('subprocess').run(['/bin/true'])",
    "exec": "os.execv('/bin/true', ['true'])",
    "signal to the parent": "os.kill(os.getppid(), 0)",
    "signal to all": "os.kill(-1, 0)",
    "environment of the parent": "open(f'/proc/{os.getppid()}/environ').read()",
    "its own environment": "os.environ['LMFORGE_SECRET']",
    "a secret": "open(SECRET).read()",
    "a secret through a link": "os.symlink(SECRET, 'link'), open('link').read()",
    "a folder through a link": "os.symlink(os.path.dirname(SECRET), 'folder'), os.listdir('folder')",
    "home": "os.listdir(HOME)",
    "accounts": "open('/etc/passwd').read()",
    "write beside": "open(SECRET + '2', 'w')",
    "write over": "open(SECRET, 'w')",
    "write into the library": "open(os.__file__, 'a')",
    "delete": "os.unlink(SECRET)",
    "tcp": "socket.socket(socket.AF_INET, socket.SOCK_STREAM)",
    "udp": "socket.socket(socket.AF_INET, socket.SOCK_DGRAM)",
    "unix socket": "socket.socket(socket.AF_UNIX)",
    "socket pair": "socket.socketpair()",
    "more memory": "__import__('resource').setrlimit(__import__('resource').RLIMIT_AS, (-1, -1))",
    "more processor": "__import__('resource').setrlimit(__import__('resource').RLIMIT_CPU, (-1, -1))",
    "memory outside of the limits": "os.memfd_create('x')",
    "another root": "os.chroot('.')",
    "a device": "os.mknod('disk', 0o60666, os.makedev(259, 0))",
    "mount": "denied(libc.mount(b'none', b'/', b'tmpfs', 0, None))",
    "namespaces again": "denied(libc.unshare(0x10000000))",
    "trace": "denied(libc.ptrace(16, os.getppid(), 0, 0))",
    "priority": "os.setpriority(os.PRIO_PROCESS, 0, -5)",
}
TRY_ALL = """
import ctypes, json, os, socket
libc = ctypes.CDLL(None, use_errno=True)

def denied(result):
    if result == -1:
        raise PermissionError(ctypes.get_errno())

SECRET, HOME, succeeded = {secret!r}, {home!r}, []
for name, attack in {attacks!r}.items():
    try:
        exec(attack)
        succeeded.append(name)
    except (OSError, KeyError, RuntimeError, ValueError):
        pass
open("own", "w").write("mine")
os.rename("own", "other")
print(json.dumps([succeeded, open("other").read(), sum(range(10))]))
"""


@pytest.fixture(scope="module", params=["namespaces", "landlock"])
def way(request: pytest.FixtureRequest) -> Way:
    way: Way = request.param
    try:
        run_program("pass", way=way)
    except LmforgeError as error:
        pytest.skip(str(error))
    return way


def test_no_attack_succeeds_and_honest_work_does(way: Way, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LMFORGE_SECRET", "in the environment")
    secret = tmp_path / "secret"
    secret.write_text("do not read")
    source = TRY_ALL.format(secret=str(secret), home=str(Path.home()), attacks=ATTACKS)
    outcome = run_program(source, QUICK, way=way)
    assert outcome.status == "ok", outcome
    assert json.loads(outcome.stdout) == [[], "mine", 45]
    assert secret.read_text() == "do not read"
    assert not Path(f"{secret}2").exists()


def test_the_attacks_succeed_where_nothing_holds_them(tmp_path: Path) -> None:
    """Else the test above could not fail: run bare, in a process that may be lost."""
    secret = tmp_path / "secret"
    secret.write_text("do not read")
    harmless = {
        name: ATTACKS[name] for name in ("a secret through a link", "write beside", "udp", "unix socket", "thread")
    }
    source = TRY_ALL.format(secret=str(secret), home=str(Path.home()), attacks=harmless)
    outcome = run_program(source, QUICK, way="none", unsafe=True)
    assert json.loads(outcome.stdout)[0] == list(harmless)


@pytest.mark.parametrize(
    ("source", "statuses"),
    [
        ("while True: print('x' * 1000)", {"output"}),
        ("import os\nwhile True: os.write(RESULT, b'x' * 100000)", {"output"}),
        ("x = []\nwhile True: x.append(bytearray(10**7))", {"error"}),
        ("n = 0\nwhile True:\n    open(f'f{n}', 'wb').write(b'x' * 10**6); n += 1", {"error", "disk"}),
        ("n = 0\nwhile True:\n    open(f'f{n}', 'w').close(); n += 1", {"error", "disk"}),
        ("f = open('f', 'wb')\nwhile True: f.write(b'x' * 10**6)", {"error"}),
        ("def f(): return f()\nf()", {"error"}),
        ("import ctypes; ctypes.string_at(0)", {"killed"}),
        ("import os; os.abort()", {"killed"}),
        ("import sys; sys.exit(3)", {"error"}),
    ],
)
def test_limits_end_a_program(way: Way, source: str, statuses: set[str]) -> None:
    outcome = run_program(source, QUICK, way=way)
    assert outcome.status in statuses, outcome
    assert max(len(outcome.stdout), len(outcome.result)) <= QUICK.output_bytes


def test_time_ends_a_program_that_will_not_go_and_nothing_stays(way: Way) -> None:
    source = (
        "import signal, time\nfor s in (15, 2, 1): signal.signal(s, signal.SIG_IGN)\n"
        "print('on', flush=True)\ntime.sleep(60)"
    )
    outcome = run_program(source, Limits(seconds=1.5), way=way)
    assert (outcome.status, outcome.stdout) == ("time", "on\n")
    assert not [each for each in psutil.Process().children(recursive=True) if "inside.py" in " ".join(each.cmdline())]


def test_scratch_folders_are_gone_and_input_arrives(way: Way, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.tempfile, "tempdir", str(tmp_path))
    assert run_program("print(input(), input())", stdin="a\nb\n", way=way).stdout == "a b\n"
    assert list(tmp_path.iterdir()) == []


def test_without_isolation_nothing_runs_unless_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "isolation", lambda: WAYS["none"])
    with pytest.raises(LmforgeError, match="unsafe = true"):
        run_program("print(1)")
    assert run_program("print(1)", unsafe=True).stdout == "1\n"


def test_what_a_way_does_not_keep_is_said() -> None:
    assert isolation() in WAYS.values()
    assert not WAYS["namespaces"].open_doors
    assert all(WAYS[way].open_doors for way in WAYS if way != "namespaces")


def test_a_way_that_the_kernel_refuses_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    broken = tmp_path / "inside.py"
    broken.write_text(module.INSIDE.read_text().replace('"unshare", libc.unshare(sum(NEW.values()))', '"unshare", -1'))
    monkeypatch.setattr(module, "INSIDE", broken)
    with pytest.raises(LmforgeError, match="namespaces is not to be had"):
        run_program("print(1)", way="namespaces")
    isolation.cache_clear()
    assert isolation().way in ("landlock", "none")
    isolation.cache_clear()


@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("setpriv"), reason="needs root, to become somebody else")
def test_an_ordinary_user_has_it_too() -> None:
    python = "/usr/bin/python3" if Path("/usr/bin/python3").exists() else sys.executable
    source = Path(module.__file__).parents[3]
    program = (
        "from lmforge.evaluate.sandbox import isolation, run_program\n"
        "killer = run_program('import os; os.kill(os.getppid(), 9)')\n"
        "print(isolation().way, killer.status, run_program('print(2)').stdout)"
    )
    command = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "env", "-i", f"PYTHONPATH={source}"]
    done = subprocess.run([*command, python, "-B", "-c", program], capture_output=True, text=True, check=False)
    if "ermission denied" in done.stderr or "No module" in done.stderr or "requires" in done.stderr:
        pytest.skip("another user cannot read this checkout or has no Python")
    assert done.stdout.split()[1:] == ["error", "2"], done.stderr
    assert done.stdout.split()[0] in ("namespaces", "landlock")
