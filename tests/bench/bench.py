#!/usr/bin/env python3
"""bench.py [--size-mib N] [--files N] [--runs N] KEEPWELL [WORKDIR]

First backup, unchanged second backup and restore of three data sets with keepwell, restic,
borg (no encryption) and cp -a, in one run; prints seconds, ratios, peak memory and the share of
CPU time that keepwell spends in wasm. The page cache is warm for all. Needs restic, borgbackup.
"""
import argparse, hashlib, json, os, random, resource, shutil, socket, subprocess, sys, time

ap = argparse.ArgumentParser()
ap.add_argument("--size-mib", type=int, default=2048)
ap.add_argument("--files", type=int, default=60000)
ap.add_argument("--runs", type=int, default=1)
ap.add_argument("--only", default="")
ap.add_argument("--tools", default="keepwell,metadata,encrypted,served,restic,borg,cp")
ap.add_argument("keepwell")
ap.add_argument("work", nargs="?", default="/tmp/keepwell-bench")
args = ap.parse_args()
KEEPWELL = os.path.abspath(args.keepwell)
WORK = os.path.abspath(args.work)
os.makedirs(WORK, exist_ok=True)
ENV = dict(os.environ, RESTIC_PASSWORD="x", BORG_BASE_DIR=WORK + "/borg-home",
           BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK="yes", XDG_CACHE_HOME=WORK + "/cache",
           RESTIC_CACHE_DIR=WORK + "/cache/restic", PBS_REPOSITORY=WORK + "/keepwell-repo")

def make(name):
    root = os.path.join(WORK, "data", name)
    if os.path.exists(root): return root
    os.makedirs(root + ".new", exist_ok=True)
    rng = random.Random(7)
    if name == "incompressible":
        with open(root + ".new/file", "wb") as f:
            for _ in range(args.size_mib): f.write(rng.randbytes(1 << 20))
    elif name == "compressible":
        # random bytes with two thirds repeats of what stands shortly before: about 3:1
        with open(root + ".new/file", "wb") as f:
            for _ in range(args.size_mib):
                out = bytearray()
                while len(out) < 1 << 20:
                    piece = rng.randbytes(340)
                    out += piece + piece + piece
                f.write(out[: 1 << 20])
    else:
        words = [bytes(rng.choices(b"abcdefghijklmnopqrstuvwxyz", k=rng.randint(2, 9))) for _ in range(5000)]
        for i in range(args.files):
            d = root + ".new/d%03d/e%02d" % (i // 600, i // 60 % 10)
            os.makedirs(d, exist_ok=True)
            size = min(int(rng.lognormvariate(9, 1.1)), 400000)
            with open(d + "/f%05d" % i, "wb") as f:
                if i % 3: f.write(b" ".join(rng.choices(words, k=size // 6 + 1))[:size])
                else: f.write(rng.randbytes(size))
    os.rename(root + ".new", root)
    return root

def run(cmd, **kw):
    os.sync()
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    t = time.monotonic()
    p = subprocess.Popen(cmd, env=ENV, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, **kw)
    err = p.stderr.read()
    _, status, usage = os.wait4(p.pid, 0)
    seconds = time.monotonic() - t
    if status: sys.exit("%r failed: %s" % (cmd, err.decode()[-2000:]))
    return seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024

numbers = iter(range(10**6))
def fresh(path):
    """A name nobody used: ext4 passes over inodes that were deleted in the last five minutes."""
    return "%s-%d" % (path, next(numbers))

def clean():
    for name in os.listdir(WORK):
        if name not in ("data", "cache", "empty", "bench.key"): shutil.rmtree(os.path.join(WORK, name))
    os.sync(); time.sleep(6)

def keepwell(data):
    ENV["PBS_REPOSITORY"] = fresh(WORK + "/keepwell-repo"); out = fresh(WORK + "/out")
    os.makedirs(WORK + "/empty", exist_ok=True)
    # restic and borg make their repositories before the clock runs, too
    run([KEEPWELL, "backup", "e.pxar:" + WORK + "/empty", "--backup-id", "init"])
    yield run([KEEPWELL, "backup", "root.pxar:" + data, "--backup-id", "b", "--backup-time", "1700000000"])
    yield run([KEEPWELL, "backup", "root.pxar:" + data, "--backup-id", "b", "--backup-time", "1700000001"])
    yield run([KEEPWELL, "restore", "host/b", "root.pxar", out])

def encrypted(data):
    """The same with a key: what encryption costs is the ratio to the plain run."""
    key = WORK + "/bench.key"
    if not os.path.exists(key): run([KEEPWELL, "key", "create", key, "--kdf", "none"])
    ENV["PBS_REPOSITORY"] = fresh(WORK + "/keepwell-repo"); out = fresh(WORK + "/out")
    os.makedirs(WORK + "/empty", exist_ok=True)
    run([KEEPWELL, "backup", "e.pxar:" + WORK + "/empty", "--backup-id", "init"])
    with_key = ["--keyfile", key]
    yield run([KEEPWELL, "backup", "root.pxar:" + data, "--backup-id", "b", "--backup-time", "1700000000"] + with_key)
    yield run([KEEPWELL, "backup", "root.pxar:" + data, "--backup-id", "b", "--backup-time", "1700000001"] + with_key)
    yield run([KEEPWELL, "restore", "host/b", "root.pxar", out] + with_key)

def served(data):
    """The same over loopback TLS into a server of our own."""
    base = fresh(WORK + "/served"); out = fresh(WORK + "/out")
    os.makedirs(base); os.makedirs(WORK + "/empty", exist_ok=True)
    open(base + "/password", "w").write("benchmark")
    with socket.socket() as free: free.bind(("127.0.0.1", 0)); port = free.getsockname()[1]
    run([KEEPWELL, "admin", "init", base + "/srv", "--datastore", "bench=" + base + "/repo", "--user", "me@pbs",
         "--password-file", base + "/password", "--listen", "127.0.0.1:%d" % port])
    config = base + "/srv/server.toml"
    info = subprocess.run([KEEPWELL, "admin", "cert", "info", "--config", config], capture_output=True, text=True, env=ENV)
    ENV["PBS_FINGERPRINT"] = info.stdout.split("Fingerprint: ")[1].strip(); ENV["PBS_PASSWORD"] = "benchmark"
    ENV["PBS_REPOSITORY"] = "me@pbs@127.0.0.1:%d:bench" % port
    server = subprocess.Popen([KEEPWELL, "serve", "--config", config], env=ENV, stderr=subprocess.DEVNULL)
    try:
        for _ in range(100):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0: break
            time.sleep(0.1)
        run([KEEPWELL, "backup", "e.pxar:" + WORK + "/empty", "--backup-id", "init"])
        yield run([KEEPWELL, "backup", "root.pxar:" + data, "--backup-id", "b", "--backup-time", "1700000000"])
        yield run([KEEPWELL, "backup", "root.pxar:" + data, "--backup-id", "b", "--backup-time", "1700000001"])
        yield run([KEEPWELL, "restore", "host/b", "root.pxar", out])
    finally:
        server.terminate(); server.wait()

def restic(data):
    repo = fresh(WORK + "/restic-repo"); out = fresh(WORK + "/out"); shutil.rmtree(WORK + "/cache/restic", ignore_errors=True)
    run(["restic", "init", "-q", "-r", repo])
    yield run(["restic", "backup", "-q", "-r", repo, "."], cwd=data)
    yield run(["restic", "backup", "-q", "-r", repo, "."], cwd=data)
    yield run(["restic", "restore", "latest", "-q", "-r", repo, "--target", out])

def borg(data):
    repo = fresh(WORK + "/borg-repo"); out = fresh(WORK + "/out"); shutil.rmtree(WORK + "/borg-home", ignore_errors=True)
    run(["borg", "init", "-e", "none", repo])
    yield run(["borg", "create", repo + "::a", "."], cwd=data)
    yield run(["borg", "create", repo + "::b", "."], cwd=data)
    os.makedirs(out)
    yield run(["borg", "extract", repo + "::b"], cwd=out)

def cp(data):
    out = fresh(WORK + "/cp-out"); back = fresh(WORK + "/out")
    yield run(["cp", "-a", data, out])
    yield run(["cp", "-a", "-u", data + "/.", out])
    yield run(["cp", "-a", out, back])

def metadata(data):
    """With metadata and content apart, and unchanged files not read."""
    ENV["PBS_REPOSITORY"] = fresh(WORK + "/keepwell-repo"); out = fresh(WORK + "/out")
    os.makedirs(WORK + "/empty", exist_ok=True)
    run([KEEPWELL, "backup", "e.pxar:" + WORK + "/empty", "--backup-id", "init"])
    backup = [KEEPWELL, "backup", "root.pxar:" + data, "--backup-id", "b", "--change-detection-mode", "metadata", "--backup-time"]
    yield run(backup + ["1700000000"])
    yield run(backup + ["1700000001"])
    yield run([KEEPWELL, "restore", "host/b", "root.pxar", out])

def timed_twice(command):
    return run(command)[0], run(command)[0]

def forget():
    """As after a start of the machine; False where only root may do that."""
    os.sync()
    try:
        with open("/proc/sys/vm/drop_caches", "w") as f: f.write("3")
        return True
    except OSError: return False

def looking(name, data):
    """Through a mount of the last snapshot: reading all beside restoring it, and listing beside the source, both cold
    and both warm."""
    ENV["PBS_REPOSITORY"] = fresh(WORK + "/keepwell-repo"); point = fresh(WORK + "/mount"); out = fresh(WORK + "/out")
    os.makedirs(point)
    for mode in ("legacy", "metadata"):
        run([KEEPWELL, "backup", "root.pxar:" + data, "--backup-id", mode, "--change-detection-mode", mode])
        def mounted(command):
            run([KEEPWELL, "mount", "host/" + mode, "root.pxar", point])
            try: return timed_twice(command)
            finally: run(["umount", point])
        # Into files, as a restore does, and not at all.
        read = min(mounted(["sh", "-c", "find '%s' -type f -print0 | xargs -0 cat | wc -c" % point])[0] for _ in range(args.runs))
        restore = min(run([KEEPWELL, "restore", "host/" + mode, "root.pxar", fresh(out)])[0] for _ in range(args.runs))
        finds = {"source": [], "mount": []}
        for _ in range(args.runs):
            is_cold = forget()
            finds["source"].append(timed_twice(["find", data]))
            forget()
            finds["mount"].append(mounted(["find", point]))
        (source, again), (first, second) = ([min(times) for times in zip(*all_runs)] for all_runs in finds.values())
        print("%-15s mount of %-8s read %.2f s (%.2f of the restore's speed), find %s %.2f s (source %.2f: %.1f times), again %.2f s (source %.2f: %.1f times)"
              % (name, mode, read, restore / read, "cold" if is_cold else "fresh", first, source, first / source, second, again, second / again), flush=True)

TOOLS = {"keepwell": keepwell, "metadata": metadata, "encrypted": encrypted, "served": served, "restic": restic, "borg": borg, "cp": cp}
STEPS = ("first", "unchanged", "restore")
results = {}
# The small files come first, and nothing is deleted between them: see fresh().
for name in ("small files", "incompressible", "compressible"):
    if args.only and args.only not in name: continue
    data = make(name.replace(" ", "-"))
    clean()
    subprocess.run("find '%s' -type f -print0 | xargs -0 cat > /dev/null" % data, shell=True)
    if args.tools == "looking":
        looking(name, data)
        continue
    for tool in args.tools.split(","):
        best = None
        for _ in range(args.runs):
            if name != "small files": clean()
            got = list(TOOLS[tool](data))
            best = got if best is None else [min(a, b) for a, b in zip(best, got)]
        results[name, tool] = best
        print("%-15s %-9s" % (name, tool), "  ".join("%s %6.2f s (cpu %6.2f, %4.0f MiB)" % ((s,) + r) for s, r in zip(STEPS, best)), flush=True)
    for tool in ("metadata", "encrypted", "served", "restic", "borg", "cp"):
        if (name, tool) in results and (name, "keepwell") in results:
            print("%-15s ratio to %-7s" % (name, tool), "  ".join("%s %5.2f" % (s, results[name, tool][i][0] / results[name, "keepwell"][i][0]) for i, s in enumerate(STEPS)), flush=True)
