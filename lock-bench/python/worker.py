"""Takes and releases locks of Python's Redis libraries, one thread for each task, as a worker of the benchmark.

The protocol is described in lock-bench/src/protocol.rs. `--library redis-py` uses the Lock of redis-py,
`--library python-redis-lock` that of the package of this name.
"""

import argparse
import json
import sys
import threading
import time

import redis

TTL_S = 30


def say(event):
    sys.stdout.write(json.dumps(event) + "\n")
    sys.stdout.flush()


class Course:
    """The course of one measurement, as the benchmark dictates it."""

    def __init__(self, tasks):
        self.window = (0, 0)
        self.stop = False
        # Where those meet who have done their share; all stop after the same round.
        self.last_round = False
        self.round = threading.Barrier(tasks, action=self.decide)
        self.lock = threading.Lock()
        self.waits, self.cycles, self.grants, self.errors, self.first_error = [], [], [], 0, None

    def open(self, seconds):
        now = time.perf_counter_ns()
        self.window = (now, now + int(seconds * 1e9))

    def decide(self):
        self.last_round = self.stop

    def contend(self, make_lock, job):
        waits, cycles, grants, errors, first_error, done = [], [], [], 0, None, 0
        share, hold = job.share, job.hold_us / 1e6
        while True:
            if job.cycles > 0:
                if done == job.cycles:
                    break
            elif share == 0:
                if self.stop:
                    break
            elif done > 0 and done % share == 0:
                self.round.wait()
                if self.last_round:
                    break
            done += 1
            start = time.perf_counter_ns()
            try:
                # A new object for each acquisition, as its users write it.
                lock = make_lock()
                lock.acquire()
                held, granted = time.perf_counter_ns(), time.time_ns()
                if hold > 0:
                    time.sleep(hold)
                releasing = time.time_ns()
                lock.release()
            except Exception as error:
                errors, first_error = errors + 1, first_error or repr(error)
                time.sleep(0.01)
                continue
            end = time.perf_counter_ns()
            opened, closed = self.window
            if job.cycles > 0 or opened <= end < closed:
                waits.append(held - start)
                cycles.append(end - start)
                if job.cycles > 0 or hold > 0:
                    grants.append([granted, releasing])
        with self.lock:
            self.waits += waits
            self.cycles += cycles
            self.grants += grants
            self.errors += errors
            self.first_error = self.first_error or first_error


def lock_maker(library, client, name):
    if library == "redis-py":
        return lambda: client.lock(name, timeout=TTL_S)
    import redis_lock

    return lambda: redis_lock.Lock(client, name, expire=TTL_S)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--library", choices=["redis-py", "python-redis-lock"], required=True)
    parser.add_argument("--url", required=True)
    parser.add_argument("--prefix", required=True)
    parser.add_argument("--names", choices=["own", "shared"], required=True)
    parser.add_argument("--process", type=int, default=0)
    parser.add_argument("--tasks", type=int, default=1)
    parser.add_argument("--batch", type=int, default=1, help="ignored")
    parser.add_argument("--share", type=int, default=0)
    parser.add_argument("--hold-us", type=int, default=0)
    parser.add_argument("--cycles", type=int, default=0)
    job = parser.parse_args()

    client = redis.Redis.from_url(job.url)
    client.ping()
    makers = []
    for task in range(job.tasks):
        name = f"{job.prefix}-one" if job.names == "shared" else f"{job.prefix}-{job.process}-{task}"
        makers.append(lock_maker(job.library, client, name))

    course, threads = Course(job.tasks), []
    say({"event": "ready"})
    for line in sys.stdin:
        words = line.split()
        if words[0] == "start":
            threads = [threading.Thread(target=course.contend, args=(maker, job), daemon=True) for maker in makers]
            for thread in threads:
                thread.start()
        elif words[0] == "measure":
            course.open(float(words[1]))
        elif words[0] == "stop":
            course.stop = True
            for thread in threads:
                thread.join()
            done = {"waits_ns": course.waits, "cycles_ns": course.cycles, "grants_ns": course.grants, "errors": course.errors}
            say({"event": "done", "batch": 1, "first_error": course.first_error, **done})


main()
