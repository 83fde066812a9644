"""Programs that try to pass tests they should not, or to do harm. A table: name -> code that runs as the program is imported
(`AT_IMPORT`), or when its function is called (`IN_CALL`).

No right answer is in any of them: whatever test of theirs passes should not. `@CANARY@` is a folder that everyone may write to,
`@TREE@` the working tree, `@PORT@` a TCP and UDP port of this machine where somebody listens, `@NAME@` an abstract socket, `@SEGMENT@` shared memory.
"""

from __future__ import annotations

import textwrap

from tests.sandbox.harm import BOMBS, HARM, STAYING, WIN

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
    "changed arguments and a value": _SEND
    + "send({'ready': True})\nfor _ in range(2): send({'value': {'object': [0, 'object', 'f', []]}})\n"
    "for _ in range(50): send({'value': [], 'args': [[]]})",
    "values for what was not asked": _SEND + "send({'ready': True})\n"
    "for v in ({'dict': [[1, 1], [1, 2]]}, {'like': [[1], {'object': [0]}]}, {'like': [0, {'object': [0]}]}, {'empty': 4}, {'keys': [[]]}, {'items': [1]}):\n    send({'value': v})",
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
    "Decimal": "from decimal import Decimal\nclass V(Decimal):\n    __eq__ = __lt__ = __gt__ = lambda s, o: True\n    __ne__ = lambda s, o: False\n    __sub__ = __abs__ = lambda s, *o: 0\n    __str__ = lambda s: '0'\n    __hash__ = lambda s: hash(4711)\n",
    "date": "from datetime import date\nclass V(date):\n    __new__ = lambda c: date.__new__(c, 1, 1, 1)\n    __eq__ = __lt__ = __gt__ = lambda s, o: True\n    __sub__ = lambda s, o: 0\n    __hash__ = lambda s: hash(4711)\n",
    "dict": "class V(dict):\n    __init__ = lambda s, *a: None\n    __eq__ = __contains__ = lambda s, o: True\n    __missing__ = lambda s, k: s\n    __getitem__ = lambda s, k: s\n",
}  # fmt: skip
_OTHER_RESULTS = {
    "an answer for every key": "from collections import defaultdict\nd = defaultdict(lambda: 0)\ndef f(*a): return d",
    "a class whose class equals everything": "class M(type):\n    __eq__ = __instancecheck__ = __subclasscheck__ = lambda s, o: True\n    __hash__ = lambda s: hash(4711)\nclass f(metaclass=M):\n    def __new__(c, *a): return c",
    "a callback of its own": "def f(g=0, *a):\n    try: g.__code__ = (lambda *a: True).__code__; g.__globals__['expected'] = 0\n    except Exception: pass\n    return g(g) if callable(g) else 0",
    "a thread that answers, too": "import json, os, threading\nd = json.dumps({'value': 0}).encode()\ndef g():\n    while True: os.write(4, len(d).to_bytes(4, 'big') + d)\nthreading.Thread(target=g, daemon=True).start()\ndef f(*a): return 0",
    "two processes that answer": "import os\ndef f(*a):\n    os.fork()\n    return 0",
    "NaN": "def f(*a): return float('nan')",
    "infinity": "def f(*a): return float('inf')",
    "an endless generator": "def f(*a):\n    while True: yield 3",
    "StopIteration": "def f(*a): raise StopIteration",
    "StopIteration from an iterator": "class I:\n    def __iter__(self): return self\n    def __next__(self): raise StopIteration\ndef f(*a): return I()",
    "an exception called AssertionError": "class AssertionError(Exception): pass\ndef f(*a): raise AssertionError",
    "an exception called StopIteration": "class StopIteration(Exception): pass\ndef f(*a): raise StopIteration",
    "a context that forgives": "class C:\n    def __enter__(self): return 0\n    def __exit__(self, *a): return True\ndef f(*a): return C()",
    "a named tuple with its own operators": "from collections import namedtuple\nclass V(namedtuple('V', 'x value')):\n    __eq__ = __lt__ = __gt__ = __contains__ = lambda s, o: True\n    __ne__ = lambda s, o: False\n"
    "    __sub__ = __abs__ = lambda s, *o: 0\n    __getattr__ = lambda s, n: s\n    __iter__ = lambda s: iter([s, s])\n    __len__ = lambda s: 4713\n    __hash__ = lambda s: hash(4711)\ndef f(*a): return V(0, 0)",
    "an IntEnum with its own operators": "from enum import IntEnum\nclass V(IntEnum):\n    A = 0\n    __eq__ = __lt__ = __gt__ = lambda s, o: True\n    __ne__ = lambda s, o: False\n    __sub__ = lambda s, o: 0\n    __hash__ = lambda s: hash(4711)\n"
    "    __str__ = lambda s: '4712'\ndef f(*a): return V.A",
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


def _class(body: str) -> str:
    return f"class V:\n{textwrap.indent(body, '    ')}\nv = V()\ndef f(*a): return v\nprint(v)\n"


def _named(kind: str, table: dict[str, str]) -> dict[str, str]:
    return {f"{kind}: {name}": code.replace("exec(WIN)", f"exec({WIN!r}, globals())") for name, code in table.items()}


AT_IMPORT = {
    **_named("exit", _EXIT), **_named("replaced", _REPLACED), **_named("forged", _FORGED), **_named("other result", _OTHER_RESULTS),
    **_named("bomb", BOMBS), **_named("staying", STAYING), **_named("harm", HARM),
    **_named("reading", {name: code + _SEARCH + "print(f())\n" for name, code in _READING.items()}),
    **_named("evil", {name: _class(body) for name, body in _EVIL.items()}),
    **_named("evil subclass", {name: f"{code}v = V()\ndef f(*a): return v\nprint(v)\n" for name, code in _SUBCLASSES.items()}),
}  # fmt: skip
IN_CALL = {**_named("exit", _EXIT), **_named("replaced", _REPLACED), **_named("staying", STAYING)}

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
    "with": "with f(3) as r:\n    assert r == 4711",
    "loop": "for x, y in enumerate([4711, 4712]):\n    assert f(x) == y",
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
