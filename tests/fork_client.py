# The `python` of the tests; fork_server.py writes it behind a first line that names the real interpreter and three
# constants: REAL (its path), SOCKET (where the servers listen) and SPACE (the namespaces they live in).
# It stands between a test and the process that the server forks for it, and imports nothing that takes time.
import _signal
import _socket
import marshal
import os
import sys


def become_real():
    os.execv(REAL, [REAL, *sys.argv[1:]])  # noqa: F821 - the first line has it


def start_words(words):
    """(unbuffered, "-m" | "-c" | "script", what, its words), or None for options that only a real interpreter knows."""
    unbuffered = bool(words) and words[0] == "-u"
    words = words[unbuffered:]
    if words and words[0] in ("-m", "-c") and len(words) > 1:
        return unbuffered, words[0], words[1], words[2:]
    if words and not words[0].startswith("-"):
        return unbuffered, "script", words[0], words[1:]
    return None


def inherited_files():
    """Numbers of the open files that the parent left to us: all that is not closed by exec."""
    found = []
    for name in os.listdir("/proc/self/fd"):
        try:
            if os.get_inheritable(int(name)):
                found.append(int(name))
        except OSError:  # the listing's own
            pass
    return sorted(found)


def namespaces():
    return [os.readlink(f"/proc/self/ns/{name}") for name in ("mnt", "net", "pid", "uts")]


def read(connection, size):
    text = b""
    while len(text) < size:
        more = connection.recv(size - len(text))
        if not more:
            os._exit(70)  # the server is gone
        text += more
    return text


def main():
    start = start_words(sys.argv[1:])
    if start is None or os.environb.get(b"FRESH_PYTHON") or namespaces() != SPACE:  # noqa: F821
        become_real()
    files = inherited_files()
    ignored = [
        number for number in range(1, 32) if _signal.getsignal(number) == _signal.SIG_IGN and number not in (13, 25)
    ]
    blocked = [int(number) for number in _signal.pthread_sigmask(_signal.SIG_BLOCK, [])]
    umask = os.umask(0o22)
    os.umask(umask)
    request = (start, sys.argv[1:], os.getcwd(), dict(os.environb), files, ignored, blocked, umask, os.getpid())
    text = marshal.dumps(request)
    connection = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
    rank = os.environ.get("LOCAL_RANK", "0")
    connection.connect(SOCKET + str(int(rank) % 2 if rank.isdigit() else 0))  # noqa: F821

    def forward(number, frame):
        connection.send(bytes([number]))

    rights = b"".join(number.to_bytes(4, sys.byteorder) for number in files)
    connection.sendmsg(
        [len(text).to_bytes(4, "big")], [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, rights)] if files else []
    )
    connection.sendall(text)
    if read(connection, 1) != b"S":
        become_real()
    for number in (1, 2, 3, 10, 12, 14, 15, 18):
        if number not in ignored:
            _signal.signal(number, forward)
    for number in files:  # only the child shall hold them: it may close one to say something
        os.close(number)
    status = int.from_bytes(read(connection, 4), "big")
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        if number != 9:
            _signal.signal(number, _signal.SIG_DFL)
        _signal.pthread_sigmask(_signal.SIG_UNBLOCK, [number])
        os.kill(os.getpid(), number)
    os._exit(os.waitstatus_to_exitcode(status))


main()
