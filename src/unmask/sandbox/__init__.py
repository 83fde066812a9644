"""Running programs that nobody trusts, and finding out what they do without believing a word they say.

| file | what it is | where it runs |
|---|---|---|
| `client` | `Sandbox`: starts the server, hands it jobs, reads what became of them | the caller's process |
| `server` | forks a keeper for every job; warm, so that a program starts in milliseconds | a process of its own |
| `view` | what there is of the file system: the interpreter and an empty folder | the server, once |
| `keeper` | starts one job, watches its time and memory, ends everything that belongs to it | one process per job |
| `jail` | takes away what a process could do harm with | the program's process |
| `program` | runs a program, or serves calls of its functions | the program's process |
| `folders` | removes the folder of a program that has no file system of its own | the keeper |
| `evaluator` | runs the test code, which calls the program's functions over a pipe | another such process |
| `defined`, `arrays` | tests that test code leaves to a runner; comparisons of arrays | the test code's process |
| `wire`, `remote` | plain values as text; stand-ins for what is not plain | both of these |
| `kernel`, `seccomp`, `landlock` | system calls that Python has no functions for | |

Only the standard library is imported here: what the server has loaded is what every program finds in its memory.
"""
