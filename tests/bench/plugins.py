"""What plugins cost at the start: `version` and `plugin list` with 0, 10 and 50 of them installed.

usage: plugins.py KEEPWELL COMPONENT [WORK]

COMPONENT is that of examples/keep-weekly (after a build of the tests: target/release/build/keepwell-test-guests-*/out/).
Prints the median of thirty starts, and its ratio to a start without any.
"""
import os, shutil, statistics, subprocess, sys, time

keepwell, component = os.path.abspath(sys.argv[1]), open(sys.argv[2], "rb").read()
work = sys.argv[3] if len(sys.argv) > 3 else "/tmp/keepwell-bench-plugins"
NAME = b"keep-weekly"
assert component.count(NAME) == 1, "this is not the component of keep-weekly"


def started(command, environment):
    times = []
    for _ in range(30):
        began = time.perf_counter()
        subprocess.run([keepwell, *command], env=environment, stdout=subprocess.DEVNULL, check=True)
        times.append(time.perf_counter() - began)
    return statistics.median(times)


base = {}
for count in (0, 10, 50):
    home = os.path.join(work, str(count))
    shutil.rmtree(home, ignore_errors=True)
    os.makedirs(home)
    environment = {"PATH": os.environ["PATH"], "HOME": home}
    for number in range(count):
        file = os.path.join(home, "plugin.wasm")
        with open(file, "wb") as out:
            out.write(component.replace(NAME, b"keep-week%02d" % number))
        subprocess.run(
            [keepwell, "plugin", "install", "--yes", file], env=environment, check=True, capture_output=True
        )
    # A file that is younger than the tick of its file system is read again.
    time.sleep(2.5)
    subprocess.run([keepwell, "version"], env=environment, check=True, capture_output=True)
    for command in (("version",), ("plugin", "list")):
        seconds = started(command, environment)
        base.setdefault(command, seconds)
        print(f"{count:3} plugins  {' '.join(command):12} {seconds * 1000:6.1f} ms  {seconds / base[command]:5.2f}", flush=True)
shutil.rmtree(work)
