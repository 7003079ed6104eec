"""What goes into a step, and what waits."""

import numpy as np
import pytest

from stille.engine.block_manager import BlockManager
from stille.engine.config import PAGE_SIZE
from stille.engine.sampling_params import SamplingParams
from stille.engine.scheduler import Plan, Scheduler
from stille.engine.sequence import Request, Sequence, Status


class Driver:
    """A scheduler whose steps are read by hand."""

    def __init__(self, pages: int = 32, seqs: int = 4, budget: int = 100, max_len: int = 1000):
        self.scheduler = Scheduler(BlockManager(pages + 1), seqs, budget, max_len)
        self.count = 0

    def add(self, prompt: list[int], limit: int = 1000) -> Sequence:
        request = Request(str(self.count), prompt, SamplingParams(), 0)
        sequence = Sequence(request, 0, list(prompt), limit, self.count, frozenset(), None)
        request.sequences.append(sequence)
        self.count += 1
        self.scheduler.add(sequence)
        return sequence

    def read(self, plan: Plan) -> None:
        self.scheduler.step_read(plan.number)
        for sequence, sampled in zip(plan.sequences, plan.step.sample, strict=True):
            if sampled and sequence.status is not Status.FINISHED:
                sequence.tokens.append(7)
                if (len(sequence.tokens) - 1) % PAGE_SIZE == 0:
                    self.scheduler.page_filled(sequence)

    def run(self, steps: int = 1) -> Plan:
        for _ in range(steps):
            plan = self.scheduler.schedule()
            self.read(plan)
        return plan


def lengths(plan: Plan) -> dict[str, int]:
    return {s.request.request_id: int(n) for s, n in zip(plan.sequences, plan.step.lengths, strict=True)}


def test_decode_comes_first_and_prompts_share_what_is_left_of_the_budget():
    driver = Driver(budget=100)
    driver.add([1] * 30)
    assert lengths(driver.run()) == {"0": 30}
    driver.add([2] * 80)
    driver.add([3] * 90)
    plan = driver.run()
    assert lengths(plan) == {"0": 1, "1": 80, "2": 19}
    assert plan.step.sample.tolist() == [True, True, False]
    assert plan.step.num_decodes == 1
    assert plan.step.token_ids.tolist() == [-1] + [2] * 80 + [3] * 19
    assert plan.step.starts.tolist() == [30, 0, 0]
    plan = driver.run()
    assert lengths(plan) == {"0": 1, "1": 1, "2": 71}
    assert plan.step.starts.tolist() == [31, 80, 19]
    assert driver.run().step.is_decode


def test_a_chunk_of_one_token_counts_as_decode_and_stands_before_longer_ones():
    driver = Driver(budget=50)
    driver.add([1] * 51)
    driver.run()
    driver.add([2] * 9)
    plan = driver.scheduler.schedule()
    assert plan.step.lengths.tolist() == [1, 9]
    assert plan.step.num_decodes == 1
    assert plan.step.token_ids[0] == 1


def test_no_more_sequences_run_than_there_are_slots():
    driver = Driver(seqs=2)
    for _ in range(3):
        driver.add([1, 2, 3])
    assert len(driver.run().sequences) == 2
    assert len(driver.scheduler.waiting) == 1


def test_an_equal_prompt_waits_one_step_for_the_pages_that_are_being_computed():
    driver = Driver(budget=1000)
    prompt = list(range(2 * PAGE_SIZE + 10))
    for _ in range(3):
        driver.add(prompt)
    other = driver.add([5] * 20)
    assert lengths(driver.run()) == {"0": len(prompt), "3": 20}
    assert [s.request.request_id for s in driver.scheduler.waiting] == ["1", "2"]
    plan = driver.run()
    assert lengths(plan) == {"0": 1, "1": 10, "2": 10, "3": 1}
    shared = {tuple(plan.step.page_table[row, :2]) for row in range(4) if plan.sequences[row] is not other}
    assert len(shared) == 1


def test_nothing_in_flight_is_preempted():
    driver = Driver(pages=5, seqs=2, budget=300, max_len=5 * PAGE_SIZE)
    old = driver.add([1] * (2 * PAGE_SIZE - 1))
    young = driver.add([2] * (2 * PAGE_SIZE - 2))
    plans = [driver.scheduler.schedule() for _ in range(4)]  # the last one would need a sixth page
    assert [len(plan.sequences) for plan in plans[:3]] == [2, 2, 2]
    assert plans[3] is None
    assert young.status is Status.DECODE
    for plan in plans[:3]:
        driver.read(plan)
    assert driver.scheduler.schedule().sequences == [old]
    assert young.status is Status.WAITING
    assert young.pages == []
    assert driver.scheduler.preemptions == 1
    assert young.tokens[-3:] == [7, 7, 7], "its answer so far is kept"


def test_the_youngest_is_preempted_and_first_in_line_again():
    driver = Driver(pages=6, seqs=3, budget=400, max_len=6 * PAGE_SIZE)
    sequences = [driver.add([i] * (2 * PAGE_SIZE - 2)) for i in range(3)]
    driver.run(3)
    late = driver.add([9])
    driver.run()
    assert [s.status for s in sequences] == [Status.DECODE, Status.DECODE, Status.WAITING]
    assert list(driver.scheduler.waiting) == [sequences[2], late]


def test_pages_of_an_ended_sequence_stay_its_own_until_its_last_step_is_read():
    driver = Driver()
    sequence = driver.add([1] * 10)
    first = driver.scheduler.schedule()
    second = driver.scheduler.schedule()
    driver.read(first)
    driver.scheduler.end(sequence)
    assert driver.scheduler.blocks.num_used == 1
    assert driver.scheduler.has_work
    driver.read(second)
    assert driver.scheduler.blocks.num_used == 0
    assert not driver.scheduler.has_work


def test_the_last_token_of_an_answer_is_not_computed():
    driver = Driver()
    driver.add([1] * 10, limit=12)
    plans = [driver.scheduler.schedule() for _ in range(3)]
    assert plans[2] is None
    assert plans[1].step.starts.tolist() == [10]


def test_admission_leaves_a_page_for_each_running_sequence_and_nobody_overtakes():
    driver = Driver(pages=4, budget=300, max_len=4 * PAGE_SIZE)
    driver.add([1] * 2 * PAGE_SIZE)
    driver.run()  # its answer takes a third page
    driver.add([2] * PAGE_SIZE)
    driver.add([3])
    driver.run()
    assert [s.request.request_id for s in driver.scheduler.waiting] == ["1", "2"]


@pytest.mark.parametrize("pages", [3, 8])
def test_the_page_table_covers_what_is_computed(pages):
    driver = Driver(pages=pages, budget=70, max_len=pages * PAGE_SIZE)
    sequence = driver.add([1] * (PAGE_SIZE * 2 + 5))
    for _ in range(3):
        step = driver.run().step
        end = int(step.starts[0] + step.lengths[0])
        needed = -(-end // PAGE_SIZE)
        assert step.page_table.dtype == np.int32
        assert step.page_table[0, :needed].tolist() == sequence.pages[:needed]
