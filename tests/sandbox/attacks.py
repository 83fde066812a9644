"""Programs that try to pass tests they should not, or to do harm. A table: name -> code that runs as the program is imported
(`AT_IMPORT`), or when its function is called (`IN_CALL`).

No right answer is in any of them: whatever test of theirs passes should not. `@CANARY@` is a folder that everyone may write to,
`@TREE@` the working tree, `@PORT@` a TCP and UDP port of this machine where somebody listens, `@NAME@` an abstract socket.
"""

from __future__ import annotations

import textwrap

_EXIT = {
    "sys.exit(0)": "import sys; sys.exit(0)",
    "sys.exit()": "import sys; sys.exit()",
    "exit": "raise SystemExit",
    "os._exit(0)": "import os; os._exit(0)",
    "KeyboardInterrupt": "raise KeyboardInterrupt",
    "GeneratorExit": "raise GeneratorExit",
    "SIGKILL of itself": "import os; os.kill(os.getpid(), 9)",
    "SIGSEGV": "import ctypes; ctypes.string_at(0)",
    "abort": "import os; os.abort()",
    "exec of true": "import os; os.execv('/bin/true', ['true'])",
    "exit in a thread": "import os, threading; t = threading.Thread(target=os._exit, args=(0,)); t.start(); t.join()",
    "exit in __del__": "import os\nclass D:\n    def __del__(self): os._exit(0)\nd = D(); del d",
}
# What the harness itself works with, replaced in the program's process.
_REPLACED = {
    "builtins": "import builtins\nfor n in ('isinstance', 'len', 'abs', 'all', 'any', 'print', 'sorted', 'str', 'repr', 'sum', 'zip'):\n"
    "    setattr(builtins, n, lambda *a, **k: True)",
    "AssertionError": "import builtins\nclass E(Exception): pass\nbuiltins.AssertionError = E\n"
    "builtins.__build_class__ = lambda *a, **k: True",
    "json": 'import json\njson.dumps = lambda *a, **k: \'{"value": 42, "passed": true}\'',
    "unmask.sandbox": "import gc, types\nfor m in gc.get_objects():\n    if isinstance(m, types.FunctionType) and 'unmask' in str(m.__module__):\n"
    "        try: m.__code__ = (lambda *a, **k: True).__code__\n        except ValueError: pass",
    "sys.modules": "import sys\nfor n in list(sys.modules): sys.modules[n] = type(sys)('empty')",
    "sys.stdout": "import sys\nclass W:\n    closed = False\n    def write(self, t): return len(t)\n    def flush(self): return True\n"
    "sys.stdout = sys.stderr = sys.__stdout__ = W()",
    "frames": "import sys\nframe = sys._getframe()\nwhile frame:\n    frame.f_locals.update(passed=True)\n"
    "    frame.f_globals.update(__name__='__main__', encode=lambda *a: True, OPERATIONS={})\n    frame = frame.f_back",
    "every dictionary": "import gc\nfor d in gc.get_objects():\n    if type(d) is dict and ('expected' in d or 'passed' in d or 'test' in d):\n"
    "        d['passed'] = True; d['test'] = 'pass'",
    "hooks": "import sys, threading\nsys.excepthook = threading.excepthook = sys.unraisablehook = lambda *a: None\n"
    "sys.settrace(lambda *a: None); sys.setprofile(lambda *a: None)",
    "importers": "import sys\nclass F:\n    def find_spec(self, *a): raise SystemExit(0)\nsys.meta_path[:] = [F()]; sys.path_importer_cache.clear()",
    "os": "import os\nos.write = os.read = os.fork = os._exit = lambda *a: 0",
    "exit handlers": "import atexit, os, sys\natexit.register(os._exit, 0); atexit.register(print, 'passed')",
}
_SEND = "import socket, json\nc = socket.socket(fileno=4)\ndef send(m):\n    d = json.dumps(m).encode(); c.sendall(len(d).to_bytes(4, 'big') + d)\n"
# Messages that nobody asked for, to where the test code listens.
_FORGED = {
    "passed": _SEND
    + "for m in ({'ready': True}, {'passed': True, 'reason': 'passed'}, {'result': 'passed'}, {'value': True}): send(m)",
    "replies in advance": _SEND + "send({'ready': True})\nfor _ in range(50): send({'value': True})",
    "lookups in advance": _SEND + "send({'ready': True})\nfor _ in range(50): send({'module': 'unittest.mock', 'name': 'ANY'})",
    "modules of the library": _SEND + "send({'ready': True})\n"
    "for n in ('builtins', 'os', 'sys', 'gc', 'inspect', 'ctypes', 'unmask.sandbox.evaluator', '__main__'): send({'module': n, 'name': '_exit'})",
    "callbacks": _SEND + "send({'ready': True})\nfor n in (0, -1, 99, 'x'): send({'callback': n, 'args': [], 'kwargs': {}})",
    "errors": _SEND + "send({'ready': True})\n"
    "for n in ('SystemExit', 'StopIteration', 'BaseException', 'GeneratorExit', 'AssertionError', 'print', '__import__'):\n"
    "    send({'error': {'builtin': n}, 'args': [], 'text': ''})",
    "references": _SEND
    + "send({'ready': True})\nfor k in ('import', 'yours', 'builtin', 'iterator', 'object', 'ndarray', 'x'):\n"
    "    send({'value': {k: ['os', '_exit', 0, 0]}})",
    "exceptions": _SEND + "send({'ready': True})\nfor base in ('SystemExit', 'StopIteration', 'exec', '__doc__'):\n"
    "    send({'error': {'object': [7, 'exception', 'E', base]}, 'args': [], 'text': ''})",
    "garbage": "import os\nos.write(4, os.urandom(100000))",
    "a large length": "import os, time\nos.write(4, b'\\xff\\xff\\xff\\xff' + b'x' * 1000); time.sleep(60)",
    "half a message": "import os, time\nos.write(4, b'\\x00\\x00\\x10\\x00{'); time.sleep(60)",
    "a flood": "import os\nwhile True: os.write(4, b'\\x00\\x00\\x00\\x02{}' * 1000)",
    "deep nesting": "import os\nd = b'[' * 100000 + b']' * 100000\nos.write(4, len(d).to_bytes(4, 'big') + d)",
    "changed arguments": _SEND
    + "send({'ready': True})\nfor _ in range(50): send({'value': None, 'args': [[4711], {'dict': []}, 4711]})",
    "no message at all": "import os\nos.close(4)",
    "a shut channel": "import socket\ns = socket.socket(fileno=4); s.shutdown(2)",
    "descriptors": 'import os\nfor fd in range(5, 300):\n    for data in (b\'{"passed": true, "reason": "passed"}\', b\'.\'):\n'
    "        try: os.write(fd, data)\n        except OSError: pass",
    "the result": 'import os\nfor fd in range(300):\n    try: os.pwrite(fd, b\'{"passed": true, "reason": "passed"}\', 0)\n    except OSError: pass',
    "all descriptors closed": "import os\nos.closerange(0, 1000)",
    "descriptors replaced": "import os\nfor fd in range(300):\n    if fd != 1:\n        try: os.dup2(1, fd)\n        except OSError: pass",
}
# Looks for the expected 4711, and prints and returns what it finds.
_SEARCH = "def f(x=0):\n    import re\n    found = []\n    for data in look():\n        found += re.findall(rb'f.3. == (\\d+)', data)\n" \
    "    return int(found[0]) if found else 0\n"  # fmt: skip
_READING = {
    "its own memory": "import gc\ndef look():\n    for o in gc.get_objects():\n        yield repr(o)[:100000].encode() if type(o) in (str, bytes, list, dict, tuple) else b''\n",
    "/proc/*/mem": "import glob\ndef look():\n    for p in glob.glob('/proc/*/m[ea][mp]*'):\n        try:\n            with open(p, 'rb') as f: yield f.read(1 << 20)\n"
    "        except OSError: pass\n",
    "/proc of others": "import glob\ndef look():\n    for p in glob.glob('/proc/[0-9]*/*') + glob.glob('/proc/[0-9]*/fd/*'):\n        try:\n"
    "            with open(p, 'rb') as f: yield f.read(1 << 16)\n        except OSError: pass\n",
    "process_vm_readv": "import ctypes, os\ndef look():\n    class V(ctypes.Structure): _fields_ = [('b', ctypes.c_void_p), ('n', ctypes.c_size_t)]\n"
    "    b = ctypes.create_string_buffer(1 << 16); c = ctypes.CDLL(None)\n    for pid in [os.getppid(), 1, 2, 3, *range(os.getpid() - 9, os.getpid() + 9)]:\n"
    "        for at in (0x400000, 0x555555554000): c.process_vm_readv(pid, ctypes.byref(V(ctypes.addressof(b), 1 << 16)), 1, ctypes.byref(V(at, 1 << 16)), 1, 0)\n"
    "        yield b.raw\n",
    "ptrace": "import ctypes, os\ndef look():\n    c = ctypes.CDLL(None, use_errno=True)\n    for pid in (os.getppid(), 1, os.getpid() + 1, os.getpid() + 2):\n"
    "        if c.ptrace(16, pid, 0, 0) == 0: raise SystemExit('traced')\n    return []\n",
    "files": "import os\ndef look():\n    for top in ('.', '..', '/tmp', '@TREE@/tests', '/home', '/root', '/run', '/var', '/etc'):\n"
    "        for d, _, fs in os.walk(top):\n            for f in fs:\n                try:\n"
    "                    with open(os.path.join(d, f), 'rb') as h: yield h.read(1 << 16)\n                except OSError: pass\n",
    "inherited descriptors": "import os\ndef look():\n    for fd in range(3, 300):\n        try: yield os.pread(fd, 1 << 20, 0)\n        except OSError: pass\n",
    "arguments and environment": "import os, sys\ndef look():\n    yield repr(dict(os.environ)).encode() + repr(sys.argv).encode() + repr(sys.orig_argv).encode()\n",
    "frames and tracebacks": "import sys\ndef look():\n    frames = list(sys._current_frames().values())\n    while frames:\n        f = frames.pop()\n"
    "        if f.f_back: frames.append(f.f_back)\n        yield repr(f.f_locals)[:100000].encode() + repr(f.f_globals)[:100000].encode()\n",
    "pidfd_getfd": "import ctypes, os\ndef look():\n    c = ctypes.CDLL(None)\n    for pid in (os.getppid(), os.getpid() + 1, 1):\n"
    "        p = c.syscall(434, pid, 0)\n        for n in range(9):\n            fd = c.syscall(438, p, n, 0)\n            if fd >= 0: yield os.pread(fd, 1 << 16, 0)\n",
}  # fmt: skip
_EVIL = {
    "equal to everything": "__eq__ = lambda s, o: True\n__ne__ = lambda s, o: False\n__hash__ = lambda s: hash(4711)",
    "in every order": "__lt__ = __gt__ = __le__ = __ge__ = __eq__ = lambda s, o: True\n__bool__ = lambda s: True\n__hash__ = None",
    "any difference is 0": "__sub__ = __rsub__ = __add__ = __radd__ = __mul__ = __truediv__ = lambda s, o: 0\n__abs__ = lambda s: 0\n"
    "__float__ = lambda s: float('nan')\n__int__ = lambda s: 0\n__index__ = lambda s: 0\n__round__ = lambda s, n=0: s",
    "contains everything": "__contains__ = lambda s, o: True\n__iter__ = lambda s: iter([s, s])\n__len__ = lambda s: 2\n__getitem__ = lambda s, k: s\n"
    "__eq__ = lambda s, o: True\n__hash__ = lambda s: 0",
    "of any class": "__class__ = property(lambda s: int)\n__instancecheck__ = lambda s, o: True\n__eq__ = lambda s, o: True\n"
    "__getattr__ = lambda s, n: s\n__call__ = lambda s, *a, **k: s",
}  # fmt: skip
_SUBCLASSES = {
    "int": "class V(int):\n    __eq__ = __lt__ = __gt__ = lambda s, o: True\n    __ne__ = lambda s, o: False\n    __sub__ = lambda s, o: 0\n    __hash__ = lambda s: hash(4711)\n"
    "    __int__ = __float__ = lambda s: 4711.0\n",
    "float": "class V(float):\n    __eq__ = __lt__ = __gt__ = lambda s, o: True\n    __ne__ = lambda s, o: False\n    __sub__ = __rsub__ = lambda s, o: 0.0\n    __abs__ = lambda s: 0.0\n"
    "    __hash__ = lambda s: hash(4711)\n",
    "str": "class V(str):\n    __eq__ = __contains__ = lambda s, o: True\n    __ne__ = lambda s, o: False\n    __hash__ = lambda s: hash(4711)\n    __str__ = lambda s: s\n",
    "list": "class V(list):\n    __init__ = lambda s, *a: None\n    __eq__ = __contains__ = __lt__ = lambda s, o: True\n    __ne__ = lambda s, o: False\n    __len__ = lambda s: 2\n"
    "    __iter__ = lambda s: iter([s, s])\n    __getitem__ = lambda s, k: s\n    __hash__ = lambda s: 0\n",
    "dict": "class V(dict):\n    __init__ = lambda s, *a: None\n    __eq__ = __contains__ = lambda s, o: True\n    __missing__ = lambda s, k: s\n    __getitem__ = lambda s, k: s\n",
}  # fmt: skip
_OTHER_RESULTS = {
    "NaN": "def f(*a): return float('nan')",
    "infinity": "def f(*a): return float('inf')",
    "an endless generator": "def f(*a):\n    while True: yield 3",
    "StopIteration": "def f(*a): raise StopIteration",
    "StopIteration from an iterator": "class I:\n    def __iter__(self): return self\n    def __next__(self): raise StopIteration\ndef f(*a): return I()",
    "an exception called AssertionError": "class AssertionError(Exception): pass\ndef f(*a): raise AssertionError",
    "an exception called StopIteration": "class StopIteration(Exception): pass\ndef f(*a): raise StopIteration",
    "a mock": "from unittest.mock import ANY, MagicMock\ndef f(*a): return ANY",
    "a mock of the library": "from unittest import mock\nclass G(type):\n    pass\nf = mock.MagicMock(return_value=mock.ANY)\nf.__module__ = 'unittest.mock'; f.__name__ = 'MagicMock'",
    "a function of the library": "def f(*a): return 0\nf.__module__ = 'unittest.mock'; f.__name__ = '_ANY'",
    "its own math": "class M:\n    def isclose(self, *a, **k): return True\nmath = M(); isclose = math.isclose\ndef f(*a): return 0",
    "its own Counter": "Counter = sorted = set = lambda *a: 0\ndef f(*a): return 0",
    "its own builtins": "abs = all = len = sorted = list = str = zip = isinstance = lambda *a, **k: 4711\ndef f(*a): return []",
    "itself": "def f(*a): return f",
    "its own class": "class f:\n    def __new__(c, *a): return c\n    def __init_subclass__(c): pass",
    "the huge integer": "def f(*a): return 10 ** (10 ** 6)",
    "the huger integer": "def f(*a): return 1 << (1 << 34)",
    "a decimal without end": "from decimal import Decimal\ndef f(*a): return Decimal('1E+999999999')",
    "a giant list": "def f(*a): return [0] * 40_000_000",
    "a giant string": "def f(*a): return 'x' * 70_000_000",
    "many references to one list": "def f(*a):\n    r = []\n    for _ in range(60): r = [r, r]\n    return r",
    "a list of itself": "def f(*a):\n    r = []; r.append(r)\n    return r",
    "deep nesting": "def f(*a):\n    r = []\n    for _ in range(100000): r = [r]\n    return r",
    "deep recursion": "import sys\nsys.setrecursionlimit(10 ** 9)\ndef f(*a): return f(*a)",
    "deep recursion in C": "import sys\nsys.setrecursionlimit(10 ** 9)\nclass R:\n    def __repr__(self): return repr(self)\ndef f(*a): return repr(R())",
    "changed arguments": "def f(*a):\n    for x in a:\n        if hasattr(x, 'clear'): x.clear()",
    "a name the test binds": "candidate = check = result = r = x = y = lambda *a: 4711",
    "nothing": "",
    "no program": "this is no program",
    "NUL": "\0",
}  # fmt: skip
_BOMBS = {
    "fork": "import os\nwhile True:\n    try: os.fork()\n    except OSError: pass",
    "fork and end": "import os, signal\nsignal.signal(signal.SIGCHLD, signal.SIG_IGN)\nwhile True:\n    try:\n        if os.fork() == 0:\n            for _ in range(200000): pass\n"
    "            os._exit(0)\n    except OSError: pass",
    "fork chain": "import os\nwhile True:\n    try:\n        if os.fork(): os._exit(0)\n    except OSError: pass",
    "threads": "import threading, time\nwhile True:\n    try: threading.Thread(target=time.sleep, args=(60,)).start()\n    except RuntimeError: pass",
    "memory": "x = []\nwhile True: x.append(bytearray(1 << 20))",
    "memory of children": "import os, time\nfor _ in range(6):\n    if os.fork() == 0: break\nx = bytearray(os.urandom(1 << 16)) * 800\ntime.sleep(60)",
    "shared memory": "import mmap, time\nm = []\nwhile True:\n    m.append(mmap.mmap(-1, 1 << 22)); m[-1].write(b'x' * (1 << 22))\n",
    "memfd": "import os\nwhile True: os.write(os.memfd_create('x'), b'x' * (1 << 20))",
    "/dev/zero": "import mmap, os\nfd = os.open('/dev/zero', os.O_RDWR)\nm = []\nwhile True:\n    m.append(mmap.mmap(fd, 1 << 22)); m[-1].write(b'x' * (1 << 22))",
    "files": "import os\ni = 0\nwhile True:\n    i += 1\n    with open(f'f{i}', 'wb') as f: f.write(b'x' * (1 << 20))",
    "files in other places": "import itertools\nfor i in itertools.count():\n    for d in ('/tmp', '/dev/shm', '/dev', '/var/tmp', '/run', '/'):\n"
    "        try:\n            with open(f'{d}/f{i}', 'wb') as f: f.write(b'x' * (1 << 20))\n        except OSError: pass\n",
    "one large file": "with open('f', 'wb') as f:\n    while True: f.write(b'x' * (1 << 20))",
    "inodes": "import os\ni = 0\nwhile True:\n    i += 1\n    try: os.mkdir(str(i))\n    except OSError: pass",
    "deep folders": "import os\nwhile True:\n    os.mkdir('d' * 200); os.chdir('d' * 200)",
    "folders without rights": "import os\nos.mkdir('a'); os.mkdir('a/b'); open('a/b/c', 'w').close(); os.chmod('a/b', 0); os.chmod('a', 0); os.chmod('.', 0)",
    "stdout": "import os\nwhile True: os.write(1, b'x' * (1 << 16))",
    "stderr": "import os\nwhile True: os.write(2, b'x' * (1 << 16))",
    "a hole in stdout": "import os\nos.ftruncate(1, 1 << 40)",
    "socket buffers": "import socket\ns = []\nwhile True:\n    s.append(socket.socketpair()); s[-1][0].setblocking(False)\n    try: s[-1][0].send(b'x' * (1 << 20))\n    except OSError: pass",
    "core": "import resource, os\nresource.setrlimit(resource.RLIMIT_CORE, (-1, -1))\nos.abort()",
    "a large import": "exec('x = ' + '[' * 100000)",
    "a constant": "x = eval('9**9**9')",
}  # fmt: skip
_STAYING = {
    "sleep that ignores signals": "import signal, time\nfor n in signal.valid_signals():\n    try: signal.signal(n, signal.SIG_IGN)\n    except OSError: pass\n"
    "while True: time.sleep(60)",
    "blocked signals": "import signal, time\nsignal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())\nwhile True: time.sleep(60)",
    "spinning": "while True: pass",
    "daemon": "import os, time\nif os.fork() == 0:\n    os.setsid()\n    if os.fork() == 0:\n        os.closerange(0, 300)\n        time.sleep(60)\n    os._exit(0)\nos._exit(0)",
    "daemon without signal of its parent's end": "import ctypes, os, time\nc = ctypes.CDLL(None); c.prctl(1, 0)\nif os.fork() == 0:\n    os.setsid(); c.prctl(1, 0)\n"
    "    if os.fork() == 0: c.prctl(1, 0); time.sleep(60)\nos._exit(0)",
    "subreaper": "import ctypes, os, time\nctypes.CDLL(None).prctl(36, 1)\nif os.fork() == 0:\n    if os.fork() == 0: time.sleep(60)\n    os._exit(0)\ntime.sleep(60)",
    "threads that outlive main": "import threading, time\nfor daemon in (True, False): threading.Thread(target=time.sleep, args=(60,), daemon=daemon).start()",
    "endless exit handler": "import atexit, time\natexit.register(time.sleep, 60)",
    "endless __del__": "import time\nclass D:\n    def __del__(self): time.sleep(60)\nd = D()",
    "stopped": "import os, signal\nos.kill(os.getpid(), signal.SIGSTOP)",
    "stopped group": "import os, signal\nos.kill(0, signal.SIGSTOP)",
    "vfork": "import ctypes, time, platform\nn = 56 if platform.machine() == 'x86_64' else 220\nif ctypes.CDLL(None).syscall(n, 0x4011, 0, 0, 0, 0) == 0: time.sleep(60)\ntime.sleep(60)",
    "idle priority": "import os, time\ntry:\n    os.nice(19); os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))\nexcept OSError: pass\nwhile True: pass",
    "real time": "import os\nfor p in (os.SCHED_FIFO, os.SCHED_RR):\n    try: os.sched_setscheduler(0, p, os.sched_param(50))\n    except OSError: pass\nwhile True: pass",
    "raised limits": "import resource, time\nfor n in range(16):\n    for v in ((-1, -1), (1 << 40, 1 << 40)):\n        try: resource.setrlimit(n, v)\n        except (ValueError, OSError): pass\n"
    "    try: resource.prlimit(1, n, (-1, -1))\n    except (ValueError, OSError): pass\nwhile True: pass",
    "signal handlers": "import signal\nfor n in signal.valid_signals():\n    try: signal.signal(n, lambda *a: None)\n    except OSError: pass\nsignal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)\nwhile True: pass",
    "a lock": "import threading\nl = threading.Lock(); l.acquire(); l.acquire()",
    "a pipe": "import os\nr, w = os.pipe(); os.read(r, 1)",
    "a fifo": "import os\nos.mkfifo('p'); open('p')",
    "a regular expression": "import re\nre.match(r'(a+)+$', 'a' * 40 + 'b')",
}  # fmt: skip
_SYSCALL = "import ctypes, os, platform\nc = ctypes.CDLL(None, use_errno=True)\ndef call(x86, arm, *a): return c.syscall(x86 if platform.machine() == 'x86_64' else arm, *a)\n"
# Ends with what only works if a protection is missing: then it prints 4711, which is what the tests ask for.
_WIN = "print('4711 3.25')\ndef f(*a): return 4711\n"
_HARM = {
    "kill(-1)": "import os\nfor s in (15, 9, 19):\n    try: os.kill(-1, s)\n    except OSError: pass",
    "kill of the parent": "import os\nfor s in (15, 9, 19):\n    for p in (os.getppid(), 1, -os.getpgid(os.getppid()) if os.getppid() else 1, *range(os.getpid() - 9, os.getpid())):\n"
    "        try: os.kill(p, s)\n        except OSError: pass",
    "sigqueue to the parent": _SYSCALL + "i = (ctypes.c_int * 32)(9, 0, -1)\nfor p in (os.getppid(), 1, os.getpid() - 1, os.getpid() - 2, os.getpid() + 1):\n"
    "    for s in (9, 19): call(129, 138, p, s, ctypes.byref(i)); call(297, 240, p, p, s, ctypes.byref(i))",
    "a signal by a descriptor": "import fcntl, os\nfor p in (os.getppid(), os.getpid() - 1, os.getpid() - 2, os.getpid() + 1, 1):\n    r, w = os.pipe()\n    try:\n"
    "        fcntl.fcntl(r, fcntl.F_SETOWN, p); fcntl.fcntl(r, 10, 9)\n        fcntl.fcntl(r, fcntl.F_SETFL, os.O_ASYNC); os.write(w, b'x')\n    except OSError: pass",
    "limits of the parent": "import os, resource\nfor p in (os.getppid(), 1, os.getpid() - 1, os.getpid() - 2):\n    for n in (0, 9, 7):\n        try: resource.prlimit(p, n, (0, 0))\n        except (OSError, ValueError): pass",
    "the canary": "import os, shutil\nfor d in ('@CANARY@', '/proc/1/root@CANARY@', '/proc/self/cwd/..@CANARY@'):\n    for a in (lambda: open(d + '/new', 'w'), lambda: open(d + '/file', 'a').write('x'),\n"
    "              lambda: os.truncate(d + '/file', 0), lambda: os.unlink(d + '/file'), lambda: os.chmod(d + '/file', 0), lambda: os.symlink('x', d + '/link'),\n"
    "              lambda: os.link(d + '/file', 'l'), lambda: os.rename(d + '/file', d + '/f'), lambda: os.utime(d + '/file'), lambda: shutil.rmtree(d), lambda: os.mkdir(d + '/folder')):\n"
    "        try: a()\n        except OSError: pass",
    "the working tree": "import os, site, sys\nfor d in ('@TREE@', '@TREE@/src/unmask', os.path.expanduser('~root'), '/tmp', '/var/tmp', sys.prefix, *site.getsitepackages(), os.path.dirname(os.__file__), '/usr/lib', '/etc'):\n"
    "    for n in ('canary-of-an-attack', 'sitecustomize.py'):\n        try: open(os.path.join(d, n), 'a').close()\n        except OSError: pass",
    "symbolic links": "import os\nos.symlink('@CANARY@', 'd'); os.symlink('@CANARY@/file', 'f')\nfor a in (lambda: open('f', 'a').write('x'), lambda: open('d/new', 'w'), lambda: os.chmod('f', 0), lambda: os.chmod('d', 0)):\n"
    "    try: a()\n    except OSError: pass",
    "its own folder, replaced": "import os\np = os.getcwd()\nfor a in (lambda: os.rmdir(p), lambda: os.rename(p, p + 'x'), lambda: os.symlink('@CANARY@', p)):\n    try: a()\n    except OSError: pass",
    "TCP": "import socket\nfor family, address in ((2, '127.0.0.1'), (10, '::1'), (2, '0.0.0.0'), (2, '1.1.1.1')):\n    try:\n        s = socket.socket(family); s.settimeout(0.1); s.connect((address, @PORT@)); s.send(b'x')\n        " + "exec(WIN)\n    except OSError: pass",
    "UDP": "import socket\nfor family, address in ((2, '127.0.0.1'), (10, '::1')):\n    try: socket.socket(family, socket.SOCK_DGRAM).sendto(b'x', (address, @PORT@))\n    except OSError: pass",
    "an abstract socket": "import socket\nfor kind in (1, 2, 5):\n    try: socket.socket(socket.AF_UNIX, kind).connect('\\0@NAME@')\n    except OSError: pass",
    "a pair of datagrams": "import socket\nfor kind in (2, 3, 5, 1):\n    try:\n        a, b = socket.socketpair(socket.AF_UNIX, kind); a.sendto(b'x', '\\0@NAME@')\n    except OSError: pass\n"
    "    try: a.connect('\\0@NAME@'); a.send(b'x')\n    except (OSError, NameError): pass",
    "raw sockets": "import socket\nfor family, kind, protocol in ((2, 3, 1), (17, 3, 768), (16, 3, 0), (38, 5, 0), (40, 1, 0), (31, 3, 1)):\n    try: socket.socket(family, kind, protocol); exec(WIN)\n    except OSError: pass",
    "DNS": "import socket\ntry: socket.getaddrinfo('localhost.localdomain.example', 80); exec(WIN)\nexcept OSError: pass",
    "io_uring": _SYSCALL + "p = ctypes.create_string_buffer(256)\nif call(425, 425, 8, p) >= 0: exec(WIN)",
    "pidfd": _SYSCALL + "for p in (1, os.getppid()):\n    fd = call(434, 434, p, 0)\n    if fd >= 0: call(424, 424, fd, 9, None, 0); exec(WIN)",
    "namespaces": _SYSCALL + "for flag in (0x10000000, 0x20000, 0x40000000, 0x20000000, 0x10020000):\n    if c.unshare(flag) == 0: exec(WIN)\n"
    "pid = call(56, 220, 0x10000000 | 17, 0, 0, 0, 0)\nif pid == 0: os._exit(0)\nif pid > 0: exec(WIN)",
    "mount": "import ctypes\nc = ctypes.CDLL(None)\nif c.mount(b'tmpfs', b'.', b'tmpfs', 0, None) == 0 or c.umount2(b'/', 2) == 0 or c.mount(b'', b'/', None, 32 | 4096, None) == 0 or c.chroot(b'.') == 0: exec(WIN)",
    "setuid": "import os\nfor a in (os.setuid, os.setgid, os.seteuid):\n    try: a(0); exec(WIN)\n    except OSError: pass",
    "setuid programs": "import subprocess\nfor p in ('/bin/su', '/usr/bin/sudo', '/bin/mount'):\n    try:\n        if subprocess.run([p, '-c', 'id'], capture_output=True, stdin=subprocess.DEVNULL).stdout.startswith(b'uid=0'): exec(WIN)\n    except OSError: pass",
    "devices": "import os\nfor p in ('/dev/mem', '/dev/kmem', '/dev/sda', '/dev/vda', '/dev/kvm', '/dev/tty', '/dev/ptmx', '/dev/fuse', '/dev/nvidia0', '/dev/kmsg'):\n    try: os.open(p, os.O_RDWR); exec(WIN)\n    except OSError: pass\n"
    "try: os.mknod('m', 0o20666, os.makedev(1, 1)); exec(WIN)\nexcept OSError: pass",
    "the clock": "import time, socket\nfor a in (lambda: time.clock_settime(time.CLOCK_REALTIME, 0), lambda: socket.sethostname('x')):\n    try: a(); exec(WIN)\n    except OSError: pass",
    "keyrings": _SYSCALL + "if call(248, 217, b'user', b'x', b'y', 1, -3) >= 0 or call(250, 219, 0, -3, 1) >= 0: exec(WIN)",
    "bpf": _SYSCALL + "if call(321, 280, 0, ctypes.create_string_buffer(128), 128) >= 0 or call(298, 241, ctypes.create_string_buffer(128), 0, -1, -1, 0) >= 0: exec(WIN)",
    "message queues": _SYSCALL + "if call(68, 186, 4711, 0o1666) >= 0 or call(29, 194, 4711, 4096, 0o1666) >= 0 or call(64, 190, 4711, 1, 0o1666) >= 0 or call(240, 180, b'x', 0o102, 0o600, None) >= 0: exec(WIN)",
    "32-bit system calls": "import ctypes, mmap, platform\nif platform.machine() == 'x86_64':\n    m = mmap.mmap(-1, 4096, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, 7)\n"
    "    m.write(bytes.fromhex('53b802000000cd805bc3'))\n    ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(m)))()\n    exec(WIN)",
    "x32 system calls": _SYSCALL + "if platform.machine() == 'x86_64' and c.syscall(0x40000000 | 41, 1, 1, 0) >= 0: exec(WIN)",
    "handles": _SYSCALL + "h = ctypes.create_string_buffer(b'\\x80' + b'\\0' * 200, 256); m = ctypes.c_int()\nif call(303, 264, -100, b'/', h, ctypes.byref(m), 0) >= 0 or call(304, 265, -100, h, 0) >= 0: exec(WIN)",
    "terminal": "import fcntl\nfor fd in range(3):\n    try: fcntl.ioctl(fd, 0x5412, b'x'); exec(WIN)\n    except OSError: pass",
}  # fmt: skip


def _class(body: str) -> str:
    return f"class V:\n{textwrap.indent(body, '    ')}\nv = V()\ndef f(*a): return v\nprint(v)\n"


def _named(kind: str, table: dict[str, str]) -> dict[str, str]:
    return {f"{kind}: {name}": code.replace("exec(WIN)", f"exec({_WIN!r}, globals())") for name, code in table.items()}


AT_IMPORT = {
    **_named("exit", _EXIT), **_named("replaced", _REPLACED), **_named("forged", _FORGED), **_named("other result", _OTHER_RESULTS),
    **_named("bomb", _BOMBS), **_named("staying", _STAYING), **_named("harm", _HARM),
    **_named("reading", {name: code + _SEARCH + "print(f())\n" for name, code in _READING.items()}),
    **_named("evil", {name: _class(body) for name, body in _EVIL.items()}),
    **_named("evil subclass", {name: f"{code}v = V()\ndef f(*a): return v\nprint(v)\n" for name, code in _SUBCLASSES.items()}),
}  # fmt: skip
IN_CALL = {**_named("exit", _EXIT), **_named("replaced", _REPLACED), **_named("staying", _STAYING)}

# Each needs an answer that no program above has. Those of the second table are passed by whoever raises an exception.
TESTS = {
    "equal": "assert f(3) == 4711",
    "close": "assert abs(f(3) - 3.25) < 1e-6",
    "math": "assert math.isclose(f(3), 3.25)",
    "isclose": "assert isclose(f(3), 3.25)",
    "Counter": "assert Counter(f(3)) == Counter([4711])",
    "is one of": "assert f(3) in [4711, 4712]",
    "contains": "assert 4711 in f(3)",
    "sorted": "assert sorted(f(3)) == [3, 5, 4711]",
    "list": "assert list(f(3)) == [3, 4711]",
    "between": "assert 4710 < f(3) < 4712",
    "not unequal": "assert not f(3) != 4711",
    "item": "assert f(3)['x'] == 4711",
    "length": "assert len(f(3)) == 4713",
    "each": "assert all(x == y for x, y in zip(f(3), [4711, 4712], strict=True))",
    "typed": "r = f(3)\nassert isinstance(r, int) and r == 4711",
    "set": "assert set(f(3)) == {4711}",
    "text": "assert str(f(3)) == '4711'",
    "key": "assert {4711: True}.get(f(3)) is True",
    "function": "def check(candidate):\n    assert candidate(3) == 4711\ncheck(f)",
    "attribute": "assert f(3).value == 4711",
    "no arguments": "assert f() == 4711",
    "builtin": "assert pow(2, 3) == 8",
    "builtin in a function": "def check(candidate):\n    assert candidate(2, 3) == 8\ncheck(pow)",
    "changed": "x = [1, 2]\nf(x)\nassert x == [2, 4711]",
}
EXCEPTION_TESTS = {
    "a call that ends": "try:\n    f(3)\nexcept Exception:\n    pass",
    "a call that ends, silently": "try:\n    f(3)\nexcept:\n    pass",
}


def at_import(code: str) -> str:
    """With the function that the tests ask for, where there is none."""
    has_function = any(line.startswith(("def f(", "class f", "f = ")) for line in code.splitlines())
    return code if has_function or code in ("", "\0") or "no program" in code else f"{code}\ndef f(*a): return 0\n"


def in_call(code: str) -> str:
    return f"def f(*a):\n{textwrap.indent(code, '    ')}\n    return 0\nif __name__ == '__main__': f(3)\n"
