"""What the sides of the CPU comparison have in common. Standard library only: it runs in llama.cpp's environment too.

A side is a process that loads the model, says so in one line of JSON, and then answers one request per line:

    {"do": "prefill", "ids": [...]}            seconds to compute the prompt, and the next token
    {"do": "decode", "ids": [...], "new": 64}  seconds for all but the first of the new tokens, and the tokens
    {"do": "score", "ids": [...]}              for each position: log-probability of the next id, and the likeliest id
    {"do": "memory"}                           peak resident memory in MiB
    {"do": "routing"}                          mean number of experts of the counted tokens (ours, with experts)

Every timed answer carries the wall time, this process's CPU time, and the share of the machine that others took.
"""

import json
import os
import resource
import sys
import time
from contextlib import contextmanager


def pin(threads):
    """Keep this process, and what it starts, on the first `threads` of the cores that it may use."""
    cores = sorted(os.sched_getaffinity(0))[:threads]
    if len(cores) < threads:
        raise SystemExit(f"{threads} threads were asked for, and this process may use {len(cores)} cores")
    os.sched_setaffinity(0, cores)


def busy_ticks():
    """Clock ticks that all cores spent on anything, what the hypervisor took included."""
    with open("/proc/stat", encoding="ascii") as file:
        user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, file.readline().split()[1:9])
    return user + nice + system + irq + softirq + steal


class Clock:
    """Wall time, own CPU time and others' share of the machine over a stretch of code.

    Attributes:
        seconds: wall time.
        cpu: CPU time of this process, all threads.
        others: CPU time of everything else, as a share of what the machine could have given.
    """

    @contextmanager
    def running(self):
        ticks, cpu, start = busy_ticks(), time.process_time(), time.perf_counter()
        yield
        self.seconds = time.perf_counter() - start
        self.cpu = time.process_time() - cpu
        theirs = (busy_ticks() - ticks) / os.sysconf("SC_CLK_TCK") - self.cpu
        self.others = max(0.0, theirs) / (self.seconds * os.cpu_count())

    def report(self):
        return {"seconds": self.seconds, "cpu": self.cpu, "others": self.others}


def serve(side, settings):
    """Answer requests until standard input ends.

    Args:
        side: has `prefill(ids) -> next id`, `decode(ids, new, clock) -> ids` (which runs the clock itself, from the
            first new token to the last) and `score(ids) -> (log-probabilities, likeliest ids)`.
        settings: for the first line.
    """
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a library prints must not look like an answer

    def answer(fields):
        answers.write(json.dumps(fields) + "\n")
        answers.flush()

    answer({"ready": settings})
    for line in sys.stdin:
        request = json.loads(line)
        clock = Clock()
        if request["do"] == "prefill":
            with clock.running():
                token = side.prefill(request["ids"])
            answer({"ids": [token], **clock.report()})
        elif request["do"] == "decode":
            ids = side.decode(request["ids"], request["new"], clock)
            answer({"ids": ids, **clock.report()})
        elif request["do"] == "score":
            logprobs, likeliest = side.score(request["ids"])
            answer({"logprobs": logprobs, "likeliest": likeliest})
        elif request["do"] == "memory":
            answer({"mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024})
        elif request["do"] == "routing":
            answer({"mean_k": side.mean_k()})
        else:
            raise SystemExit(f"unknown request {request['do']!r}")
