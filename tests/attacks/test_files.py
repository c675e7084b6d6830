"""Every hostile file is refused with the package's own error, quickly, in little memory, and without running code."""

import json
import subprocess
import sys
from pathlib import Path

from tests.attacks.files import all_files, code_pickles

SECONDS = 20
MEBIBYTES = 768
CHILD = """
import json, os, resource, signal, sys
from diffadapt.errors import DiffAdaptError
from diffadapt.io.source import read_checkpoint

limit = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize() + 3 * 2**30
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
for path in sys.argv[1:]:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    signal.setitimer(signal.ITIMER_PROF, %d)  # of the process's own time: others may keep the machine busy
    try:
        read_checkpoint(path).check_finite()
        outcome, text = "accepted", ""
    except DiffAdaptError as error:
        outcome, text = "refused", str(error)
    except BaseException as error:
        outcome, text = "foreign " + type(error).__name__, str(error)
    signal.setitimer(signal.ITIMER_PROF, 0)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024
    print(json.dumps([os.path.basename(path), outcome, text, grown]), flush=True)
"""


def test_every_hostile_file_is_refused(tmp_path):
    canary = tmp_path / "CANARY"
    paths = []
    for name, content in all_files(str(canary)):
        (tmp_path / name).write_bytes(content)
        paths.append(str(tmp_path / name))
    assert len(paths) == len(set(paths)) > 120
    result = subprocess.run(
        [sys.executable, "-c", CHILD % SECONDS, *paths],
        capture_output=True, text=True, cwd=Path(__file__).parents[2], timeout=300, check=False,
    )  # fmt: skip
    rows = [json.loads(line) for line in result.stdout.splitlines()]
    assert result.returncode == 0, f"ended after {rows[-1:]} with {result.returncode}: {result.stderr[-500:]}"
    assert len(rows) == len(paths)
    assert [row for row in rows if row[1] != "refused"] == []
    assert [row for row in rows if row[3] > MEBIBYTES] == []
    assert not canary.exists()
    # A message names the file, stays readable in a terminal, and says no folder of this machine.
    for name, _, text, _ in rows:
        assert name in text
        assert text.isprintable()
        assert len(text) < 800
        assert str(tmp_path) not in text.replace(str(canary), "")


def test_the_canary_would_show(tmp_path):
    """The payloads are live: without the allowlist, they do run."""
    import pickle

    canary = tmp_path / "CANARY"
    content = dict(code_pickles(str(canary)))["bare-2-system"]
    pickle.loads(content)
    assert canary.exists()
