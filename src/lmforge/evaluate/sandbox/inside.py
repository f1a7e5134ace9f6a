"""The process that runs a program: it shuts itself in, then runs it. Started as `python -I -S inside.py FD`, so it
imports nothing of lmforge.

    outer ─unshare user, net, pid, mount …─▶ init (pid 1: its end is the end of all) ─▶ program: own root of
    read-only library folders, scratch in memory ─▶ no capabilities, Landlock, seccomp ─▶ exec(source)

FD holds the order as JSON. On `report` one line comes back: {"ended": wait status, "cpu": seconds} or {"refused": why}.
Without namespaces (`way` "landlock") the root stays, and Landlock alone keeps files apart.
Linux manual pages: user_namespaces(7), mount_setattr(2), pivot_root(2), landlock(7), seccomp(2), capabilities(7).
"""

from __future__ import annotations

import ctypes
import errno
import io
import json
import os
import resource
import signal
import struct
import sys
from typing import Any

NEW = {"user": 0x10000000, "mount": 0x20000, "uts": 0x4000000, "ipc": 0x8000000, "net": 0x40000000, "pid": 0x20000000}
MS_NOSUID, MS_NODEV, MS_BIND, MS_REC, MS_PRIVATE, MNT_DETACH = 2, 4, 4096, 16384, 1 << 18, 2
MOUNT_SETATTR, PIVOT_ROOT, AT_FDCWD, AT_RECURSIVE = 442, {"x86_64": 155, "aarch64": 41}, -100, 0x8000
PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_SECCOMP, PR_SET_NO_NEW_PRIVS = 1, 4, 22, 38
NOBODY = 65534
DEVICES = ("/dev/null", "/dev/zero", "/dev/urandom")

# calls that a program gets EPERM for, and their numbers on x86-64 and on ARM64 (None: not there). No new process or
# thread, no socket of any kind, no look into or signal to another process, no mount, no memory that no limit counts
DENIED: dict[str, tuple[int | None, int | None]] = {
    "socket": (41, 198), "socketpair": (53, 199), "connect": (42, 203), "accept": (43, 202), "bind": (49, 200),
    "listen": (50, 201), "accept4": (288, 242), "sendmsg": (46, 211), "recvmsg": (47, 212),
    "clone": (56, 220), "fork": (57, None), "vfork": (58, None), "execve": (59, 221), "execveat": (322, 281),
    "tkill": (200, 130), "rt_sigqueueinfo": (129, 138), "rt_tgsigqueueinfo": (297, 240), "pidfd_open": (434, 434),
    "pidfd_send_signal": (424, 424), "pidfd_getfd": (438, 438), "ptrace": (101, 117), "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271), "process_madvise": (440, 440), "kcmp": (312, 272), "setsid": (112, 157),
    "setpgid": (109, 154), "unshare": (272, 97), "setns": (308, 268), "mount": (165, 40), "umount2": (166, 39),
    "pivot_root": (155, 41), "chroot": (161, 51), "open_tree": (428, 428), "move_mount": (429, 429),
    "fsopen": (430, 430), "fsconfig": (431, 431), "fsmount": (432, 432), "mount_setattr": (442, 442),
    "mknod": (133, None), "mknodat": (259, 33), "open_by_handle_at": (304, 265), "name_to_handle_at": (303, 264),
    "bpf": (321, 280), "perf_event_open": (298, 241), "userfaultfd": (323, 282), "keyctl": (250, 219),
    "add_key": (248, 217), "request_key": (249, 218), "io_uring_setup": (425, 425), "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427), "memfd_create": (319, 279), "memfd_secret": (447, 447), "shmget": (29, 194),
    "shmat": (30, 196), "msgget": (68, 186), "semget": (64, 190), "mq_open": (240, 180), "personality": (135, 92),
    "init_module": (175, 105), "finit_module": (313, 273), "delete_module": (176, 106), "kexec_load": (246, 104),
    "reboot": (169, 142), "swapon": (167, 224), "swapoff": (168, 225), "acct": (163, 89), "syslog": (103, 116),
    "quotactl": (179, 60), "sched_setscheduler": (144, 119), "setpriority": (141, 140), "ioprio_set": (251, 30),
    "fanotify_init": (300, 262), "vhangup": (153, 58),
}  # fmt: skip
OWN_ONLY = {"kill": (62, 129), "tgkill": (234, 131)}  # allowed with the program's own process as the first argument
NOT_THERE = {"clone3": (435, 435)}  # ENOSYS: the C library then asks for clone
ARCHITECTURES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}  # column above, AUDIT_ARCH
ALLOW, KILL, ERRNO = 0x7FFF0000, 0x80000000, 0x00050000

# Landlock's rights by the version that brought them
READ_FILE, READ_DIR, EXECUTE = 1 << 2, 1 << 3, 1 << 0
RIGHTS = ((1, (1 << 13) - 1), (2, 1 << 13), (3, 1 << 14), (5, 1 << 15))
IN_SCRATCH = 1 << 1 | READ_FILE | READ_DIR | 1 << 4 | 1 << 5 | 1 << 7 | 1 << 8 | 1 << 12 | 1 << 13 | 1 << 14

libc = ctypes.CDLL(None, use_errno=True)


class Refused(Exception):
    """The kernel does not give what this way needs; the message names it."""


def called(name: str, result: int) -> int:
    """The result of a call into the C library; raises Refused for −1."""
    if result == -1:
        raise Refused(f"{name}: {os.strerror(ctypes.get_errno())}")
    return result


def machine() -> str:
    return os.uname().machine


def filter_of(own: int) -> bytes:
    """The seccomp program (classic BPF) of this machine; `own` is the process that may be signalled."""
    column, architecture = ARCHITECTURES[machine()]

    def line(code: int, value: int, yes: int = 0, no: int = 0) -> bytes:
        return struct.pack("HBBI", code, yes, no, value)

    load, equal, at_least, give = 0x20, 0x15, 0x35, 0x06
    lines = [line(load, 4), line(equal, architecture, 1, 0), line(give, KILL), line(load, 0)]
    if machine() == "x86_64":  # the numbers of the x32 interface would pass by the list
        lines += [line(at_least, 0x40000000, 0, 1), line(give, KILL)]
    for table, error in ((DENIED, errno.EPERM), (NOT_THERE, errno.ENOSYS)):
        for numbers in table.values():
            number = numbers[column]
            if number is not None:
                lines += [line(equal, number, 0, 1), line(give, ERRNO | error)]
    for numbers in OWN_ONLY.values():
        lines += [line(equal, numbers[column], 0, 4), line(load, 16), line(equal, own, 0, 1), line(give, ALLOW)]
        lines += [line(give, ERRNO | errno.EPERM)]
    return b"".join([*lines, line(give, ALLOW)])


def shut_calls() -> None:
    """Install the filter for the rest of this process."""
    if machine() not in ARCHITECTURES:
        raise Refused(f"seccomp: no list of system calls for {machine()}")
    program = filter_of(os.getpid())
    held = ctypes.create_string_buffer(program)
    head = struct.pack("HxxxxxxP", len(program) // 8, ctypes.addressof(held))
    called("seccomp", libc.prctl(PR_SET_SECCOMP, 2, ctypes.c_char_p(head), 0, 0))


def shut_files(readable: list[str], scratch: str) -> int:
    """Landlock: read below `readable`, write below `scratch`, nothing else; no TCP, no signals to others where the
    kernel knows that. Returns its version."""
    version = called("landlock", libc.syscall(444, None, 0, 1))
    handled = sum(rights for since, rights in RIGHTS if since <= version)
    attributes = struct.pack("QQQ", handled, 3, 3)[: 24 if version >= 6 else 16 if version >= 4 else 8]
    rules = called("landlock_create_ruleset", libc.syscall(444, attributes, len(attributes), 0))
    allowed = [(path, READ_FILE | READ_DIR | EXECUTE) for path in readable]
    for path, rights in (*allowed, *((device, READ_FILE | 1 << 1) for device in DEVICES), (scratch, IN_SCRATCH)):
        if not os.path.exists(path):
            continue
        place = os.open(path, os.O_PATH | os.O_CLOEXEC)
        file = not os.path.isdir(path)
        rights &= handled & ((1 << 1 | READ_FILE | EXECUTE | 1 << 14) if file else -1)
        rule = struct.pack("=Qi", rights, place)
        called(f"landlock_add_rule {path}", libc.syscall(445, rules, 1, rule, 0))
        os.close(place)
    called("landlock_restrict_self", libc.syscall(446, rules, 0))
    os.close(rules)
    return version


def enter_namespaces() -> None:
    """Users, network, processes, mounts and the rest of this process's own. The user inside is nobody."""
    user, group = os.geteuid(), os.getegid()
    called("unshare", libc.unshare(sum(NEW.values())))
    for path, text in (
        ("/proc/self/setgroups", "deny"),
        ("/proc/self/uid_map", f"{NOBODY} {user} 1"),
        ("/proc/self/gid_map", f"{NOBODY} {group} 1"),
    ):
        try:
            with open(path, "w") as file:
                file.write(text)
        except OSError as error:
            raise Refused(f"{path}: {error.strerror}") from error


def mounted(source: str, target: str, kind: str | None, flags: int, data: str = "") -> None:
    given = [None if text is None else text.encode() for text in (source, target, kind, data)]
    called(f"mount {target}", libc.mount(given[0], given[1], given[2], ctypes.c_ulong(flags), given[3]))


def read_only(path: str) -> None:
    """Everything mounted at `path` and below."""
    attributes = struct.pack("QQQQ", 1 | 2, 0, 0, 0)  # read-only, no set-user-id
    result = libc.syscall(MOUNT_SETATTR, AT_FDCWD, path.encode(), AT_RECURSIVE, attributes, len(attributes))
    called(f"mount_setattr {path}", result)


def make_root(root: str, readable: list[str], scratch_bytes: int) -> None:
    """A root of its own: `readable` at their places, three devices, /scratch in memory of `scratch_bytes`."""
    mounted("none", "/", None, MS_REC | MS_PRIVATE)
    mounted("tmpfs", root, "tmpfs", MS_NOSUID | MS_NODEV, "size=1m,mode=755")
    for path in readable:
        if os.path.islink(path) and not os.path.isabs(os.readlink(path)):  # /lib → usr/lib
            os.makedirs(os.path.dirname(root + path), exist_ok=True)
            os.symlink(os.readlink(path), root + path)
        elif os.path.isdir(path):
            os.makedirs(root + path, exist_ok=True)
            mounted(path, root + path, None, MS_BIND | MS_REC)
            read_only(root + path)
    os.makedirs(root + "/dev", exist_ok=True)
    for path in DEVICES:
        with open(root + path, "w"):
            pass
        mounted(path, root + path, None, MS_BIND)
    os.makedirs(root + "/old")
    os.makedirs(root + "/scratch")
    called("pivot_root", libc.syscall(PIVOT_ROOT[machine()], root.encode(), (root + "/old").encode()))
    os.chdir("/")
    called("umount2", libc.umount2(b"/old", MNT_DETACH))
    os.rmdir("/old")
    called("mount_setattr /", libc.syscall(MOUNT_SETATTR, AT_FDCWD, b"/", 0, struct.pack("QQQQ", 1 | 2, 0, 0, 0), 32))
    flags = MS_NOSUID | MS_NODEV
    mounted("tmpfs", "/scratch", "tmpfs", flags, f"size={scratch_bytes},nr_inodes=1024,mode=700")


def drop_capabilities() -> None:
    """None left, and none to be had again."""
    called("no_new_privs", libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
    header, none = struct.pack("Ii", 0x20080522, 0), struct.pack("6I", *[0] * 6)
    called("capset", libc.capset(header, none))


def limit(order: dict[str, Any]) -> None:
    """Processor time, memory, files; no core dumps."""
    cpu = int(order["cpu_seconds"])
    for what, most in (
        (resource.RLIMIT_CPU, cpu),
        (resource.RLIMIT_FSIZE, order["scratch_bytes"]),
        (resource.RLIMIT_NOFILE, order["files"]),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_AS, order["memory_bytes"]),
    ):
        now = resource.getrlimit(what)[1]
        most = most if now == resource.RLIM_INFINITY else min(most, now)
        resource.setrlimit(what, (most, most))


def run(order: dict[str, Any], report: int) -> None:
    """Shut this process in and run the program; ends the process."""
    try:
        os.close(report)
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        libc.prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)
        scratch = "/scratch" if order["way"] == "namespaces" else order["scratch"]
        if order["way"] in ("namespaces", "landlock"):
            drop_capabilities()
            try:
                shut_files(order["readable"], scratch)
            except Refused:
                if order["way"] == "landlock":
                    raise
        os.chdir(scratch)
        os.environ.clear()
        limit(order)
        if order["way"] in ("namespaces", "landlock"):
            shut_calls()
    except (OSError, Refused) as error:
        os.write(2, f"\0refused: {error}".encode())
        os._exit(97)
    for module in ("ctypes", "resource", "struct"):
        sys.modules.pop(module, None)
    sys.path[:] = [path for path in sys.path if path] + order["packages"]
    sys.stdin = io.StringIO(order["stdin"])
    sys.argv = ["program"]
    code = 0
    try:
        names = {"__name__": "__main__", "RESULT": order["result"]}
        exec(compile(order["source"], "<program>", "exec"), names)
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
    except BaseException as error:
        code = 1
        said = f"{type(error).__name__}: {str(error)[:2000]}\n"  # a traceback would need the memory that is gone
        os.write(2, said.encode("utf-8", "replace"))
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except BaseException:
            code = code or 1
    os._exit(code & 0xFF)


def followed(order: dict[str, Any], report: int) -> int:
    """Fork the program, wait for it, report how it ended; the wait status."""
    child = os.fork()
    if child == 0:
        run(order, report)
    _, status, used = os.wait4(child, 0)
    line = {"ended": status, "cpu": used.ru_utime + used.ru_stime, "memory": used.ru_maxrss * 1024}
    os.write(report, json.dumps(line).encode())
    return status


def main() -> None:
    """Read the order and follow it."""
    with open(int(sys.argv[1]), "rb", closefd=True) as file:
        order = json.loads(file.read())
    report = order["report"]
    parent = os.getppid()
    if sys.platform == "linux":
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:
            os._exit(98)
    try:
        if order["way"] == "namespaces":
            enter_namespaces()
            init = os.fork()
            if init == 0:
                libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
                try:
                    make_root(order["scratch"], order["readable"], order["scratch_bytes"])
                    os._exit(0 if followed(order, report) == 0 else 1)
                except (OSError, Refused) as error:
                    os.write(report, json.dumps({"refused": str(error)}).encode())
                    os._exit(97)
            os.close(report)
            os.waitpid(init, 0)
        else:
            followed(order, report)
    except (OSError, Refused) as error:
        os.write(report, json.dumps({"refused": str(error)}).encode())


if __name__ == "__main__":
    main()
