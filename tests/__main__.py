"""Runs pytest in two processes, which share the files of tests: `python -m tests`.

Whoever comes to a file first takes it (tests/conftest.py). The second one's output is shown when
the first has ended. Arguments go to both.
"""

import os
import subprocess
import sys
import tempfile

PROCESSES = min(2, os.cpu_count() or 1)


def main() -> int:
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile() as output:
        environment = {**os.environ, "MINIFUNC_TESTS_TAKEN": folder}
        command = [sys.executable, "-m", "pytest", *sys.argv[1:]]
        others = [
            subprocess.Popen(command, env=environment, stdout=output, stderr=output)
            for _ in range(PROCESSES - 1)
        ]
        codes = [subprocess.call(command, env=environment)]
        codes += [process.wait() for process in others]
        output.seek(0)
        print(output.read().decode(errors="replace"))
    return max(map(abs, codes))  # below 0: killed by a signal


if __name__ == "__main__":
    sys.exit(main())
