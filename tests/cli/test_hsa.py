"""`--attention hsa` and its budget on the command line."""

import pytest


@pytest.mark.parametrize(
    ("arguments", "mentions"),
    [
        (["generate", "hi", "--attention", "linear"], "full, hsa"),
        (["serve", "--hsa-budget", "4096"], "choose attention 'hsa'"),
        (["chat", "--attention", "hsa", "--hsa-budget", "100"], "budget is 100"),
        (["bench", "--attention", "hsa", "--hsa-budget", "64"], "budget of 64"),
    ],
)
def test_a_wrong_setting_is_one_clear_line(stille_here, arguments, mentions):
    run = stille_here(*arguments)
    assert (run.returncode, run.stdout) == (2, "")
    lines = [line for line in run.stderr.splitlines() if line]
    assert len(lines) == 1, run.stderr
    assert lines[0].startswith("error: ")
    assert mentions in lines[0]


def test_a_prompt_is_answered_as_with_full_attention_while_it_fits_the_budget(stille_here, tiny_checkpoint):
    prompt = "the quick brown fox " * 12
    common = [
        "generate",
        prompt,
        "--raw",
        "-n",
        "8",
        "--model",
        str(tiny_checkpoint),
        "--dtype",
        "fp32",
        "--device",
        "cpu",
    ]
    full, sparse = stille_here(*common), stille_here(*common, "--attention", "hsa", "--hsa-budget", "1024")
    assert full.returncode == sparse.returncode == 0
    assert full.stdout.strip()
    assert sparse.stdout == full.stdout
