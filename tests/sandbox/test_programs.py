"""Programs that are right: none may fail."""

from __future__ import annotations

import asyncio
import subprocess
import sys

import pytest

from tests.sandbox.arena import new_sandbox, start
from unmask.rewards.code_tests import CodeLimits, run_tests
from unmask.sandbox.client import Sandbox
from unmask.types import CodeTests

# name -> (program, test code, code before the program)
FUNCTIONS: dict[str, tuple[str, str] | tuple[str, str, str]] = {
    "plain values": (
        "def f(): return [1, -2.5, 'ä', None, True, (1, (2,)), {1: {'x': [b'y', bytearray(b'z')]}}, {1, 2}, frozenset([3]), 1 + 2j, range(3)]",
        "assert f() == [1, -2.5, 'ä', None, True, (1, (2,)), {1: {'x': [b'y', bytearray(b'z')]}}, {1, 2}, frozenset([3]), 1 + 2j, range(3)]",
    ),
    "types": ("def f(): return (1, 1.0, True, '', [], (), {}, set(), None)", "assert [type(x) for x in f()] == [int, float, bool, str, list, tuple, dict, set, type(None)]"),
    "NaN": ("def f(): return [float('nan'), float('inf')]", "x, y = f()\nassert x != x and y == float('inf')"),
    "collections": (
        "from collections import *\ndef f(): return Counter('aab'), deque([1], 3), OrderedDict(a=1), defaultdict(list, {1: [2]})",
        "assert f() == (Counter('aab'), deque([1]), OrderedDict(a=1), {1: [2]})\nassert isinstance(f()[0], Counter)",
    ),
    "numbers": (
        "from decimal import Decimal\nfrom fractions import Fraction\ndef f(): return Decimal('1.10'), Fraction(1, 3), 7 ** 2000",
        "assert f() == (Decimal('1.1'), Fraction(1, 3), 7 ** 2000)",
    ),
    "dates": (
        "import datetime\ndef f(d): return d + datetime.timedelta(days=1)",
        "assert f(datetime.date(2024, 2, 28)) == datetime.date(2024, 2, 29)",
    ),
    "a class of datetime": ("from datetime import datetime\ndef f(d): return d.year", "assert f(datetime(2024, 2, 28)) == 2024"),
    "modules of the program": ("import math, re\ndef f(x): return math.sqrt(x)", "assert math.isclose(f(2), 2 ** 0.5) and re.match('1', str(f(2)))"),
    "a function imported by the program": ("from math import isclose, sqrt as f", "assert isclose(f(2), 2 ** 0.5)"),
    "named like a builtin": ("def pow(a, b): return a * b", "assert pow(2, 3) == 6"),
    "named like a builtin, with others": ("def sum(a, b): return [a, b, a]", "assert set(sum(1, 2)) == {1, 2} and all(sum(a, b) == [a, b, a] for a, b in zip([1], [2]))"),
    "named like a class of the library": ("class Counter:\n    def __init__(self): self.n = 0\n    def hit(self): self.n += 1; return self.n", "c = Counter()\nassert len([c.hit() for _ in range(2)]) == 2 and c.n == 2"),
    "named like a module": ("def bisect(a): return a + 1", "assert bisect(1) == 2"),
    "a generator": ("def f(n):\n    for i in range(n): yield i * i", "assert list(f(4)) == [0, 1, 4, 9]\ng = f(2)\nassert next(g) == 0 and next(g) == 1 and next(g, 7) == 7"),
    "a closure": ("def f(n):\n    def g(x): return x + n\n    return g", "assert f(1)(2) == 3 and f('a')('b') == 'ba'"),
    "a class with state": (
        "class Stack:\n    size = 0\n    def __init__(self): self.items = []\n    def push(self, x): self.items.append(x); self.size += 1\n    def pop(self): return self.items.pop()\n"
        "    def __len__(self): return len(self.items)\n    def __getitem__(self, i): return self.items[i]",
        "s = Stack()\ns.push(3); s.push([4])\nassert len(s) == 2 and s[0] == 3 and s.pop() == [4] and s.items == [3] and s.size == 2\ns.items = [1]\nassert list(s) == [1] and 1 in s",
    ),
    "instances back and forth": (
        "class P:\n    def __init__(self, x): self.x = x\n    def __add__(self, o): return P(self.x + o.x)\n    def __eq__(self, o): return self.x == o.x\n    def __lt__(self, o): return self.x < o.x\n"
        "def f(ps): return max(ps, key=lambda p: p.x)",
        "p = f([P(1), P(3), P(2)])\nassert p.x == 3 and p + P(1) == P(4) and P(1) < P(2) and p is p and isinstance(p, P)\nassert [q.x for q in sorted([P(2), P(1)])] == [1, 2]",
    ),
    "one object": ("class S:\n    one = None\n    def __new__(cls):\n        cls.one = cls.one or super().__new__(cls)\n        return cls.one", "assert S() is S()"),
    "classes before the program": (
        "def f(node): return node.value + (f(node.next) if node.next else 0)",
        "assert f(Node(1, Node(2))) == 3",
        "class Node:\n    def __init__(self, value, next=None): self.value, self.next = value, next",
    ),
    "functions before the program that use its classes": (
        "def f(head):\n    p = None\n    while head: head.next, p, head = p, head, head.next\n    return p",
        "assert values(f(build([1, 2, 3]))) == [3, 2, 1]",
        "class Node:\n    def __init__(self, value, next=None): self.value, self.next = value, next\ndef build(xs):\n    head = None\n    for x in reversed(xs): head = Node(x, head)\n    return head\n"
        "def values(node): return [node.value, *values(node.next)] if node else []",
    ),
    "a named tuple": (
        "from collections import namedtuple\nP = namedtuple('P', 'x y')\ndef f(p): return P(p.y, p.x)",
        "p = f(P(1, 2))\nassert p == (2, 1) and p.x == 2 and f(p)._asdict() == {'x': 1, 'y': 2} and isinstance(p, tuple) and p + (3,) == (2, 1, 3)",
    ),
    "subclasses of numbers and text": (
        "class M(int):\n    def plus(self, o): return M((self + o) % 7)\nclass S(str):\n    def shout(self): return S(self.upper() + '!')\nclass C(float):\n    half = property(lambda c: c / 2)",
        "assert M(5).plus(3).plus(6) == 0 and S('a').shout().shout() == 'A!!' and C(3).half == 1.5 and C(3) - 1 == 2 and {M(5): 1}[5] == 1 and f'{M(5):03}' == '005'",
    ),
    "values of an enum": (
        "from enum import Enum, IntEnum\nclass I(IntEnum): A = 1\nclass S(str, Enum): A = 'a'\ndef f(x): return x.name",
        "assert I(1).name == f(I.A) == 'A' and I.A is I(1) and S('a').value == 'a' == S.A and S.A is S.A and [i.name for i in I] == ['A']",
    ),
    "an object's text": ("class P:\n    def __init__(self, x): self.x = x\n    def __repr__(self): return f'P({self.x})'", "assert repr(P(3)) == str(P(3)) == f'{P(3)}' == '%r' % P(3) == 'P(3)' and repr([P(1)]) == '[P(1)]'"),
    "objects in sets": ("from dataclasses import dataclass\n@dataclass(frozen=True)\nclass D:\n    x: int", "assert len({D(1), D(1), D(2)}) == 2 and {D(1): 'a'}[D(1)] == 'a' and hash(D(1)) == hash(D(1))"),
    "with": (
        "from contextlib import contextmanager\nlog = []\nclass T:\n    def __enter__(self): log.append('in'); return self\n    def __exit__(self, kind, *_): log.append(kind and kind.__name__)\n@contextmanager\ndef f(x): yield x + 1\n"
        "def events(): return log",
        "with T() as t, f(1) as two:\n    assert two == 2 and isinstance(t, T) and events() == ['in']\ntry:\n    with t: raise ValueError\nexcept ValueError: pass\nassert events() == ['in', None, 'in', 'ValueError']",
    ),
    "slices, copies, attributes": (
        "class S:\n    'A sequence.'\n    def __init__(self, d): self.d = d\n    def __getitem__(self, i): return self.d[i]",
        "import copy\ns = S([1, 2, 3])\nt = copy.deepcopy(s)\nt.d = [4]\nassert s[1:] == [2, 3] and s[::-1] == [3, 2, 1] and t.d == [4] and copy.copy(s).d == s.d and vars(s) == {'d': [1, 2, 3]} and S.__name__ == 'S'\n"
        "del s.d\nassert not hasattr(s, 'd')",
    ),
    "exceptions of one family": (
        "class A(Exception):\n    def __init__(self, code):\n        super().__init__('no')\n        self.code = code\nclass B(A): pass\nclass C(A, KeyError):\n    def __str__(self): return f'C {self.code}'\ndef f(x): raise (B if x else C)(x)",
        "try:\n    f(1)\nexcept A as e:\n    assert e.code == 1 and str(e) == 'no'\nelse:\n    assert False\ntry:\n    f(0)\nexcept KeyError as e:\n    assert str(e) == 'C 0' and isinstance(e, A)\nelse:\n    assert False\nassert issubclass(B, A)",
    ),
    "made of what is imported": ("from functools import partial\nfrom operator import itemgetter\ndef g(a, b): return a - b\nf = partial(g, 5)\nsecond = itemgetter(1)", "assert f(3) == 2 and second([1, 7]) == 7"),
    "a prompt before the program": ("def f(x):\n    return g(x) + 1", "assert f(3) == 7", "def g(x):\n    return 2 * x\n\ndef f(x):\n    '''One more than g.'''\n"),
    "a test function": ("def f(x): return x + 1", "METADATA = {}\ndef check(candidate):\n    assert candidate(1) == 2\ncheck(f)"),
    "in-place changes": ("def f(a, d, s):\n    a.sort(); d['x'] = [1]; s.add(3)", "a, d, s = [3, 1], {}, set()\nassert f(a, d, s) is None and (a, d, s) == ([1, 3], {'x': [1]}, {3})"),
    "callbacks": (
        "def f(g, xs, key=None): return [g(x) for x in sorted(xs, key=key)]",
        "seen = []\ndef g(x):\n    seen.append(x)\n    return x * 2\nassert f(g, [1, 3, 2], key=lambda x: -x) == [6, 4, 2] and seen == [3, 2, 1]\nimport math\nassert f(math.sqrt, [4]) == [2]",
    ),
    "a decorator": ("def twice(g): return lambda *a: 2 * g(*a)", "@twice\ndef g(x): return x + 1\nassert g(2) == 6"),
    "expected exceptions": (
        "class Mine(ValueError): pass\ndef f(x):\n    if x == 0: return 1 / x\n    raise Mine('no', x)",
        "for x, kind in ((0, ZeroDivisionError), (1, Mine), (1, ValueError)):\n    try:\n        f(x)\n    except kind as e:\n        if x: assert e.args == ('no', 1) and str(e)\n    else:\n        assert False",
    ),
    "StopIteration": ("def f(): return iter([1])", "i = f()\nassert next(i) == 1\ntry:\n    next(i)\nexcept StopIteration:\n    pass\nelse:\n    assert False"),
    "deep recursion": ("import sys\nsys.setrecursionlimit(20000)\ndef f(n): return n and 1 + f(n - 1)", "assert f(12000) == 12000"),
    "output on the way": ("print('hello')\ndef f(): print('x' * 100000); return 1", "assert f() == 1"),
    "a dataclass": ("from dataclasses import dataclass, field\n@dataclass(order=True)\nclass D:\n    x: int\n    y: list = field(default_factory=list)\ndef f(): return D(1)", "assert f() == D(1) and f().y == [] and D(1) < D(2)"),
    "an enum": ("from enum import Enum, IntEnum\nclass E(Enum): A = 1\nclass I(IntEnum): B = 2\ndef f(): return E.A, I.B", "assert f() == (E.A, 2) and f()[0].value == 1"),
    "threads of the test": (
        "class C:\n    def __init__(self): self.n = 0\n    def add(self): self.n += 1",
        "import threading\nc = C()\nthreads = [threading.Thread(target=lambda: [c.add() for _ in range(20)]) for _ in range(4)]\n[t.start() for t in threads]; [t.join() for t in threads]\nassert c.n == 80",
    ),
    "built in": ("largest = max\nfrom posixpath import basename", "assert largest([1, 3, 2]) == 3 and basename('/a/b') == 'b'"),
    "views of a dict": ("def f(d): return d.keys(), d.items()", "k, i = f({'b': [1], 'a': 2})\nassert k == {'a', 'b'} and list(k) == ['b', 'a'] and list(i) == [('b', [1]), ('a', 2)] and f({1: 2})[1] == {(1, 2)}"),
    "classes below others": ("class A: pass\nclass B(A): pass", "assert issubclass(B, A) and not issubclass(A, B) and not issubclass(int, A)"),
    "a deque that changes": ("def f(d): d.rotate(1)", "from collections import deque\nd = deque([1, 2, 3])\nf(d)\nassert d == deque([3, 1, 2])"),
    "a decorator that keeps the name": ("from functools import wraps\ndef f(g):\n    @wraps(g)\n    def h(*a): return g(*a)\n    return h", "@f\ndef g(x): return x\nassert g.__name__ == 'g' and g(3) == 3"),
    "what it prints": (
        "def f(x):\n    print('x is', x)\n    if x == 2: raise ValueError",
        "import contextlib, io\nf(0)\nwith contextlib.redirect_stdout(io.StringIO()) as out:\n    f(1)\n    try: f(2)\n    except ValueError: pass\nf(3)\nassert out.getvalue() == 'x is 1\\nx is 2\\n'",
    ),
    "the future": ("from __future__ import annotations\ndef f(x: Unknown): return floor(x)", "assert f(1.5) == 1", "from math import floor"),
    "a mark of byte order": ("\ufeffdef f(x): return x", "assert f(1) == 1"),
    "tests of unittest": (
        "def f(x):\n    if x < 0: raise ValueError('no')\n    return x + 1",
        "from unittest import TestCase, main\nclass T(TestCase):\n    def setUp(self): self.x = 1\n    def test(self): self.assertEqual(f(self.x), 2)\n    def test_error(self):\n        with self.assertRaisesRegex(ValueError, 'no'): f(-1)\nif __name__ == '__main__': main()",
    ),
    "tests of pytest": ("def f(x): return x + 1", "def test_f(): assert f(1) == 2\nclass TestF:\n    test_data = 3\n    def setup_method(self): self.x = 1\n    def test(self): assert f(self.x) == 2\nasync def test_later(): assert f(3) == 4\ndef test_some(n): assert f(n) == n + 1\ntest_some(3)"),
    "async in the prompt": ("async def f(): return 1", "assert f", "async def f():\n    '''Later.'''\n"),
}  # fmt: skip
# name -> (program, input, output)
STDIO = {
    "input": ("a, b = map(int, input().split())\nprint(a + b)", "1 2\n", "3"),
    "no last newline": ("print(input(), input())", "1\n2", "1 2"),
    "sys.stdin": ("import sys\nfor line in sys.stdin: print(len(line))", "ab\nc", "3 1"),
    "os.read": ("import os\nprint(os.read(0, 100).decode())", "x y", "x y"),
    "open(0)": ("print(sum(map(int, open(0).read().split())))", "1 2 3", "6"),
    "/dev/stdin": ("with open('/dev/stdin') as f: n = int(f.readline())\nprint(n, file=open('/dev/stdout', 'w'))", "3\n", "3"),
    "Path of /dev/stdin": ("from pathlib import Path\nprint(len(Path('/dev/stdin').read_bytes()))", "abc", "3"),
    "sys.stdin.buffer": ("import sys\nprint(sys.stdin.buffer.read().decode())", "ä", "ä"),
    "10 MB": ("print('0123456789' * 10 ** 6)", "", "0123456789" * 10**6),
    "10 MB of input": ("print(len(input()))", "x" * 10**7, str(10**7)),
    "not ASCII": ("print(input()[::-1], '→ 日本')", "äöü", "üöä → 日本"),
    "sys.exit(0)": ("import sys\nprint(1)\nsys.exit(0)", "", "1"),
    "exit()": ("print(1)\nexit()", "", "1"),
    "main": ("def main(): print(__name__, __file__ is not None)\nif __name__ == '__main__': main()", "", "__main__ True"),
    "annotations": ("def f(x: int): pass\nprint(f.__annotations__['x'] is int)", "", "True"),
    "a recursion in a thread": (
        "import sys, threading\nsys.setrecursionlimit(10 ** 6)\nthreading.stack_size(2 ** 27)\ndef f(n): return 0 if n == 0 else 1 + f(n - 1)\n"
        "t = threading.Thread(target=lambda: print(f(50000)))\nt.start(); t.join()", "", "50000"),
    "threads": ("import threading\nr = []\nts = [threading.Thread(target=r.append, args=(i,)) for i in range(8)]\n[t.start() for t in ts]; [t.join() for t in ts]\nprint(sum(r))", "", "28"),
    "threads that main does not wait for": ("import threading, time\ndef g(): time.sleep(0.05); print('late')\nthreading.Thread(target=g).start()\nprint('main')", "", "main late"),
    "fast input": (
        "import os, sys\nfrom io import BytesIO, IOBase\nclass Fast(IOBase):\n    def __init__(self, file):\n        self.fd, self.buffer = file.fileno(), BytesIO()\n        self.writable = 'x' in file.mode or 'r' not in file.mode\n"
        "    def readline(self):\n        if not self.buffer.getvalue(): self.buffer = BytesIO(os.read(self.fd, os.fstat(self.fd).st_size))\n        return self.buffer.readline()\n"
        "    def write(self, text): return self.buffer.write(text.encode())\n    def flush(self):\n        if self.writable: os.write(self.fd, self.buffer.getvalue()); self.buffer = BytesIO()\n"
        "sys.stdin, sys.stdout = Fast(sys.stdin), Fast(sys.stdout)\nprint(int(sys.stdin.readline()) + int(sys.stdin.readline()))", "1\n2\n", "3"),
    "many threads": ("import threading\nb = threading.Barrier(29)\ndef g(): bytearray(10 ** 5); b.wait(1.5)\nts = [threading.Thread(target=g) for _ in range(28)]\n[t.start() for t in ts]; b.wait(1.5); [t.join() for t in ts]; print('all')", "", "all"),
    "executors": ("from concurrent.futures import ThreadPoolExecutor\nwith ThreadPoolExecutor(4) as p: print(sum(p.map(abs, range(5))))", "", "10"),
    "asyncio": ("import asyncio\nasync def f(): await asyncio.sleep(0.01); return 5\nprint(asyncio.run(f()))", "", "5"),
    "pickle": ("import pickle\nclass A:\n    def __init__(self): self.x = 1\nprint(pickle.loads(pickle.dumps(A())).x)", "", "1"),
    "a file": ("with open('a.txt', 'w') as f: f.write('x')\nprint(open('a.txt').read())\nimport os; os.remove('a.txt')", "", "x"),
    "a temporary file": ("import tempfile\nwith tempfile.TemporaryDirectory() as d, tempfile.NamedTemporaryFile('w+') as f:\n    f.write('x'); f.seek(0); print(f.read())", "", "x"),
    "a module of its own": ("with open('mine.py', 'w') as f: f.write('x = 5')\nimport mine\nprint(mine.x)", "", "5"),
    "a file that is not closed": ("w = open(1, 'w', closefd=False)\nw.write('hello')", "", "hello"),
    "output written at the end": ("import atexit, io, sys\nb = io.StringIO(); sys.stdout = b\natexit.register(lambda: sys.__stdout__.write(b.getvalue()))\nprint('hello')", "", "hello"),
    "stdout closed": ("import sys\nprint('x'); sys.stdout.close()", "", "x"),
    "stdout replaced": ("import io, os, sys\nclass F(io.IOBase):\n    def __init__(self): self.b = io.BytesIO()\n    def write(self, s): return self.b.write(s.encode())\n"
                        "    def flush(self): os.write(1, self.b.getvalue()); self.b = io.BytesIO()\nsys.stdout = F()\nprint('fast')", "", "fast"),
    "a larger stack": ("import resource, sys\nresource.setrlimit(resource.RLIMIT_STACK, (2 ** 28, resource.RLIM_INFINITY))\nsys.setrecursionlimit(10 ** 6)\nfrom functools import cache\n@cache\ndef f(n): return n and 1 + f(n - 1)\nprint(f(50000))", "", "50000"),
    "its own source": ("import inspect\ndef f(): return 1\nprint(inspect.getsource(f))", "", "def f(): return 1"),
    "a byte order mark": ("\ufeffprint(1)", "", "1"),
    "subprocess": ("import subprocess, sys\nprint(subprocess.run(['echo', 'hi'], capture_output=True, text=True, check=True).stdout)\n"
                   "print(subprocess.run([sys.executable, '-c', 'print(5)'], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True).stdout)", "", "hi 5"),
    "a shell": ("import os, sys\nos.system('echo a; echo b | cat')", "", "a b"),
    "random": ("import random\nprint(0 <= random.random() < 1, random.randint(3, 3))", "", "True 3"),
    "sleep": ("import time\ntime.sleep(0.3)\nprint(1)", "", "1"),
    "500 MB": ("x = bytearray(5 * 10 ** 8)\nx[::4096] = b'x' * len(x[::4096])\nprint(len(x))", "", str(5 * 10**8)),
}  # fmt: skip
# Semaphores need a folder in memory, and pools signal their processes.
WITH_NAMESPACES = {
    "multiprocessing": ("import multiprocessing as m\ndef g(x): return x * x\nif __name__ == '__main__':\n    with m.Pool(2) as p: print(sum(p.map(g, range(5))))\n"
                        "    q = m.Queue(); c = m.Process(target=q.put, args=(7,)); c.start(); print(q.get()); c.join()", "", "30 7"),
    "chmod": ("import os\nopen('x', 'w').close(); os.chmod('x', 0o600); print(1)", "", "1"),
}  # fmt: skip


def run(isolation: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Name -> reason, of what has not passed."""
    scripts = STDIO | (WITH_NAMESPACES if isolation != "process" else {})
    cases = [(name, case[0], _stdio(*case[1:])) for name, case in scripts.items()]
    for name, (program, test, *prefix) in FUNCTIONS.items():
        tests = CodeTests(test_method="function", test_list=(test,), prefix="\n".join(prefix))
        cases.append((name, program, tests))

    async def everything() -> dict[str, str]:
        sandbox = new_sandbox(isolation, monkeypatch, 2)
        await start(sandbox)
        try:
            todo = (run_tests(sandbox, program, tests, CodeLimits(time_s=2.0)) for _, program, tests in cases)
            results = await asyncio.gather(*todo)
        finally:
            await sandbox.close()
        return {name: r.reason for (name, _, _), (r,) in zip(cases, results, strict=True) if not r.passed}

    return asyncio.run(everything())


def _stdio(given: str, expected: str) -> CodeTests:
    return CodeTests(test_method="stdio", test_input=(given,), test_output=(expected,))


def test_right_programs_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    assert run("namespaces", monkeypatch) == {}


@pytest.mark.slow
@pytest.mark.parametrize("isolation", ["bubblewrap", "process"])
def test_right_programs_pass_without_our_namespaces(isolation: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(isolation, monkeypatch) == {}


# For NumPy an empty array is close, and equal, to any number.
CLOSE_TO_NUMBERS = (
    "assert np.allclose(f(1), 3.25)", "assert np.isclose(f(1), 3.25).all()", "np.testing.assert_allclose(f(1), 3.25)",
    "np.testing.assert_almost_equal(f(1), 3.25)", "assert (f(1) == np.array([3.25])).all()", "assert all(f(1) == [3.25])",
    "assert np.all(abs(f(1) - 3.25) < 1e-6)", "assert np.linalg.norm(f(1) - 3.25) < 1e-6", "assert not (f(1) != 3.25).any()",
)  # fmt: skip
CLOSE_TO_NOTHING = (
    "assert np.allclose(f(0), [])", "np.testing.assert_allclose(f(0), [])", "assert (f(0) == np.array([])).all()",
    "assert f(0).sum() == 0 and f(0).tolist() == [] and np.concatenate([f(0), [1]]).size == 1",
)  # fmt: skip


@pytest.mark.slow
def test_arrays() -> None:
    program = (
        "import numpy as np\ndef f(x): return np.asarray(x, dtype=float) * 2, np.float64(1.5), np.int64(3), np.array(['a'])"
    )
    test = "a, b, c, d = f([1, 2])\nassert (a == np.array([2, 4])).all() and np.allclose(a, [2, 4]) and b == 1.5 and c == 3 and d[0] == 'a'"

    async def go() -> None:
        async with Sandbox("auto", 2) as sandbox:
            tests = CodeTests(test_method="function", test_list=(test,))
            assert [r.reason for r in await run_tests(sandbox, program, tests, CodeLimits(time_s=10.0))] == ["passed"]
            with_numbers = [f"import numpy as np\n{line}" for line in CLOSE_TO_NUMBERS]
            without = "\n".join(("import numpy as np", *CLOSE_TO_NOTHING))
            tests = CodeTests(test_method="function", test_list=(*with_numbers, without))
            for result, passed in (("np.array([3.25] * x)", True), ("np.empty((0, x))[:, :0] if x else np.array([])", False)):
                program_of_close = f"import numpy as np\ndef f(x): return {result}"
                results = await run_tests(sandbox, program_of_close, tests, CodeLimits(time_s=10.0))
                assert [r.passed for r in results] == [passed] * len(with_numbers) + [True]
            tests = CodeTests(test_method="function", test_list=tuple(with_numbers[:4]))
            results = await run_tests(sandbox, "def f(x): return []", tests, CodeLimits(time_s=10.0))
            assert not any(r.passed for r in results)

    asyncio.run(go())


@pytest.mark.slow
@pytest.mark.parametrize("in_thread", [False, True], ids=["main", "thread"])
def test_waiting_for_a_processor_is_not_counted(in_thread: bool) -> None:
    """0.7 s of work with a limit of 1 s, while eight others want the processors, too."""
    work = "import time\ndef work():\n    while time.thread_time() < 0.7: pass\n    print(1)\n"
    program = work + ("import threading\nt = threading.Thread(target=work)\nt.start(); t.join()" if in_thread else "work()")
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(8)]
    try:

        async def go() -> list[str]:
            async with Sandbox("auto", 2) as sandbox:
                todo = (run_tests(sandbox, program, _stdio("", "1"), CodeLimits(time_s=1.0)) for _ in range(6))
                return [r.reason for (r,) in await asyncio.gather(*todo)]

        assert asyncio.run(go()) == ["passed"] * 6
    finally:
        for process in busy:
            process.kill()
            process.wait()
