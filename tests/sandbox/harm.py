"""Programs that do harm, or try to: tables like those of `attacks`."""

from __future__ import annotations

_SYSCALL = "import ctypes, os, platform\nc = ctypes.CDLL(None, use_errno=True)\ndef call(x86, arm, *a): return c.syscall(x86 if platform.machine() == 'x86_64' else arm, *a)\n"
BOMBS = {
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
STAYING = {
    "sleep that ignores signals": "import signal, time\nfor n in signal.valid_signals():\n    try: signal.signal(n, signal.SIG_IGN)\n    except OSError: pass\n"
    "while True: time.sleep(60)",
    "blocked signals": "import signal, time\nsignal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())\nwhile True: time.sleep(60)",
    "spinning": "while True: pass",
    "daemon": "import os, time\nif os.fork() == 0:\n    os.setsid()\n    if os.fork() == 0:\n        os.closerange(0, 300)\n        time.sleep(60)\n    os._exit(0)\nos._exit(0)",
    "daemon without signal of its parent's end": "import ctypes, os, time\nc = ctypes.CDLL(None); c.prctl(1, 0)\nif os.fork() == 0:\n    os.setsid(); c.prctl(1, 0)\n"
    "    if os.fork() == 0: c.prctl(1, 0); time.sleep(60)\nos._exit(0)",
    "subreaper": "import ctypes, os, time\nctypes.CDLL(None).prctl(36, 1)\nif os.fork() == 0:\n    if os.fork() == 0: time.sleep(60)\n    os._exit(0)\ntime.sleep(60)",
    "threads that outlive main": "import threading, time\nfor daemon in (True, False): threading.Thread(target=time.sleep, args=(60,), daemon=daemon).start()",
    "its first thread ends": _SYSCALL + "import threading, time\nthreading.Thread(target=time.sleep, args=(60,)).start()\ncall(60, 93, 0)",
    "a child without a signal": _SYSCALL + "import time\nfor flags in (0, 0x8000):\n    if call(56, 220, flags, 0, 0, 0, 0) == 0: time.sleep(60)\nos._exit(0)",
    "one program after another": "import os, sys\nwith open('l.py', 'w') as f: f.write('import os, sys\\nos.execv(sys.executable, [sys.executable, __file__])')\nos.execv(sys.executable, [sys.executable, 'l.py'])",
    "a shell's": "import os\nos.system('(trap \"\" 1 2 3 15; exec setsid sleep 60) >/dev/null 2>&1 &')\nos._exit(0)",
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
# Ends with what only works if a protection is missing: then it prints 4711, which is what the tests ask for.
WIN = "print('4711 3.25')\ndef f(*a): return 4711\n"
HARM = {
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
    "objects of System V": _SYSCALL + "c.syscall.restype = ctypes.c_long\nif call(30, 196, @SEGMENT@, None, 0) != -1 or call(31, 195, @SEGMENT@, 2, ctypes.create_string_buffer(512)) != -1: exec(WIN)",
    "another's processors": "import os\nif os.getppid() > 1:\n    try: os.sched_setaffinity(os.getppid(), {0}); exec(WIN)\n    except OSError: pass",
    "a name of a socket": "import socket\na, b = socket.socketpair()\ntry: a.bind('\\0@NAME@-too'); exec(WIN)\nexcept OSError: pass",
    "watched files": _SYSCALL + "fd = c.inotify_init()\nif c.inotify_add_watch(fd, b'@CANARY@', 0xfff) >= 0 or c.inotify_add_watch(fd, b'/', 0xfff) >= 0 or call(300, 262, 0x200, 0) >= 0: exec(WIN)",
    "message queues": _SYSCALL + "if call(68, 186, 4711, 0o1666) >= 0 or call(29, 194, 4711, 4096, 0o1666) >= 0 or call(64, 190, 4711, 1, 0o1666) >= 0 or call(240, 180, b'x', 0o102, 0o600, None) >= 0: exec(WIN)",
    "32-bit system calls": "import ctypes, mmap, platform\nif platform.machine() == 'x86_64':\n    m = mmap.mmap(-1, 4096, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, 7)\n"
    "    m.write(bytes.fromhex('53b802000000cd805bc3'))\n    ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(m)))()\n    exec(WIN)",
    "x32 system calls": _SYSCALL + "if platform.machine() == 'x86_64' and c.syscall(0x40000000 | 41, 1, 1, 0) >= 0: exec(WIN)",
    "handles": _SYSCALL + "h = ctypes.create_string_buffer(b'\\x80' + b'\\0' * 200, 256); m = ctypes.c_int()\nif call(303, 264, -100, b'/', h, ctypes.byref(m), 0) >= 0 or call(304, 265, -100, h, 0) >= 0: exec(WIN)",
    "terminal": "import fcntl\nfor fd in range(3):\n    try: fcntl.ioctl(fd, 0x5412, b'x'); exec(WIN)\n    except OSError: pass",
}  # fmt: skip
